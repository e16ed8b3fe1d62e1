"""Comparing models: FSS, RS, UniCAM, and the comparison on a run's page."""
