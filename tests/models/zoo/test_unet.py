"""U-Net: shapes and parameters by hand, odd sizes as padding by hand, and the cheaper front by its multiplications."""

import re

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from distilens.foundation.errors import UserError
from distilens.models import build_model
from distilens.models.zoo.unet import unet
from distilens.tasks import Segmentation

TASK = Segmentation(("sky", "road", "car"))


def unet_sum(width: int, depth: int, classes: int) -> int:
    """By hand: a 3x3 convolution from c to d has 9cd weights and a batch norm of 2d behind it; a 2x2 one 4cd and d."""
    channels = [width * 2**level for level in range(depth)]
    total = classes * width + classes
    for before, after in zip([3, *channels[:-1]], channels, strict=True):
        total += 9 * before * after + 9 * after**2 + 4 * after
    for own in channels[:-1]:
        total += 4 * 2 * own * own + own + 9 * 2 * own * own + 9 * own**2 + 4 * own
    return total


@pytest.mark.parametrize(("width", "depth"), [(4, 4), (6, 3), (2, 5)])
def test_parameters_by_hand(width, depth):
    made = unet(5, width=width, depth=depth)
    assert sum(parameter.numel() for parameter in made.parameters()) == unet_sum(width, depth, 5)


def test_the_grids_of_the_taps():
    model = build_model("unet:width=4", TASK, (32, 48)).eval()
    paths = [*(f"encoder.{level}" for level in range(4)), *(f"decoder.{step}" for step in range(3)), "head"]
    for path in paths:
        model.tap(path)
    features = model(torch.rand(2, 3, 32, 48)).features
    shapes = {path: tuple(features[path].shape[1:]) for path in paths}
    assert shapes == {
        "encoder.0": (4, 32, 48),
        "encoder.1": (8, 16, 24),
        "encoder.2": (16, 8, 12),
        "encoder.3": (32, 4, 6),
        "decoder.0": (16, 8, 12),
        "decoder.1": (8, 16, 24),
        "decoder.2": (4, 32, 48),
        "head": (3, 32, 48),
    }


@pytest.mark.parametrize("size", [(31, 45), (8, 9), (1, 17)])
def test_odd_sizes_are_padded_and_cropped_back(size):
    network = unet(3, width=4).eval()
    images = torch.rand(2, 3, *size)
    height, width = (-(-side // 8) * 8 for side in size)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    rows = torch.arange(-top, height - top).clamp(0, size[0] - 1)
    columns = torch.arange(-left, width - left).clamp(0, size[1] - 1)
    by_hand = network(images[:, :, rows][:, :, :, columns])[..., top : top + size[0], left : left + size[1]]
    assert network(images).shape == (2, 3, *size)
    assert torch.equal(network(images), by_hand)


def multiplications(network: torch.nn.Module, side: int = 16) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.rand(1, 3, side, side))
    return counter.get_total_flops() // 2


def test_a_grouped_front_has_the_same_taps_and_fewer_multiplications():
    dense, grouped = unet(3, width=8), unet(3, width=8, front="grouped")
    saved = 0
    for level in range(4):
        before, after, places = (8 * 2 ** (level - 1), 8 * 2**level, (16 // 2**level) ** 2)
        for channels in (before, after) if level else (after,):  # the first convolution, of the colours, stays
            saved += places * (9 * channels * after - 9 * channels * after // 4 - after**2)
    assert multiplications(dense) - multiplications(grouped) == saved
    shares = [module.groups for module in grouped.encoder.modules() if isinstance(module, torch.nn.Conv2d)]
    assert shares == [1, *[4, 1] * 7]
    for level in range(4):
        feature = torch.rand(1, 3 if not level else 8 * 2 ** (level - 1), 16, 16)
        assert dense.encoder[level](feature).shape == grouped.encoder[level](feature).shape


@pytest.mark.parametrize(
    ("notation", "message"),
    [
        ("unet:width=6,front=grouped", "width=6 is not a multiple of groups=4"),
        ("unet:width=0", "greater than or equal to 1; given '0'"),
        ("unet:depth=1", "greater than or equal to 2; given '1'"),
        ("unet:front=thin", "input should be 'dense' or 'grouped'; given 'thin'"),
    ],
)
def test_what_cannot_be_built(notation, message):
    with pytest.raises(UserError, match=re.escape(message)):
        build_model(notation, TASK, (32, 32))


def test_it_learns_where_a_square_is():
    torch.manual_seed(0)
    images, targets = torch.rand(8, 3, 15, 15) / 2, torch.zeros(8, 15, 15, dtype=torch.long)
    for number in range(8):
        row, column = torch.randint(0, 9, (2,)).tolist()
        images[number, :, row : row + 5, column : column + 5] += 0.5
        targets[number, row : row + 5, column : column + 5] = 1
    network = unet(2, width=4, depth=3)
    optimizer = torch.optim.AdamW(network.parameters(), 0.01)
    for _ in range(40):
        optimizer.zero_grad()
        functional.cross_entropy(network(images), targets).backward()
        optimizer.step()
    right = network(images).argmax(1) == targets
    assert right.float().mean() > 0.97
    assert right[targets == 1].float().mean() > 0.9


@pytest.mark.parametrize("seed", range(4))
def test_all_its_grids_are_taps_whatever_its_weights(seed):
    torch.manual_seed(seed)
    model = build_model("unet:width=4", TASK, (32, 48))
    assert [path for path, finding in model.places.items() if finding.fault] == []
    assert model.path_of("coarsest") == "encoder.3"
