"""A data source: labelled images as arrays, before selection and splitting."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from distilens.data.copies import Copies
from distilens.foundation.errors import UserError, shortened
from distilens.tasks import Task

SPLITS = {"train": ("train", "training"), "test": ("test",), "validation": ("validation", "valid", "val", "dev")}
"""The usual names of splits, by our own names."""


Columns = Mapping[str, Callable[[], np.ndarray]]
"""Other columns of a table by name; each is read when it is asked for, as an array of text or numbers."""


@dataclass(frozen=True, eq=False)
class Rows:
    """One labelled set.

    Attributes:
        images: uint8 `[n h w 3]`; may be a read-only memory map.
        targets: `[n]` or `[n ...]`, as the task has them: in classification int64, positions in the classes; -1 = none. In a
            segmentation uint8 `[n h w]`, 255 = void; may be a read-only memory map.
        masks: uint8 `[n h w]`, 255 on the evidence for the label, 0 elsewhere; None if there are no masks.
        names: the file of each image, relative to the set's folder; None if the images are not files.
        columns: what else is known of each image; `path` is the name of its file.
    """

    images: np.ndarray
    targets: np.ndarray
    masks: np.ndarray | None = None
    names: tuple[str, ...] | None = None
    columns: Columns = field(default_factory=dict)

    def column(self, name: str) -> np.ndarray | None:
        """A column by name; None if there is no such column."""
        if name == "path" and self.names is not None:
            return np.array(self.names, dtype=object)
        return self.columns[name]() if name in self.columns else None

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def labels(self) -> np.ndarray:
        """The targets, by their name in classification."""
        return self.targets


@dataclass(frozen=True)
class Inventory:
    """What was found on the disk, so that a user can judge a result.

    Attributes:
        places: per class, the number of pictures from each folder.
        left_out: by reason, what was not read.
        remarks: sentences for the user.
        hint: advice if the pictures have no classes, or only one.
    """

    places: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    hint: str = ""

    def lines(self) -> list[str]:
        """All of it in sentences: the remarks, then what was left out, one line per reason."""
        left = [
            f"left out: {len(names):,} {reason}, such as {names[0]}"
            if len(names) > 1
            else f"left out: {reason}: {names[0]}"
            for reason, names in self.left_out.items()
        ]
        return [*self.remarks, *left]

    def origins(self) -> list[str]:
        """One line per class: how many pictures came from which folders."""
        return [
            f"{name}: " + shortened([f"{count:,} from {place}" for place, count in counts.items()], most=4)
            for name, counts in self.places.items()
        ]

    def plain(self, most: int = 20) -> dict[str, Any]:
        """As plain data: for a long list its length and the first names."""
        left = {reason: {"count": len(names), "first": list(names[:most])} for reason, names in self.left_out.items()}
        places = {name: dict(list(counts.items())[:most]) for name, counts in self.places.items()}
        return {"places": places, "left_out": left, "remarks": list(self.remarks)}


NOTHING = Inventory()


@dataclass(frozen=True, eq=False)
class Source:
    """A whole data set, before `limit`, `shots` and splits.

    Attributes:
        validation: None: hold out some of `train`.
        test: None: hold out some of `train`.
        task: what the targets are.
        fingerprint: 16 hexadecimal digits of a hash of the content; stored results are tied to it.
        skipped: the images that could not be read and were left out, each with its reason.
        inventory: where the images were, what was left out, and remarks.
        copies: the groups of duplicate pictures.
    """

    train: Rows
    test: Rows | None
    validation: Rows | None
    task: Task
    fingerprint: str
    skipped: tuple[str, ...] = ()
    inventory: Inventory = NOTHING
    copies: tuple[Copies, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes; empty if the task has none."""
        return self.task.classes


def with_remark(source: Source, remark: str) -> Source:
    """The source with one more remark for the user, in front of the others."""
    return replace(source, inventory=replace(source.inventory, remarks=(remark, *source.inventory.remarks)))


def digest(*parts: Any) -> str:
    """16 hexadecimal digits of the sha256 of arrays, bytes and anything that JSON can write."""
    state = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            state.update(f"{part.dtype.str}{part.shape}".encode())
            for row in range(0, len(part), 4096):  # a memory map is read in pieces, not copied whole
                state.update(np.ascontiguousarray(part[row : row + 4096]).data)
        else:
            content = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True, default=str).encode()
            # The length in front distinguishes ("ab", "c") from ("a", "bc").
            state.update(f"{len(content)}:".encode() + content)
    return state.hexdigest()[:16]


def check_labels(
    labels: Mapping[str, np.ndarray], classes: Sequence[str], name: Callable[[str, int], str] | None = None
) -> None:
    """Check that every label is a class or -1.

    Args:
        labels: by set.
        name: gives the name of a row in messages.

    Raises:
        UserError: a label is wrong; the message names its row.
    """
    for part, values in labels.items():
        wrong = np.flatnonzero((values < -1) | (values >= len(classes)))
        if len(wrong):
            where = name(part, int(wrong[0])) if name else f"row {wrong[0]} of {part}"
            raise UserError(
                f"{where} has the label {values[wrong[0]]}: with {len(classes)} classes ({shortened(classes)}) "
                f"labels go from 0 to {len(classes) - 1}; -1 means no label"
            )


def write_option(option: str) -> str:
    """An option of the data as a remedy, with how the command line spells it."""
    return f"{option} (an option of the data: data.{option} on the command line)"


def check_count(names: Sequence[str], hint: str = "") -> None:
    """Check that there are at least two classes.

    Raises:
        UserError: there is one class or none; the message has the hint.
    """
    if len(names) < 2:
        what = f"there is only one class, {names[0]!r}" if names else "the images have no classes"
        hint = hint or "Expected: two or more."
        raise UserError(f"{what}: nothing can be learnt from that (distilens explain takes such images). {hint}")


def as_rgb(images: np.ndarray) -> np.ndarray:
    """Grey `[n h w]` or `[n h w 1]` as `[n h w 3]`, by repetition; RGB is returned unchanged."""
    if images.ndim == 3:
        images = images[..., None]
    return np.ascontiguousarray(np.repeat(images, 3, axis=-1)) if images.shape[-1] == 1 else images
