"""Data for a task of your own: images with targets that are not classes. They stay in memory."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from distilens.data.pictures import as_array, channels_last
from distilens.data.source import Rows, Source, digest
from distilens.data.sources.arrays import pixels_of
from distilens.data.sources.object_kinds import is_items, is_tensors
from distilens.data.sources.objects import name_sets, picture_of, pixels_of_one, unwrap_loader
from distilens.foundation.errors import UserError, shortened
from distilens.tasks import VOID, Task


def source_of_task(given: Any, task: Task) -> Source:
    """Make a source for a task from images and targets, or from a map-style data set of them; also of several sets.

    Raises:
        UserError: the object does not hold images and targets, or their numbers differ.
    """
    sets = {part: rows_of(unwrap_loader(one)[0], part, task) for part, one in name_sets(given).items()}
    sizes = {rows.images.shape[1:3] for rows in sets.values()}
    if len(sizes) > 1:
        raise UserError(f"the images of the sets have several sizes: {sorted(sizes)}. Expected one size")
    key = digest(
        "own task", repr(task), code_of(task), *(part for rows in sets.values() for part in (rows.images, rows.targets))
    )
    return Source(sets["train"], sets.get("test"), sets.get("validation"), task, key)


def code_of(task: Task) -> str:
    """The source of a task's class: a run with another loss is another run. Empty if it cannot be found."""
    try:
        return inspect.getsource(type(task))
    except (OSError, TypeError):
        return ""


def rows_of(given: Any, part: str, task: Task) -> Rows:
    """One set as arrays."""
    if is_tensors(given):
        given = given.tensors
    elif is_items(given):
        pairs = [(picture_of(item), item[1]) for item in (given[place] for place in range(len(given)))]
        pictures = [rgb(picture, part, place) for place, (picture, _) in enumerate(pairs)]
        if len({picture.shape for picture in pictures}) != 1:
            raise UserError(f"the {part} pictures have several sizes: for a task of your own, give one size")
        given = np.stack(pictures), np.stack([as_array(target) for _, target in pairs])
    if not (isinstance(given, tuple | list) and len(given) == 2):
        raise UserError(f"expected images and targets (X, y), or a data set of them; given a {type(given).__name__}")
    images, targets = pixels_of(given[0], f"the {part} images"), as_array(given[1])
    if len(images) != len(targets) or targets.dtype.kind not in "biuf":
        raise UserError(
            f"the {part} targets are {targets.dtype} {list(targets.shape)}: expected numbers, or arrays of "
            f"numbers, one per image ({len(images)}), for the task {task.name}"
        )
    if task.dense:
        return Rows(images, masks_of(targets, images, part, task))
    if targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    return Rows(images, targets.astype(np.float32 if targets.dtype.kind == "f" else np.int64))


def masks_of(targets: np.ndarray, images: np.ndarray, part: str, task: Task) -> np.ndarray:
    """The targets of a dense task: of the size of the images, and bytes if they are classes.

    Raises:
        UserError: another size, or a value that is neither a class nor void.
    """
    if targets.shape != images.shape[:3]:
        raise UserError(
            f"the {part} masks are {list(targets.shape)}; expected one of the size of each image, {list(images.shape[:3])}"
        )
    if not task.classes:
        return targets
    values = np.unique(targets)
    wrong = values[((values < 0) | (values >= len(task.classes))) & (values != VOID)]
    if targets.dtype.kind not in "iub" or len(wrong):
        what = f"the value {wrong[0]}" if len(wrong) else targets.dtype
        raise UserError(
            f"the {part} masks have {what}: expected whole numbers from 0 to {len(task.classes) - 1}, one for each class of "
            f"{shortened(task.classes)}; {VOID} is void"
        )
    return targets.astype(np.uint8)


def rgb(picture: Any, part: str, place: int) -> np.ndarray:
    """A picture as an array `[h w]` or `[h w c]`."""
    pixels = pixels_of_one(picture, f"item {place} of {part}")
    return channels_last(pixels, torch_like=False, what=f"item {place} of {part}") if pixels.ndim == 3 else pixels
