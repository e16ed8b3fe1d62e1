"""`Split` and `Data`: which rows of a source are used for training, validation and test. `subset.py` chooses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from distilens.data.places import VOID_NAME, has_places, paint, shares_of, written_share
from distilens.data.source import NOTHING, Inventory, Rows
from distilens.foundation import notebook
from distilens.tasks import Task
from distilens.tasks.classification import UNNAMED

if TYPE_CHECKING:
    from torch import Tensor

SHOWN, PICTURES = 20, 10
"""The number of classes whose counts, and whose pictures, a notebook shows."""


@dataclass(frozen=True, eq=False)
class Split:
    """Some rows of a source.

    Attributes:
        rows: all rows of the source's set, shared between splits and never copied.
        index: int64, the rows that belong to this split, sorted.
        origin: fingerprint of the content of `rows`. Results stored by index are valid for every split of the same set.
        task: what the targets are.
    """

    rows: Rows
    index: np.ndarray
    origin: str = ""
    task: Task = UNNAMED

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        return f"Split({len(self)} images)"

    @property
    def targets(self) -> np.ndarray:
        """The target per image; in classification int64, and -1 means no label."""
        return self.rows.targets[self.index]

    @property
    def labels(self) -> np.ndarray:
        """The targets, by their name in classification."""
        return self.targets

    @property
    def strata(self) -> np.ndarray:
        """The stratum per image (in classification its class), int64; -1 means no target."""
        return self.task.strata(self.targets)

    def names(self, positions: np.ndarray | None = None) -> list[str] | None:
        """The files of the images at some positions, by default of all; None if the images are not files."""
        if self.rows.names is None:
            return None
        rows = self.index if positions is None else self.index[positions]
        return [self.rows.names[row] for row in rows.tolist()]

    def pixels(self, positions: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Images `[n 3 h w]` and masks `[n h w]` at some positions, in [0, 1]; nothing else of the split is read."""
        import torch

        chosen = self.index[positions]
        images = torch.from_numpy(np.ascontiguousarray(self.rows.images[chosen])).permute(0, 3, 1, 2).float() / 255
        masks = self.rows.masks
        return images.contiguous(), None if masks is None else torch.from_numpy(masks[chosen]).float() / 255


@dataclass(frozen=True, eq=False)
class Data:
    """A data set as a run uses it.

    Attributes:
        name: the notation that made it, for the log.
        task: what the targets are: a classification into these classes, or a task of your own.
        size: height and width of every image.
        fingerprint: the fingerprint of the content and of the chosen rows.
        seed: the seed of the splits, of `limit` and of `shots`.
        skipped: the images that could not be read and were left out.
        source_fingerprint: the fingerprint of the content alone. Results stored by index are valid for every choice of rows.
        inventory: the inventory of the source: where its images are, what was left out, and remarks for the user.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    task: Task
    size: tuple[int, int]
    fingerprint: str
    seed: int
    skipped: tuple[str, ...] = ()
    source_fingerprint: str = ""
    inventory: Inventory = NOTHING

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes; empty if the task has none."""
        return self.task.classes

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(split)} {name}" for name, split in self.splits.items())
        return f"Data({self.name!r}: {counts}; {self.task.summary}, {self.size[0]}×{self.size[1]} pixels)"

    def _repr_html_(self) -> str:
        if has_places(self.train):
            return notebook.heading(repr(self)) + self.table_of_places() + self.examples_with_masks()
        counts = {
            name: np.bincount(split.strata[split.strata >= 0], minlength=len(self.classes))
            for name, split in self.splits.items()
        }
        rows = [
            (label, *(int(counts[name][place]) for name in counts)) for place, label in enumerate(self.classes[:SHOWN])
        ]
        rest = len(self.classes) - len(rows)
        rows += [(f"{rest} more classes", *(int(counts[name][SHOWN:].sum()) for name in counts))] if rest else []
        return notebook.heading(repr(self)) + notebook.table(rows, ("class", *counts)) + self.examples()

    def table_of_places(self) -> str:
        """The share of each class in the places of each split, and that of void, as an HTML table."""
        shares = {name: shares_of(split) for name, split in self.splits.items()}
        rows = [
            (label, *(written_share(own[label]) for own in shares.values())) for label in (*self.classes, VOID_NAME)
        ]
        return notebook.table(rows, ("class", *(f"{name} (share of places)" for name in shares)))

    def examples_with_masks(self) -> str:
        """The first labelled training images, each beside its mask, as HTML."""
        rows = self.train.index[np.flatnonzero(self.train.strata >= 0)[: PICTURES // 2]]
        images, targets = self.train.rows.images, self.train.rows.targets
        return "".join(
            notebook.picture(
                np.concatenate([images[row], paint(targets[row], len(self.classes))], axis=1),
                self.task.describe(targets[row]),
            )
            for row in rows
        )

    def examples(self) -> str:
        """The first training image of each of the first classes, in a row, as HTML."""
        labels = self.train.strata
        first = [(label, np.flatnonzero(labels == place)[:1]) for place, label in enumerate(self.classes[:PICTURES])]
        return "".join(
            notebook.picture(np.asarray(self.train.rows.images[self.train.index[rows[0]]]), label)
            for label, rows in first
            if len(rows)
        )
