"""Masks of semantic segmentation: from the values of a file to classes, on the grid of its image.

A value is the grey of a pixel, or its index in a palette. A mask has the size of its image, and is scaled and cropped by the same
function (`decode.resize_image`), by nearest neighbour.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from distilens.data.decode import TASK, Encoded, batched, explain_error, open_image, resize_image, upright_rgb
from distilens.data.pixels import Pixels
from distilens.foundation.errors import UserError, shortened
from distilens.tasks.segmentation import VOID, Segmentation

if TYPE_CHECKING:
    from PIL import Image

Ignored = int | str | tuple[int | str, ...]
"""One void value or several; with `colours` they are colours too."""

COLOURED = (
    "is a colour picture without a palette: expected the number of a class in each pixel (grey, or a palette). If each colour "
    "stands for a class, list them in the order of the classes: colours=[000000,ff0000], and void ones as ignore=ffffff"
)


@dataclass(frozen=True)
class Masks:
    """What the values of masks mean.

    Attributes:
        names: of the classes. Without `values` they stand for the values 0, 1, ...; those of ignored values are dropped.
            None: the classes are called by their values.
        values: the value of each class. None: those that have a name; without names, all that occur.
        ignore: values that become void (255). 255 always does, unless it is the value of a class.
        colours: the colour of each class as six hexadecimal digits; instead of `values`, for RGB masks.
    """

    names: tuple[str, ...] | None = None
    values: tuple[int, ...] | None = None
    ignore: Ignored = ()
    colours: tuple[str, ...] | None = None

    def void(self) -> tuple[int, ...]:
        """The ignored values as numbers.

        Raises:
            UserError: one is not a number (with `colours`: not a colour).
        """
        given = self.ignore if isinstance(self.ignore, tuple) else (self.ignore,)
        return tuple(self.number(str(value), "ignore") for value in given)

    def plain(self) -> dict[str, Any]:
        """As plain data for a fingerprint: the same meaning is the same data, however the options are written.

        Raises:
            UserError: as `void`, and for a colour that is none.
        """
        colours = None if self.colours is None else [self.number(colour, "colours") for colour in self.colours]
        return {"names": self.names, "values": self.values, "ignore": sorted({*self.void()}), "colours": colours}

    def number(self, text: str, option: str) -> int:
        """A value, or a colour as 0xrrggbb."""
        pattern, base = (r"#?([0-9a-fA-F]{6})", 16) if self.colours is not None else (r"(-?\d+)", 10)
        match = re.fullmatch(pattern, text.strip())
        if match is None:
            expected = "colours of six hexadecimal digits, such as ff0000" if base == 16 else "whole numbers"
            raise UserError(f"{option}={text}: expected {expected}")
        return int(match[1], base)


@dataclass(frozen=True)
class Table:
    """The classes, and the value of each.

    Attributes:
        classes: their names.
        values: the value of each class.
        void: values that are void.
        coloured: whether the values are colours, 0xrrggbb.
    """

    classes: tuple[str, ...]
    values: tuple[int, ...]
    void: tuple[int, ...]
    coloured: bool = False

    def targets(self, values: np.ndarray) -> np.ndarray:
        """The classes uint8 `[h w]` at the values of one mask.

        Raises:
            ValueError: a value is neither a class nor void.
        """
        found, places = np.unique(values, return_inverse=True)
        numbers = {value: number for number, value in enumerate(self.values)} | dict.fromkeys(self.void, VOID)
        unknown = [value for value in found.tolist() if value not in numbers]
        if unknown:
            how = f"{self.written(unknown)}, which {'is' if len(unknown) == 1 else 'are'} no class and not ignored"
            many = ". Was it scaled with smoothing, or saved as JPEG?" if len(unknown) > 20 else ""
            raise ValueError(
                f"holds {how}: the classes {shortened(self.classes)} have {self.written(self.values)}, and void is "
                f"{self.written(sorted(self.void)) or 'nothing'}{many}"
            )
        table = np.array([numbers[value] for value in found.tolist()], dtype=np.uint8)
        return table[places].reshape(values.shape)

    def written(self, values: Sequence[int]) -> str:
        """Values for a message: a run of them by its ends."""
        if not values:
            return ""
        if self.coloured:
            return f"the colours {shortened([f'{value:06x}' for value in values])}"
        if len(values) > 2 and values[-1] - values[0] == len(values) - 1:
            return f"the values {values[0]} to {values[-1]}"
        return f"the value{'s' * (len(values) > 1)} {shortened(list(map(str, values)))}"


def find_table(masks: Masks, pool: ThreadPoolExecutor, sets: Mapping[str, Encoded]) -> tuple[Table, str]:
    """The table of a data set, and a remark about it; the masks are read only if the classes are not given.

    Raises:
        UserError: the options contradict each other, there are fewer than two classes, or more than 255.
    """
    void, remark = masks.void(), ""
    if masks.colours is not None:
        values = tuple(masks.number(colour, "colours") for colour in masks.colours)
        names = masks.names or tuple(f"{value:06x}" for value in values)
    elif masks.values is not None:
        values = masks.values
        names = masks.names or tuple(map(str, values))
    elif masks.names is not None:
        values = tuple(value for value in range(len(masks.names)) if value not in void)
        names = tuple(masks.names[value] for value in values)
    else:
        found = values_of(pool, sets)
        values = tuple(value for value in found if value not in (*void, VOID))
        if found == [0, VOID] and not void:
            values = (0, VOID)
            remark = "the masks hold the values 0 and 255 only: both are classes (values=[0,255])"
        names = tuple(map(str, values))
    if len(names) != len(values) or len(set(values)) < len(values):
        raise UserError(
            f"{len(names)} names of classes and {len(values)} values: expected a different value for each name"
        )
    if len(values) > VOID:
        shown = f"{values[0]} to {values[-1]}"
        raise UserError(
            f"the masks have {len(values):,} classes, with the values {shown}: there can be at most {VOID}. Are these numbers "
            "of objects, or was a mask saved as JPEG? List the values of classes, values=[...], and the void ones, ignore=[...]"
        )
    if len(values) < 2:
        what = f"one class, {names[0]!r}" if names else "no class"
        raise UserError(f"the masks have {what}: nothing can be learnt from that. Expected two or more values; void is "
                        f"{shortened(list(map(str, sorted({*void, VOID}))))}")  # fmt: skip
    coloured = masks.colours is not None
    usual = () if coloured or VOID in values else (VOID,)
    return Table(names, values, tuple(sorted({*void, *usual})), coloured), remark


def values_of(pool: ThreadPoolExecutor, sets: Mapping[str, Encoded]) -> list[int]:
    """All values that occur in the masks of the sets; unreadable masks are left to decoding."""

    def some(masks: Iterable) -> set[int]:
        values: set[int] = set()
        for encoded in masks:
            if encoded is None:
                continue
            try:
                values.update(np.unique(read_values(encoded, coloured=False)).tolist())
            except Exception:  # decoding reports what is wrong with it
                continue
        return values

    every = (mask for encoded in sets.values() if encoded.masks is not None for mask in encoded.masks())
    return sorted(set().union(*pool.map(some, batched(every, TASK))))


def read_values(encoded: bytes | Path | np.ndarray, *, coloured: bool) -> np.ndarray:
    """The values of a mask, `[h w]`.

    Raises:
        ValueError: it is a colour picture, or has fractions.
    """
    from PIL import ImageOps

    if isinstance(encoded, np.ndarray) and encoded.ndim == 2:
        return whole_values(encoded)
    with open_image(encoded) as image:
        if not isinstance(encoded, np.ndarray):
            ImageOps.exif_transpose(image, in_place=True)
        return colours_of(image) if coloured else numbers_of(image)


def colours_of(image: Image.Image) -> np.ndarray:
    red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")).astype(np.int64), -1, 0)
    return red << 16 | green << 8 | blue


def numbers_of(image: Image.Image) -> np.ndarray:
    """Grey values, or the indices into the palette. Of a colour picture whose channels are equal, one channel."""
    if image.mode in ("P", "L", "1") or image.mode.startswith(("I", "F")):
        return whole_values(np.asarray(image))
    if image.mode in ("LA", "PA"):
        return np.asarray(image.getchannel(0))
    channels = np.asarray(image.convert("RGB"))
    if (channels != channels[..., :1]).any():
        raise ValueError(COLOURED)
    return channels[..., 0]


def whole_values(values: np.ndarray) -> np.ndarray:
    """Values as whole numbers; true is 1."""
    if values.dtype.kind == "f":
        if not np.array_equal(values, np.round(values)):
            raise ValueError("holds fractions: expected the number of a class in each pixel")
        return values.astype(np.int64)
    return values.astype(np.uint8) if values.dtype.kind == "b" else values


class Pair(NamedTuple):
    """An encoded image with its encoded mask; None: the image has no mask, and all its places are void."""

    image: bytes | Path | np.ndarray | None
    mask: bytes | Path | np.ndarray | None


def decode_pair(pair: Pair, pixels: Pixels, remarks: list[str], *, table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Decode an image to `[h w 3]` and its mask to `[h w]`, both scaled and cropped alike.

    Raises:
        DeepError: the image has more than 8 bits, and `pixels` has no range for them.
        ValueError: the mask is wrong; the message begins with `its mask`.
    """
    from PIL import Image

    image = upright_rgb(pair.image, pixels, remarks, draft=False)
    targets = np.full((image.height, image.width), VOID, dtype=np.uint8)
    if pair.mask is not None:
        name = f"its mask {pair.mask.name}" if isinstance(pair.mask, Path) else "its mask"
        try:
            values = read_values(pair.mask, coloured=table.coloured)
            if values.shape != targets.shape:
                raise ValueError(f"is {values.shape[1]}×{values.shape[0]}, the image {image.width}×{image.height}")
            targets = table.targets(values)
        except ValueError as error:
            raise ValueError(f"{name} {explain_error(error)}") from None
        except Exception as error:  # on broken files Pillow's readers raise errors of any kind
            raise ValueError(f"{name} cannot be read: {explain_error(error)}") from None
    if pixels.sides is None:
        return np.asarray(image), targets
    moved = resize_image(Image.fromarray(targets), *pixels.sides, Image.Resampling.NEAREST)
    return np.asarray(resize_image(image, *pixels.sides)), np.asarray(moved)


