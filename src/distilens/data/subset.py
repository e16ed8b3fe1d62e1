"""Choose the rows of a run: classes, a validation split held out of train, `part`, `limit`, `shots`, `few`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from distilens.data.copies import describe_copies
from distilens.data.drawing import check_limited, draw_few, draw_shots, generator, hold_out, keep_targets, limit_rows
from distilens.data.groups import choose_part, describe_groups, groups_of, where_rows
from distilens.data.labels import composed, describe_alike_names
from distilens.data.source import Inventory, Rows, Source, check_count, digest, write_option
from distilens.data.splits import Data, Split
from distilens.foundation.errors import UserError, nearest, shortened
from distilens.tasks import Classification, Task

TEST_SHARE = 0.2
"""The share of train that is held out if a source has no test set. The seed is always 0: all runs have the same test set."""


def subset(
    source: Source,
    name: str,
    *,
    limit: int | None = None,
    shots: int | None = None,
    classes: Sequence[str | int] | None = None,
    min_images: int | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    draw: int | None = None,
    group: str | None = None,
    where: str | None = None,
    part: str | None = None,
    few: int | None = None,
    from_split: str | None = None,
) -> Data:
    """Choose the rows of a run: `where`, classes, a validation split held out of train, `part`, `limit`, `shots`, `few`.

    Every choice is stratified and depends only on the seed and the labels. The rows of a smaller `limit`, `shots` or `few` are a
    subset of those of a larger one, and none of them changes what is held out. Rows without a label (-1) stay in train only, and
    `shots` keeps all of them.

    Args:
        limit: the maximum number of images per split, with the same share of every class.
        shots: the number of labelled training images per class.
        classes: the classes to keep, by name or position; they become 0, 1, ... in this order.
        min_images: leave out classes with fewer training images (counted before validation and test are held out).
        val_fraction: the share of every class for validation, at least one image; not used if the source has a validation set.
        seed: of all choices.
        draw: another seed for the training images that `part`, `limit`, `shots` and `few` choose. Validation and test stay the
            same.
        group: images with the same value stay on one side of what is held out, and in one `part`: a column, or a regular
            expression with one group for the names of the files, `(case[0-9]+)_`. The shares are met as nearly as whole groups
            allow.
        where: only rows with this value in a column, `COLUMN:VALUE`; for the column `path` (names of files) a regular expression.
            A validation or test set without such rows is held out of train.
        part: the k-th of n disjoint parts of the training images, `1/4`.
        few: only so many training images keep their targets, with the same share of every class; the others stay without.
        from_split: all images come from this set of the source, `train`, `validation` or `test`. It is split anew, and the
            source's other sets are left out.

    Raises:
        UserError: the source has no such set; a class is unknown, there are fewer than two, or one has too few images; too few
            groups; no row is left.
    """
    if from_split is not None:
        source = take_set(source, from_split)
    if not isinstance(source.task, Classification):
        check_no_classes(source.task, classes=classes, min_images=min_images, shots=shots)
    drawn = seed if draw is None else draw
    task, sets, allowed = choose_sets(source, classes, where)
    names = names_of_strata(task)
    rare = [] if min_images is None else fewer_than(min_images, names, sets_of_strata(task, sets, allowed)["train"])
    if rare:
        task, sets, allowed = choose_sets(source, [name for name in names if name not in rare], where)
        names = names_of_strata(task)
    strata = sets_of_strata(task, sets, allowed)
    if isinstance(task, Classification):
        check_count(names, source.inventory.hint)
        check_images(names, strata)
    own_sets = tuple(sets)
    index = choose_rows(source, strata, allowed, names, whole=classes is None and not rare)
    groups = {}
    if group is not None:
        groups = {own: groups_of(rows, group, own, allowed.get(own)) for own, rows in sets.items()}
    for held_part, fraction, key in (("test", TEST_SHARE, 0), ("validation", val_fraction, seed)):
        if held_part not in sets:
            sets[held_part], strata[held_part] = sets["train"], strata["train"]
            groups |= {held_part: groups["train"]} if groups else {}
            index[held_part], index["train"] = hold_out(
                index["train"],
                strata["train"],
                groups.get("train"),
                fraction,
                generator(held_part, key),
                f"group={group}",
            )
    if part is not None:
        rows = index["train"]
        own_groups = groups["train"][rows] if groups else None
        index["train"] = rows[choose_part(part, strata["train"][rows], own_groups, generator("part", drawn))]
    if limit is not None:
        index = {
            own: limit_rows(rows, strata[own], limit, generator(f"limit {own}", drawn if own == "train" else seed))
            for own, rows in index.items()
        }
        check_limited(f"limit={limit}", names, strata["train"][index["train"]])
    if shots is not None:
        index["train"] = draw_shots(index["train"], strata["train"], shots, names, generator("shots", drawn))
    if few is not None:
        kept = draw_few(index["train"], strata["train"], few, names, generator("few", drawn))
        sets["train"] = keep_targets(sets["train"], kept, task)
    base = from_split or "train"
    origins = {own: digest(source.fingerprint, own if own in own_sets and own != "train" else base) for own in sets}
    splits = {own: Split(rows, np.sort(index[own]).astype(np.int64), origins[own], task) for own, rows in sets.items()}
    chosen = {"limit": limit, "shots": shots, "classes": names, "val_fraction": val_fraction, "seed": seed}
    more = {"group": group, "where": where, "part": part, "few": few, "from_split": from_split}
    chosen |= {option: value for option, value in more.items() if value is not None}
    if draw is not None and any(value is not None for value in (limit, shots, part, few)):
        chosen["draw"] = draw
    height, width = source.train.images.shape[1:3]
    remarks = describe_where(where, [own for own in allowed if own not in own_sets])
    if group is not None:
        of_splits = {own: groups[own][splits[own].index] for own in ("train", "validation", "test")}
        remarks += describe_groups(f"group={group}", of_splits, [own for own in own_sets if own != "train"])
    return Data(
        name, splits["train"], splits["validation"], splits["test"], task, (height, width),
        digest(source.fingerprint, chosen), seed, source.skipped, source.fingerprint,
        make_inventory(source, splits, sets, names, rare, min_images, own_sets, remarks),
    )  # fmt: skip


def take_set(source: Source, name: str) -> Source:
    """A source whose only set, `train`, is one set of another source.

    Raises:
        UserError: the source has no such set.
    """
    sets = {part: rows for part in ("train", "validation", "test") if (rows := getattr(source, part)) is not None}
    if name not in sets:
        raise UserError(f"from_split={name}: the data has no such set; it has {', '.join(sets)}")
    copies = []
    for group in source.copies:
        inside = [place for place, (part, _) in enumerate(group.rows) if part == name]
        if len(inside) > 1:
            rows = tuple(("train", group.rows[place][1]) for place in inside)
            copies.append(replace(group, rows=rows, names=tuple(group.names[place] for place in inside)))
    return replace(source, train=sets[name], validation=None, test=None, copies=tuple(copies))


def choose_sets(
    source: Source, classes: Sequence[str | int] | None, where: str | None
) -> tuple[Task, dict[str, Rows], dict[str, np.ndarray]]:
    """The task with the kept classes, the sets that have rows for it, and which rows `where` allows (empty without `where`).

    Raises:
        UserError: an unknown class or column; no training image has the value.
    """
    task, sets = choose_classes(source, classes)
    if where is None:
        return task, sets, {}
    allowed = {own: where_rows(rows, where, own) for own, rows in sets.items()}
    if not allowed["train"].any():
        raise UserError(f"where={where}: no training image has this value")
    return task, {own: rows for own, rows in sets.items() if allowed[own].any()}, allowed


def choose_rows(
    source: Source,
    strata: Mapping[str, np.ndarray],
    allowed: Mapping[str, np.ndarray],
    names: Sequence[str],
    *,
    whole: bool,
) -> dict[str, np.ndarray]:
    """The rows of each set: with a target, and in train also those that never had one.

    Args:
        whole: whether all classes are kept.

    Raises:
        UserError: a set has no rows.
    """
    index = {own: np.flatnonzero(values >= 0) for own, values in strata.items() if own != "train"}
    for own, rows in index.items():
        if not len(rows):
            what = f"image of the classes {shortened(names)}" if names else "image with a target"
            raise UserError(f"the {own} set has no {what}")
    if whole:
        train = np.arange(len(strata["train"]))
    else:
        train = rows_of_kept_classes(source.task.strata(source.train.targets), strata["train"])
    return {**index, "train": train[allowed["train"][train]] if allowed else train}


def names_of_strata(task: Task) -> tuple[str, ...]:
    """The names of the strata: the classes of a classification. An image of another task has no class of its own."""
    return task.classes if isinstance(task, Classification) else ()


def describe_where(where: str | None, gone: Sequence[str]) -> list[str]:
    """A remark if `where` leaves nothing of sets that the source has."""
    return [f"where={where} leaves no image of {' and '.join(gone)}: it is held out of train"] if gone else []


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


def sets_of_strata(task: Task, sets: Mapping[str, Rows], allowed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The stratum per image of each set; -1 means no target, or a row that is not allowed."""
    strata = {part: task.strata(rows.targets) for part, rows in sets.items()}
    return {part: np.where(allowed[part], own, -1) if part in allowed else own for part, own in strata.items()}


