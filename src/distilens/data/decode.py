"""Decode pictures from bytes, many at a time in threads."""

from __future__ import annotations

import io
import itertools
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distilens.data.pixels import DeepError, Extent, Pixels, as_rgb_image, extent_of, is_cut

if TYPE_CHECKING:
    from PIL import Image

PLAIN = Pixels()

TASK = 32
"""Images per task: for a single 32 × 32 image the hand-over to a thread costs more than decoding."""


@dataclass(frozen=True)
class Encoded:
    """A set before decoding.

    Attributes:
        labels: int64 `[n]`.
        images: yields the n images in the order of `labels`, each as bytes, as a file, or as pixels `[h w 3]`;
            None for a missing image.
        name: gives the name of a row in messages, such as `row 17 of train.parquet`.
        masks: of a segmentation: yields the mask of each image, in the same order; None for an image without labels.
    """

    labels: np.ndarray
    images: Callable[[], Iterable[bytes | Path | np.ndarray | None]]
    name: Callable[[int], str]
    masks: Callable[[], Iterable[bytes | Path | np.ndarray | None]] | None = None


@dataclass(frozen=True)
class Bad:
    """An image that could not be decoded, and why."""

    reason: str


def extents_of(pool: ThreadPoolExecutor, sets: Mapping[str, Encoded]) -> list[Extent]:
    """The value ranges of all images with more than 8 bits, over all sets."""

    def some(images: Sequence[bytes | Path | np.ndarray | None]) -> list[Extent]:
        extents = []
        for encoded in images:
            with suppress(Exception), open_image(encoded) as image:  # decoding reports what is wrong with it
                extents.append(extent_of(image))
        return [extent for extent in extents if extent is not None]

    every = itertools.chain.from_iterable(encoded.images() for encoded in sets.values())
    return [extent for task in pool.map(some, batched(every, TASK)) for extent in task]


def shorter_sides_of(pool: ThreadPoolExecutor, sets: Mapping[str, Encoded]) -> np.ndarray:
    """The shorter sides of all images that can be opened, over all sets."""

    def some(images: Sequence[bytes | Path | np.ndarray | None]) -> list[int]:
        sides = []
        for encoded in images:
            with suppress(Exception), open_image(encoded) as image:
                sides.append(min(image.size))
        return sides

    every = itertools.chain.from_iterable(encoded.images() for encoded in sets.values())
    return np.array([side for task in pool.map(some, batched(every, TASK)) for side in task])


def decode_all(
    pool: ThreadPoolExecutor,
    images: Iterable,
    pixels: Pixels,
    remarks: list[str],
    how: Callable[..., Any] | None = None,
) -> Iterable[Any]:
    """Decode in threads and in order, with at most a few hundred images in memory per CPU core.

    Args:
        how: decodes one item of `images`, as `decode` does (the default).

    Returns:
        What `how` returns for each item, or a `Bad`.
    """
    running: deque[Future] = deque()
    for task in batched(images, TASK):
        running.append(pool.submit(decode_some, task, pixels, remarks, decode if how is None else how))
        if len(running) > 8 * (os.cpu_count() or 1):
            yield from running.popleft().result()
    for future in running:
        yield from future.result()


def batched(items: Iterable, count: int) -> Iterable[tuple]:
    """`itertools.batched`, which Python 3.11 does not have."""
    iterator = iter(items)
    while batch := tuple(itertools.islice(iterator, count)):
        yield batch


def decode_some(images: Sequence, pixels: Pixels, remarks: list[str], how: Callable[..., Any]) -> list[Any]:
    decoded: list[Any] = []
    for image in images:
        try:
            decoded.append(how(image, pixels, remarks))
        except DeepError:
            raise
        except Exception as error:  # on broken files Pillow's readers raise errors of any kind
            decoded.append(Bad(explain_error(error)))
    return decoded


def decode(
    encoded: bytes | Path | np.ndarray | None, pixels: Pixels = PLAIN, remarks: list[str] | None = None
) -> np.ndarray:
    """Decode one image to uint8 RGB `[h w 3]`, upright by its EXIF orientation; the first frame of an animation.

    Args:
        remarks: receives remarks about changes to the image.

    Raises:
        DeepError: the image has more than 8 bits, and `pixels` has no range for them.
    """
    rgb = upright_rgb(encoded, pixels, [] if remarks is None else remarks, draft=True)
    return np.asarray(rgb if pixels.sides is None else resize_image(rgb, *pixels.sides))


def upright_rgb(
    encoded: bytes | Path | np.ndarray | None, pixels: Pixels, remarks: list[str], *, draft: bool
) -> Image.Image:
    """An image as upright RGB, not yet resized.

    Args:
        draft: a JPEG may be read at a part of its size, which is quicker.
    """
    from PIL import ImageOps

    with open_image(encoded) as image:
        if is_cut(image):
            remarks.append("16 bits per colour, only the upper 8 are read")
        if pixels.sides is not None and draft:
            # a JPEG is read at 1/2 to 1/8 of its size if that leaves twice the needed size
            image.draft("RGB", (2 * max(pixels.sides), 2 * max(pixels.sides)))
        if not isinstance(encoded, np.ndarray):
            ImageOps.exif_transpose(image, in_place=True)
        rgb = as_rgb_image(image, pixels, remarks.append)
        with suppress(Exception):  # later frames may be broken; only the first is used
            if getattr(image, "n_frames", 1) > 1:
                remarks.append("animated or with several pages, only the first is read")
    return rgb


def open_image(encoded: bytes | Path | np.ndarray | None) -> Image.Image:
    from PIL import Image

    if encoded is None or (isinstance(encoded, bytes) and not encoded):
        raise ValueError("there are no bytes")
    if isinstance(encoded, np.ndarray):
        return Image.fromarray(encoded)
    return Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded)


def resize_image(image: Image.Image, height: int, width: int, resample: Image.Resampling | None = None) -> Image.Image:
    """Scale the image (or its mask) until it covers height and width, then crop its middle; bicubic by default."""
    from PIL import Image

    scale = max(width / image.width, height / image.height)
    across, down = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    if image.size != (across, down):
        image = image.resize((across, down), Image.Resampling.BICUBIC if resample is None else resample)
    left, top = (across - width) // 2, (down - height) // 2
    return image.crop((left, top, left + width, top + height))


def explain_error(error: Exception) -> str:
    from PIL import Image

    if isinstance(error, Image.DecompressionBombError):
        count = re.search(r"\d+", str(error))
        what = f"it has {int(count[0]):,} pixels, and" if count else "it has more pixels than"
        return f"{what} Pillow's limit is twice {Image.MAX_IMAGE_PIXELS or 0:,}. If you trust it: large=true"
    if type(error).__name__ == "UnidentifiedImageError":  # its own message shows the address of a buffer
        return "the bytes are not an image"
    return str(error).rstrip(".") or type(error).__name__
