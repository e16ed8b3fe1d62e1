"""Gradients over many points are their sum, however they are cut into chunks."""

import pytest
import torch
from torch import Tensor, nn

from distilens.core import Model
from distilens.explain.path import blocks, rows_at_once, summed_gradients
from distilens.foundation.errors import UserError

TARGET = torch.tensor([1, 0, 2])
STEPS = 4


def smooth() -> Model:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3))
    return Model(network, tuple("abc"), size=(6, 6)).double().eval()


def images() -> Tensor:
    return torch.rand(3, 3, 6, 6, generator=torch.Generator().manual_seed(1)).double()


def points(rows: slice, steps: slice) -> tuple[Tensor, Tensor]:
    """Other points and factors for every image and every step."""
    share = torch.arange(1, STEPS + 1)[steps].double().view(1, -1, 1, 1, 1) / STEPS
    factor = share**2 * torch.tensor([1.0, 2, 5])[rows].view(-1, 1, 1, 1, 1)
    return images()[rows, None] * share, factor.double()


def by_hand(net: Model) -> Tensor:
    total = torch.zeros_like(images())
    for image in range(3):
        for step in range(STEPS):
            at, factor = points(slice(image, image + 1), slice(step, step + 1))
            leaf = at[0].requires_grad_()
            (gradient,) = torch.autograd.grad(net.logits(leaf)[0, TARGET[image]], leaf)
            total[image] += (factor[0] * gradient)[0]
    return total


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7, 12, 100, None])
@pytest.mark.parametrize("create_graph", [False, True])
def test_the_sum_is_that_of_a_loop_over_images_and_steps(chunk, create_graph):
    net = smooth()
    found = summed_gradients(net, images(), TARGET, points, STEPS, chunk=chunk, create_graph=create_graph)
    assert torch.allclose(found, by_hand(net), rtol=1e-10)
    assert found.requires_grad == create_graph
    assert not summed_gradients(net, images(), TARGET, points, STEPS, chunk=chunk).requires_grad


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 6, 7, 11, 100])
@pytest.mark.parametrize(("count", "steps"), [(5, 1), (5, 6), (1, 9), (6, 6)])
def test_blocks_hold_each_image_and_step_once_and_no_more_rows_than_allowed(rows, count, steps):
    seen = torch.zeros(count, steps)
    found = list(blocks(count, steps, rows))
    for part, few in found:
        assert part.stop <= count
        assert few.stop <= steps
        assert 0 < (part.stop - part.start) * (few.stop - few.start) <= rows
        seen[part, few] += 1
    assert (seen == 1).all()
    assert found[0][0] == slice(0, min(rows, count))  # as many images as fit, then steps
    if rows >= count * steps:
        assert found == [(slice(0, count), slice(0, steps))]


@pytest.mark.parametrize(
    ("side", "recorded", "rows"),
    [(32, True, 64), (16, True, 64), (224, True, 8), (64, True, 16), (32, False, 32), (64, False, 8)],
)
def test_the_rows_at_once_fit_the_size_of_the_images(side, recorded, rows):
    pixels = torch.empty(1, 3, side, side)
    assert rows_at_once(pixels, None, recorded=recorded) == rows
    assert rows_at_once(pixels, 5, recorded=recorded) == 5
    assert rows_at_once(pixels, None) == rows_at_once(pixels, None, recorded=True)


def test_rows_at_once_of_another_device_are_more_and_depend_on_both_sides():
    assert rows_at_once(torch.empty(1, 3, 32, 32, device="meta"), None) == 1024
    assert rows_at_once(torch.empty(1, 3, 128, 256, device="meta"), None) == 256
    assert rows_at_once(torch.empty(1, 3, 1024, 1024, device="meta"), None) == 32


def test_logits_that_do_not_depend_on_the_pixels_are_refused():
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(len(x), 3).double()

    net = Model(Constant(), tuple("abc"), size=(6, 6)).double().eval()
    with pytest.raises(UserError):
        summed_gradients(net, images(), TARGET, points, STEPS, chunk=None)
