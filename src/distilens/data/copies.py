"""Duplicate pictures: found by a perceptual hash, confirmed by their pixels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

THUMB = 32
"""Side to which a picture is reduced before hashing; a smaller picture is hashed as it is."""

CHUNK = 4_000_000
"""Bytes of pictures hashed at a time, so that they stay in the CPU cache."""

PLAIN = 4.0
"""Minimum deviation of a picture from its mean, in levels of 255. Two black pictures are not copies."""

APART = 6
"""Maximum Hamming distance (of 64 bits) between the hashes of one picture that was saved twice."""

NEIGHBOURS = 32
"""Each picture is compared with at most this many others that share a quarter of its hash."""

MOST = 100_000
"""Maximum number of pairs whose pixels are compared, those with the nearest hashes first."""

ALIKE = 0.98
"""Minimum correlation between the pixels of two copies: JPEG at quality 50 leaves 0.98 to 0.995."""

OFTEN = 0.01
"""A run mentions copies among the training pictures if their share is larger than this."""


@dataclass(frozen=True)
class Copies:
    """A group of copies of one picture.

    Attributes:
        exact: whether all pixels are equal; otherwise the picture was saved again, or at another size.
        rows: split and row of each picture.
        names: the name of each picture in messages.
    """

    exact: bool
    rows: tuple[tuple[str, int], ...]
    names: tuple[str, ...]


def hash_images(images: np.ndarray) -> np.ndarray:
    """The perceptual hashes uint64 `[n]` of pictures `[n h w 3]`; 0 for pictures of nearly one colour.

    Each bit compares one of the 8 × 8 lowest frequencies of the green channel with their median (pHash: Zauner,
    "Implementation and benchmarking of perceptual image hash functions", 2010).
    """
    count, height, width = images.shape[:3]
    step = max(1, CHUNK // (height * width))
    chunks = [images[start : start + step, :, :, 1] for start in range(0, count, step)]
    return np.concatenate([hash_channel(chunk) for chunk in chunks]) if chunks else np.zeros(0, dtype=np.uint64)


def hash_channel(green: np.ndarray) -> np.ndarray:
    """The hashes uint64 `[n]` of one channel `[n h w]`."""
    down, across = cosines(green.shape[1]), cosines(green.shape[2])
    values = (down @ green.astype(np.float32) @ across.T).reshape(len(green), 64)
    bits = values > np.median(values, axis=1, keepdims=True)
    codes = np.packbits(bits, axis=1).view(np.uint64)[:, 0]
    return np.where(np.linalg.norm(values[:, 1:], axis=1) < PLAIN, np.uint64(0), codes)


@lru_cache(maxsize=16)
def cosines(side: int) -> np.ndarray:
    """A matrix `[8 side]`: averages a side over at most THUMB pieces, then applies the first eight cosines.

    The scale is such that the squares of all frequencies but the first add up to the variance.
    """
    pieces = min(side, THUMB)
    edges, pixels = np.arange(pieces + 1) * side / pieces, np.arange(side)
    cover = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    means = np.clip(cover, 0, 1) * pieces / side
    angles = np.pi * np.arange(8)[:, None] * (np.arange(pieces) + 0.5) / pieces
    scale = np.where(np.arange(8) == 0, 1, np.sqrt(2))[:, None] / pieces
    return (scale * np.cos(angles) @ means).astype(np.float32)


def pairs_of(hashes: np.ndarray) -> np.ndarray:
    """Rows `[m 2]` whose hashes differ by no more than APART bits, the nearest first.

    Only pairs that share one of their four 16-bit quarters are found: they are neighbours when sorted by it. Hashes that differ
    in up to 3 bits always share one.
    """
    rows = np.flatnonzero(hashes)
    candidates, distances = [np.zeros((0, 2), dtype=np.int64)], [np.zeros(0, dtype=np.uint8)]
    for quarter in range(4):
        share = (hashes[rows] >> np.uint64(16 * quarter)) & np.uint64(0xFFFF)
        order = rows[np.lexsort((hashes[rows], share))]
        share = np.sort(share)
        for step in range(1, min(NEIGHBOURS, len(order) - 1) + 1):
            near = np.flatnonzero(share[step:] == share[:-step])
            if not len(near):
                break
            first, second = order[near], order[near + step]
            distance = bits_of(hashes[first] ^ hashes[second])
            close = distance <= APART
            candidates.append(np.sort(np.stack([first[close], second[close]], axis=1), axis=1))
            distances.append(distance[close])
    pairs, places = np.unique(np.concatenate(candidates), axis=0, return_index=True)
    return pairs[np.argsort(np.concatenate(distances)[places], kind="stable")][:MOST]


def bits_of(values: np.ndarray) -> np.ndarray:
    """The number of set bits per value (`numpy.bitwise_count` needs NumPy 2)."""
    return np.unpackbits(values.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1, dtype=np.uint8)


def find_copies(images: Mapping[str, np.ndarray], name: Callable[[str, int], str]) -> list[Copies]:
    """The groups of copies in the splits of a set.

    Args:
        images: `[n h w 3]` per split; may be memory maps.
        name: gives the name of a row of a split.
    """
    where = [(part, row) for part, rows in images.items() for row in range(len(rows))]
    same, nearly = [], []
    for first, second in pairs_of(np.concatenate([hash_images(rows) for rows in images.values()])).tolist():
        one, other = (images[where[place][0]][where[place][1]] for place in (first, second))
        if np.array_equal(one, other):
            same.append((first, second))
        elif show_the_same(one, other):
            nearly.append((first, second))
    loose = {place for pair in nearly for place in pair}
    return [
        Copies(
            loose.isdisjoint(group),
            tuple(where[place] for place in group),
            tuple(name(*where[place]) for place in group),
        )
        for group in group_pairs([*same, *nearly])
    ]


def show_the_same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two pictures show the same, possibly saved in different ways."""
    if one.shape != other.shape:
        return False
    first, second = one.astype(np.float32).ravel(), other.astype(np.float32).ravel()
    first, second = first - first.mean(), second - second.mean()
    return float(first @ second) >= ALIKE * float(np.linalg.norm(first) * np.linalg.norm(second))


