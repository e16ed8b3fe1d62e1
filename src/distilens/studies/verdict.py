"""What a study found: a row's mean with its interval over seeds, and for each question the difference with its tests."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from distilens.foundation.estimate import Estimate
from distilens.foundation.files import read_json
from distilens.foundation.metric import Metric
from distilens.studies.costs import FILE as COSTS
from distilens.studies.costs import Budget, best_for_budget
from distilens.studies.enough_seeds import more_seeds
from distilens.studies.reading import is_read
from distilens.studies.statistics import Difference, compare_seeds, holm, mean_over_seeds
from distilens.studies.study import Row, Study
from distilens.studies.until import gains, judge_gains
from distilens.studies.values import is_complete, means_of_curves, metric_of, shift_values, student_of, values_of
from distilens.studies.work import failures, missing

POINT = 0.01
"""One point of a share. Questions say how many seeds would settle a difference of this size."""
KIND = "distilens verdict 1"
Values = Mapping[Any, float | None]


def judge_study(study: Study) -> dict[str, Any]:
    """The content of a study's page and table, as plain data; also of an unfinished study.

    The test split is shown if all finished students of all rows were measured on it, else validation. Rows are paired by seed:
    the same seed means the same images, first weights and order.
    """
    metric = metric_of(study)
    split = "test" if is_complete(study) else "validation"
    values = {row.name: values_of(study, row, metric, split) for row in study.rows}
    failed = failures(study)
    questions = judge_questions(study, values, metric)
    costs = read_json(study.folder / COSTS) or {}
    rows = [
        {
            **describe_row(study, row, values[row.name], failed.get(row.name), split),
            "cost": costs.get("networks", {}).get(row.facts.get("model")),
        }
        for row in study.rows
    ]
    return {
        "kind": KIND,
        "study": study.kind,
        "name": study.folder.name,
        "command": study.command,
        "metric": metric.plain(),
        "split": split,
        "seeds": list(study.seeds),
        "until": study.plain()["until"],
        "done": len(study.jobs) - len(missing(study)),
        "total": len(study.jobs),
        "readings": [dict(reading) for reading in study.readings],
        "rows": rows,
        "budget": judge_budget(rows, costs.get("budget"), metric),
        "questions": questions,
        "shift": judge_shift(study, metric),
        "learning": judge_questions(study, {row.name: means_of_curves(study, row) for row in study.rows}, metric),
        "search": read_json(study.folder / "trials.json"),
    }


def describe_row(study: Study, row: Row, values: Values, failed: str | None, split: str) -> dict[str, Any]:
    """Plain data about one row; its values and its agreement with the teacher are those of the split."""
    results = study.results(row)
    first = next(iter(results.values()), {})
    shown = results if split == "validation" else {seed: student_of(study, row, seed) for seed in results}
    curves = [result["curve"] for result in results.values() if result["curve"]]
    return {
        "name": row.name,
        "about": row.about,
        "methods": list(row.recipe["student"].get("methods", ())),
        "control": (row.recipe.get("teacher") or {}).get("control"),
        "facts": dict(row.facts),
        "value": mean_over_seeds(values).plain(),
        "values": {str(seed): value for seed, value in values.items()},
        "validation": mean_over_seeds(values_of(study, row, metric_of(study), "validation")).plain(),
        "agreement": mean_of_entries(entry.get("agreement") for entry in shown.values()),
        "maps": map_scores(study, row, "similarity"),
        "energy": map_scores(study, row, "energy_in_mask"),
        "shift": under_shift(study, row, metric_of(study)),
        "seconds": statistics.median(result["seconds"] for result in results.values()) if results else None,
        "parameters": first.get("parameters"),
        "macs": first.get("macs"),
        "curve": mean_curve(curves),
        "epochs": first.get("epochs"),
        "learning": mean_over_seeds(means_of_curves(study, row)).plain(),
        "diverged": [seed for seed, result in results.items() if "diverged" in result],
        "failed": failed,
        "runs": {str(seed): study.place(row, seed).relative_to(study.folder).as_posix() for seed in results},
        "read": [seed for seed in results if is_read(study, row.name, seed)],
    }


def judge_budget(
    rows: Sequence[Mapping[str, Any]], given: Mapping[str, Any] | None, metric: Metric
) -> dict[str, Any] | None:
    """The budget in words and the name of the best row within it; None without a budget."""
    if given is None:
        return None
    budget = Budget(**given)
    best = best_for_budget(rows, budget, metric)
    return {"text": str(budget), "best": best and best["name"]}


def mean_of_entries(entries: Any) -> dict[str, Any] | None:
    """The mean over seeds of shares that files hold; None without any."""
    found = [estimate.value for entry in entries if (estimate := Estimate.read(entry))]
    return mean_over_seeds(found).plain() if found else None


def map_scores(study: Study, row: Row, key: str) -> dict[str, Any]:
    """A score of the student's maps over seeds, by explainer, if the test split was read.

    Args:
        key: `similarity` (the cosine to the teacher's maps) or `energy_in_mask` (the share on the evidence, if it is known).
    """
    found: dict[str, list[float]] = {}
    for seed in study.results(row):
        for explainer, entry in student_of(study, row, seed).get("maps", {}).items():
            if entry.get(key) is not None:
                found.setdefault(explainer, []).append(entry[key])
    return {explainer: mean_over_seeds(values).plain() for explainer, values in found.items()}


def under_shift(study: Study, row: Row, metric: Metric) -> dict[str, Any]:
    """The metric on corrupted test images over seeds, by corruption."""
    return {kind: mean_over_seeds(values).plain() for kind, values in shift_values(study, row, metric).items()}


def judge_shift(study: Study, metric: Metric) -> list[dict[str, Any]]:
    """The answers to the questions on corrupted test images, one per question and corruption; empty if there are none."""
    by_row = {row.name: shift_values(study, row, metric) for row in study.rows}
    kinds = list(dict.fromkeys(kind for values in by_row.values() for kind in values))
    values = {kind: {name: found.get(kind, {}) for name, found in by_row.items()} for kind in kinds}
    found = [{"corruption": kind, **entry} for kind in kinds for entry in judge_questions(study, values[kind], metric)]
    corrected = holm({str(number): entry["p"] for number, entry in enumerate(found)})
    return [{**entry, "p by Holm": corrected[str(number)]} for number, entry in enumerate(found)]


def mean_curve(curves: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """The mean learning curve with its interval over seeds, one entry per epoch that all seeds have."""
    return [mean_over_seeds(values).plain() for values in zip(*curves, strict=False)]


def judge_questions(study: Study, values: Mapping[str, Values], metric: Metric) -> list[dict[str, Any]]:
    """The answers to the questions. p-values are corrected by Holm for the number of questions.

    A gain is positive if the row is better: for a metric that is better when lower, the sign is turned. If seeds were added until
    the questions were decided, the intervals are those of `until.judge_gains`, and there are no p-values, which such a study
    would make too small.
    """
    found: list[tuple[Any, Difference]] = []
    for question in study.questions:
        better, worse = values[question.row], values[question.against]
        sides = (better, worse) if metric.higher_is_better else (worse, better)
        found.append((question, compare_seeds(*sides, paired=True)))
    if study.until is not None:
        return [
            {**question.plain(), **difference.plain(), **judge_gains(study, gains(question, values, metric), metric)}
            for question, difference in found
        ]
    corrected = holm({str(number): difference.p for number, (_, difference) in enumerate(found)})
    return [
        {
            **question.plain(),
            **difference.plain(),
            "p by Holm": corrected[str(number)],
            "more seeds": more_seeds(difference, POINT) if metric.is_share and difference.deviation else None,
            "decision": None,
        }
        for number, (question, difference) in enumerate(found)
    ]
