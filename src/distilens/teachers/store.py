"""Records on disk: one file of equal records, written by index, and a JSON that says what they are and were made from.

A record begins with its check sum, and a record with the right sum is there: no list of what is filled has to be shared, so any
number of processes write one file at once, on one machine or over a shared folder, and a kill at any time loses at most what
was being written. A place that was never written is a hole in the file and takes no room.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from distilens.data.cached import readable
from distilens.errors import UserError
from distilens.files import disk_told, key_of, read_json, write_json
from distilens.specs import safe

FORMAT = 1
BLOCK = 4096
AT_ONCE = 64 * 2**20
"""Bytes of records that are read and checked together."""
ADVISED = hasattr(mmap, "MADV_WILLNEED")
"""Whether the system takes advice on what of a file will be read."""
SPARE = 16 * 2**20
"""Bytes that are left free on the disk."""


class Different(UserError):  # noqa: N818  # it is what the answers are
    """Answers that were recorded from something else than what is asked now."""


class Shelf:
    """All records of one kind.

    Args:
        folder: where the file and its JSON are.
        name: the need that the records answer; names the files.
        made_from: what the records depend on, as plain data: the fingerprint, in readable parts.
        record: the fields of a record after its check sum.
        shape: of the values of a record, for those who read it.
        images: how many images the set has; variant k of image i is record `(k + 1) * images + i`, and the untransformed image
            comes before the variants.

    Raises:
        Different: the shelf that is there was recorded from something else; both sides are said.
    """

    def __init__(
        self, folder: Path, name: str, made_from: dict[str, Any], record: list[tuple], images: int, shape: tuple
    ):
        self.folder, self.name, self.images = folder, name, images
        self.path = folder / f"{file_name(name)}.bin"
        self.dtype = np.dtype([("sum", "<u4"), *record])
        about = {
            "need": name,
            "made from": {"format": FORMAT, **made_from},
            "images": images,
            "shape": list(shape),
            "record": [
                [field, self.dtype[field].base.str, list(self.dtype[field].shape)] for field in self.dtype.names or ()
            ],
            "bytes": self.dtype.itemsize,
        }
        if not self.about.exists():
            write_json(self.about, about)
        there = read_json(self.about)  # as it is on the disk: another process may have been at it
        check_same(there, json.loads(json.dumps(about)), folder)
        # records of another shelf are no records of this one, even where its JSON was lost
        self.seal = int(key_of(about), 16) & 0xFFFFFFFF
        self.mapped: mmap.mmap | None = None
        self.map = np.empty(0, self.dtype)  # all records, as they are in `mapped`
        self.damaged: dict[int, None] = {}  # records whose sum was wrong, in the order in which they were found
        self.told = 0  # how many of them have been named

    @property
    def about(self) -> Path:
        return self.path.with_suffix(".json")

    def room(self, images: int) -> int:
        """The bytes on the disk that records of so many images of the set take at most: a file grows by whole blocks."""
        each = self.dtype.itemsize
        return min(self.images * each, images * (each + BLOCK))

    @property
    def taken(self) -> int:
        """Bytes on the disk; holes take none."""
        return self.path.stat().st_blocks * 512 if self.path.exists() else 0

    def rows(self, index: np.ndarray, variant: int | None) -> np.ndarray:
        """The numbers of some images' records."""
        return index + (0 if variant is None else (variant + 1) * self.images)

    def name_of(self, row: int) -> str:
        """A record in words."""
        block, image = divmod(row, self.images)
        return f"image {image}" + (f" variant {block - 1}" if block else "")

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Records, and which of them are there and whole; a damaged one is remembered in `damaged`."""
        if len(rows) and rows.max() >= len(self.map):
            self.refresh()
        there = rows < len(self.map)
        records = np.zeros(len(rows), self.dtype)
        self.fetch(rows[there])
        records[there] = self.map[rows[there]]
        valid = records["sum"] == sums(records, rows, self.seal)
        if not valid.all():
            broken = np.flatnonzero(~valid)
            written = np.frombuffer(records[broken].tobytes(), np.uint8).reshape(len(broken), -1).any(1)
            self.damaged |= dict.fromkeys(rows[broken[written]].tolist())
        return records, valid

    def fetch(self, rows: np.ndarray) -> None:
        """Have the disk bring all pages of some large records at once; else each page is waited for on its own."""
        size = self.dtype.itemsize
        if self.mapped is not None and size >= BLOCK and ADVISED:
            for first in (rows * size).tolist():
                start = first - first % mmap.PAGESIZE
                self.mapped.madvise(mmap.MADV_WILLNEED, start, first + size - start)

    def refresh(self) -> None:
        """Map the file as long as it is now."""
        count = self.path.stat().st_size // self.dtype.itemsize if self.path.exists() else 0
        self.mapped, self.map = None, np.empty(0, self.dtype)
        if count:
            with self.path.open("rb") as file:
                self.mapped = mmap.mmap(file.fileno(), count * self.dtype.itemsize, access=mmap.ACCESS_READ)
            if ADVISED:  # what is beside a record, most of it holes, is not needed next
                self.mapped.madvise(mmap.MADV_RANDOM)
            self.map = np.frombuffer(self.mapped, self.dtype)

    def write(self, rows: np.ndarray, records: np.ndarray) -> None:
        """Write records, each run of neighbours in one piece.

        Raises:
            UserError: the disk has no room for them, said before it is full.
        """
        records["sum"] = sums(records, rows, self.seal)
        order = np.argsort(rows, kind="stable")
        rows, records = rows[order], records[order]
        check_room(self.folder, records.nbytes)
        with disk_told(self.path):
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666)
            try:
                for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1):
                    if len(run):
                        write_all(file, records[run].tobytes(), int(rows[run[0]]) * self.dtype.itemsize)
            finally:
                os.close(file)

    def filled(self, index: np.ndarray, variant: int | None) -> np.ndarray:
        """Which images are recorded, by reading and checking all of them, some MiB at a time."""
        rows = self.rows(index, variant)
        self.refresh()
        found = np.zeros(len(rows), bool)
        there = np.flatnonzero(rows < len(self.map))
        at_once = max(1, AT_ONCE // self.dtype.itemsize)
        for start in range(0, len(there), at_once):
            some = there[start : start + at_once]
            found[some] = self.read(rows[some])[1]
        return found


def file_name(need: str) -> str:
    """A need as a file name that no other need has, however long it is and whatever signs it has."""
    return need if need.isalnum() else f"{safe(need)[:80]}-{key_of(need)[:8]}"


def sums(records: np.ndarray, rows: np.ndarray, seal: int) -> np.ndarray:
    """The check sum of each record: the CRC-32 of its content, begun with its row and shelf, so that it is wrong anywhere else.

    0 is that of a hole, so a sum that comes out as 0 is written as 1.
    """
    size = records.dtype.itemsize
    content = memoryview(np.ascontiguousarray(records).tobytes())
    crc, found = zlib.crc32, np.empty(len(rows), np.uint32)
    for number, row in enumerate(rows.tolist()):
        found[number] = crc(content[number * size + 4 : (number + 1) * size], (seal ^ row) & 0xFFFFFFFF) or 1
    return found


def write_all(file: int, content: bytes, offset: int) -> None:
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written


def check_room(folder: Path, needed: int) -> None:
    """Refuse to write what the disk cannot hold.

    Raises:
        UserError: how much is needed and free.
    """
    free = shutil.disk_usage(folder).free
    if needed + SPARE > free:
        raise UserError(
            f"the disk is full: {readable(needed)} of answers are to be written in {folder}, and {readable(free)} are free "
            f"({readable(SPARE)} of it are not touched). What is recorded stays; make room, and the same command goes on"
        ) from OSError(errno.ENOSPC, "no space left")


def check_same(there: dict[str, Any], asked: dict[str, Any], folder: Path) -> None:
    """The shelf on disk is the one that is asked for, or what differs is said."""
    differences = compared(there, asked)
    if differences:
        lines = "\n  ".join(
            f"{name.removeprefix('made from, ')}: recorded {was}, this run {now}" for name, was, now in differences
        )
        raise Different(f"the answers {asked['need']} in {folder} are of something else:\n  {lines}")


def compared(there: Any, asked: Any, name: str = "") -> list[tuple[str, str, str]]:
    """What differs between two fingerprints, as (name, there, asked)."""
    if isinstance(there, dict) and isinstance(asked, dict):
        keys = dict.fromkeys([*asked, *there])
        inner = {key: f"{name}, {key}" if name else key for key in keys}
        return [found for key in keys for found in compared(there.get(key), asked.get(key), inner[key])]
    return [] if there == asked else [(name, str(there), str(asked))]
