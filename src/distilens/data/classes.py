"""The classes of a run: those that are kept, and whether each has enough images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from distilens.data.labels import composed, describe_alike_names
from distilens.data.source import Rows, Source, write_option
from distilens.foundation.errors import UserError, nearest, shortened
from distilens.tasks import Classification, Task


def choose_classes(source: Source, classes: Sequence[str | int] | None) -> tuple[Task, dict[str, Rows]]:
    """The task with the kept classes, and the source's sets with labels for these classes; -1 for all others."""
    all_sets = {"train": source.train, "validation": source.validation, "test": source.test}
    sets = {part: rows for part, rows in all_sets.items() if rows is not None}
    if classes is None:
        return source.task, sets
    positions = [position_of(given, source.classes) for given in classes]
    twice = [source.classes[position] for position in positions if positions.count(position) > 1]
    if twice or not positions:
        raise UserError(
            f"classes=[...] names {repr(twice[0]) + ' twice' if twice else 'no class'}; give each class once"
        )
    table = np.full(len(source.classes) + 1, -1, dtype=np.int64)  # the last entry is for the label -1
    table[positions] = np.arange(len(positions))
    sets = {part: replace(rows, targets=table[rows.targets]) for part, rows in sets.items()}
    return Classification(tuple(source.classes[position] for position in positions)), sets


def position_of(given: str | int, classes: Sequence[str]) -> int:
    """The position of a class, given by name or, if no class name is a number, by position."""
    name = composed(str(given))
    if name in classes:
        return classes.index(name)
    if name.isdecimal() and int(name) < len(classes) and not any(label.isdecimal() for label in classes):
        return int(name)
    with_comma = next((label for label in classes if "," in label), None)
    how = f". A name with a comma is written in brackets: classes=[[{with_comma}],...]" if with_comma else ""
    raise UserError(
        f"unknown class {given!r}.{nearest(name, tuple(classes))} Known: {shortened(classes, most=20)}{how}"
    )


def check_no_classes(task: Task, **options: object) -> None:
    """Raise a `UserError` if an option about classes is given for a task without classes."""
    given = [name for name, value in options.items() if value is not None]
    if given and task.dense:
        raise UserError(
            f"{', '.join(given)}= is about images of one class, but an image has several in the task {task.name}: take limit=, "
            "few= or part="
        )
    if given:
        raise UserError(f"{', '.join(given)}= is about classes, but the task {task.name} has none: take limit=")


def counts_of(names: Sequence[str], strata: np.ndarray) -> np.ndarray:
    """The number of images per class."""
    return np.bincount(strata[strata >= 0], minlength=len(names))


def fewer_than(least: int, names: Sequence[str], strata: np.ndarray) -> list[str]:
    """The classes with fewer than `least` training images.

    Raises:
        UserError: fewer than two classes would be left.
    """
    counts = counts_of(names, strata)
    rare = [name for name, count in zip(names, counts, strict=True) if count < least]
    if len(names) - len(rare) < 2:
        shown = shortened([f"{names[place]!r} {counts[place]}" for place in np.argsort(-counts)])
        raise UserError(f"min_images={least} leaves fewer than two classes; training images of each: {shown}")
    return rare


def check_images(names: Sequence[str], sets: Mapping[str, np.ndarray]) -> None:
    """Check that every class has an image for training, and one for each split that is held out of the training set.

    Raises:
        UserError: it names all classes with too few images.
    """
    missing = [part for part in ("test", "validation") if part not in sets]
    least = 1 + len(missing)
    counts = counts_of(names, sets["train"])
    short = [place for place in range(len(names)) if counts[place] < least]
    if not short:
        return
    tests = counts_of(names, sets["test"]) if "test" in sets else np.zeros(len(names), dtype=np.int64)
    shown = shortened(
        [
            f"{names[place]!r} {counts[place]}" + f" (and {tests[place]} to test)" * bool(tests[place])
            for place in short
        ],
        most=30,
    )
    needs = f"{least}, as {' and '.join(missing)} images are held out of them" if missing else "one"
    spelling = describe_alike_names(names)
    kept = [place for place in range(len(names)) if place not in short]
    tested = "test" not in sets or tests[kept].all()
    remedy = f", or leave these classes out: {write_option(f'min_images={least}')}" if len(kept) > 1 and tested else ""
    raise UserError(
        f"too few training images in {len(short):,} of {len(names):,} classes: {shown}. Each needs {needs}. Add images{remedy}"
        + f". {spelling[:1].upper()}{spelling[1:]}" * bool(spelling)
    )


def rows_of_kept_classes(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The rows of the kept classes, and those that never had a label."""
    return np.flatnonzero((after >= 0) | (before < 0))
