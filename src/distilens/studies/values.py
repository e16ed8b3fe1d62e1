"""What was measured of a study's students: the metric of a row by seed, on validation, test and corrupted test images."""

from __future__ import annotations

import statistics
from collections.abc import Hashable
from typing import Any

from distilens.foundation.files import read_json
from distilens.foundation.metric import ACCURACY, Metric
from distilens.studies.reading import is_read
from distilens.studies.study import Row, Study


def metric_of(study: Study) -> Metric:
    """The metric of the study's task."""
    found = (result for row in study.rows for result in study.results(row).values())
    return Metric(**result["metric"]) if (result := next(found, None)) else ACCURACY


def is_complete(study: Study) -> bool:
    """Whether every finished student was measured on the test split."""
    finished = [(row.name, seed) for row in study.rows for seed in study.results(row)]
    return bool(finished) and all(is_read(study, *each) for each in finished)


def values_of(study: Study, row: Row, metric: Metric, split: str) -> dict[Hashable, float | None]:
    """A row's metric by seed, on validation or test."""
    if split == "validation":
        scored = {seed: result["validation"] for seed, result in study.results(row).items()}
    else:
        scored = {seed: student_of(study, row, seed).get("test") for seed in study.results(row)}
    return {seed: entry and entry[metric.name] for seed, entry in scored.items()}


def means_of_curves(study: Study, row: Row) -> dict[int, float | None]:
    """The mean of each learning curve, by seed: if two students end alike, the one that learns faster has the better mean."""
    curves = {seed: result["curve"] for seed, result in study.results(row).items()}
    return {seed: statistics.fmean(curve) if curve else None for seed, curve in curves.items()}


def student_of(study: Study, row: Row, seed: int) -> dict[str, Any]:
    """The scores of a student that was measured on the test split; empty if it was not."""
    return (read_json(study.place(row, seed) / "scores.json") or {}).get("models", {}).get("student", {})


def shift_values(study: Study, row: Row, metric: Metric) -> dict[str, dict[int, float | None]]:
    """A row's metric on corrupted test images, by corruption and seed."""
    found: dict[str, dict[int, float | None]] = {}
    for seed in study.results(row):
        for kind, entry in student_of(study, row, seed).get("shift", {}).items():
            found.setdefault(kind, {})[seed] = entry[metric.name]
    return found
