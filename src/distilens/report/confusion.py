"""Confusion matrices as tables: counts, each cell shaded by its share of the images of the true class."""

import math
from collections.abc import Sequence
from typing import Any

LIGHT, DARK = (255, 255, 255), (8, 48, 107)
LEVELS = 11


def shades() -> list[tuple[str, str]]:
    """Background and text colour per level, white to dark blue; the text is black or white, whichever has more contrast."""
    levels = []
    for level in range(LEVELS):
        part = level / (LEVELS - 1)
        ground = tuple(round(light + part * (dark - light)) for light, dark in zip(LIGHT, DARK, strict=True))
        levels.append((f"#{bytes(ground).hex()}", "#000000" if luminance(ground) > 0.179 else "#ffffff"))
    return levels


def luminance(colour: Sequence[int]) -> float:
    """The relative luminance of WCAG 2."""
    linear = [part / 12.92 if (part := value / 255) <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for value in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def matrix_rows(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> list[dict[str, Any]]:
    """One row per true class: its name, its number of images, and the count and level per cell."""
    rows = []
    for true, counts in enumerate(matrix):
        total = sum(counts)
        cells = [
            {"count": count, "level": level_of(count, total), "hit": given == true}
            for given, count in enumerate(counts)
        ]
        rows.append({"name": names[true], "total": total, "cells": cells})
    return rows


def level_of(count: int, total: int) -> int:
    """The shade of a cell: 0 for no image, the darkest for all images of the class."""
    return math.ceil((LEVELS - 1) * count / total) if count else 0


def confusions(scores: dict, roles: Sequence[str], classes: Sequence[str]) -> list[dict[str, Any]]:
    """The matrix per model (if there are few classes) and the most confused pairs; models without them are left out."""
    tables = []
    for role in roles:
        entry = scores["models"][role].get("confusion")
        if entry:
            matrix = entry.get("matrix")
            rows = matrix_rows(matrix, classes) if matrix and len(matrix) == len(classes) else []
            tables.append({"role": role, "rows": rows, "pairs": entry.get("pairs") or []})
    return tables
