"""What was measured of the methods, and which of them did harm: read without torch, for lists and advice."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distilens.errors import UserError

EVIDENCE = Path(__file__).parent / "evidence.json"
"""What was measured: written by `benchmarks/evidence.py`, described in docs/which.md."""
KINDS = {
    "vit": "a ViT teaches a network of convolutions",
    "depthwise": "the student is of depthwise convolutions, as MobileNets are",
    "same": "both networks are of one family",
    "other": "the networks are of different families",
    "vit student": "the student is a ViT",
    "alone": "there is no teacher",
}


def harmful(studies: Sequence[Mapping[str, Any]], kind: str | None = None) -> dict[str, str]:
    """By name, the methods that by their defaults lost accuracy beside `kd` on a kind of pair (by default any), and how much."""
    found: dict[str, list[str]] = {}
    for study in studies:
        for row in study["rows"] if study["defaults"] and kind in (None, study["kind"]) else ():
            if row["gain"] and row["gain"][0] + row["gain"][1] < 0:
                lost = f"{-row['gain'][0]:.1f} ± {row['gain'][1]:.1f} points where {KINDS[study['kind']]}"
                found.setdefault(row["row"], []).append(lost)
    return {name: f"by its defaults it lost beside kd: {'; '.join(each)}" for name, each in found.items()}


def read_evidence() -> dict[str, Any]:
    """All that was measured.

    Raises:
        UserError: nothing was.
    """
    found = json.loads(EVIDENCE.read_text(encoding="utf-8")) if EVIDENCE.is_file() else {}
    if not found.get("studies"):
        raise UserError(f"no evidence at {EVIDENCE}: benchmarks/evidence.py writes it from finished studies")
    return found


def warnings() -> dict[str, str]:
    """By name, the methods whose defaults did harm somewhere; of none, where nothing was measured."""
    with contextlib.suppress(UserError):
        return harmful(read_evidence()["studies"])
    return {}
