"""Files of a run folder, written atomically: a kill at any time leaves no damaged file.

    recipe.toml  about.json  metrics.jsonl  scores.json  predictions.npz  errors.npz  report.html
    teacher/ base/ student/   model.safetensors, model.json, checkpoints
    maps/                     one .npz per explainer

Commands share data only through such folders.
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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil

from distilens.foundation.errors import UserError

HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
"""This machine's key in the names of unfinished files: several machines may share a folder."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""The system's errors of a full disk, and of a user who has used up a quota."""


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file under a temporary name, then rename it: readers see the complete old or new file.

    Raises:
        UserError: the disk is full, or there is no permission to write. No temporary file remains.
    """
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.{HOST}.{os.getpid()}")
    try:
        with explain_disk_errors(path):
            write(temporary)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def explain_disk_errors(path: Path) -> Iterator[None]:
    """Turn the errors of a full disk or a missing permission into a `UserError`."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            free = shutil.disk_usage(next(folder for folder in path.parents if folder.is_dir())).free
            raise UserError(f"the disk is full: {path} could not be written ({free:,} bytes are free)") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            raise UserError(f"{path} may not be written: {error.strerror}") from error
        raise


def check_disk(folder: Path, needed: int, what: str, advice: str, *, spare: int = 0) -> None:
    """Check before writing that the disk has enough space.

    Args:
        needed: the bytes that will be written.
        what: what will be written, such as `decoded images`.
        advice: what the user can do.
        spare: bytes that must stay free.

    Raises:
        UserError: the disk has too little space; the message has the needed and the free space.
    """
    if needed + spare > shutil.disk_usage(folder).free:
        raise full_disk(folder, f"{readable(needed)} of {what}", advice, spare=spare)


def full_disk(folder: Path, needed: str, advice: str, *, spare: int = 0) -> UserError:
    """The error of a disk that has too little space; its cause is the system's error."""
    free = readable(shutil.disk_usage(folder).free)
    kept = f" ({readable(spare)} of it stay free)" if spare else ""
    error = UserError(f"the disk is full: {needed} must be written in {folder}, but {free} are free{kept}. {advice}")
    error.__cause__ = OSError(errno.ENOSPC, "no space left")
    return error


def readable(count: float) -> str:
    """A number of bytes in a suitable unit.

    >>> [readable(count) for count in (950, 1700, 16 * 2**20, 3e12)]
    ['950 bytes', '1.7 kB', '16.8 MB', '3.0 TB']
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an `.npz`, whole or not at all."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # a file object: given a name, savez would append .npz to it
            np.savez_compressed(file, **cast(dict[str, Any], arrays))

    write_atomically(path, write)


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None if there is no file.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:  # not JSON, or not text
        raise UserError(
            f"{path} is not whole JSON ({error}): delete it, and the stage that wrote it runs again"
        ) from None


class Busy(UserError):  # noqa: N818  # the folder is busy
    """Another process is working in the folder."""


@contextlib.contextmanager
def lock_file(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Lock a file, for one process at a time; a killed process leaves no lock.

    Args:
        path: an empty file, made if it is not there.
        wait: whether to wait for another process that has locked it.

    Raises:
        BlockingIOError: another process has locked it, and `wait` is False.
    """
    import fcntl

    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path, "a")  # noqa: SIM115  # closed below
    with lock as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a run folder, for one process at a time; a killed process leaves no lock.

    Raises:
        Busy: another process is working there.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock_file(folder / ".lock", wait=False))
        except BlockingIOError:
            raise Busy(f"another process is at work in {folder}: wait for it, or choose another --out") from None
        remove_unfinished(folder)
        yield


def remove_unfinished(folder: Path) -> None:
    """Delete unfinished files of killed processes on this machine; `write_atomically` puts host and process in their names."""
    for path in folder.rglob(".*"):
        *_, host, process = path.name.rsplit(".", 2)
        if host == HOST and process.isdecimal() and not psutil.pid_exists(int(process)):
            path.unlink(missing_ok=True)


def explain_missing_recipe(folder: Path) -> str:
    """Why a folder without a recipe is not a run, and what makes one."""
    if (folder / "checkpoints").is_dir() and (folder / "metrics.jsonl").is_file():
        return (
            f"{folder} is not a run: it is the folder of distill(folder=...), which keeps checkpoints and the log only. A run "
            "with models and a page is made by: distilens run RECIPE"
        )
    return f"{folder} is not a run: it has no recipe.toml (made by: distilens run RECIPE --out {folder})"
