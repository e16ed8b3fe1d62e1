"""Differences of two models' shares on the same images, with intervals."""

from __future__ import annotations

import math

from jaxtyping import Bool
from torch import Tensor

from distilens.measure.shares import share

Difference = dict[str, float | int | None]
"""`mean`, its 95 % interval (`low`, `high`), and `n`."""


def share_apart(one: Bool[Tensor, " n"], other: Bool[Tensor, " n"]) -> Difference | None:
    """The difference of two shares of hits, `one` minus `other`, in [-1, 1], with a 95 % interval; None without images.

    Source: Newcombe 1998 (Statistics in Medicine 17: 2635-2650), method 10: Wilson's intervals of both shares, and their
    correlation with a continuity correction. The interval also holds for small n.
    """
    n = len(one)
    if not n:
        return None
    first, second = share(one), share(other)
    difference = first["accuracy"] - second["accuracy"]
    correlation = correlated(one, other)
    down = first["accuracy"] - first["low"], second["high"] - second["accuracy"]
    up = first["high"] - first["accuracy"], second["accuracy"] - second["low"]
    below, above = (math.sqrt(max(0.0, a * a - 2 * correlation * a * b + b * b)) for a, b in (down, up))
    return {"mean": difference, "low": difference - below, "high": difference + above, "n": n}


def correlated(one: Bool[Tensor, " n"], other: Bool[Tensor, " n"]) -> float:
    """Newcombe's corrected correlation of two binary outcomes on the same images."""
    both, first, second, neither = (
        int((a & b).sum()) for a, b in ((one, other), (one, ~other), (~one, other), (~one, ~other))
    )
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    if not margins:
        return 0.0
    product, n = both * neither - first * second, len(one)
    corrected = max(product - n / 2, 0) if product > 0 else product
    return corrected / math.sqrt(margins)
