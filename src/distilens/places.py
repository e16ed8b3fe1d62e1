"""Whether a feature's grid is one of places in the image: a patch of the image is changed, and the feature must change there.

A shape alone does not say so: keys by head, attention matrices, windows and tokens in another order have four axes too.
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

from distilens import taps

SPOTS = ((1, 1), (1, 7), (7, 1), (7, 7), (3, 5))
"""The middles of the patches that are changed, one an image: row and column in eighths of the image's sides."""
ENOUGH = 3
"""So many of the patches must be found at their place: turned, mirrored, or in windows at most two are, and random weights may
hide two."""
CHANNELS = 64
"""About so many channels are looked at."""
ALIKE = 0.08
"""Where a smaller share of a change depends on which patch was changed, a feature changes everywhere alike and shows no order: 64
channels of random weights deep in a network have 0.06 at most, windows, attention and tokens in another order 0.13 at least."""
FEW = 64
"""On a grid of fewer places nothing is averaged over neighbours, so chance has more of a share where there are few channels."""
NEAREST = 3
"""So many taps are named where one is refused."""


@dataclass(frozen=True)
class Finding:
    """What a forward shows of a module whose output looks like a grid.

    Attributes:
        shape: of the output for a batch.
        grid: height and width, as `taps.grid` reads it.
        right: how many of the patches changed the feature where they are.
        shows: whether the feature changes so differently for different patches that its order can be seen.
        fault: why the grid is not one of places in the image; empty where it is.
    """

    shape: tuple[int, ...]
    grid: tuple[int, int]
    right: int = 0
    shows: bool = False
    fault: str = ""

    @property
    def followed(self) -> bool:
        """Whether the feature was seen to change where the image does: more than to have no fault, for some show nothing."""
        return self.right >= ENOUGH and not self.fault


def look(model: nn.Module, image: Float[Tensor, "1 c h w"]) -> dict[str, Finding]:
    """What one forward shows of every module whose output looks like a grid, by path.

    The forward runs in eval mode without a graph, on copies of the image with a changed patch each, and leaves no trace. Weights
    that are zero everywhere get other values: see `taps.filled`. Of a module that is called more than once the last call counts,
    as for a tap.
    """
    paths = {module: path for path, module in model.named_modules() if path}
    size = (image.shape[2], image.shape[3])
    found: dict[str, Finding] = {}
    before: list[tuple[Tensor, Finding]] = []  # a container often returns what its last child has returned

    def note(module: nn.Module, inputs: tuple, output: object) -> None:
        found.pop(paths[module], None)
        if not taps.is_spatial(output, size):
            return
        if not before or before[0][0] is not output:
            before[:] = [(output, finding_of(output, size))]
        finding = before[0][1]
        # a convolution keeps the order of its places, even where a large or dilated kernel smears a patch over a small image
        ordered = isinstance(module, nn.Conv2d) and finding.shows
        found[paths[module]] = replace(finding, fault="") if ordered else finding

    handles = [module.register_forward_hook(note, prepend=True) for module in paths]
    with taps.evaluating(model), torch.no_grad():
        try:
            torch.func.functional_call(model, taps.filled(model), (changed(image),))
        finally:
            for handle in handles:
                handle.remove()
    return found


def changed(image: Float[Tensor, "1 c h w"]) -> Float[Tensor, "b c h w"]:
    """Copies of an image with one changed patch each: an eighth of its sides, of another colour and another texture."""
    images = image.repeat(len(SPOTS), 1, 1, 1)
    height, width = image.shape[2:]
    rows, columns = max(1, height // 8), max(1, width // 8)
    texture = torch.arange(image.shape[1] * rows * columns, device=image.device).cos().mul(2).view(-1, rows, columns)
    patch = (texture + torch.linspace(2, -1, image.shape[1], device=image.device)[:, None, None]).to(image.dtype)
    for each, (row, column) in zip(images, SPOTS, strict=True):
        top, left = row * height // 8 - rows // 2, column * width // 8 - columns // 2
        top, left = min(max(0, top), height - rows), min(max(0, left), width - columns)
        each[:, top : top + rows, left : left + columns] = patch
    return images


def finding_of(output: Tensor, size: tuple[int, int]) -> Finding:
    """What the output for `changed` images says of its grid."""
    shape, feature = tuple(output.shape), taps.grid(output, size).detach()
    height, width = grid = (feature.shape[2], feature.shape[3])
    if shape[0] != len(SPOTS):
        rows = f"it has {shape[0]} rows for {len(SPOTS)} images"
        return Finding(shape, grid, fault=f"{rows}: windows, heads or places are among them")
    short = min(2, min(grid) / 2)  # without padding a border loses a place or two
    if abs(height * size[1] - width * size[0]) > short * max(size):
        return Finding(shape, grid, fault=f"{height} × {width} is not the proportion of {size[0]} × {size[1]} pixels")
    some = feature[:, :: max(1, feature.shape[1] // CHANNELS)].float()
    distance = (some - some.mean(0)).abs().sum(1)  # from the mean image, which is the plain one but for a fifth
    if not distance.any():
        return Finding(shape, grid)  # such as a ReLU that lets none of these images through: it shows nothing
    right, moving = followed(distance)
    chance = math.sqrt(CHANNELS / min(CHANNELS, some.shape[1])) if height * width < FEW else 1
    shows = moving >= ALIKE * chance
    found = f"of {len(SPOTS)} patches of the image that were changed, {right} changed it at their place"
    fault = f"{found}: its places are in another order, or are none" if shows and right < ENOUGH else ""
    return Finding(shape, grid, right, shows, fault)


def followed(distance: Float[Tensor, "patches h w"]) -> tuple[int, float]:
    """How many patches have changed a feature at their place, and the share of a change that depends on which patch it was.

    A patch has done so if its change is larger around its own place than any other patch's, and on a fine grid larger there than
    elsewhere (an attention matrix changes along a whole row). Compared are shares of each patch's change, and less the mean
    patch's: deep random features spread a change over all places, and some places change whatever is changed.
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
    )  # one axis after the other: large boxes
    smooth = functional.avg_pool2d(smooth, (1, 2 * along + 1), 1, (0, along))
    most = smooth.flatten(1).argmax(1, keepdim=True)
    there = around.to(share).flatten(1).gather(1, most)[:, 0] > 0
    return int((foremost & there).sum()), moving


@cache
def surroundings(height: int, width: int) -> tuple[Float[Tensor, "spots h w"], Bool[Tensor, "spots spots"]]:
    """1 at the places of a grid within one place, or an eighth of the side, of each spot; and which two spots share no place."""
    inside = []
    for places, spots in zip((height, width), zip(*SPOTS, strict=True), strict=True):
        middles = (torch.arange(places) + 0.5) / places
        away = (middles - torch.tensor(spots)[:, None] / 8).abs()
        inside.append((away <= max(0.75 / places, 1 / 8)).float())
    around = inside[0][:, :, None] * inside[1][:, None, :]
    return around, torch.einsum("ihw,jhw->ij", around, around) == 0


def nearest(path: str, findings: Mapping[str, Finding]) -> list[str]:
    """The taps that put features where they belong and are nearest to a path: most of it in common, then next in the forward."""
    order = list(findings)
    at = order.index(path)

    def apart(other: str) -> tuple[int, int]:
        own, their = path.split("."), other.split(".")
        common = next((i for i, (one, two) in enumerate(zip(own, their, strict=False)) if one != two), len(their))
        return -common, abs(order.index(other) - at)

    return sorted((one for one in order if not findings[one].fault), key=apart)[:NEAREST]
