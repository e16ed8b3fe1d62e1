"""The summary table of a run, and the sentence above it. Plain text, without HTML or torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from distilens.foundation.estimate import NOTHING, Estimate
from distilens.foundation.metric import ACCURACY, Metric
from distilens.report.cells import (
    Cell,
    amount,
    cell,
    energy,
    humanised,
    latency,
    percent,
    points,
    sentence,
    share,
    signed_decimals,
    similarity,
    text,
)
from distilens.report.names import plain_name

MODELS = ("teacher", "base", "student")

MOST_CLASSES = 100

UNEVEN = 1.5
# If the most common class has at least this many times an even share, the page also shows the accuracy of guessing it.


PLACES = {
    "dice": "mean Dice, test",
    "pixel accuracy": "pixel accuracy, test",
    "boundary F": "F score of contours, test",
}
"""The further scores of a segmentation."""


@dataclass(frozen=True)
class Row:
    """A measure: one cell per model, the better direction, and student minus base on the same images.

    Attributes:
        apart: the difference, if it was measured on the same images.
        in_points: whether values are shares, written in per cent with differences in points.
    """

    title: str
    cells: Mapping[str, Cell]
    better: Literal["higher", "lower", ""] = ""
    apart: Estimate | None = None
    in_points: bool = False

    @property
    def arrow(self) -> str:
        return {"higher": "↑", "lower": "↓", "": ""}[self.better]

    @property
    def direction(self) -> str:
        return f"{self.better} is better" if self.better else ""

    @property
    def winner(self) -> str | None:
        """`student` or `base` if the interval of the difference excludes 0, else None."""
        if not self.better or self.apart is None or self.apart.ends is None or self.apart.holds(0):
            return None
        return "student" if self.apart.above(0) == (self.better == "higher") else "base"

    @property
    def difference(self) -> Cell:
        """Student minus base, and the verdict from its interval."""
        verdict = f"{self.winner} better" if self.winner else "not significant"
        write, unit = (points, " points") if self.in_points else (signed_decimals, "")
        return cell(self.apart, verdict if self.apart and self.apart.ends else "", write=write, unit=unit)


def rows(scores: dict) -> tuple[list[str], list[list[str]]]:
    """Header and text cells of the summary table, one row per measured model, teacher first.

    Every number comes with its 95 % interval and n. Columns without any number are left out, except the
    accuracies. `scores` is the content of a run's `scores.json`.

    >>> rows({"models": {"student": {"model": "tiny", "test": {"accuracy": 0.5, "n": 8}, "parameters": 77850}}})[1]
    [['student', 'tiny', '–', '50.0 %, n = 8', '77.9 k']]
    """
    models, columns = measured_models(scores), measures(scores)
    header = ["role", "model", *(" ".join(filter(None, (row.title, row.arrow))) for row in columns)]
    lines = [
        [role, text(model.get("model")), *(sentence(row.cells[role]) for row in columns)]
        for role, model in models.items()
    ]
    return header, lines


def measures(scores: dict) -> list[Row]:
    """The rows of the table: all measures for which some model has a number, or a reason why the number is missing."""
    models, metric = measured_models(scores), metric_of(scores)
    more = (models.get("student") or {}).get("more than base") or {}

    def shares(title: str, key: str) -> Row:
        cells = {role: share(model.get(key)) for role, model in models.items()}
        return Row(title, cells, "higher", Estimate.read(more.get(key)), in_points=True)

    def calibrated(title: str, key: str) -> Row:
        calibrations = {role: (model.get("calibration") or {}) for role, model in models.items()}
        cells = {role: amount(entry.get(key)) for role, entry in calibrations.items()}
        return Row(title, cells, "lower", Estimate.read(more.get(key)))

    def main(split: str) -> Row:
        cells = {role: score_cell(model.get(split), metric) for role, model in models.items()}
        return Row(f"{metric.name}, {split}", cells, metric.better, Estimate.read(more.get(split)), metric.is_share)

    always = [main("validation"), main("test")]
    others = [
        shares("label among the top five, test", "top5"),
        *(shares(title, key) for key, title in PLACES.items()),
    ]
    if imbalance(scores):
        cells = {role: balanced_cell(model) for role, model in models.items()}
        others.append(Row("accuracy balanced over classes, test", cells, "higher"))
    others += [
        calibrated("negative log-likelihood, test", "nll"),
        calibrated("calibration error, test", "ece"),
        *shift_rows(models, metric),
        shares("same answer as the teacher, test", "agreement"),
        *map_rows(models, "on the explained places" if task_of(scores) == "segmentation" else "on the object"),
        *(
            Row(title, {role: (humanised(model.get(key)), "") for role, model in models.items()}, "lower")
            for key, title in (("parameters", "parameters"), ("macs", "MACs"))
        ),
        Row("latency, median", {role: latency(model.get("latency_ms")) for role, model in models.items()}, "lower"),
    ]
    return always + [row for row in others if any(value != NOTHING for value, _ in row.cells.values())]


def score_cell(entry: dict | None, metric: Metric) -> Cell:
    """A model's metric on a split, with its interval."""
    if metric.is_share:
        return share(entry, metric.name)
    return cell(Estimate.read(entry, metric.name), unit=f" {metric.unit}".rstrip())