def check_targets(
    targets: Mapping[str, np.ndarray], classes: Sequence[str], ignored: Sequence[int] = ()
) -> Segmentation:
    """The task of decoded masks `[n h w]` by set.

    Raises:
        UserError: all training masks are void, or hold a single class.
    """
    counts = count_places(targets["train"], len(classes))
    there = np.flatnonzero(counts[:-1])
    if not len(there):
        which = f" (ignored: {shortened(list(map(str, ignored)))})" if ignored else ""
        raise UserError(
            f"all places of all {len(targets['train']):,} training masks are void{which}: nothing can be learnt from that"
        )
    if len(there) == 1:
        raise UserError(
            f"all training masks hold a single class, {classes[there[0]]!r}: nothing can be learnt from that. Expected two or "
            f"more of {shortened(classes)}"
        )
    return Segmentation(tuple(classes))


def count_places(targets: np.ndarray, classes: int, rows: np.ndarray | None = None) -> np.ndarray:
    """The number of places per class, and last of void, in masks `[n h w]`; only these rows are read, a few at a time."""
    rows = np.arange(len(targets)) if rows is None else rows
    counts = np.zeros(256, dtype=np.int64)
    step = max(1, 16_000_000 // max(1, int(np.prod(targets.shape[1:]))))
    for start in range(0, len(rows), step):
        counts += np.bincount(np.asarray(targets[rows[start : start + step]]).ravel(), minlength=256)
    return np.append(counts[:classes], counts[VOID])
