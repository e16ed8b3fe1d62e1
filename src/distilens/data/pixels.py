"""Convert the pixels of a picture of any mode to uint8 RGB. See the table in docs/data.md."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from distilens.foundation.errors import UserError, shortened

if TYPE_CHECKING:
    from PIL import Image

Pixel = Annotated[int, Field(ge=1)]
Side = Pixel | tuple[Pixel, Pixel]
"""The side of a square, or height and width."""
Ground = Literal["white", "black", "grey"]
Range = tuple[float, float] | None

GROUNDS = {"white": (255,) * 4, "black": (0, 0, 0, 255), "grey": (128, 128, 128, 255)}
BITS = (8, 10, 12, 14, 16)
"""Bit depths that cameras, scanners and microscopes store in 16 bits."""

NEAR = 16
"""A picture is nearly one colour if every channel spreads over at most this many levels of 255."""

SIDES = (32, 64, 96, 128)
"""Pictures of different sizes are brought to the largest of these that is not above the median side."""

MANY = 0.05
"""Warn if at least this share of all pictures, or a whole class, is nearly one colour."""


@dataclass(frozen=True)
class Pixels:
    """How pictures become pixels.

    Attributes:
        size: side of a square, or height and width. Pictures are resized until they cover it, and the middle is cut out. None:
            unchanged if all have one size, else a usual side, with a remark.
        ground: the background for transparent pictures.
        bounds: the values of 16-bit, 32-bit and float pictures that become black and white. None: 0 to the smallest of 255, 1023,
            4095, 16383, 65535 that is not below any value of the whole set; 0 to 1 for floats that all lie in this range.
        large: accept pictures with more pixels than Pillow considers safe.
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
            raise UserError(f"range=[{low:g},{high:g}] goes down; expected range=[low,high], such as range=[0,4095]")


class DeepError(Exception):
    """A picture has more than 8 bits, and the range of the set is not known yet."""


class SizesError(Exception):
    """The pictures have different sizes, and no target size is given."""


def usual_size(shorter: np.ndarray) -> tuple[int, str]:
    """The side for pictures of different sizes, from their shorter sides; and a remark about it."""
    median = int(np.median(shorter))
    side = max((usual for usual in SIDES if usual <= median), default=median)
    return side, (
        f"the pictures have different sizes (shorter sides from {shorter.min()} to {shorter.max()}, median {median}): each is "
        f"resized to {side} on its shorter side, and the middle {side} × {side} is cut out. To use another size: size="
    )


def is_deep(image: Image.Image) -> bool:
    return image.mode.startswith(("I", "F"))


def is_cut(image: Image.Image) -> bool:
    """Whether an opened colour picture has 16 bits per channel: Pillow reads only the upper 8."""
    return not is_deep(image) and any("16" in str(part[3]) for part in getattr(image, "tile", ()))


def as_rgb_image(image: Image.Image, pixels: Pixels, remark: Callable[[str], object]) -> Image.Image:
    """Convert one picture to RGB: scale deep values, lay transparency over the ground."""
    from PIL import Image

    if is_deep(image):
        if pixels.bounds is None:
            raise DeepError
        return scale_image(image, pixels.bounds).convert("RGB")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        if image.mode == "La":
            image = image.convert("LA")
        image = image.convert("RGBA")
        if image.getchannel(3).getextrema()[0] != 255:
            remark(f"transparent, laid over {pixels.ground} (ground={pixels.ground})")
            image = Image.alpha_composite(Image.new("RGBA", image.size, GROUNDS[pixels.ground]), image)
    return image.convert("RGB")


def scale_image(image: Image.Image, bounds: tuple[float, float]) -> Image.Image:
    """Scale values from `low` to `high` to 0 to 255; values outside become black or white."""
    from PIL import Image

    values = np.asarray(image).astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are NaN or infinite")
    low, high = bounds
    return Image.fromarray(((values - low) * (255 / (high - low))).clip(0, 255).round().astype(np.uint8))


