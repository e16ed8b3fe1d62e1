"""Draw rows: hold some out, limit them, or keep few targets. Every draw depends on a seed and the labels only."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from distilens.data.groups import hold_out_groups
from distilens.data.source import Rows
from distilens.foundation.errors import UserError, shortened
from distilens.tasks import VOID, Task


def generator(name: str, seed: int) -> np.random.Generator:
    """A random generator per purpose, so that one option never changes the random choices of another."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def hold_out(
    rows: np.ndarray,
    strata: np.ndarray,
    groups: np.ndarray | None,
    fraction: float,
    random: np.random.Generator,
    option: str,
) -> tuple[np.ndarray, np.ndarray]:
    """The rows to hold out, and those that stay: whole groups if there are any, else the same share of every stratum."""
    own = strata[rows]
    if groups is not None:
        held, stay = hold_out_groups(groups[rows], own, fraction, random, option)
        return rows[held], rows[stay]
    held = held_out(own, ranks(own, random), fraction)
    return rows[held], rows[~held]


def held_out(strata: np.ndarray, rank: np.ndarray, fraction: float) -> np.ndarray:
    """True for the rows to hold out: `fraction` of every stratum, at least one image but never all.

    Args:
        rank: the place of each row in some order of its stratum: the first rows are held out.
    """
    counts = np.bincount(strata[strata >= 0], minlength=1)
    share = np.clip(np.round(counts * fraction), 1, counts - 1)
    return (strata >= 0) & (rank < share[strata])


def ranks(strata: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The rank of each row in a random order of its stratum: 0, 1, ..."""
    order = np.argsort(random.random(len(strata)), kind="stable")
    rank = np.empty(len(strata), dtype=np.int64)
    for stratum in np.unique(strata):
        members = order[strata[order] == stratum]
        rank[members] = np.arange(len(members))
    return rank


def limit_rows(rows: np.ndarray, strata: np.ndarray, limit: int, random: np.random.Generator) -> np.ndarray:
    """At most `limit` of the rows, with the same share of every stratum (rows without a target count as one)."""
    own = strata[rows]
    rank = ranks(own, random)
    # In the order of quantiles within the class, the first rows have the same share of every class, for any limit.
    quantile = (rank + 0.5) / np.bincount(own + 1)[own + 1]
    return rows[np.lexsort((random.random(len(rows)), quantile))[:limit]]


def check_limited(option: str, names: Sequence[str], strata: np.ndarray, what: str = "training image") -> None:
    """Check that every class keeps a training image.

    Raises:
        UserError: the option leaves a class without one.
    """
    there = set(strata.tolist())
    gone = [name for place, name in enumerate(names) if place not in there]
    if gone:
        raise UserError(
            f"{option} leaves no {what} of {shortened(gone, quoted=True)}, of {len(names)} classes. Raise it (rare "
            "classes need more), or choose classes=[...]"
        )


def draw_shots(
    rows: np.ndarray, strata: np.ndarray, shots: int, names: Sequence[str], random: np.random.Generator
) -> np.ndarray:
    """`shots` rows of every class, and all rows without a label."""
    own = strata[rows]
    counts = np.bincount(own[own >= 0], minlength=len(names))
    least = int(counts.argmin())
    if counts[least] < shots:
        raise UserError(
            f"shots={shots} asks for {shots} training images of every class, but {names[least]!r} has {counts[least]} "
            "(after validation and limit). Ask for fewer, or leave the class out with classes=[...]"
        )
    return rows[(own < 0) | (ranks(own, random) < shots)]


def draw_few(
    rows: np.ndarray, strata: np.ndarray, few: int, names: Sequence[str], random: np.random.Generator
) -> np.ndarray:
    """`few` of the labelled rows, with the same share of every class.

    Raises:
        UserError: there are fewer labelled images, or a class would have none.
    """
    labelled = rows[strata[rows] >= 0]
    if few > len(labelled):
        raise UserError(f"few={few} asks for {few} labelled training images, but there are {len(labelled)}")
    kept = limit_rows(labelled, strata, few, random)
    check_limited(f"few={few}", names, strata[kept], "labelled training image")
    return kept


def keep_targets(rows: Rows, kept: np.ndarray, task: Task) -> Rows:
    """A set with the targets of some rows only; all others are void, NaN or -1."""
    kind = rows.targets.dtype
    missing = VOID if task.dense and kind == np.uint8 else np.nan if kind.kind == "f" else -1
    targets = np.full(rows.targets.shape, missing, dtype=kind)
    targets[kept] = rows.targets[kept]
    return replace(rows, targets=targets)
