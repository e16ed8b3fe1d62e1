"""What the pixels of a picture become, whatever mode they are in: uint8 RGB. docs/data.md has the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from distilens.data.source import shortened
from distilens.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

Pixel = Annotated[int, Field(ge=1)]
Side = Pixel | tuple[Pixel, Pixel]
"""The side of a square, or height and width."""
Ground = Literal["white", "black", "grey"]
Range = tuple[float, float] | None

GROUNDS = {"white": (255,) * 4, "black": (0, 0, 0, 255), "grey": (128, 128, 128, 255)}
BITS = (8, 10, 12, 14, 16)
"""What cameras, scanners and microscopes write into 16 bits."""

NEAR = 16
"""Levels of 255: a picture whose channels all spread over no more than these is nearly one colour."""

SIDES = (32, 64, 96, 128)
"""Where pictures are of several sizes, they take the largest of these that the median picture has."""

MANY = 0.05
"""The share of nearly one-coloured pictures that is said; of a class it is all."""


@dataclass(frozen=True)
class Pixels:
    """How pictures become pixels.

    Attributes:
        size: pictures are resized until they cover it, and the middle is cut out: a square, or height and width. None: as they
            are, if all are of one size, and else a usual side, which is said.
        ground: what transparent pictures are laid over.
        bounds: which values of 16-bit, 32-bit and float pictures are black and white. None: 0 to the smallest of 255, 1023,
            4095, 16383, 65535 that holds every value of the whole set; 0 to 1 for floats that are all in there.
        large: take pictures of more pixels than Pillow takes to be safe.
    """

    size: Side | None = None
    ground: Ground = "white"
    bounds: Range = None
    large: bool = False

    @property
    def sides(self) -> tuple[int, int] | None:
        """Height and width."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def __post_init__(self) -> None:
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            low, high = self.bounds
            raise UserError(f"range=[{low:g},{high:g}] goes down; wanted is range=[low,high], such as range=[0,4095]")


class DeepError(Exception):
    """A picture of more than 8 bits was met, and the range of the set is not known yet."""


class SizesError(Exception):
    """Pictures of several sizes were met, and nobody said to which they are to be brought."""


def usual_size(shorter: np.ndarray) -> tuple[int, str]:
    """The side for pictures of several sizes, by their shorter sides; and the sentence that says so."""
    median = int(np.median(shorter))
    side = max((one for one in SIDES if one <= median), default=median)
    return side, (
        f"the pictures are of several sizes (shorter sides from {shorter.min()} to {shorter.max()}, median {median}): each is "
        f"resized to {side} on its shorter side, and the middle {side} × {side} is cut out. size= takes another"
    )


def is_deep(image: Image.Image) -> bool:
    return image.mode.startswith(("I", "F"))


def is_cut(image: Image.Image) -> bool:
    """Whether a colour picture of 16 bits a channel was opened, of which Pillow reads the upper 8."""
    return not is_deep(image) and any("16" in str(part[3]) for part in getattr(image, "tile", ()))


def as_rgb_image(image: Image.Image, pixels: Pixels, said: Callable[[str], object]) -> Image.Image:
    """One picture as RGB: deep values scaled, transparency laid over the ground."""
    from PIL import Image

    if is_deep(image):
        if pixels.bounds is None:
            raise DeepError
        return scaled(image, pixels.bounds).convert("RGB")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        if image.mode == "La":
            image = image.convert("LA")
        image = image.convert("RGBA")
        if image.getchannel(3).getextrema()[0] != 255:
            said(f"transparent, laid over {pixels.ground} (ground={pixels.ground})")
            image = Image.alpha_composite(Image.new("RGBA", image.size, GROUNDS[pixels.ground]), image)
    return image.convert("RGB")


def scaled(image: Image.Image, bounds: tuple[float, float]) -> Image.Image:
    """Values from `low` to `high` as 0 to 255; what lies beyond is black or white."""
    from PIL import Image

    values = np.asarray(image).astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are no finite numbers")
    low, high = bounds
    return Image.fromarray(((values - low) * (255 / (high - low))).clip(0, 255).round().astype(np.uint8))


@dataclass(frozen=True)
class Extent:
    """The least and the greatest value of a deep picture."""

    whole: bool
    low: float
    high: float


def extent_of(image: Image.Image) -> Extent | None:
    """None where there is nothing deep."""
    if not is_deep(image):
        return None
    values = np.asarray(image)
    if not np.isfinite(values).all():
        return None
    return Extent(not image.mode.startswith("F"), float(values.min()), float(values.max()))


def found_range(extents: Sequence[Extent]) -> tuple[tuple[float, float], str]:
    """The one range for all deep pictures of a set, and the sentence that says so.

    Raises:
        UserError: values that no usual number of bits holds.
    """
    if not extents:  # not one can be read: each says so itself
        return (0, 1), ""
    low, high = min(one.low for one in extents), max(one.high for one in extents)
    whole = {one.whole for one in extents}
    if whole == {True} and low >= 0 and high < 2 ** BITS[-1]:
        top = next(2**bits - 1 for bits in BITS if high < 2**bits)
    elif whole == {False} and low >= 0 and high <= 1:
        top = 1
    else:
        kind = " and ".join(["floats"] * (False in whole) + ["whole numbers"] * (True in whole))
        raise UserError(
            f"{len(extents):,} pictures hold {kind} from {low:g} to {high:g}, and nothing says which of them are black and "
            "white (whole numbers from 0 to 65535, or floats from 0 to 1, would). Say it: "
            f"range=[{low:g},{high if high > low else low + 1:g}] for example"
        )
    return (0, top), (
        f"{len(extents):,} pictures of more than 8 bits hold values from {low:g} to {high:g}: 0 to {top} became black to "
        f"white, in the whole set (elsewhere the same is range=[0,{top}])"
    )


@contextmanager
def large_allowed(allowed: bool) -> Iterator[None]:
    """Pillow's limit is one for the whole process."""
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    if allowed:
        Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@lru_cache(maxsize=64)
def probes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Four places in the green channel: they tell most pictures from one colour at once."""
    height, width, channels = shape
    places = ((1, 2), (2, 4), (3, 1), (4, 3))
    return tuple(((height * row // 5) * width + width * column // 5) * channels + 1 for row, column in places)


def nearly_one_colour(image: np.ndarray) -> bool:
    """Whether no channel of `[h w 3]` spreads over more than a few levels."""
    values = sorted(map(image.item, probes(image.shape)))
    if values[-1] - values[0] > NEAR:
        return False
    return int(np.ptp(image, axis=(0, 1)).max()) <= NEAR


def said_of_flat(flat: np.ndarray, every: np.ndarray, classes: Sequence[str], first: str) -> str:
    """A warning if many pictures, or all of a class, are nearly one colour; else nothing.

    Args:
        flat, every: the labels of the pictures that are, and of all.
        first: the name of one that is.
    """
    if not len(flat):
        return ""
    counts, of_them = (np.bincount(labels[labels >= 0], minlength=len(classes)) for labels in (every, flat))
    whole = [name for name, count, flat_ones in zip(classes, counts, of_them, strict=True) if count == flat_ones > 0]
    if not whole and len(flat) < max(2, MANY * len(every)):
        return ""
    among = f", among them all of the class {shortened(whole, quoted=True)}" if whole else ""
    return (
        f"{len(flat):,} of {len(every):,} pictures are nearly one colour, as {first}{among}: nothing can be seen in them. "
        "Look at them; ground= and range= say what transparent and deep pictures become"
    )
