"""From encoded images to one memory map: decoded once, in threads, and mapped read-only ever after.

A decoded set is a folder `cache/<key>/`, written under another name and renamed when complete: a reader never sees half
of one, and of two processes that decode the same set at once the first to finish wins.
"""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
import json
import os
import shutil
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from distilens.data.source import Rows, Source, check_labels, digest
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


def remembered(cache: Path, key: str, write: Callable[[Path], None]) -> Path:
    """The folder `cache/key`, made by `write` if it is not there yet.

    Raises:
        UserError: the disk is full, or the cache cannot be written; nothing is left behind.
    """
    folder = cache / key
    if folder.is_dir():
        return folder
    unfinished = cache / f".{key}.{uuid.uuid4().hex[:8]}"
    try:
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot write to the data cache {cache}: {error.strerror}") from None
    try:
        write(unfinished)
        try:
            os.rename(unfinished, folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was quicker, and its folder is as good
                raise
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise full_disk(cache, needed=size_of(unfinished), most=False) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def read_source(folder: Path, fingerprint: str) -> Source:
    """The source in a folder of arrays, memory-mapped read-only."""
    about = json.loads((folder / "set.json").read_text(encoding="utf-8"))
    rows: dict[str, Rows | None] = {"train": None, "test": None, "validation": None}
    for part in rows:
        if (folder / f"{part}_images.npy").exists():
            masks = folder / f"{part}_masks.npy"
            rows[part] = Rows(
                np.load(folder / f"{part}_images.npy", mmap_mode="r"),
                np.load(folder / f"{part}_labels.npy"),
                np.load(masks, mmap_mode="r") if masks.exists() else None,
            )
    assert rows["train"] is not None
    return Source(
        rows["train"], rows["test"], rows["validation"], tuple(about["classes"]), fingerprint, tuple(about["skipped"])
    )


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


def check_disk(folder: Path, needed: int) -> None:
    """Refuse to start what the disk cannot hold."""
    if shutil.disk_usage(folder).free < needed:
        raise full_disk(folder.parent, needed=needed)


def full_disk(cache: Path, *, needed: int, most: bool = True) -> UserError:
    free = shutil.disk_usage(cache).free
    need = f"{'' if most else 'more than '}{readable(needed)}"
    return UserError(
        f"the disk of the data cache {cache} is full: the decoded images need {need}, {readable(free)} are free. "
        "Make room, or choose a smaller size=..."
    )


def readable(count: float) -> str:
    """A number of bytes in the unit that suits it."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def content_of(files: Sequence[Path], root: Path, cache: Path) -> str:
    """The sha256 of files: their paths below `root` and their bytes.

    Remembered by sizes and times in `cache/content`, so that the bytes of a large set are read once and not by every
    command. Files changed within the last two seconds are not remembered: their times could not tell a further change.
    """
    stats = [file.stat() for file in files]
    names = [file.relative_to(root).as_posix() for file in files]
    stamps = [(one.st_size, one.st_mtime_ns, one.st_ctime_ns, one.st_ino) for one in stats]
    memo = cache / "content" / digest(str(root.resolve()), names, stamps)
    with suppress(OSError):
        return memo.read_text()
    state = hashlib.sha256()
    for name, file in zip(names, files, strict=True):
        with open(file, "rb") as stream:
            state.update(f"{name}\n{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    if time.time_ns() - max(one.st_ctime_ns for one in stats) > 2_000_000_000:
        with suppress(OSError):  # a cache that cannot be written is reported where it is needed
            memo.parent.mkdir(parents=True, exist_ok=True)
            temporary = memo.with_name(f".{memo.name}.{uuid.uuid4().hex[:8]}")
            temporary.write_text(state.hexdigest())
            os.replace(temporary, memo)
    return state.hexdigest()