@dataclass(frozen=True)
class Extent:
    """Minimum and maximum of a deep picture, and whether its values are whole numbers."""

    whole: bool
    low: float
    high: float


def extent_of(image: Image.Image) -> Extent | None:
    """The extent of a deep picture; None for other pictures, and if a value is not finite."""
    if not is_deep(image):
        return None
    values = np.asarray(image)
    if not np.isfinite(values).all():
        return None
    return Extent(not image.mode.startswith("F"), float(values.min()), float(values.max()))


def find_range(extents: Sequence[Extent]) -> tuple[tuple[float, float], str]:
    """One range for all deep pictures of a set, and a remark about it.

    Raises:
        UserError: no usual number of bits fits the values.
    """
    if not extents:  # none of them can be read: decoding reports each
        return (0, 1), ""
    low, high = min(extent.low for extent in extents), max(extent.high for extent in extents)
    whole = {extent.whole for extent in extents}
    if whole == {True} and low >= 0 and high < 2 ** BITS[-1]:
        top = next(2**bits - 1 for bits in BITS if high < 2**bits)
    elif whole == {False} and low >= 0 and high <= 1:
        top = 1
    else:
        kind = " and ".join(["floats"] * (False in whole) + ["whole numbers"] * (True in whole))
        raise UserError(
            f"{len(extents):,} pictures hold {kind} from {low:g} to {high:g}, and it is not known which values are black and "
            "white (only for whole numbers from 0 to 65535, and for floats from 0 to 1). Give them: "
            f"range=[{low:g},{high if high > low else low + 1:g}] for example"
        )
    return (0, top), (
        f"{len(extents):,} pictures of more than 8 bits hold values from {low:g} to {high:g}: 0 to {top} became black to "
        f"white, in the whole set (for the same range with other data: range=[0,{top}])"
    )


def range_of(remarks: Iterable[str]) -> Range:
    """The range that `find_range` found, from the remarks about a data set; None if it found none.

    >>> range_of([find_range([Extent(True, 3, 4000)])[1]])
    (0.0, 4095.0)
    """
    for remark in remarks:
        if match := re.search(r"for the same range with other data: range=\[([^,\]]+),([^\]]+)\]", remark):
            return float(match[1]), float(match[2])
    return None


@contextmanager
def allow_large_images(allowed: bool) -> Iterator[None]:
    """Within, lift Pillow's limit on the number of pixels if `allowed`; it is one limit for the whole process."""
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    if allowed:
        Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@lru_cache(maxsize=64)
def probe_places(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Four places in the green channel: a quick test that most pictures are not of one colour."""
    height, width, channels = shape
    places = ((1, 2), (2, 4), (3, 1), (4, 3))
    return tuple(((height * row // 5) * width + width * column // 5) * channels + 1 for row, column in places)


def nearly_one_colour(image: np.ndarray) -> bool:
    """Whether every channel of `[h w 3]` spreads over at most NEAR levels."""
    values = sorted(map(image.item, probe_places(image.shape)))
    if values[-1] - values[0] > NEAR:
        return False
    return int(np.ptp(image, axis=(0, 1)).max()) <= NEAR


def describe_flat(flat: np.ndarray, every: np.ndarray, classes: Sequence[str], first: str) -> str:
    """A warning if many pictures, or all of a class, are nearly one colour; else an empty string.

    Args:
        flat, every: the labels of the pictures of nearly one colour, and of all pictures.
        first: the name of one picture of nearly one colour.
    """
    if not len(flat):
        return ""
    counts, of_them = (np.bincount(labels[labels >= 0], minlength=len(classes)) for labels in (every, flat))
    whole = [name for name, count, flat_ones in zip(classes, counts, of_them, strict=True) if count == flat_ones > 0]
    if not whole and len(flat) < max(2, MANY * len(every)):
        return ""
    among = f", among them all of the class {shortened(whole, quoted=True)}" if whole else ""
    return (
        f"{len(flat):,} of {len(every):,} pictures are nearly one colour, such as {first}{among}: nothing can be seen in them. "
        "Look at them; ground= and range= set how transparent and deep pictures are converted"
    )