def shift_rows(models: Mapping[str, dict[str, Any]], metric: Metric) -> list[Row]:
    """A row per corruption: the metric on corrupted test images."""
    kinds = dict.fromkeys(kind for model in models.values() for kind in model.get("shift") or {})
    found = {kind: {role: (model.get("shift") or {}).get(kind) for role, model in models.items()} for kind in kinds}
    return [
        Row(
            f"{metric.name}, test, {kind}",
            {role: score_cell(entry, metric) for role, entry in entries.items()},
            metric.better,
        )
        for kind, entries in found.items()
    ]


def map_rows(models: Mapping[str, dict[str, Any]], where: str) -> list[Row]:
    """Two rows per explainer: the similarity of its maps to the teacher's, and their share on the object (or the region)."""
    table_rows = []
    for name in dict.fromkeys(name for model in models.values() for name in model.get("maps") or {}):
        maps = {role: (model.get("maps") or {}).get(name) or {} for role, model in models.items()}
        teacher, student = maps.get("teacher"), maps.get("student") or {}
        similarities = {role: similarity(entry, teacher) for role, entry in maps.items()}
        energies = {role: energy(entry) for role, entry in maps.items()}
        title = plain_name(name)
        closer = Estimate.read(student.get("more_than_base"))
        table_rows.append(Row(f"same places as the teacher ({title})", similarities, "higher", closer))
        difference = Estimate.read(student.get("energy_more_than_base"))
        table_rows.append(Row(f"{where} ({title})", energies, "higher", difference, in_points=True))
    return table_rows


def balanced_cell(model: dict[str, Any]) -> Cell:
    return (NOTHING if model.get("balanced") is None else percent(model["balanced"])), ""


def by_class(scores: dict, most: int = MOST_CLASSES) -> tuple[list[tuple[str, list[Cell]]], int]:
    """The accuracy per class on the test split, one cell per measured model; and the number of classes.

    The classes with the lowest accuracy of the student (or the last model) come first; at most `most` are returned.
    """
    models = measured_models(scores)
    accuracies = {role: model.get("by class") or {} for role, model in models.items()}
    names = next(iter(accuracies.values()), {})
    if not all(accuracies.values()) or len(names) < 2:
        return [], 0
    judged = accuracies[list(accuracies)[-1]]
    known = [name for name in names if judged.get(name)]
    ordered = sorted(known, key=lambda name: judged[name]["accuracy"])
    return [(name, [share(accuracies[role].get(name)) for role in models]) for name in ordered[:most]], len(ordered)


