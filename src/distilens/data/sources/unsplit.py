"""Pictures to explain only: they are not used to train or test, so they need neither classes nor splits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distilens.data.classes import choose_classes
from distilens.data.drawing import generator, limit_rows
from distilens.data.source import Rows, Source, digest
from distilens.data.splits import Data, Split
from distilens.data.subset import has_own_set
from distilens.tasks import Classification


def can_be_split(source: Source, classes: Sequence[str | int] | None) -> bool:
    """Whether there are enough images to train, validate and test on: two classes, with enough images each."""
    task, sets = choose_classes(source, classes)
    strata = task.strata(sets["train"].targets)
    count = len(task.classes) if isinstance(task, Classification) else 1
    counts = np.bincount(strata[strata >= 0], minlength=max(1, count))
    held_out = sum(part not in sets for part in ("test", "validation"))
    enough = len(task.classes) > 1 or not isinstance(task, Classification)
    return enough and int(counts.min()) > held_out


def unsplit(
    source: Source, name: str, *, limit: int | None = None, classes: Sequence[str | int] | None = None, seed: int = 0
) -> Data:
    """All images as both the training and the test split, with an empty validation split; the source's test set is used if any.

    Args:
        limit: maximum number of images.
        classes: the classes to keep; by default all images, also those without a class.
    """
    task, sets = choose_classes(source, classes)

    def choose(rows: Rows, part: str) -> Split:
        index = np.arange(len(rows)) if classes is None else np.flatnonzero(task.strata(rows.targets) >= 0)
        index = (
            index
            if limit is None
            else limit_rows(index, task.strata(rows.targets), limit, generator(f"limit {part}", seed))
        )
        return Split(rows, np.sort(index).astype(np.int64), digest(source.fingerprint, part), task)

    train = choose(sets["train"], "train")
    test = choose(sets["test"], "test") if has_own_set(source, "test") else train
    height, width = source.train.images.shape[1:3]
    return Data(
        name,
        train,
        Split(sets["train"], np.empty(0, dtype=np.int64), train.origin, task),
        test,
        task,
        (height, width),
        digest(source.fingerprint, "unsplit", limit, task.classes, seed),
        seed,
        source.skipped,
        source.fingerprint,
        source.inventory,
    )
