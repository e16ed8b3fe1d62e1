"""Confusion matrices as tables: counts, each cell shaded by its share of the images of its class."""

import math
from collections.abc import Sequence
from typing import Any

LIGHT, DARK = (255, 255, 255), (8, 48, 107)
LEVELS = 11


def shades() -> list[tuple[str, str]]:
    """Ground and ink of each level, white to dark blue; black or white ink, whichever has more contrast."""
    found = []
    for level in range(LEVELS):
        part = level / (LEVELS - 1)
        ground = tuple(round(light + part * (dark - light)) for light, dark in zip(LIGHT, DARK, strict=True))
        found.append((f"#{bytes(ground).hex()}", "#000000" if luminance(ground) > 0.179 else "#ffffff"))
    return found


def luminance(colour: Sequence[int]) -> float:
    """The relative luminance of WCAG 2."""
    linear = [part / 12.92 if (part := value / 255) <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for value in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def matrix_rows(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each true class: its name, how many images it has, and the count and level of each cell."""
    found = []
    for true, counts in enumerate(matrix):
        total = sum(counts)
        cells = [
            {"count": count, "level": level_of(count, total), "hit": given == true}
            for given, count in enumerate(counts)
        ]
        found.append({"name": names[true], "total": total, "cells": cells})
    return found


def level_of(count: int, total: int) -> int:
    """0 for none; the darkest for all."""
    return math.ceil((LEVELS - 1) * count / total) if count else 0


def confusions(scores: dict, roles: Sequence[str], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Of each model that has one: its matrix, where classes are few, and the pairs most often confused."""
    found = []
    for role in roles:
        entry = scores["models"][role].get("confusion")
        if entry:
            matrix = entry.get("matrix")
            rows = matrix_rows(matrix, classes) if matrix and len(matrix) == len(classes) else []
            found.append({"role": role, "rows": rows, "pairs": entry.get("pairs") or []})
    return found
