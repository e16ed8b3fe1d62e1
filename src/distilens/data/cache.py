"""The cache of decoded and generated images: folders named by a hash of their content, always complete."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from distilens.data.copies import Copies
from distilens.data.source import Inventory, Rows, Source, digest
from distilens.foundation.errors import UserError
from distilens.foundation.files import FULL, full_disk, readable
from distilens.tasks import Classification, task_from

ADVICE = "Make room, or choose a smaller size=..."
"""For a full disk."""


def cached_folder(cache: Path, key: str, write: Callable[[Path], None]) -> Path:
    """The folder `cache/key`; `write` fills it if it does not exist yet.

    Raises:
        UserError: the disk is full, or the cache cannot be written; no partial folder remains.
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
            if not folder.is_dir():  # otherwise another process was faster, and its folder is equivalent
                raise
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise full_disk(cache, f"more than {readable(size_of(unfinished))} of decoded images", ADVICE) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def read_source(folder: Path, fingerprint: str) -> Source:
    """Read a source from a folder of arrays, memory-mapped and read-only."""
    about = json.loads((folder / "set.json").read_text(encoding="utf-8"))
    rows: dict[str, Rows | None] = {"train": None, "test": None, "validation": None}
    for part in rows:
        if (folder / f"{part}_images.npy").exists():
            masks, targets = folder / f"{part}_masks.npy", folder / f"{part}_targets.npy"
            rows[part] = Rows(
                np.load(folder / f"{part}_images.npy", mmap_mode="r"),
                np.load(targets, mmap_mode="r") if targets.exists() else np.load(folder / f"{part}_labels.npy"),
                np.load(masks, mmap_mode="r") if masks.exists() else None,
            )
    assert rows["train"] is not None
    return Source(
        rows["train"],
        rows["test"],
        rows["validation"],
        task_from(about["task"]) if "task" in about else Classification(tuple(about["classes"])),
        fingerprint,
        tuple(about["skipped"]),
        Inventory(remarks=tuple(about.get("remarks", ()))),
        tuple(map(read_copies, about.get("copies", ()))),
    )


def read_copies(plain: dict[str, Any]) -> Copies:
    return Copies(plain["exact"], tuple((part, row) for part, row in plain["rows"]), tuple(plain["names"]))


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def content_of(files: Sequence[Path], root: Path, cache: Path) -> str:
    """The sha256 of files: their paths below `root` and their bytes.

    The result is stored in `cache/content` under sizes and times, so that the bytes of a large set are read once, not by every
    command. It is not stored for files that changed within the last two seconds: their times might not show a further change.
    """
    stats = [file.stat() for file in files]
    names = [file.relative_to(root).as_posix() for file in files]
    stamps = [(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for stat in stats]
    memo = cache / "content" / digest(str(root.resolve()), names, stamps)
    with suppress(OSError):
        return memo.read_text()
    state = hashlib.sha256()
    for name, file in zip(names, files, strict=True):
        with open(file, "rb") as stream:
            state.update(os.fsencode(name) + f"\n{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    if time.time_ns() - max(stat.st_ctime_ns for stat in stats) > 2_000_000_000:
        with suppress(OSError):  # `cached_folder` reports a cache that cannot be written
            memo.parent.mkdir(parents=True, exist_ok=True)
            temporary = memo.with_name(f".{memo.name}.{uuid.uuid4().hex[:8]}")
            temporary.write_text(state.hexdigest())
            os.replace(temporary, memo)
    return state.hexdigest()
