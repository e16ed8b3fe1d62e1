"""Choose the rows of a run: classes, a validation split held out of train, `part`, `limit`, `shots`, `few`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from distilens.data.choosing import Choice, begin, keep
from distilens.data.classes import check_no_classes
from distilens.data.copies import describe_copies
from distilens.data.groups import describe_groups, groups_of
from distilens.data.source import Inventory, Source, digest
from distilens.data.splits import Data, Split
from distilens.foundation.errors import UserError, shortened
from distilens.tasks import Classification

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
    kept = keep(source, classes, min_images, where)
    choice = begin(source, kept, whole=classes is None and not kept.rare)
    if group is not None:
        choice.groups = {own: groups_of(rows, group, own, kept.allowed.get(own)) for own, rows in kept.sets.items()}
    choice.hold_out("test", TEST_SHARE, 0, f"group={group}")
    choice.hold_out("validation", val_fraction, seed, f"group={group}")
    drawn = seed if draw is None else draw
    if part is not None:
        choice.take_part(part, drawn)
    if limit is not None:
        choice.limit(limit, {"train": drawn, "validation": seed, "test": seed})
    if shots is not None:
        choice.draw_shots(shots, drawn)
    if few is not None:
        choice.keep_few_targets(few, drawn)

    base, own_sets = from_split or "train", tuple(kept.sets)
    origins = {
        own: digest(source.fingerprint, own if own in own_sets and own != "train" else base) for own in choice.sets
    }
    splits = {
        own: Split(rows, np.sort(choice.index[own]).astype(np.int64), origins[own], kept.task)
        for own, rows in choice.sets.items()
    }
    chosen = {"limit": limit, "shots": shots, "classes": choice.names, "val_fraction": val_fraction, "seed": seed}
    more = {"group": group, "where": where, "part": part, "few": few, "from_split": from_split}
    chosen |= {option: value for option, value in more.items() if value is not None}
    if draw is not None and any(value is not None for value in (limit, shots, part, few)):
        chosen["draw"] = draw
    height, width = source.train.images.shape[1:3]
    remarks = describe_where(where, [own for own in kept.allowed if own not in own_sets])
    if group is not None:
        of_splits = {own: choice.groups[own][splits[own].index] for own in ("train", "validation", "test")}
        remarks += describe_groups(f"group={group}", of_splits, [own for own in own_sets if own != "train"])
    inventory = make_inventory(source, splits, choice, kept.rare, min_images, own_sets, remarks)
    return Data(
        name, splits["train"], splits["validation"], splits["test"], kept.task, (height, width),
        digest(source.fingerprint, chosen), seed, source.skipped, source.fingerprint, inventory,
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


def describe_where(where: str | None, gone: Sequence[str]) -> list[str]:
    """A remark if `where` leaves nothing of sets that the source has."""
    return [f"where={where} leaves no image of {' and '.join(gone)}: it is held out of train"] if gone else []


def make_inventory(
    source: Source,
    splits: Mapping[str, Split],
    choice: Choice,
    rare: Sequence[str],
    min_images: int | None,
    own_sets: Sequence[str],
    remarks: Sequence[str],
) -> Inventory:
    """The inventory of the source, with remarks on the chosen rows."""
    own_set = {part: (part if part in own_sets else "train", splits[part].index) for part in splits}
    names = choice.names
    labels = {part: rows.targets if names else np.full(len(rows), -1) for part, rows in choice.sets.items()}
    copies = describe_copies(source.copies, own_set, labels, names)
    left_out = dict(source.inventory.left_out)
    if source.skipped:
        left_out["pictures that cannot be decoded"] = source.skipped
    if rare:
        left_out[f"classes of fewer than {min_images} training images"] = list(rare)
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
