"""From encoded images to one memory map: decoded once, in threads, and mapped read-only ever after.

A decoded set is a folder `cache/<key>/`, written under another name and renamed when complete: a reader never sees half
of one, and of two processes that decode the same set at once the first to finish wins.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from distilens.data.cached import check_disk, read_source, remembered
from distilens.data.source import Source, check_labels, digest
from distilens.errors import UserError

if TYPE_CHECKING:
    import rich.progress
    from PIL import Image

VERSION = 1
"""Part of every key: raise it when the same bytes would decode to other pixels."""

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


def decoded(
    cache: Path,
    key: str,
    read: Callable[[], tuple[Mapping[str, Encoded], Sequence[str]]],
    *,
    size: int | None,
    skip_bad: bool,
) -> Source:
    """The source of some encoded sets; `read` is called, and anything decoded, only if the cache does not have it.

    Args:
        key: what the images are read from (content and options); with `size`, `skip_bad` and VERSION the fingerprint.
        read: the sets by name (`train`, `test`, `validation`) and the classes. Where there is no labelled test set, the
            validation set takes its place, as is the custom with ImageNet.

    Raises:
        UserError: an image that cannot be decoded, images of several sizes, labels at fault, a full disk.
    """
    fingerprint = digest(VERSION, key, size, skip_bad)

    def write(folder: Path) -> None:
        sets, classes = read()
        sets = in_their_roles(sets)
        check_labels(
            {part: encoded.labels for part, encoded in sets.items()}, classes, lambda part, row: sets[part].name(row)
        )
        labels, skipped = write_images(folder, sets, size=size, skip_bad=skip_bad)
        if skipped:
            check_labels(labels, classes)
        for part, values in labels.items():
            np.save(folder / f"{part}_labels.npy", values)
        (folder / "set.json").write_text(json.dumps({"classes": list(classes), "skipped": skipped}), encoding="utf-8")

    return read_source(remembered(cache, fingerprint, write), fingerprint)


def in_their_roles(sets: Mapping[str, Encoded]) -> dict[str, Encoded]:
    """The sets that have labels; the validation set as test where there is no other."""
    labelled = {part: sets[part] for part in sets if part == "train" or (sets[part].labels >= 0).any()}
    if "test" not in labelled and "validation" in labelled:
        labelled["test"] = labelled.pop("validation")
    return labelled


def write_images(
    folder: Path, sets: Mapping[str, Encoded], *, size: int | None, skip_bad: bool
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Decode the sets into `<set>_images.npy`; the labels of the images that are there, and what was skipped."""
    total = sum(len(encoded.labels) for encoded in sets.values())
    labels, skipped = {}, []
    first: tuple[str, tuple[int, ...]] | None = None
    with ThreadPoolExecutor(os.cpu_count()) as pool, Progress(total) as progress:
        for part, encoded in sets.items():
            kept = []
            # Written in order through the file rather than into a map of it: on a full disk a write raises, whereas a
            # page of a map ends the process. The header is put right when the number of images is known.
            with open(folder / f"{part}_images.npy", "wb") as file:
                for row, image in enumerate(decode_all(pool, encoded.images(), size)):
                    progress.advance()
                    if isinstance(image, Bad):
                        words = f"{encoded.name(row)}: {image.reason}"
                        if not skip_bad:
                            raise UserError(
                                f"cannot decode {words}. Mend or remove it, or leave such images out: skip_bad=true"
                            )
                        skipped.append(words)
                        continue
                    if first is None:
                        first = (encoded.name(row), image.shape)
                        check_disk(folder, total * image.size)
                    if image.shape != first[1]:
                        raise UserError(
                            f"the images are not all of one size: {first[0]} is {height_by_width(first[1])}, "
                            f"{encoded.name(row)} is {height_by_width(image.shape)} (height × width). "
                            f"Bring all to one, for example size={min(first[1][:2])}"
                        )
                    if not kept:
                        write_header(file, len(encoded.labels), image.shape)
                    file.write(np.ascontiguousarray(image).data)
                    kept.append(row)
                if not kept:
                    raise UserError(
                        f"not one image of the {part} set can be decoded; the first is {skipped[-len(encoded.labels)]}"
                    )
                assert first is not None
                write_header(file, len(kept), first[1])
            labels[part] = encoded.labels[np.array(kept)]
    return labels, skipped


