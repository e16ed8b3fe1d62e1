"""Measures of maps (faithfulness, sparsity, likeness, localisation, sanity), and the gallery."""