def make_inventory(
    source: Source,
    splits: Mapping[str, Split],
    sets: Mapping[str, Rows],
    names: Sequence[str],
    rare: Sequence[str],
    min_images: int | None,
    own_sets: Sequence[str],
    remarks: Sequence[str],
) -> Inventory:
    """The inventory of the source, with remarks on the chosen rows."""
    own_set = {part: (part if part in own_sets else "train", splits[part].index) for part in splits}
    labels = {part: rows.targets if names else np.full(len(rows), -1) for part, rows in sets.items()}
    copies = describe_copies(source.copies, own_set, labels, names)
    left_out = dict(source.inventory.left_out)
    if source.skipped:
        left_out["pictures that cannot be decoded"] = source.skipped
    if rare:
        left_out[f"classes of fewer than {min_images} training images"] = rare
    absent = [
        describe_absent_classes(part, names, splits[part].strata)
        for part in ("validation", "test")
        if not source.task.dense  # an image has no single class there
    ]
    remarks = [*source.inventory.remarks, *remarks, *(line for line in absent if line), *copies]
    return replace(source.inventory, remarks=tuple(remarks), left_out=left_out)


def describe_absent_classes(part: str, names: Sequence[str], labels: np.ndarray) -> str:
    """A warning if a split has no picture of some class; else empty."""
    there = set(labels.tolist())
    absent = [name for place, name in enumerate(names) if place not in there]
    if not absent:
        return ""
    return f"the {part} split has no picture of {shortened(absent, quoted=True)}: its accuracy says nothing about them"


def has_own_set(source: Source, part: str) -> bool:
    """True if a split has its own set in the source; False if it was held out of train."""
    return getattr(source, part) is not None


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
