"""Runs: from a recipe to a folder with weights, scores and a page."""
