"""Test whether a feature's grid is spatial: change a patch of the image, and see whether the feature changes at that place.

The shape does not show this: keys per head, attention matrices, windows and reordered tokens also have four axes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from distilens.models import taps

SPOTS = ((1, 1), (1, 7), (7, 1), (7, 7), (3, 5))
"""The centres of the changed patches, one per image: row and column in eighths of the image's sides."""
ENOUGH = 3
"""Minimum number of patches that must be found at their place. In rotated, mirrored or windowed features at most two are, and
random weights may hide two."""
CHANNELS = 64
"""Approximate number of channels that are tested."""
ALIKE = 0.08
"""If a smaller share of the change depends on the patch, the feature changes equally everywhere and shows no order. Random
weights deep in a network (64 channels) have at most 0.06; windows, attention and reordered tokens at least 0.13."""
FEW = 64
"""Grids with fewer places are not averaged over neighbours, so chance matters more if there are few channels."""
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
"""They keep the order of their places, even if a large or dilated kernel spreads a patch over a small image."""
LOCAL = (nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.MaxPool2d, nn.AvgPool2d)
"""They keep the order of the places of their input. Behind a convolution they are not tested: random weights of a small network
may hide three of the patches."""
NEAREST = 3
"""Number of other taps that the message for a refused tap lists."""


@dataclass(frozen=True)
class Finding:
    """The result of the test for a module whose output looks like a grid.

    Attributes:
        shape: of the output for a batch.
        grid: height and width, as read by `taps.grid`.
        right: the number of patches that changed the feature at their own place.
        shows: whether the changes differ enough between patches to show the feature's order.
        fault: why the grid is not one of places in the image; empty if it is one.
    """

    shape: tuple[int, ...]
    grid: tuple[int, int]
    right: int = 0
    shows: bool = False
    fault: str = ""

    @property
    def followed(self) -> bool:
        """Whether the feature was seen to change where the image does. A feature without a fault may show nothing."""
        return self.right >= ENOUGH and not self.fault


def test_places(model: nn.Module, image: Float[Tensor, "1 c h w"]) -> dict[str, Finding]:
    """Test every module whose output looks like a grid, in one forward pass; the results by path.

    The pass runs in eval mode without a graph, on copies of the image with one changed patch each, and leaves no trace. Weights
    that are zero everywhere get other values: see `taps.fill_zero_weights`. If a module is called more than once, the last call
    counts, as for a tap.
    """
    paths = {module: path for path, module in model.named_modules() if path}
    size = (image.shape[2], image.shape[3])
    findings: dict[str, Finding] = {}
    before: list[tuple[Tensor, Finding]] = []  # a container often returns the output of its last child
    ordered: list[Tensor] = []  # the last output of a convolution, or of what keeps its order

    def note(module: nn.Module, inputs: tuple, output: object) -> None:
        findings.pop(paths[module], None)
        if not taps.is_spatial(output, size):
            return
        if not before or before[0][0] is not output:
            before[:] = [(output, make_finding(output, size))]
        finding = before[0][1]
        source = inputs[0] if isinstance(module, LOCAL) and inputs else output
        if (isinstance(module, CONVOLUTIONS) and finding.shows) or (ordered and source is ordered[0]):
            ordered[:] = [output]
            finding = replace(finding, fault="")
        findings[paths[module]] = finding

    handles = [module.register_forward_hook(note, prepend=True) for module in paths]
    with taps.evaluating(model), torch.no_grad():
        try:
            torch.func.functional_call(model, taps.fill_zero_weights(model), (change_patches(image),))
        finally:
            for handle in handles:
                handle.remove()
    return findings


