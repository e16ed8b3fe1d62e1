"""Groups of images that stay together: the frames of one film, the slices of one patient, the pictures of one person.

If they were on both sides of a split, a model could recognise what it has seen, and its score would be too good.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from distilens.data.source import Rows
from distilens.foundation.errors import UserError, nearest, shortened

FEW = 12
"""With at most this many groups all choices are compared."""

TRIES = 200
"""With more groups, the number of random orders that are compared."""


def where_rows(rows: Rows, where: str, part: str) -> np.ndarray:
    """Which rows have the value that `where=COLUMN:VALUE` names; in the column `path` a regular expression is searched.

    Raises:
        UserError: there is no such column, or no colon.
    """
    column, colon, value = where.partition(":")
    if not colon:
        raise UserError(f"where={where}: expected a column and a value, where=COLUMN:VALUE")
    values = rows.column(column)
    if values is None:
        raise UserError(f"where={where}: the {part} set has no column {column!r}.{describe_columns(column, rows)}")
    if column != "path":
        return np.array([str(one) == value for one in values], dtype=bool)
    pattern = compiled(value, "where")
    return np.array([one is not None and pattern.search(str(one)) is not None for one in values], dtype=bool)


def groups_of(rows: Rows, group: str, part: str, allowed: np.ndarray | None = None) -> np.ndarray:
    """The group of each row, as text `[n]`.

    Args:
        group: a column, or a regular expression with one group for the name of the image's file.
        allowed: bool `[n]`, the rows that are used; the others need no group, and have the group "".

    Raises:
        UserError: there is no such column, or the expression does not fit all names; the message names the first.
    """
    values = rows.column(group)
    if values is None:
        pattern = compiled(group, "group") if "(" in group else None
        paths = rows.column("path")
        if pattern is None or paths is None:
            what = "the images have no file names" if pattern else f"there is no column {group!r}"
            raise UserError(
                f"group={group}: {what} in the {part} set.{describe_columns(group, rows)} Give a column, or a regular expression "
                "with one group for the names of the files, such as group=[(.*)_]"
            )
        if pattern.groups != 1:
            raise UserError(f"group={group}: the expression has {pattern.groups} groups, expected one (...)")
        matches = [pattern.search(str(path)) for path in paths]
        values = np.array([match and match[1] for match in matches], dtype=object)
    if allowed is not None:
        values = np.where(allowed, values, "")
    without = [row for row, value in enumerate(values) if value is None]
    if without:
        paths = rows.column("path")
        first = f"row {without[0]}" if paths is None else str(paths[without[0]])
        raise UserError(
            f"group={group}: {len(without):,} of {len(rows):,} images of {part} have no group; the first is {first}"
        )
    return values.astype(str)


def compiled(text: str, option: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise UserError(f"{option}={text} is not a regular expression: {error}") from None


def describe_columns(name: str, rows: Rows) -> str:
    known = [*rows.columns, *(["path"] if rows.names is not None else [])]
    return f"{nearest(name, known)} Its columns: {', '.join(known)}." if known else " It has no columns."


def hold_out_groups(
    groups: np.ndarray, strata: np.ndarray, fraction: float, random: np.random.Generator, option: str
) -> tuple[np.ndarray, np.ndarray]:
    """Choose whole groups to hold out: `fraction` of the images with a target and of every stratum, as nearly as groups allow.

    Of at most FEW groups all choices are compared, else TRIES random ones. Groups without any target stay.

    Args:
        groups, strata: per row.
        option: the option that made the groups, for messages.

    Returns:
        Which rows are held out, and which stay. Rows without a target in a group that is held out are neither: they cannot be
        tested on, and training on them would show the group.

    Raises:
        UserError: there are fewer than two groups, or a stratum would have nothing to train on.
    """
    names, places = np.unique(groups, return_inverse=True)
    counts = np.zeros((len(names), max(1, int(strata.max(initial=-1)) + 1)))
    np.add.at(counts, (places[strata >= 0], strata[strata >= 0]), 1)
    usable = np.flatnonzero(counts.sum(1))
    if len(usable) < 2:
        raise UserError(
            f"{option} makes {len(usable)} group of the images that are left for training and for what is held out of them"
            f" ({shortened(names.tolist()) or 'none'}): at least two are needed, one for each side"
        )
    chosen = nearest_choice(counts[usable], fraction, random)
    left = counts[usable][~chosen].sum(0)
    gone = int(((left == 0) & (counts.sum(0) > 0)).sum())
    if gone:
        raise UserError(
            f"{option}: however whole groups are held out, {gone} class(es) have no training image. A class needs images of "
            "several groups"
        )
    held = np.isin(places, usable[chosen])
    return held & (strata >= 0), ~held


def nearest_choice(counts: np.ndarray, fraction: float, random: np.random.Generator) -> np.ndarray:
    """Which groups to take, bool `[groups]`: at least one, and never all.

    The choice has the smallest sum of: the distance from `fraction` of all images, those of every stratum, and (far more) the
    strata without an image left.

    Args:
        counts: images per group and stratum.
    """
    number, total = len(counts), counts.sum()
    if number <= FEW:
        choices = (np.arange(1, 2**number - 1)[:, None] >> np.arange(number) & 1).astype(bool)
        choices = random.permutation(choices)
    else:
        choices = np.zeros((2 * TRIES, number), dtype=bool)
        for row in choices.reshape(TRIES, 2, number):
            order = random.permutation(number)
            reached = counts.sum(1)[order].cumsum()
            below = int(np.searchsorted(reached, fraction * total, side="right"))
            for choice, length in zip(row, (below, below + 1), strict=True):
                choice[order[: min(max(length, 1), number - 1)]] = True
    taken = choices.astype(np.float64) @ counts
    whole = counts.sum(0)
    distance = np.abs(taken.sum(1) - fraction * total) + np.abs(taken - fraction * whole).sum(1)
    empty = ((whole - taken == 0) & (whole > 0)).sum(1)
    return choices[np.argmin(distance + 10 * total * empty)]


def choose_part(part: str, strata: np.ndarray, groups: np.ndarray | None, random: np.random.Generator) -> np.ndarray:
    """The rows of the k-th of n disjoint parts that together are all rows, for `part="k/n"`; bool `[rows]`.

    Every part has the same share of every stratum (at most one image apart), or whole groups, the largest first into the smallest
    part.

    Raises:
        UserError: not k/n with 1 <= k <= n, or there are fewer than n images (or groups).
    """
    match = re.fullmatch(r"(\d+)/(\d+)", part.strip())
    number, of = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= of:
        raise UserError(f"part={part}: expected k/n with k from 1 to n, such as part=1/4")
    if groups is None:
        if len(strata) < of:
            raise UserError(f"part={part}: there are {len(strata)} training images, fewer than {of}")
        order = np.lexsort((random.random(len(strata)), strata))
        chosen = np.zeros(len(strata), dtype=bool)
        chosen[order[number - 1 :: of]] = True
        return chosen
    names, places, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(names) < of:
        raise UserError(
            f"part={part}: there are {len(names)} groups in train ({shortened(names.tolist())}), fewer than {of}"
        )
    filled, owner = np.zeros(of, dtype=np.int64), np.zeros(len(names), dtype=np.int64)
    for place in np.lexsort((random.random(len(names)), -sizes)):
        owner[place] = filled.argmin()
        filled[owner[place]] += sizes[place]
    return (owner == number - 1)[places]


def describe_groups(option: str, groups: Mapping[str, np.ndarray], own: Sequence[str]) -> list[str]:
    """Remarks about the groups of the splits: how many there are, and which of the source's own sets share some with train.

    Args:
        groups: of each image, by split.
        own: the splits that the source has itself.
    """
    counts = ", ".join(f"{name} {len(set(values.tolist())):,}" for name, values in groups.items())
    lines = [f"{option}: whole groups stay together ({counts} groups)"]
    trained = set(groups["train"].tolist())
    for name in own:
        shared = sorted(set(groups[name].tolist()) & trained)
        if shared:
            images = int(np.isin(groups[name], shared).sum())
            lines.append(
                f"{images:,} of {len(groups[name]):,} {name} images are of groups that are in train too ({shortened(shared)}): "
                f"the {name} set is the source's own, and its score may be too good"
            )
    return lines
