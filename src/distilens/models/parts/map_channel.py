"""The part of `ig_overlay:mode=channel`: a map as an extra channel of the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from distilens.foundation.settings import Count

Pair = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]


class MapChannel(nn.Module):
    """The part of `ig_overlay:mode=channel`, behind the first convolution: the kernel of an extra input channel.

    A convolution is linear in its channels, so `conv(x) + conv_m(m)` is the convolution of `[x, m]`. Without the input
    `map_channel` the feature is unchanged. The kernel starts at zero. All arguments are those of the first convolution.
    """

    def __init__(
        self,
        *,
        channels: Count,
        kernel: Pair,
        stride: Pair = (1, 1),
        padding: Pair = (0, 0),
        dilation: Pair = (1, 1),
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
    ):
        super().__init__()
        self.conv = nn.Conv2d(1, channels, kernel, stride, padding, dilation, bias=False, padding_mode=padding_mode)
        nn.init.zeros_(self.conv.weight)

    def forward(self, feature: Float[Tensor, "b c h w"], inputs: Mapping[str, Tensor]) -> Float[Tensor, "b c h w"]:
        if "map_channel" not in inputs:
            return feature
        return feature + self.conv(inputs["map_channel"][:, None].to(feature.dtype))
