"""Steps that dense losses share, against loops over the places."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from distilens.foundation.errors import UserError
from distilens.losses.places import NONE, classes_on_grid, directions, nearest, per_image
from distilens.tasks import VOID


def test_one_number_per_image_stays_and_places_are_averaged():
    values = torch.randn(4)
    assert per_image(values) is values
    assert per_image(values, torch.tensor([True, False, True, True]))[1] == 0
    places = torch.randn(2, 3, 5)
    assert torch.allclose(per_image(places), places.mean((1, 2)))
    valid = torch.rand(2, 3, 5) < 0.5
    valid[1] = False
    assert torch.allclose(per_image(places, valid), torch.stack([places[0][valid[0]].mean(), torch.tensor(0.0)]))


@pytest.mark.parametrize(("size", "grid"), [(8, 4), (8, 3), (8, 1), (3, 8), (8, 8), (13, 5)])
def test_the_pixel_under_the_centre_of_a_place_counts(size, grid):
    targets = torch.randint(0, 3, (2, size, size + 1), generator=torch.Generator().manual_seed(0)).byte()
    found = classes_on_grid(targets, torch.zeros(2, 3, grid, grid))
    columns = size + 1
    for i in range(grid):
        for j in range(grid):
            y, x = int(np.floor((i + 0.5) * size / grid)), int(np.floor((j + 0.5) * columns / grid))
            assert (found[:, i, j] == targets[:, y, x]).all()
    exact = functional.interpolate(targets[:, None].float(), (grid, grid), mode="nearest-exact")[:, 0]
    assert torch.equal(found, exact.long())


def test_void_has_no_class_and_other_values_are_refused():
    targets = torch.tensor([[[0, VOID], [2, 1]]], dtype=torch.uint8)
    assert classes_on_grid(targets, torch.zeros(1, 3, 2, 2)).tolist() == [[[0, NONE], [2, 1]]]
    with pytest.raises(UserError, match="go from 0 to 1, and 255 is void; given 2"):
        classes_on_grid(targets, torch.zeros(1, 2, 2, 2))
    assert nearest(targets, torch.zeros(1, 2, 2, 2)).max() == 2  # the channels of a feature are not classes


def test_directions_have_length_1_and_nothing_has_none():
    vectors = torch.randn(2, 3, 4).requires_grad_()
    with torch.no_grad():
        vectors[0, :, 1] = 0
        vectors[1, :, 2] = 1e-9
    found = directions(vectors)
    lengths = found.norm(dim=1)
    assert lengths[0, 1] == lengths[1, 2] == 0
    assert torch.allclose(lengths.flatten()[[0, 2, 3, 4, 5, 7]], torch.ones(6))
    (found * torch.randn(2, 3, 4)).sum().backward()
    assert vectors.grad is not None and vectors.grad.isfinite().all() and not vectors.grad[0, :, 1].any()
