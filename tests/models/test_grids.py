"""Maps and features on another grid."""

import torch

from distilens.models.grids import on_one_grid, resized


def test_maps_are_averaged_over_areas_and_grow_between_their_places():
    maps = torch.arange(16.0).view(1, 4, 4)
    assert torch.equal(resized(maps, (2, 2))[0], torch.tensor([[2.5, 4.5], [10.5, 12.5]]))
    assert torch.equal(resized(maps, (4, 2))[0, 0], torch.tensor([0.5, 2.5]))
    grown = resized(maps, (8, 8))
    assert grown.shape == (1, 8, 8)
    assert torch.allclose(grown[0, 0, :4], torch.tensor([0.0, 0.25, 0.75, 1.25]))
    assert resized(maps, (4, 4)) is maps


def test_grids_meet_at_the_smaller_one_by_areas():
    ours, theirs = torch.rand(2, 8, 8), torch.rand(2, 3, 4, 4)[:, 0]
    small, same = on_one_grid(ours, theirs)
    assert torch.allclose(small[0, 1, 2], ours[0, 2:4, 4:6].mean())
    assert torch.equal(same, theirs)
    assert on_one_grid(ours, theirs, 2)[1].shape == (2, 2, 2)