def change_patches(image: Float[Tensor, "1 c h w"]) -> Float[Tensor, "b c h w"]:
    """Copies of an image with one changed patch each: an eighth of its sides, with another colour and texture."""
    images = image.repeat(len(SPOTS), 1, 1, 1)
    height, width = image.shape[2:]
    rows, columns = max(1, height // 8), max(1, width // 8)
    texture = torch.arange(image.shape[1] * rows * columns, device=image.device).cos().mul(2).view(-1, rows, columns)
    patch = (texture + torch.linspace(2, -1, image.shape[1], device=image.device)[:, None, None]).to(image.dtype)
    for copy, (row, column) in zip(images, SPOTS, strict=True):
        top, left = row * height // 8 - rows // 2, column * width // 8 - columns // 2
        top, left = min(max(0, top), height - rows), min(max(0, left), width - columns)
        copy[:, top : top + rows, left : left + columns] = patch
    return images


def make_finding(output: Tensor, size: tuple[int, int]) -> Finding:
    """The finding for a module, from its output for `change_patches` images."""
    shape, feature = tuple(output.shape), taps.grid(output, size).detach()
    height, width = grid = (feature.shape[2], feature.shape[3])
    if shape[0] != len(SPOTS):
        rows = f"it has {shape[0]} rows for {len(SPOTS)} images"
        return Finding(shape, grid, fault=f"{rows}, so its first axis also counts windows, heads or places")
    short = min(2, min(grid) / 2)  # without padding the border loses a place or two
    if abs(height * size[1] - width * size[0]) > short * max(size):
        return Finding(
            shape, grid, fault=f"{height} × {width} does not have the proportions of {size[0]} × {size[1]} pixels"
        )
    channels = feature[:, :: max(1, feature.shape[1] // CHANNELS)].float()
    distance = (
        (channels - channels.mean(0)).abs().sum(1)
    )  # from the mean over the images: at each patch 4 of 5 are unchanged
    if not distance.any():
        return Finding(shape, grid)  # for example a ReLU whose output is 0 for all these images: it shows nothing
    right, moving = count_followed(distance)
    chance = math.sqrt(CHANNELS / min(CHANNELS, channels.shape[1])) if height * width < FEW else 1
    shows = moving >= ALIKE * chance
    counts = f"{len(SPOTS)} patches of the image were changed, and it changed at the place of {right} of them"
    fault = f"{counts}: its places are in another order, or it has no places" if shows and right < ENOUGH else ""
    return Finding(shape, grid, right, shows, fault)


def count_followed(distance: Float[Tensor, "patches h w"]) -> tuple[int, float]:
    """The number of patches that changed a feature at their place, and the share of the change that depends on the patch.

    A patch counts if its change around its own place is larger than that of any other patch, and, on a fine grid, larger there
    than elsewhere (an attention matrix changes along a whole row). We compare shares of each patch's change, minus the mean over
    the patches: deep random features spread a change over all places, and some places change for every patch.
    """
    share = distance / distance.sum((1, 2), keepdim=True).clamp_min(torch.finfo(distance.dtype).tiny)
    around, apart = surroundings(*distance.shape[1:])
    mass = torch.einsum("ihw,jhw->ij", share, around.to(share))  # of patch i's change around spot j
    foremost = mass.diagonal() > mass.where(apart.to(mass.device), 0).amax(0)
    more = share - share.mean(0)
    moving = float(more.abs().sum((1, 2)).median() / 2)
    height, width = distance.shape[1:]
    if height * width < FEW:
        return int(foremost.sum()), moving
    down, along = height // 8, width // 8
    smooth = functional.avg_pool2d(
        more[:, None], (2 * down + 1, 1), 1, (down, 0)
    )  # one axis after the other, because the boxes are large
    smooth = functional.avg_pool2d(smooth, (1, 2 * along + 1), 1, (0, along))
    most = smooth.flatten(1).argmax(1, keepdim=True)
    there = around.to(share).flatten(1).gather(1, most)[:, 0] > 0
    return int((foremost & there).sum()), moving


@cache
def surroundings(height: int, width: int) -> tuple[Float[Tensor, "spots h w"], Bool[Tensor, "spots spots"]]:
    """1 at the places near each spot (within 0.75 places, or an eighth of the side); and which pairs of spots do not overlap."""
    inside = []
    for places, spots in zip((height, width), zip(*SPOTS, strict=True), strict=True):
        middles = (torch.arange(places) + 0.5) / places
        away = (middles - torch.tensor(spots)[:, None] / 8).abs()
        inside.append((away <= max(0.75 / places, 1 / 8)).float())
    around = inside[0][:, :, None] * inside[1][:, None, :]
    return around, torch.einsum("ihw,jhw->ij", around, around) == 0


def nearest(path: str, findings: Mapping[str, Finding]) -> list[str]:
    """The nearest taps whose grids are spatial: first by the common part of the path, then by the order in the forward pass."""
    order = list(findings)
    at = order.index(path)

    def apart(other: str) -> tuple[int, int]:
        own, their = path.split("."), other.split(".")
        common = next((i for i, (one, two) in enumerate(zip(own, their, strict=False)) if one != two), len(their))
        return -common, abs(order.index(other) - at)

    return sorted((other for other in order if not findings[other].fault), key=apart)[:NEAREST]
