"""What a name stands for: labelled images as arrays, before any of them is chosen or held out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from distilens.data.copies import Copies
from distilens.errors import UserError

SPLITS = {"train": ("train", "training"), "test": ("test",), "validation": ("validation", "valid", "val", "dev")}
"""What the splits of a data set are usually called, by our names for them."""


@dataclass(frozen=True, eq=False)
class Rows:
    """One labelled set.

    Attributes:
        images: uint8 `[n h w 3]`; may be a read-only memory map.
        labels: int64 `[n]`, positions in the source's classes; -1 = none.
        masks: uint8 `[n h w]`, 255 where the evidence for the label is, 0 elsewhere; None where nobody drew any.
        names: the file of each image, below the set's folder; None where the images are not files.
    """

    images: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None
    names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Inventory:
    """What was found on the disk, for whoever has to believe a result.

    Attributes:
        places: for each class, how many pictures came from which folder.
        left_out: by reason, what was not read.
        remarks: what a user has to know, in sentences.
        hint: what would help where the pictures have no classes, or one alone.
    """

    places: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    hint: str = ""

    def lines(self) -> list[str]:
        """All of it in sentences: the remarks, then what was left out, a reason a line."""
        left = [
            f"left out: {len(names):,} {reason}, as {names[0]}" if len(names) > 1 else f"left out: {reason}: {names[0]}"
            for reason, names in self.left_out.items()
        ]
        return [*self.remarks, *left]

    def origins(self) -> list[str]:
        """A line a class: how many pictures came from which folders."""
        return [
            f"{name}: " + shortened([f"{count:,} from {place}" for place, count in found.items()], most=4)
            for name, found in self.places.items()
        ]

    def plain(self, most: int = 20) -> dict[str, Any]:
        """As plain data: of a long list the count, and the first names."""
        left = {reason: {"count": len(names), "first": list(names[:most])} for reason, names in self.left_out.items()}
        places = {name: dict(list(found.items())[:most]) for name, found in self.places.items()}
        return {"places": places, "left_out": left, "remarks": list(self.remarks)}


NOTHING = Inventory()


@dataclass(frozen=True, eq=False)
class Source:
    """Everything that a name stands for, before limit, shots and splits.

    Attributes:
        validation: None: hold some out of `train`.
        test: None: hold some out of `train`.
        fingerprint: 16 hexadecimal digits over the content, so that what is stored is never read for anything else.
        skipped: the images that could not be read and were left out, each with its reason.
        inventory: what lay where, what was left out, and what has to be said.
        copies: the groups of pictures that are one and the same.
    """

    train: Rows
    test: Rows | None
    validation: Rows | None
    classes: tuple[str, ...]
    fingerprint: str
    skipped: tuple[str, ...] = ()
    inventory: Inventory = NOTHING
    copies: tuple[Copies, ...] = ()


def digest(*parts: Any) -> str:
    """16 hexadecimal digits of the sha256 of arrays, bytes and whatever JSON can write."""
    state = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            state.update(f"{part.dtype.str}{part.shape}".encode())
            for row in range(0, len(part), 4096):  # a memory map is read in pieces, not copied whole
                state.update(np.ascontiguousarray(part[row : row + 4096]).data)
        else:
            content = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True, default=str).encode()
            # The length in front keeps ("ab", "c") apart from ("a", "bc").
            state.update(f"{len(content)}:".encode() + content)
    return state.hexdigest()[:16]


def check_labels(
    labels: Mapping[str, np.ndarray], classes: Sequence[str], name: Callable[[str, int], str] | None = None
) -> None:
    """Every label is a class or -1.

    Args:
        labels: by set.
        name: the words for a row of a set in messages.

    Raises:
        UserError: with the first row at fault.
    """
    for part, values in labels.items():
        wrong = np.flatnonzero((values < -1) | (values >= len(classes)))
        if len(wrong):
            where = name(part, int(wrong[0])) if name else f"row {wrong[0]} of {part}"
            raise UserError(
                f"{where} has the label {values[wrong[0]]}: with {len(classes)} classes ({shortened(classes)}) "
                f"labels go from 0 to {len(classes) - 1}, or are -1 where there is none"
            )


def said_option(option: str) -> str:
    """An option of the data as a remedy, with how the command line spells it."""
    return f"{option} (an option of the data: data.{option} on the command line)"


def check_count(names: Sequence[str], hint: str = "") -> None:
    """Two classes are the least that can be told apart.

    Raises:
        UserError: one or none, with the hint.
    """
    if len(names) < 2:
        what = f"there is one class alone, {names[0]!r}" if names else "the images have no classes"
        hint = hint or "Wanted are two or more."
        raise UserError(f"{what}: nothing can be learnt from that (distilens explain takes such images). {hint}")


def shortened(names: Sequence[str], *, quoted: bool = False, most: int = 8) -> str:
    """`a, b, c, … (100)`: names for a message, not more than a line of them."""
    shown = ", ".join(repr(name) if quoted else str(name) for name in names[:most])
    return f"{shown}, … ({len(names)} in all)" if len(names) > most else shown


def as_rgb(images: np.ndarray) -> np.ndarray:
    """Grey `[n h w]` or `[n h w 1]` as `[n h w 3]`, by repetition; RGB as it is."""
    if images.ndim == 3:
        images = images[..., None]
    return np.ascontiguousarray(np.repeat(images, 3, axis=-1)) if images.shape[-1] == 1 else images
