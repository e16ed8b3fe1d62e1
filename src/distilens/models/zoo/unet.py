"""U-Net: a small network for segmentation, with an encoder, a decoder and connections between their grids."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from distilens.foundation.errors import UserError
from distilens.models.padding import crop, margins_of, pad
from distilens.models.zoo.resnet import initialise_convolutions

Front = Literal["dense", "grouped"]


def unet(
    classes: int,
    *,
    width: Annotated[int, Field(ge=1)] = 16,
    depth: Annotated[int, Field(ge=2, le=8)] = 4,
    front: Front = "dense",
    groups: Annotated[int, Field(ge=2)] = 4,
) -> nn.Module:
    """U-Net: a small network for segmentation, a class for each place of the image.

    `depth` grids: that of the image, and `depth - 1` coarser ones, each of half the size. Grid `k` has `width * 2^k` channels and
    two 3x3 convolutions with batch norm and ReLU. The decoder goes back to the image's grid: a 2x2 transposed convolution, the
    encoder's features of that grid beside it, two 3x3 convolutions. A 1x1 convolution gives the logits. An image whose sides are
    not multiples of `2^(depth - 1)` is padded with its outermost pixels, and the logits are cropped back.

    `front=grouped` makes the encoder cheaper, for a student of Spirit Distillation (arXiv 2103.13733): each 3x3 convolution but
    the first, from c to d channels, is one in `groups` groups and a 1x1 convolution. It has the same channels and grid, and
    `1/groups + d/(9c)` of the multiplications: `1/groups + 1/9` if c = d.

    Source: Ronneberger et al. 2015 (arXiv 1505.04597), with these differences: convolutions are padded, so the logits have the
    image's size; batch norm; 4 grids with 16 to 128 channels in place of 5 with 64 to 1024; no dropout.
    Taps: `encoder.0` (the image's grid) to `encoder.3` (the coarsest), `decoder.0` to `decoder.2` (the image's grid), `head`.
    Raises: UserError if the groups do not divide the width.
    """
    if front == "grouped" and width % groups:
        raise UserError(f"the groups of a unet divide its channels: width={width} is not a multiple of groups={groups}")
    return UNet(classes, width, depth, groups if front == "grouped" else 1)


class UNet(nn.Module):
    """Encoder, decoder and a 1x1 convolution. Built by `unet`."""

    def __init__(self, classes: int, width: int, depth: int, groups: int):
        super().__init__()
        channels = [width * 2**level for level in range(depth)]
        self.multiple = 2 ** (depth - 1)
        steps = pairwise(channels)
        self.encoder = nn.ModuleList(
            [convolve_twice(3, width, groups)]
            + [nn.Sequential(nn.MaxPool2d(2), *convolve_twice(before, after, groups)) for before, after in steps]
        )
        self.decoder = nn.ModuleList(Up(2 * own, own) for own in reversed(channels[:-1]))
        self.head = nn.Conv2d(width, classes, 1)
        initialise_convolutions(self)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes h w"]:
        size = (images.shape[2], images.shape[3])
        margins = margins_of(size, self.multiple)
        feature, seen = pad(images, margins), []
        for level in self.encoder:
            feature = level(feature)
            seen.append(feature)
        for step, finer in zip(self.decoder, reversed(seen[:-1]), strict=True):
            feature = step(feature, finer)
        return crop(self.head(feature), margins, size)


class Up(nn.Module):
    """One step of the decoder: to the next finer grid, and two convolutions with the encoder's features beside."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.up = nn.ConvTranspose2d(channels_in, channels_out, 2, stride=2)
        self.convolutions = convolve_twice(2 * channels_out, channels_out, groups=1)

    def forward(self, feature: Float[Tensor, "b c h w"], finer: Float[Tensor, "b d i j"]) -> Float[Tensor, "b d i j"]:
        return self.convolutions(torch.cat([finer, self.up(feature)], 1))


def convolve_twice(channels_in: int, channels_out: int, groups: int) -> nn.Sequential:
    """Twice: a 3x3 convolution, batch norm, ReLU. With groups, the convolution is a grouped one and a 1x1 convolution."""
    layers: list[nn.Module] = []
    for before in (channels_in, channels_out):
        share = groups if before % groups == 0 else 1  # the three colours are not grouped
        layers.append(nn.Conv2d(before, channels_out, 3, padding=1, groups=share, bias=False))
        if share > 1:
            layers.append(nn.Conv2d(channels_out, channels_out, 1, bias=False))
        layers += [nn.BatchNorm2d(channels_out), nn.ReLU()]
    return nn.Sequential(*layers)
