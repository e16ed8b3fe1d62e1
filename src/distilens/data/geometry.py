"""The geometry of an augmentation: one box and flip for an image, its evidence mask and its maps.

A geometry is a box in the source image and a flip. It is drawn once. `move` applies it to anything on the source's grid, at any
resolution, so pixels and maps always stay aligned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int, Num, UInt8
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Geometry:
    """The source box and flip of each image.

    Attributes:
        box: top, left, height and width in source pixels, whole numbers; beyond the edge the image is reflected.
        flip: whether the image is mirrored left to right.
        source: height and width of the source image.
        size: height and width of the result.
        whole: whether every box has the size of the result and starts on a whole pixel, so that moving copies pixels exactly.
    """

    box: Float[Tensor, "b 4"]
    flip: Bool[Tensor, " b"]
    source: tuple[int, int]
    size: tuple[int, int]
    whole: bool

    @classmethod
    def identity(cls, batch: int, source: tuple[int, int], device: torch.device | str = "cpu") -> Geometry:
        """The whole source, unchanged."""
        box = torch.cat([torch.full((batch, 1), side, device=device) for side in (0.0, 0.0, *map(float, source))], 1)
        return cls(box, torch.zeros(batch, dtype=torch.bool, device=device), source, source, whole=True)

    def select(self, rows: Int[Tensor, " n"]) -> Geometry:
        """The boxes of some of the images."""
        return replace(self, box=self.box[rows], flip=self.flip[rows])

    def lines(self) -> tuple[Int[Tensor, "b h"], Int[Tensor, "b w"]]:
        """The source row of each result row and the source column of each result column; only for `whole` boxes."""
        rows = torch.arange(self.size[0], device=self.box.device)
        columns = torch.arange(self.size[1], device=self.box.device)
        columns = torch.where(self.flip[:, None], columns.flip(0), columns)
        rows = rows + self.box[:, 0:1].long()
        columns = columns + self.box[:, 1:2].long()
        return reflect_lines(rows, self.source[0]), reflect_lines(columns, self.source[1])

    def gather(self, images: Tensor, positions: Int[Tensor, " b"]) -> Tensor:
        """Read moved images directly from a set `[n h w ...]`, with a single copy; only for `whole` boxes."""
        rows, columns = self.lines()
        return images[positions[:, None, None], rows[:, :, None], columns[:, None, :]]

    def cut(self, images: UInt8[Tensor, "n h w c"], positions: Int[Tensor, " b"]) -> Num[Tensor, "b c height width"]:
        """Read moved images directly from a set, for boxes of whole pixels inside the images; the values stay 0 to 255.

        On the CPU the boxes are resized as bytes, which is several times as fast. There the result is rounded to bytes, and
        otherwise that of `move`.
        """
        if images.device.type != "cpu":
            return self.resample(images[positions].permute(0, 3, 1, 2).float(), self.size).clamp_(0, 255)
        layout = torch.channels_last if images.shape[3] > 1 else torch.contiguous_format
        made = torch.empty(len(positions), images.shape[3], *self.size, dtype=torch.uint8, memory_format=layout)
        rows, boxes, flips = positions.tolist(), self.box.long().tolist(), self.flip.tolist()
        for number, (row, (top, left, height, width), flip) in enumerate(zip(rows, boxes, flips, strict=True)):
            box = images[row, top : top + height, left : left + width].permute(2, 0, 1)[None]
            moved = functional.interpolate(box, self.size, mode="bilinear", antialias=True)
            made[number : number + 1] = moved.flip(-1) if flip else moved
        return made

    def move(self, things: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Move `[b h w]` or `[b c h w]` from the source's grid, at any resolution, to the result's.

        Exact for whole boxes at the source's resolution, with any dtype. Otherwise bilinear (float32), with reflection at the
        edge.

        Args:
            things: values on the source's grid.
            size: size of the result; by default the geometry's own, scaled to the resolution of `things`.
        """
        channels = things if things.ndim == 4 else things[:, None]
        grid = (channels.shape[-2], channels.shape[-1])
        if size is None:
            height, width = (max(1, round(g * s / o)) for g, s, o in zip(grid, self.size, self.source, strict=True))
            size = (height, width)
        if self.whole and grid == self.source and size == self.size:
            moved = self.gather(channels.permute(0, 2, 3, 1), torch.arange(len(channels), device=channels.device))
            moved = moved.permute(0, 3, 1, 2)
        elif not self.whole and grid == self.source and size == self.size and channels.dtype == torch.uint8:
            moved = self.cut(channels.permute(0, 2, 3, 1), torch.arange(len(channels), device=channels.device)).float()
        else:
            moved = self.resample(channels.float(), size)
        return moved if things.ndim == 4 else moved[:, 0]

    def move_nearest(self, things: Tensor, *, outside: int) -> Tensor:
        """Move class numbers `[b h w]` from the source's grid, at any resolution: the nearest place of each result pixel.

        Beyond the edge the result is `outside`. Exact for whole boxes at the source's resolution: the very places that `move`
        copies. The result has the resolution of `things`, as in `move`.
        """
        grid = things.shape[-2:]
        height, width = (max(1, round(g * s / o)) for g, s, o in zip(grid, self.size, self.source, strict=True))
        kind = torch.float32 if things.device.type == "mps" else torch.float64  # MPS has no float64
        rows = torch.arange(height, device=things.device, dtype=kind).add(0.5) / height
        columns = torch.arange(width, device=things.device, dtype=kind).add(0.5) / width
        columns = torch.where(self.flip[:, None], columns.flip(0), columns)
        scale = [cells / length for cells, length in zip(grid, self.source, strict=True)]
        box = self.box.to(kind) * torch.tensor([*scale, *scale], dtype=kind, device=things.device)
        rows = (box[:, 0:1] + rows * box[:, 2:3]).floor().long()
        columns = (box[:, 1:2] + columns * box[:, 3:4]).floor().long()
        inside_rows, inside_columns = (
            (lines >= 0) & (lines < length) for lines, length in zip((rows, columns), grid, strict=True)
        )
        images = torch.arange(len(things), device=things.device)[:, None, None]
        moved = things[images, rows.clamp(0, grid[0] - 1)[:, :, None], columns.clamp(0, grid[1] - 1)[:, None]]
        return moved.where(inside_rows[:, :, None] & inside_columns[:, None], outside)

    def resample(self, images: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c height width"]:
        """Bilinear sampling on an affine grid in coordinates from -1 to 1; when shrinking, up to 4 samples per side and pixel.

        A resized box is sampled as if it were cut out first: nothing beyond its edge is read.
        """
        height, width = self.source
        scale_y, scale_x = self.box[:, 2] / height, self.box[:, 3] / width
        centre_y = (2 * self.box[:, 0] + self.box[:, 2]) / height - 1
        centre_x = (2 * self.box[:, 1] + self.box[:, 3]) / width - 1
        mirror = torch.where(self.flip, -1.0, 1.0)
        zero = torch.zeros_like(scale_x)
        theta = torch.stack(
            [torch.stack([scale_x * mirror, zero, centre_x], 1), torch.stack([zero, scale_y, centre_y], 1)], 1
        )
        # bilinear sampling reads four pixels: if the source is finer than that, sample more densely and average
        finer = max(1, min(4, round(float(images.shape[-1] / size[1] * 0.75))))
        fine = (size[0] * finer, size[1] * finer)
        grid = functional.affine_grid(theta, [len(images), images.shape[1], *fine], align_corners=False)
        if not self.whole:
            centre = torch.stack([centre_x, centre_y], 1)[:, None, None]
            reach = torch.stack([scale_x - 1 / images.shape[-1], scale_y - 1 / images.shape[-2]], 1)
            reach = reach.clamp(min=0)[:, None, None]
            grid = torch.maximum(torch.minimum(grid, centre + reach), centre - reach)
        moved = functional.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        return functional.avg_pool2d(moved, finer) if finer > 1 else moved


def reflect_lines(lines: Tensor, length: int) -> Tensor:
    """Fold line numbers back into [0, length): the edge line is not repeated, as in `reflect` padding."""
    if length == 1:
        return torch.zeros_like(lines)
    period = 2 * (length - 1)
    lines = lines.remainder(period)
    return torch.where(lines >= length, period - lines, lines)
