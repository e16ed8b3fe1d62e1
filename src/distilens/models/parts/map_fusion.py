"""The part of the method `cam_fusion`, which fuses a map with the last feature, and its folded form after training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from distilens.foundation.settings import Count
from distilens.models.grids import resized
from distilens.models.parts import build_part

Grid = tuple[Count, Count]
Fuse = Literal["concat", "gate", "film"]
Deploy = Literal["null", "self", "teacher"]


class MapFusion(nn.Module):
    """The part of `cam_fusion`, behind the last feature: see `CamFusion`. Its inputs are `cam` `[b i j]` and `cam_shown` `[b]`.

    The transposed convolution has the stride `ceil(grid / map_grid)`; its kernel is twice the stride. A map that is finer than
    the feature is first averaged to the feature's grid. If the grid is not a multiple of the map's grid, `U` is averaged to it:
    cropping would shift `U` against the feature.

    The linear layer is `Nearby`. A plain linear layer between the last normalisation and the classifier diverges at learning
    rates that suit the student (with `muon` and `kd:weight=3` after a dozen epochs).

    Args:
        channels, grid: the channels and the grid of the feature.
        map_grid: the grid of the teacher's map.
        hidden: the channels of `U`.
        fuse, deploy: see `CamFusion`.
    """

    def __init__(
        self,
        *,
        channels: Count,
        grid: Grid,
        map_grid: Grid,
        hidden: Count = 8,
        fuse: Fuse = "concat",
        deploy: Deploy = "null",
    ):
        super().__init__()
        self.channels, self.fuse, self.deploy = channels, fuse, deploy
        self.requires = ("cam",) if deploy == "teacher" else ()
        self.low = (min(grid[0], map_grid[0]), min(grid[1], map_grid[1]))
        self.stride = (-(-grid[0] // self.low[0]), -(-grid[1] // self.low[1]))
        kernel, padding = tuple(2 * step for step in self.stride), tuple(step // 2 for step in self.stride)
        self.up = nn.ConvTranspose2d(1, hidden, kernel, self.stride, padding)  # type: ignore[arg-type]
        if deploy == "null":
            self.null = nn.Parameter(torch.zeros(hidden))
        if deploy == "self":
            self.predicted = nn.Sequential(nn.Conv2d(channels, 1, 1), nn.Sigmoid())
        self.mix = Nearby(
            channels + hidden if fuse == "concat" else hidden, channels * (1 + (fuse == "film")), fuse == "concat"
        )

    def forward(self, feature: Float[Tensor, "b c h w"], inputs: Mapping[str, Tensor]) -> Float[Tensor, "b c h w"]:
        return self.fuse_map(feature, self.guide(feature, inputs).to(feature.dtype)).to(feature.dtype)

    def guide(self, feature: Float[Tensor, "b c h w"], inputs: Mapping[str, Tensor]) -> Float[Tensor, "b u h w"]:
        """`U`: from the teacher's map if the image has one, else from its replacement."""
        size = (feature.shape[2], feature.shape[3])
        if self.deploy == "null":
            otherwise = self.null[:, None, None].expand(len(feature), -1, *size)
        elif self.deploy == "self":
            otherwise = resized(self.predicted(feature)[:, 0], self.low)
        else:  # there is no teacher when shapes are inspected
            otherwise = feature.new_zeros(len(feature), *self.low)
        if "cam" not in inputs:
            return otherwise if self.deploy == "null" else self.upsample(otherwise, size)
        given = resized(inputs["cam"].to(feature.dtype), self.low)
        shown = inputs["cam_shown"][:, None, None] > 0
        if self.deploy == "null":
            return torch.where(shown[:, None], self.upsample(given, size), otherwise)
        return self.upsample(torch.where(shown, given, otherwise), size)

    def upsample(self, maps: Float[Tensor, "b i j"], size: tuple[int, int]) -> Float[Tensor, "b u h w"]:
        """Maps on the feature's grid. An odd stride gives one line too many; the last line is cut off."""
        high = (self.low[0] * self.stride[0], self.low[1] * self.stride[1])
        return resized(self.up(maps[:, None])[..., : high[0], : high[1]].contiguous(), size)

    def fuse_map(self, feature: Float[Tensor, "b c h w"], guide: Float[Tensor, "b u h w"]) -> Float[Tensor, "b c h w"]:
        if self.fuse == "concat":
            return self.mixed(torch.cat([feature, guide], 1))
        scale, shift = self.affine(self.mixed(guide))
        return feature * scale + shift

    def mixed(self, values: Float[Tensor, "b v h w"]) -> Float[Tensor, "b d h w"]:
        """The linear layer at each place."""
        return self.mix(values.movedim(1, -1)).movedim(-1, 1)

    def affine(self, values: Float[Tensor, "b d h w"]) -> tuple[Tensor, Tensor | float]:
        """The scale and the shift of the feature, for `gate` and `film`."""
        if self.fuse == "gate":
            return 1 + values, 0.0
        scale, shift = values.chunk(2, 1)
        return 1 + scale, shift

    @torch.no_grad()
    def fold(self) -> FoldedFusion:
        """The part with the learned `U` everywhere, as one 1×1 convolution; it is channel-wise, except for `concat`."""
        channels = self.channels
        groups = 1 if self.fuse == "concat" else channels
        part = cast(FoldedFusion, build_part(f"folded_fusion:channels={channels},groups={groups}")).to(self.null)
        token = self.null[None, :, None, None]
        if self.fuse == "concat":
            weight = self.mix.weight[:, :channels]
            shift = self.mixed(torch.cat([token.new_zeros(1, channels, 1, 1), token], 1))
        else:
            weight, shift = self.affine(self.mixed(token))
        bias = torch.as_tensor(shift).flatten().expand(channels)
        part.conv.load_state_dict({"weight": weight.reshape(part.conv.weight.shape), "bias": bias})
        return part


class Nearby(nn.Module):
    """A linear layer over the last dimension that starts at the identity or at zero and moves slowly: `W = I + STEP · V`.

    `V` is the parameter. So a gradient step changes `W` by `STEP²` times the change of a plain layer.
    """

    STEP = 0.1

    def __init__(self, inputs: int, outputs: int, identity: bool):
        super().__init__()
        self.identity = identity
        self.change = nn.Parameter(torch.zeros(outputs, inputs))
        self.shift = nn.Parameter(torch.zeros(outputs))

    @property
    def weight(self) -> Float[Tensor, "o i"]:
        moved = self.STEP * self.change
        return moved + torch.eye(*moved.shape, dtype=moved.dtype, device=moved.device) if self.identity else moved

    @property
    def bias(self) -> Float[Tensor, " o"]:
        return self.STEP * self.shift

    def forward(self, values: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        return functional.linear(values, self.weight, self.bias)


class FoldedFusion(nn.Module):
    """The folded form of `cam_fusion:deploy=null`: a 1×1 convolution behind the last feature. `MapFusion.fold` makes it."""

    def __init__(self, *, channels: Count, groups: Count):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1, groups=groups)

    def forward(self, feature: Float[Tensor, "b c h w"], inputs: Mapping[str, Tensor]) -> Float[Tensor, "b c h w"]:
        return self.conv(feature)