def write_header(file: BinaryIO, count: int, shape: tuple[int, ...]) -> None:
    """The .npy header of `[count *shape]` uint8 at the start of a file. NumPy leaves room in it for any count."""
    file.seek(0)
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
    np.lib.format.write_array_header_1_0(file, header)


def decode_all(pool: ThreadPoolExecutor, images: Iterable, size: int | None) -> Iterable[np.ndarray | Bad]:
    """Decode in threads, in order, holding no more than a few hundred images at a time."""
    running: deque[Future] = deque()
    for task in batched(images, TASK):
        running.append(pool.submit(decode_some, task, size))
        if len(running) > 8 * (os.cpu_count() or 1):
            yield from running.popleft().result()
    for future in running:
        yield from future.result()


def batched(items: Iterable, count: int) -> Iterable[tuple]:
    """`itertools.batched`, which Python 3.11 does not have."""
    iterator = iter(items)
    while batch := tuple(itertools.islice(iterator, count)):
        yield batch


def decode_some(images: Sequence[bytes | Path | np.ndarray | None], size: int | None) -> list[np.ndarray | Bad]:
    decoded: list[np.ndarray | Bad] = []
    for image in images:
        try:
            decoded.append(decode(image, size))
        except Exception as error:  # Pillow's readers raise whatever a broken file leads them to
            decoded.append(Bad(reason_of(error)))
    return decoded


def decode(encoded: bytes | Path | np.ndarray | None, size: int | None = None) -> np.ndarray:
    """One image as uint8 RGB `[h w 3]`, upright by its EXIF orientation; transparency is dropped.

    With `size`, the shorter side is resized to it (bicubic, antialiased), and the middle `size` × `size` is cut out.
    """
    from PIL import Image, ImageOps

    if encoded is None or (isinstance(encoded, bytes) and not encoded):
        raise ValueError("there are no bytes")
    if isinstance(encoded, np.ndarray):
        image = Image.fromarray(encoded)
    else:
        image = Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded)
        if size is not None:
            image.draft(
                "RGB", (2 * size, 2 * size)
            )  # a JPEG is read at 1/2 to 1/8 where that leaves twice what is needed
        ImageOps.exif_transpose(image, in_place=True)
    image = as_rgb_image(image)
    if size is not None:
        image = resized(image, size)
    return np.asarray(image)


def as_rgb_image(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I;16"):  # Pillow clips 16-bit grey at 255 instead of scaling it
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def resized(image: Image.Image, size: int) -> Image.Image:
    """The shorter side to `size`, then the middle square."""
    from PIL import Image

    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def reason_of(error: Exception) -> str:
    if type(error).__name__ == "UnidentifiedImageError":  # its own message shows the address of a buffer
        return "the bytes are no image"
    return str(error) or type(error).__name__


def height_by_width(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} × {shape[1]}"


class Progress:
    """A progress bar with an estimate on stderr, if there is more than a moment to wait."""

    MOMENT = 1.0

    def __init__(self, total: int):
        self.total, self.done, self.began = total, 0, time.monotonic()
        self.bar: rich.progress.Progress | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self) -> None:
        self.done += 1
        if self.done % TASK == 0:
            if self.bar is None and time.monotonic() - self.began > self.MOMENT:
                self.bar = self.started()
            if self.bar is not None:
                self.bar.update(self.bar.task_ids[0], completed=self.done)

    def started(self) -> rich.progress.Progress:
        from rich import progress
        from rich.console import Console

        count, left = progress.MofNCompleteColumn(), progress.TimeRemainingColumn()
        columns = (progress.TextColumn("decoding images"), progress.BarColumn(), count, left)
        bar = progress.Progress(*columns, console=Console(stderr=True), transient=True)
        bar.add_task("decode", total=self.total)
        bar.start()
        return bar
