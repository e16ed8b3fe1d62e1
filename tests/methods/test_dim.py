"""Images are dimmed where the map is low, those that were drawn and no others, and by the moved map."""

import pytest
import torch

from distilens.core import Answer, Batch
from distilens.methods import build_methods
from distilens.methods.dim import Dim


def batch(count: int = 6, epoch: int = 0) -> Batch:
    return Batch(torch.rand(count, 3, 8, 8), torch.zeros(count, dtype=torch.long), torch.arange(count), epoch=epoch)


def test_a_pixel_keeps_the_share_that_its_map_says():
    method, given = Dim(floor=0.25), batch()
    maps = torch.zeros(6, 8, 8)
    maps[:, :4] = 2.0  # the upper half matters, whatever the scale
    seen = method.transform(given, Answer(maps={method.needs[0]: maps}))
    assert torch.allclose(seen.view[:, :, :4], given.images[:, :, :4])
    assert torch.allclose(seen.view[:, :, 4:], given.images[:, :, 4:] * 0.25)
    assert torch.equal(seen.images, given.images)  # what teachers see is never changed


def test_an_empty_map_dims_evenly_and_a_coarse_one_is_resized():
    method, given = Dim(floor=0.5), batch()
    nothing = method.transform(given, Answer(maps={method.needs[0]: torch.zeros(6, 2, 2)}))
    assert torch.allclose(nothing.view, given.images * 0.5)
    coarse = torch.zeros(6, 2, 2)
    coarse[:, 0, 0] = 1
    light = method.transform(given, Answer(maps={method.needs[0]: coarse})).view / given.images
    assert torch.allclose(light[:, :, 0, 0], torch.ones(6, 3))
    assert torch.allclose(light[:, :, 7, 7], torch.full((6, 3), 0.5))


def test_only_the_images_drawn_are_dimmed_others_in_each_epoch():
    method = Dim(share=0.5)
    assert method.needs == ("maps:gradcam:of=canonical,share=0.5,draw=dim",)
    changed = []
    for epoch in range(20):
        given = batch(64, epoch)
        seen = method.transform(given, Answer(maps={method.needs[0]: torch.zeros(64, 2, 2)}))
        dimmed = (seen.view != given.images).flatten(1).any(1)
        assert torch.equal(dimmed, given.draw("dim")[:, 0] < 0.5)
        changed.append(dimmed)
    share = torch.stack(changed).float().mean().item()
    assert share == pytest.approx(0.5, abs=0.05)
    assert not torch.equal(changed[0], changed[1])


def test_it_goes_by_any_explainer_in_notation():
    (method,) = build_methods(["dim:explainer=[ig:steps=4],floor=0.3,share=0.1"]).values()
    assert method.needs == ("maps:ig:steps=4,of=canonical,share=0.1,draw=dim",)
    assert method.floor == 0.3
