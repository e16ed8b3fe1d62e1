"""What a Python object is taken for."""

import numpy as np
import pytest
import torch

from distilens.data.sources.object_kinds import hold_masks, is_mask_columns, is_set, mask_of

X, M, Y = np.zeros((5, 3, 6, 8), np.uint8), np.zeros((5, 6, 8), np.uint8), np.arange(5)


@pytest.mark.parametrize(
    ("given", "masks"),
    [
        ((X, M), True),
        ((X.transpose(0, 2, 3, 1), M), True),
        ((X[:, 0], M), True),
        ((X, M[:, None]), True),
        ((torch.zeros(5, 3, 6, 8), torch.zeros(5, 6, 8, dtype=torch.long)), True),
        ((X, Y), False),
        ((X, M[:, :5]), False),
        ((X, M[:4]), False),
        ((X, M.astype(np.float32)), False),  # maps of numbers belong to a task of the user's own
        ((X, X), False),
        (X, False),
    ],
)
def test_arrays_of_masks(given, masks):
    assert is_mask_columns(given) is masks
    assert hold_masks({"train": given}) is masks
    if masks:
        assert is_set(given)


@pytest.mark.parametrize(
    ("item", "there"),
    [
        ((X[0], M[0]), True),
        ((X[0], 3), False),
        ((X[0], None), False),
        ({"image": X[0], "mask": M[0]}, True),
        ({"image": X[0], "mask": M[0], "label": 3}, False),
        ({"pixel_values": X[0], "label": M[0]}, True),
        ({"image": X[0]}, False),
        (X[0], False),
    ],
)
def test_the_mask_of_an_item(item, there):
    assert (mask_of(item) is not None) is there
