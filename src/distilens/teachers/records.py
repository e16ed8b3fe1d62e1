"""Records on disk: one file of records of equal size, by index, and a JSON file with their format and origin.

A record begins with its check sum. A record with the right sum is valid, so there is no list of records to share. Any number of
processes can write the same file at once, on one machine or over a shared folder. A kill loses at most the records that were
being written. A record that was never written is a hole in the file and takes no disk space.
"""

from __future__ import annotations

import json
import mmap
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from distilens.foundation.errors import UserError
from distilens.foundation.files import check_disk, explain_disk_errors, read_json, write_json
from distilens.foundation.fingerprints import key_of
from distilens.foundation.notation import safe

FORMAT = 1
BLOCK = 4096
AT_ONCE = 64 * 2**20
"""Bytes of records that are read and checked together."""
ADVISED = hasattr(mmap, "MADV_WILLNEED")
"""Whether the system has `madvise`, which announces what will be read from a file."""
SPARE = 16 * 2**20
"""Bytes that stay free on the disk."""


class Different(UserError):  # noqa: N818  # the name describes the answers
    """The stored answers were recorded from different inputs."""


class Shelf:
    """All records of one kind.

    Args:
        folder: the folder of the file and its JSON.
        name: the need that the records answer; the file names contain it.
        made_from: everything that the records depend on, as plain data: the fingerprint in readable form.
        record: the fields of a record after its check sum.
        images: the number of images in the set. Variant k of image i is record `(k + 1) * images + i`; the untransformed images
            come before the variants.
        shape: the shape of a record's values, for readers of the JSON.

    Raises:
        Different: the existing shelf was recorded from different inputs; the message names both sides.
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
        there = read_json(self.about)  # read it from the disk, because another process may have written it
        check_same(there, json.loads(json.dumps(about)), folder)
        # records of another shelf must never be valid here, even if the JSON of that shelf was lost
        self.seal = int(key_of(about), 16) & 0xFFFFFFFF
        self.mapped: mmap.mmap | None = None
        self.map = np.empty(0, self.dtype)  # all records in `mapped`
        self.damaged: dict[int, None] = {}  # records whose sum was wrong, in order of discovery
        self.told = 0  # how many of them have been reported

    @property
    def about(self) -> Path:
        return self.path.with_suffix(".json")

    def room(self, images: int) -> int:
        """The maximum disk space, in bytes, of records for this number of images. A file grows by whole blocks."""
        size = self.dtype.itemsize
        return min(self.images * size, images * (size + BLOCK))

    @property
    def taken(self) -> int:
        """Bytes on the disk, without the holes."""
        return self.path.stat().st_blocks * 512 if self.path.exists() else 0

    def rows(self, index: np.ndarray, variant: int | None) -> np.ndarray:
        """The record numbers of some images."""
        return index + (0 if variant is None else (variant + 1) * self.images)

    def name_of(self, row: int) -> str:
        """The image and the variant of a record, in words."""
        block, image = divmod(row, self.images)
        return f"image {image}" + (f" variant {block - 1}" if block else "")

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The records, and whether each of them is valid. Damaged records are added to `damaged`."""
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
        """Let the disk read all pages of large records at once; otherwise each page would be waited for separately."""
        size = self.dtype.itemsize
        if self.mapped is not None and size >= BLOCK and ADVISED:
            for first in (rows * size).tolist():
                start = first - first % mmap.PAGESIZE
                self.mapped.madvise(mmap.MADV_WILLNEED, start, first + size - start)

    def refresh(self) -> None:
        """Map the file at its present length."""
        count = self.path.stat().st_size // self.dtype.itemsize if self.path.exists() else 0
        self.mapped, self.map = None, np.empty(0, self.dtype)
        if count:
            with self.path.open("rb") as file:
                self.mapped = mmap.mmap(file.fileno(), count * self.dtype.itemsize, access=mmap.ACCESS_READ)
            if ADVISED:  # the neighbours of a record, mostly holes, are not read next
                self.mapped.madvise(mmap.MADV_RANDOM)
            self.map = np.frombuffer(self.mapped, self.dtype)

    def write(self, rows: np.ndarray, records: np.ndarray) -> None:
        """Write records; each run of neighbours is one write.

        Raises:
            UserError: the disk does not have enough space. This is checked before the disk is full.
        """
        records["sum"] = sums(records, rows, self.seal)
        order = np.argsort(rows, kind="stable")
        rows, records = rows[order], records[order]
        check_room(self.folder, records.nbytes)
        with explain_disk_errors(self.path):
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666)
            try:
                for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1):
                    if len(run):
                        write_all(file, records[run].tobytes(), int(rows[run[0]]) * self.dtype.itemsize)
            finally:
                os.close(file)

    def filled(self, index: np.ndarray, variant: int | None) -> np.ndarray:
        """Whether each image is recorded. It reads and checks all records, `AT_ONCE` bytes at a time."""
        rows = self.rows(index, variant)
        self.refresh()
        valid = np.zeros(len(rows), bool)
        there = np.flatnonzero(rows < len(self.map))
        at_once = max(1, AT_ONCE // self.dtype.itemsize)
        for start in range(0, len(there), at_once):
            block = there[start : start + at_once]
            valid[block] = self.read(rows[block])[1]
        return valid


def file_name(need: str) -> str:
    """A unique file name for a need, whatever its length and characters."""
    return need if need.isalnum() else f"{safe(need)[:80]}-{key_of(need)[:8]}"


def sums(records: np.ndarray, rows: np.ndarray, seal: int) -> np.ndarray:
    """The check sum of each record: the CRC-32 of its content, seeded with its row and shelf.

    So a record is invalid in any other row or shelf. The sum of a hole is 0; a sum that is 0 is therefore written as 1.
    """
    size = records.dtype.itemsize
    content = memoryview(np.ascontiguousarray(records).tobytes())
    crc, results = zlib.crc32, np.empty(len(rows), np.uint32)
    for number, row in enumerate(rows.tolist()):
        results[number] = crc(content[number * size + 4 : (number + 1) * size], (seal ^ row) & 0xFFFFFFFF) or 1
    return results


def write_all(file: int, content: bytes, offset: int) -> None:
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written


def check_room(folder: Path, needed: int) -> None:
    """Refuse to write more than the disk can hold.

    Raises:
        UserError: the disk is full; the message has the needed and the free space.
    """
    advice = "The recorded answers stay; free some space, and the same command goes on"
    check_disk(folder, needed, "answers", advice, spare=SPARE)


def check_same(there: dict[str, Any], asked: dict[str, Any], folder: Path) -> None:
    """Raise `Different`, with all differences, if the shelf on disk is not the requested one."""
    differences = compared(there, asked)
    if differences:
        lines = "\n  ".join(
            f"{name.removeprefix('made from, ')}: recorded {was}, this run {now}" for name, was, now in differences
        )
        raise Different(f"the answers {asked['need']} in {folder} were recorded from different inputs:\n  {lines}")


def compared(there: Any, asked: Any, name: str = "") -> list[tuple[str, str, str]]:
    """The differences between two fingerprints, as (name, there, asked)."""
    if isinstance(there, dict) and isinstance(asked, dict):
        keys = dict.fromkeys([*asked, *there])
        inner = {key: f"{name}, {key}" if name else key for key in keys}
        return [difference for key in keys for difference in compared(there.get(key), asked.get(key), inner[key])]
    return [] if there == asked else [(name, str(there), str(asked))]
