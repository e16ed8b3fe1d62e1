"""Empty maps are known, shares sum to 1, and maps to be drawn are scaled."""

import torch

from distilens.explain.maps import empty, normalise_maps, strength


def test_empty_maps_are_known_and_stay_empty():
    maps = torch.arange(18.0).view(2, 3, 3)
    maps[1] = 0
    assert empty(maps).tolist() == [False, True]
    assert empty(-maps).tolist() == [False, True]
    assert not strength(maps[1]).any()


def test_strength_is_the_share_of_the_absolute_values():
    maps = torch.tensor([[[1.0, -2], [0, 5]]])
    assert torch.equal(strength(maps), torch.tensor([[[0.125, 0.25], [0, 0.625]]]))
    assert torch.equal(strength(-4 * maps), strength(maps))


def test_normalised_maps_lie_between_0_and_1():
    drawn = torch.randn(5, 14, 14)
    for signed in (False, True):
        found = normalise_maps(drawn, signed=signed)
        assert torch.allclose(found.amax((1, 2)), torch.ones(5))
        assert found.amin() == 0
    assert not normalise_maps(torch.full((1, 3, 3), 2.0), signed=False).any()
