"""How the places of a segmentation are spread over its classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from distilens.data.masks import count_places

if TYPE_CHECKING:
    from distilens.data.splits import Data, Split

VOID_NAME = "void"


def has_places(split: Split) -> bool:
    """Whether a split has a mask of classes for each image."""
    return split.task.dense and bool(split.task.classes) and split.rows.targets.dtype == np.uint8


def shares_of(split: Split) -> dict[str, float]:
    """The share of each class among the places that are not void, and last that of void among all places; in [0, 1]."""
    counts = count_places(split.rows.targets, len(split.task.classes), split.index)
    labelled, every = max(1, int(counts[:-1].sum())), max(1, int(counts.sum()))
    shares = {name: count / labelled for name, count in zip(split.task.classes, counts[:-1].tolist(), strict=True)}
    return {**shares, VOID_NAME: int(counts[-1]) / every}


def describe_places(data: Data) -> list[str]:
    """One sentence per split: its images, those with labels, the classes by their share, and void. Empty for other tasks."""
    if not has_places(data.train):
        return []
    return [describe_split(name, split, shares_of(split)) for name, split in data.splits.items() if len(split)]


def describe_split(name: str, split: Split, shares: Mapping[str, float]) -> str:
    labelled = int((split.strata >= 0).sum())
    some = f", {labelled:,} of them with labels" if labelled < len(split) else ""
    classes = sorted(split.task.classes, key=lambda one: -shares[one])
    words = ", ".join(f"{one} {written_share(shares[one])}" for one in classes)
    return (
        f"{name}: {len(split):,} images{some}; places: {words}; void {written_share(shares[VOID_NAME])} of all places"
    )


def written_share(share: float) -> str:
    """A share in per cent: with a decimal below ten, and `under 0.1 %` if it is tiny but not 0."""
    if 0 < share < 0.001:
        return "under 0.1 %"
    return f"{share:.0%}".replace("%", " %") if share >= 0.0995 else f"{100 * share:.1f} %" if share else "0 %"


def paint(targets: np.ndarray, classes: int) -> np.ndarray:
    """A mask `[h w]` as a picture `[h w 3]`: a colour per class, spread over the hues; void is white."""
    hues = np.arange(max(1, classes)) / max(1, classes)
    waves = 0.5 + 0.45 * np.cos(2 * np.pi * (hues[:, None] - np.array([0, 1 / 3, 2 / 3])))
    table = np.full((256, 3), 255, dtype=np.uint8)
    table[: len(waves)] = np.round(255 * waves)
    return table[targets]