def group_pairs(pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The connected groups of the pairs, by union-find: each member points towards its root."""
    above: dict[int, int] = {}

    def root(member: int) -> int:
        above.setdefault(member, member)
        while above[member] != member:
            above[member] = above[above[member]]
            member = above[member]
        return member

    for first, second in pairs:
        above[root(first)] = root(second)
    groups: dict[int, list[int]] = defaultdict(list)
    for member in sorted(above):
        groups[root(member)].append(member)
    return list(groups.values())


@dataclass(frozen=True)
class Member:
    """One picture of a group of copies, in a split of the run."""

    split: str
    name: str
    label: int


def describe_copies(
    copies: Sequence[Copies],
    splits: Mapping[str, tuple[str, np.ndarray]],
    labels: Mapping[str, np.ndarray],
    classes: Sequence[str],
) -> list[str]:
    """Warnings about pictures that are in two splits, in two classes, or often in the training set.

    Args:
        splits: the set and the rows of `train`, `validation` and `test`.
        labels: of each set; -1 = none.
    """
    groups = [(group.exact, members_of(group, splits, labels)) for group in copies]
    lines = [
        *(describe_leaks(groups, split, len(splits[split][1])) for split in ("test", "validation")),
        describe_two_classes([members for _, members in groups], classes),
        describe_repeats([members for _, members in groups], len(splits["train"][1])),
    ]
    return [line for line in lines if line]


def members_of(
    group: Copies, splits: Mapping[str, tuple[str, np.ndarray]], labels: Mapping[str, np.ndarray]
) -> list[Member]:
    """The pictures of a group that are in a split."""
    return [
        Member(split, name, int(labels[part][row]))
        for (part, row), name in zip(group.rows, group.names, strict=True)
        for split, (own, index) in splits.items()
        if own == part and index[min(np.searchsorted(index, row), len(index) - 1)] == row
    ]


def describe_leaks(groups: Sequence[tuple[bool, list[Member]]], split: str, size: int) -> str:
    """A warning if pictures of a split are also in the training set; else an empty string."""
    leaks = [(exact, members) for exact, members in groups if {"train", split} <= {one.split for one in members}]
    if not leaks:
        return ""
    counts = [sum(one.split == split for one in members) for _, members in leaks]
    exactly = sum(count for count, (exact, _) in zip(counts, leaks, strict=True) if exact)
    own, trained = (next(one.name for one in leaks[0][1] if one.split == which) for which in (split, "train"))
    how = "with equal pixels" if exactly == sum(counts) else f"{exactly:,} with equal pixels, the others nearly equal"
    return (
        f"{sum(counts):,} of {size:,} {split} pictures are also in the training set ({how}), such as {own} and {trained}: a "
        "model can memorise them, which raises its accuracy. Remove them from one of the two"
    )


def describe_two_classes(groups: Sequence[list[Member]], classes: Sequence[str]) -> str:
    """A warning if a picture is in two classes; else an empty string."""
    several = [members for members in groups if len({one.label for one in members if one.label >= 0}) > 1]
    if not several:
        return ""
    first = next(one for one in several[0] if one.label >= 0)
    other = next(one for one in several[0] if one.label not in (first.label, -1))
    return (
        f"{sum(map(len, several)):,} pictures have a copy in another class, such as {first.name} "
        f"({classes[first.label]}) and {other.name} ({classes[other.label]}): one of the labels must be wrong"
    )


def describe_repeats(groups: Sequence[list[Member]], size: int) -> str:
    """A remark if many training pictures are copies; else an empty string."""
    again = [[one.name for one in members if one.split == "train"] for members in groups]
    count = sum(max(0, len(names) - 1) for names in again)
    if count <= OFTEN * size:
        return ""
    first = next(names for names in again if len(names) > 1)
    return f"{count:,} of {size:,} training pictures are copies of others, such as {first[1]} of {first[0]}"