def headline(scores: dict) -> str:
    """One sentence on the student's score compared with the control, computed from the numbers."""
    models, metric = measured_models(scores), metric_of(scores)
    student, base, teacher = models.get("student"), models.get("base"), models.get("teacher")
    split = judged_split(models, metric)
    if student is None or split is None:
        return "No student has been measured yet."
    reached, control = student[split][metric.name], "the same network trained without a teacher"
    what = "" if metric.is_share else f"a {metric.name} of "
    beginning = f"The student{size(student, teacher)} reaches {what}{with_unit(reached, metric)} on the {split} split"
    if base is None or (of_base := score_of(base, split, metric)) is None:
        return f"{beginning}; the same network without a teacher has not been measured."
    # The difference of the full numbers is rounded once, so it may differ by 0.1 from the difference of the rounded ones.
    difference = round(100 * (reached - of_base), 1) if metric.is_share else reached - of_base
    if difference == 0:
        return f"{beginning}, the same as {control}{' (to 0.1 points)' * metric.is_share}."
    apart = Estimate.read((student.get("more than base") or {}).get(split))
    doubt = " – a difference that is not significant on these images" if apart and apart.holds(0) else ""
    more, less = ("above", "below") if metric.higher_is_better else ("more than", "less than")
    gap = f"{abs(difference):.1f} points" if metric.is_share else with_unit(abs(difference), metric)
    return f"{beginning}, {gap} {more if difference > 0 else less} {control}{doubt}."


def task_of(scores: dict) -> str:
    """The name of the task that a run's scores are of."""
    return (scores.get("data") or {}).get("task", "classification")


def metric_of(scores: dict) -> Metric:
    """The metric of the run's task; the accuracy if the scores name none."""
    return Metric.read((scores.get("data") or {}).get("metric"))


def with_unit(value: float, metric: Metric) -> str:
    """A value of the metric with its unit: `71.2 %`, `3.24 years`."""
    return percent(value) if metric.is_share else metric.written(value)


def imbalance(scores: dict) -> str | None:
    """The accuracy of guessing the most common class, if that class has at least `UNEVEN` times an even share."""
    about = scores.get("data") or {}
    guess, classes = about.get("commonest"), about.get("classes") or ()
    if not guess or guess["share"] * len(classes) < UNEVEN:
        return None
    return (
        f"Guessing the most common class, {guess['class']}, for every image would be right for {percent(guess['share'])} of the "
        "test split: compare the accuracies with that, and read the accuracy balanced over the classes."
    )


def measured_models(scores: dict) -> dict[str, dict[str, Any]]:
    """The measured models, in the order teacher, base, student."""
    models = scores.get("models") or {}
    return {role: models[role] for role in MODELS if models.get(role)}


def judged_split(models: Mapping[str, dict], metric: Metric = ACCURACY) -> str | None:
    """The split of the headline: test if the student has it, else validation."""
    student = models.get("student", {})
    return next((split for split in ("test", "validation") if score_of(student, split, metric) is not None), None)


def score_of(model: dict, split: str, metric: Metric = ACCURACY) -> float | None:
    """A model's metric on a split, if it was measured."""
    return (model.get(split) or {}).get(metric.name)


def size(student: dict, teacher: dict | None) -> str:
    """` (77,850 parameters, 3.5 times fewer than the teacher)`, or the known part of it."""
    count, other = student.get("parameters"), (teacher or {}).get("parameters")
    if not count:
        return ""
    if not other:
        return f" ({count:,} parameters)"
    if count == other:
        return f" ({count:,} parameters, as many as the teacher)"
    ratio = max(count, other) / min(count, other)
    # 1.04 would be written as "1.0 times fewer", which means nothing.
    factor = "slightly" if ratio < 1.05 else f"{ratio:.1f} times"
    return f" ({count:,} parameters, {factor} {'fewer' if count < other else 'more'} than the teacher)"
