"""The rows of a run, chosen step by step: the kept classes, what is held out of train, and how much of the rest is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from distilens.data.classes import check_images, choose_classes, fewer_than, rows_of_kept_classes
from distilens.data.drawing import check_limited, draw_few, draw_shots, generator, hold_out, keep_targets, limit_rows
from distilens.data.groups import choose_part, where_rows
from distilens.data.source import Rows, Source, check_count
from distilens.foundation.errors import UserError, shortened
from distilens.tasks import Classification, Task


@dataclass(frozen=True)
class Kept:
    """What remains of a source.

    Attributes:
        task: the task, with the kept classes.
        sets: the source's sets that have rows for it.
        allowed: which rows of each set `where` allows; empty without `where`.
        rare: the names of the classes that were left out because they have few images.
    """

    task: Task
    sets: dict[str, Rows]
    allowed: dict[str, np.ndarray]
    rare: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the strata: the classes of a classification. An image of another task has no class of its own."""
        return self.task.classes if isinstance(self.task, Classification) else ()

    @property
    def strata(self) -> dict[str, np.ndarray]:
        """The stratum per image of each set; -1 means no target, or a row that is not allowed."""
        strata = {part: self.task.strata(rows.targets) for part, rows in self.sets.items()}
        return {
            part: np.where(self.allowed[part], own, -1) if part in self.allowed else own for part, own in strata.items()
        }


def keep(source: Source, classes: Sequence[str | int] | None, min_images: int | None, where: str | None) -> Kept:
    """What remains of a source: the given classes, those with enough images, and the rows that `where` allows.

    Raises:
        UserError: an unknown class or column, no training image with the value, or fewer than two classes.
    """
    kept = keep_classes(source, classes, where)
    if min_images is None:
        return kept
    rare = fewer_than(min_images, kept.names, kept.strata["train"])
    if not rare:
        return kept
    kept = keep_classes(source, [name for name in kept.names if name not in rare], where)
    return replace(kept, rare=tuple(rare))


def keep_classes(source: Source, classes: Sequence[str | int] | None, where: str | None) -> Kept:
    """What remains of a source with these classes, whatever their number of images.

    Raises:
        UserError: an unknown class or column; no training image has the value.
    """
    task, sets = choose_classes(source, classes)
    if where is None:
        return Kept(task, sets, {})
    allowed = {own: where_rows(rows, where, own) for own, rows in sets.items()}
    if not allowed["train"].any():
        raise UserError(f"where={where}: no training image has this value")
    return Kept(task, {own: rows for own, rows in sets.items() if allowed[own].any()}, allowed)


@dataclass
class Choice:
    """The chosen rows so far.

    Attributes:
        task, names: the task, and the names of its strata.
        sets: the rows of `train`, `validation` and `test`. A set that was held out shares the rows of train.
        strata: the stratum per row of each set.
        index: the chosen rows of each set.
        groups: the group per row of each set; empty without `group`.
    """

    task: Task
    names: tuple[str, ...]
    sets: dict[str, Rows]
    strata: dict[str, np.ndarray]
    index: dict[str, np.ndarray]
    groups: dict[str, np.ndarray] = field(default_factory=dict)

    def hold_out(self, part: str, fraction: float, seed: int, option: str) -> None:
        """Hold a set out of train, unless the source has it."""
        if part in self.sets:
            return
        self.sets[part], self.strata[part] = self.sets["train"], self.strata["train"]
        own_groups = self.groups.get("train")
        if own_groups is not None:
            self.groups[part] = own_groups
        self.index[part], self.index["train"] = hold_out(
            self.index["train"], self.strata["train"], own_groups, fraction, generator(part, seed), option
        )

    def take_part(self, part: str, seed: int) -> None:
        """Keep one of n disjoint parts of train."""
        rows = self.index["train"]
        own_groups = self.groups["train"][rows] if self.groups else None
        self.index["train"] = rows[choose_part(part, self.strata["train"][rows], own_groups, generator("part", seed))]

    def limit(self, limit: int, seeds: Mapping[str, int]) -> None:
        """Keep a number of images of every set."""
        self.index = {
            own: limit_rows(rows, self.strata[own], limit, generator(f"limit {own}", seeds[own]))
            for own, rows in self.index.items()
        }
        check_limited(f"limit={limit}", self.names, self.strata["train"][self.index["train"]])

    def draw_shots(self, shots: int, seed: int) -> None:
        """Keep a number of labelled training images per class."""
        random = generator("shots", seed)
        self.index["train"] = draw_shots(self.index["train"], self.strata["train"], shots, self.names, random)

    def keep_few_targets(self, few: int, seed: int) -> None:
        """Keep the targets of a number of training images only."""
        kept = draw_few(self.index["train"], self.strata["train"], few, self.names, generator("few", seed))
        self.sets["train"] = keep_targets(self.sets["train"], kept, self.task)


def begin(source: Source, kept: Kept, *, whole: bool) -> Choice:
    """All rows that remain: those with a target, and in train also those that never had one.

    Args:
        whole: whether all classes are kept.

    Raises:
        UserError: a set has no rows, or a class has too few images.
    """
    strata, names = kept.strata, kept.names
    if isinstance(kept.task, Classification):
        check_count(names, source.inventory.hint)
        check_images(names, strata)
    index = {own: np.flatnonzero(values >= 0) for own, values in strata.items() if own != "train"}
    for own, rows in index.items():
        if not len(rows):
            what = f"image of the classes {shortened(names)}" if names else "image with a target"
            raise UserError(f"the {own} set has no {what}")
    if whole:
        train = np.arange(len(strata["train"]))
    else:
        train = rows_of_kept_classes(source.task.strata(source.train.targets), strata["train"])
    index["train"] = train[kept.allowed["train"][train]] if kept.allowed else train
    return Choice(kept.task, names, dict(kept.sets), strata, index)
