"""Confusion between classes, and the most confident wrong predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

MATRIX_CLASSES = 20
"""Up to this number of classes, `scores.json` holds the whole matrix; for more, only the most confused pairs."""
PAIRS = 20
ERRORS = 12


def confusion(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> Int[Tensor, "classes classes"]:
    """The number of images by true class (rows) and predicted class (columns).

    Images without a label or with a NaN logit are left out.
    """
    true, given = answered(logits, labels)
    count = logits.shape[1]
    return torch.bincount(true * count + given, minlength=count * count).view(count, count)


def answered(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> tuple[Tensor, Tensor]:
    """The true and the predicted class of each image with a label and without NaN logits."""
    kept = (labels >= 0) & ~logits.isnan().any(1)
    return labels[kept], logits[kept].argmax(1)


def most_confused(
    logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], names: Sequence[str], most: int = PAIRS
) -> list[dict[str, Any]]:
    """The most often confused pairs of classes: true class, predicted class, number of images, and the true class's total.

    This makes no matrix, so many classes are possible.
    """
    true, given = answered(logits, labels)
    totals, wrong = torch.bincount(true, minlength=len(names)), true != given
    pairs, counts = torch.unique(true[wrong] * len(names) + given[wrong], return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:most].tolist()
    return [
        {"true": names[place // len(names)], "given": names[place % len(names)], "count": int(count)}
        | {"of": int(totals[place // len(names)])}
        for place, count in ((int(pairs[at]), counts[at]) for at in order)
    ]


def confused(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], names: Sequence[str]) -> dict[str, Any]:
    """The most confused pairs and, for few classes, the matrix, as plain data."""
    whole = confusion(logits, labels).tolist() if len(names) <= MATRIX_CLASSES else None
    return {"matrix": whole, "pairs": most_confused(logits, labels, names), "n": len(answered(logits, labels)[0])}


def worst_errors(
    logits: Mapping[str, Float[Tensor, "n classes"]],
    labels: Int[Tensor, " n"],
    names: Sequence[str],
    *,
    of: str,
    most: int = ERRORS,
) -> list[dict[str, Any]]:
    """The wrong predictions with the highest confidence, in falling order: row, true and predicted class, confidence in [0, 1].

    Args:
        logits: by model; `right` in the result says which models are right on the image.
        of: the model whose errors are listed.
    """
    probabilities = logits[of].double().softmax(1)
    sure, given = probabilities.max(1)
    wrong = (labels >= 0) & (given != labels) & sure.isfinite()
    rows = wrong.nonzero()[:, 0]
    rows = rows[sure[rows].argsort(descending=True, stable=True)][:most]
    return [
        {
            "row": row,
            "label": names[int(labels[row])],
            "given": names[int(given[row])],
            "confidence": float(sure[row]),
            "right": {model: bool(values[row].argmax() == labels[row]) for model, values in logits.items()},
        }
        for row in rows.tolist()
    ]
