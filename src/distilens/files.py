"""The run folder: what a run leaves behind, written so that a kill at any time loses nothing.

    recipe.toml  about.json  metrics.jsonl  scores.json  predictions.npz  errors.npz  report.html
    teacher/ base/ student/   model.safetensors, model.json, checkpoints
    maps/                     one .npz an explainer

Commands share nothing but such folders.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil

from distilens.errors import UserError

HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
"""This machine, in the names of files that are being written: folders may be shared."""


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file under a temporary name, then rename it: readers see the old file or the new one, whole.

    Raises:
        UserError: the disk is full, or the file may not be written; nothing is left behind.
    """
    with disk_told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.{HOST}.{os.getpid()}")
    try:
        with disk_told(path):
            write(temporary)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_told(path: Path) -> Iterator[None]:
    """Say in words that there is no room, or no permission, to write a file."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(next(folder for folder in path.parents if folder.is_dir())).free
            raise UserError(f"the disk is full: {path} could not be written ({free:,} bytes are free)") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            raise UserError(f"{path} may not be written: {error.strerror}") from error
        raise


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an `.npz`, whole or not at all."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # a file object, for savez would append .npz to the temporary name
            np.savez_compressed(file, **cast(dict[str, Any], arrays))

    write_atomically(path, write)


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:  # no JSON, or no text
        raise UserError(
            f"{path} is not whole JSON ({error}): delete it, and the stage that wrote it runs again"
        ) from None


class Metrics:
    """The log of a run, a JSON object a line: appended by the trainer, cut back to a checkpoint when training resumes."""

    def __init__(self, path: Path | None):
        self.path = path

    def append(self, **row: Any) -> None:
        if self.path is None:
            return
        with disk_told(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a") as file:
                file.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """All whole rows; a line that a kill cut short is left out."""
        if self.path is None or not self.path.exists():
            return []
        rows = []
        for line in self.path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
        return rows

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the rows that are not wanted, such as those behind the checkpoint that is resumed."""
        if self.path is not None and self.path.exists():
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in self.rows() if wanted(row)))


def key_of(*content: Any) -> str:
    """A short fingerprint of plain data."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_key(paths: Iterable[Path]) -> str:
    """A short fingerprint of the content of files."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


class Busy(UserError):  # noqa: N818  # it is what the folder is
    """Another process is at work in a folder."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time in a run folder; a killed process leaves no lock.

    Raises:
        Busy: another process is at work there.
    """
    import fcntl

    with disk_told(folder / ".lock"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")  # noqa: SIM115  # held, and closed, below
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"another process is at work in {folder}: wait for it, or choose another --out") from None
        remove_unfinished(folder)
        yield


def remove_unfinished(folder: Path) -> None:
    """Delete what killed processes of this machine were writing: `write_atomically` names it by machine and process."""
    for path in folder.rglob(".*"):
        *_, host, process = path.name.rsplit(".", 2)
        if host == HOST and process.isdecimal() and not psutil.pid_exists(int(process)):
            path.unlink(missing_ok=True)


def without_recipe(folder: Path) -> str:
    """Why a folder without a recipe is not a run, and what makes one."""
    if (folder / "checkpoints").is_dir() and (folder / "metrics.jsonl").is_file():
        return (
            f"{folder} is not a run: it is the folder of distill(folder=...), which keeps checkpoints and the log only. A run "
            "with models and a page is made by: distilens run RECIPE"
        )
    return f"{folder} is not a run: it has no recipe.toml (made by: distilens run RECIPE --out {folder})"
