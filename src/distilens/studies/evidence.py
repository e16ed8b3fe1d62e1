"""The measured evidence about methods, and which methods did harm. Reading it does not import torch."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distilens.foundation.errors import UserError

EVIDENCE = Path(__file__).parent / "evidence.json"
"""The measurements. `findings.py` makes them from finished studies; docs/which.md describes them."""
KINDS = {
    "vit": "a ViT teaches a convolutional network",
    "depthwise": "the student has depthwise convolutions, like MobileNets",
    "same": "both networks are of the same family",
    "other": "the networks are of different families",
    "vit student": "the student is a ViT",
    "alone": "there is no teacher",
}


def harmful(studies: Sequence[Mapping[str, Any]], kind: str | None = None) -> dict[str, str]:
    """The methods whose defaults were less accurate than `kd` on a kind of pair (by default any): name -> warning."""
    losses: dict[str, list[str]] = {}
    for study in studies:
        for row in study["rows"] if study["defaults"] and kind in (None, study["kind"]) else ():
            if row["gain"] and row["gain"][0] + row["gain"][1] < 0:
                lost = f"by {-row['gain'][0]:.1f} ± {row['gain'][1]:.1f} points where {KINDS[study['kind']]}"
                losses.setdefault(row["row"], []).append(lost)
    return {name: f"with its defaults it is worse than kd: {'; '.join(texts)}" for name, texts in losses.items()}


def read_evidence() -> dict[str, Any]:
    """All measurements.

    Raises:
        UserError: there are none.
    """
    evidence = json.loads(EVIDENCE.read_text(encoding="utf-8")) if EVIDENCE.is_file() else {}
    if not evidence.get("studies"):
        raise UserError(f"no evidence at {EVIDENCE}: benchmarks/evidence.py writes it from finished studies")
    return evidence


def warnings() -> dict[str, str]:
    """The methods whose defaults did harm somewhere: name -> warning. Empty without evidence."""
    with contextlib.suppress(UserError):
        return harmful(read_evidence()["studies"])
    return {}
