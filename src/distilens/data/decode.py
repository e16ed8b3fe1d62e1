"""One picture from its bytes, and many in threads."""

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
from typing import TYPE_CHECKING

import numpy as np

from distilens.data.pixels import DeepError, Extent, Pixels, as_rgb_image, extent_of, is_cut

if TYPE_CHECKING:
    from PIL import Image

PLAIN = Pixels()

TASK = 32
"""Images a task: handing over one 32 × 32 image costs a thread more than decoding it."""


@dataclass(frozen=True)
class Encoded:
    """One set before it is decoded.

    Attributes:
        labels: int64 `[n]`.
        images: yields the n images in the order of `labels`, each as bytes, as a file, or as pixels `[h w 3]`;
            None is an image that is missing.
        name: the words for a row in messages, such as `row 17 of train.parquet`.
    """

    labels: np.ndarray
    images: Callable[[], Iterable[bytes | Path | np.ndarray | None]]
    name: Callable[[int], str]


@dataclass(frozen=True)
class Bad:
    """An image that could not be decoded, and why."""

    reason: str


def extents_of(pool: ThreadPoolExecutor, sets: Mapping[str, Encoded]) -> list[Extent]:
    """Of all images of more than 8 bits in all sets."""

    def some(images: Sequence[bytes | Path | np.ndarray | None]) -> list[Extent]:
        found = []
        for encoded in images:
            with suppress(Exception), opened(encoded) as image:  # what is wrong with it is said when it is decoded
                found.append(extent_of(image))
        return [extent for extent in found if extent is not None]

    every = itertools.chain.from_iterable(encoded.images() for encoded in sets.values())
    return [extent for task in pool.map(some, batched(every, TASK)) for extent in task]


def shorter_sides_of(pool: ThreadPoolExecutor, sets: Mapping[str, Encoded]) -> np.ndarray:
    """Of all images in all sets that can be opened."""

    def some(images: Sequence[bytes | Path | np.ndarray | None]) -> list[int]:
        found = []
        for encoded in images:
            with suppress(Exception), opened(encoded) as image:
                found.append(min(image.size))
        return found

    every = itertools.chain.from_iterable(encoded.images() for encoded in sets.values())
    return np.array([side for task in pool.map(some, batched(every, TASK)) for side in task])


def decode_all(
    pool: ThreadPoolExecutor, images: Iterable, pixels: Pixels, said: list[str]
) -> Iterable[np.ndarray | Bad]:
    """Decode in threads, in order, holding no more than a few hundred images at a time."""
    running: deque[Future] = deque()
    for task in batched(images, TASK):
        running.append(pool.submit(decode_some, task, pixels, said))
        if len(running) > 8 * (os.cpu_count() or 1):
            yield from running.popleft().result()
    for future in running:
        yield from future.result()


def batched(items: Iterable, count: int) -> Iterable[tuple]:
    """`itertools.batched`, which Python 3.11 does not have."""
    iterator = iter(items)
    while batch := tuple(itertools.islice(iterator, count)):
        yield batch


def decode_some(
    images: Sequence[bytes | Path | np.ndarray | None], pixels: Pixels, said: list[str]
) -> list[np.ndarray | Bad]:
    decoded: list[np.ndarray | Bad] = []
    for image in images:
        try:
            decoded.append(decode(image, pixels, said))
        except DeepError:
            raise
        except Exception as error:  # Pillow's readers raise whatever a broken file leads them to
            decoded.append(Bad(reason_of(error)))
    return decoded


def decode(
    encoded: bytes | Path | np.ndarray | None, pixels: Pixels = PLAIN, said: list[str] | None = None
) -> np.ndarray:
    """One image as uint8 RGB `[h w 3]`, upright by its EXIF orientation; of an animation the first frame.

    Args:
        said: gets what was done to the image that must be said.

    Raises:
        DeepError: the image has more than 8 bits, and `pixels` no range for them.
    """
    from PIL import ImageOps

    said = [] if said is None else said
    with opened(encoded) as image:
        if is_cut(image):
            said.append("of 16 bits a colour, the upper 8 are read")
        if pixels.sides is not None:
            # a JPEG is read at 1/2 to 1/8 where that leaves twice what is needed
            image.draft("RGB", (2 * max(pixels.sides), 2 * max(pixels.sides)))
        if not isinstance(encoded, np.ndarray):
            ImageOps.exif_transpose(image, in_place=True)
        shown = as_rgb_image(image, pixels, said.append)
        with suppress(Exception):  # later frames may be broken; the first is what is used
            if getattr(image, "n_frames", 1) > 1:
                said.append("animated or of several pages, the first is read")
    return np.asarray(shown if pixels.sides is None else resized(shown, *pixels.sides))


def opened(encoded: bytes | Path | np.ndarray | None) -> Image.Image:
    from PIL import Image

    if encoded is None or (isinstance(encoded, bytes) and not encoded):
        raise ValueError("there are no bytes")
    if isinstance(encoded, np.ndarray):
        return Image.fromarray(encoded)
    return Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded)


def resized(image: Image.Image, height: int, width: int) -> Image.Image:
    """Scaled until it covers height and width, then cut to the middle."""
    from PIL import Image

    scale = max(width / image.width, height / image.height)
    across, down = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    if image.size != (across, down):
        image = image.resize((across, down), Image.Resampling.BICUBIC)
    left, top = (across - width) // 2, (down - height) // 2
    return image.crop((left, top, left + width, top + height))


def reason_of(error: Exception) -> str:
    from PIL import Image

    if isinstance(error, Image.DecompressionBombError):
        count = re.search(r"\d+", str(error))
        what = f"it has {int(count[0]):,} pixels, and" if count else "it has more pixels than"
        return f"{what} Pillow takes twice {Image.MAX_IMAGE_PIXELS or 0:,} to be safe. If you trust it: large=true"
    if type(error).__name__ == "UnidentifiedImageError":  # its own message shows the address of a buffer
        return "the bytes are no image"
    return str(error).rstrip(".") or type(error).__name__
