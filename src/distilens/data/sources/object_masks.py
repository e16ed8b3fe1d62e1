"""Segmentations from Python objects: arrays of images and masks, torch data sets of pairs, lists of pictures with masks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from distilens.data.decode import Encoded
from distilens.data.masks import Masks, numbers_of, whole_values
from distilens.data.pictures import as_array, picture_of
from distilens.data.pixels import Pixels
from distilens.data.source import Source, digest
from distilens.data.sources.object_kinds import is_items, is_tensors, mask_of
from distilens.data.sources.objects import Items, pixels_of_one, read_items, scale_picture
from distilens.data.writing import decode_source
from distilens.foundation.errors import UserError


class Pairs:
    """A set of pictures with masks, read by number.

    The item of the last picture is kept, so that a mask that is asked for after its picture is of the same read.
    """

    def __init__(self, given: Any, part: str):
        given = given.tensors if is_tensors(given) else given
        self.part, self.last = part, (-1, None)
        self.columns = isinstance(given, tuple | list) and len(given) == 2 and not is_items(given)
        self.given, self.count = given, len(given[0]) if self.columns else len(given)
        if self.columns and len(given[1]) != self.count:
            raise UserError(f"there are {self.count} {part} images and {len(given[1])} masks: expected one per image")
        if not self.count:
            raise UserError(f"the {part} set is empty")

    def read(self, place: int) -> Any:
        return (self.given[0][place], self.given[1][place]) if self.columns else self.given[place]

    def picture(self, place: int) -> np.ndarray:
        """A picture as an array `[h w]` or `[h w c]` of any type."""
        self.last = place, self.read(place)
        return pixels_of_one(picture_of(self.last[1]), f"item {place} of {self.part}")

    def values(self, place: int) -> np.ndarray | None:
        """A mask as whole numbers `[h w]`; None if it is None."""
        item = self.last[1] if self.last[0] == place else self.read(place)
        mask = mask_of(item)
        if mask is None:
            if isinstance(item, tuple | list) and len(item) > 1 and item[1] is None:
                return None
            raise UserError(f"item {place} of {self.part} has no mask: expected an array [h w], or a Pillow image")
        try:
            return values_of_one(mask)
        except ValueError as error:
            raise UserError(f"the mask of item {place} of {self.part} {error}") from None


def values_of_one(mask: Any) -> np.ndarray:
    """The values of a mask that is a Pillow image, a tensor or an array.

    Raises:
        ValueError: it is a colour picture, has fractions, or other axes.
    """
    from PIL import Image

    if hasattr(mask, "convert"):
        return numbers_of(mask)
    values = as_array(mask)
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if values.ndim == 3 and values.dtype == np.uint8 and values.shape[2] == 3:
        return numbers_of(Image.fromarray(values))
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        raise ValueError(f"is {values.dtype} {list(values.shape)}: expected the number of a class in each pixel, [h w]")
    return whole_values(values)


def source_of_masks(sets: Mapping[str, Any], cache: Path, pixels: Pixels, masks: Masks) -> Source:
    """Make a segmentation from sets of pictures and masks; the pixels are kept in the cache."""
    pairs = {part: Pairs(given, part) for part, given in sets.items()}
    contents = {
        part: read_items(Items(part, one.count, lambda place, one=one: (one.picture(place), None), None))
        for part, one in pairs.items()
    }
    low, high = min(one.low for one in contents.values()), max(one.high for one in contents.values())

    def encoded(part: str, one: Pairs) -> Encoded:
        def images() -> Iterator[np.ndarray]:
            for place in range(one.count):
                yield scale_picture(one.picture(place), low, high, f"the {part} images")

        there = [one.values(place) is not None for place in range(one.count)]
        return Encoded(
            np.where(there, 0, -1),
            images,
            lambda row: f"item {row} of {part}",
            lambda: (one.values(place) for place in range(one.count)),
        )

    key = digest(
        "objects with masks", *(digest(part, one.content, hash_masks(pairs[part])) for part, one in contents.items())
    )
    source = decode_source(
        cache,
        key,
        lambda: ({part: encoded(part, one) for part, one in pairs.items()}, ()),
        pixels,
        skip_bad=False,
        masks=masks,
    )
    changing = [line for one in contents.values() for line in one.changing]
    return replace(source, inventory=replace(source.inventory, remarks=(*changing, *source.inventory.remarks)))


def hash_masks(pairs: Pairs) -> str:
    """The sha256 of all masks of a set."""
    state = hashlib.sha256()
    for place in range(pairs.count):
        values = pairs.values(place)
        state.update(b"none" if values is None else f"{values.dtype.str}{values.shape}".encode() + values.tobytes())
    return state.hexdigest()
