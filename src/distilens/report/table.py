"""The summary table of a run, and the sentence above it. Plain text, no HTML, no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from distilens.report.cells import (
    NOTHING,
    Cell,
    amount,
    bounds,
    counted,
    detail,
    energy,
    humanised,
    latency,
    percent,
    points,
    sentence,
    share,
    signed,
    similarity,
    text,
)
from distilens.report.names import plain_name

MODELS = ("teacher", "base", "student")

MOST_CLASSES = 100

UNEVEN = 1.5
# How many times its even share the commonest class must have for accuracies to be set beside it.


@dataclass(frozen=True)
class Row:
    """A measure: a cell for each model, which direction is better, and student less base on the same images.

    Attributes:
        apart: the difference (`mean`, `low`, `high`, `n`), where it was measured on the same images.
        in_points: shares are written in per cent, and their differences in points.
    """

    title: str
    cells: Mapping[str, Cell]
    better: Literal["higher", "lower", ""] = ""
    apart: Mapping[str, Any] | None = None
    in_points: bool = False

    @property
    def arrow(self) -> str:
        return {"higher": "↑", "lower": "↓", "": ""}[self.better]

    @property
    def direction(self) -> str:
        return f"{self.better} is better" if self.better else ""

    @property
    def winner(self) -> str | None:
        """`student` or `base`, where the interval of the difference excludes 0."""
        apart = self.apart or {}
        low, high = apart.get("low"), apart.get("high")
        if not self.better or low is None or high is None or low <= 0 <= high:
            return None
        return "student" if (low > 0) == (self.better == "higher") else "base"

    @property
    def difference(self) -> Cell:
        """Student less base, and what follows from its interval."""
        apart = self.apart or {}
        if apart.get("mean") is None:
            return NOTHING, ""

        def written(value: float) -> str:
            return points(value) if self.in_points else signed(value, 3)

        verdict = "" if apart.get("low") is None else f"{self.winner} better" if self.winner else "not settled"
        interval = bounds(dict(apart), written)
        value = written(apart["mean"]) + " points" * self.in_points
        return value, detail(interval, counted(dict(apart)), verdict)


def rows(scores: dict) -> tuple[list[str], list[list[str]]]:
    """Header and text cells of the summary table, one row per measured model, teacher first.

    Every number stands with its 95 % interval and n. Columns that no model has a number for are left out, except the
    accuracies. `scores` is the content of a run's `scores.json`.

    >>> rows({"models": {"student": {"model": "tiny", "test": {"accuracy": 0.5, "n": 8}, "parameters": 77850}}})[1]
    [['student', 'tiny', '–', '50.0 %, n = 8', '77.9 k']]
    """
    models, columns = measured(scores), measures(scores)
    header = ["role", "model", *(" ".join(filter(None, (row.title, row.arrow))) for row in columns)]
    lines = [
        [role, text(model.get("model")), *(sentence(row.cells[role]) for row in columns)]
        for role, model in models.items()
    ]
    return header, lines


def measures(scores: dict) -> list[Row]:
    """The table by measure: those that some model has a number for, or a reason why it has none."""
    models = measured(scores)
    more = (models.get("student") or {}).get("more than base") or {}

    def shares(title: str, key: str) -> Row:
        cells = {role: share(model.get(key)) for role, model in models.items()}
        return Row(title, cells, "higher", more.get(key), in_points=True)

    def calibrated(title: str, key: str) -> Row:
        found = {role: (model.get("calibration") or {}) for role, model in models.items()}
        cells = {role: amount(entry.get(key)) for role, entry in found.items()}
        return Row(title, cells, "lower", more.get(key))

    always = [shares("accuracy, validation", "validation"), shares("accuracy, test", "test")]
    others = [shares("label among the first five, test", "top5")]
    if imbalance(scores):
        cells = {role: balanced(model) for role, model in models.items()}
        others.append(Row("accuracy balanced over classes, test", cells, "higher"))
    others += [
        calibrated("negative log-likelihood, test", "nll"),
        calibrated("calibration error, test", "ece"),
        shares("same answer as the teacher, test", "agreement"),
        *of_maps(models),
        *(
            Row(title, {role: (humanised(model.get(key)), "") for role, model in models.items()}, "lower")
            for key, title in (("parameters", "parameters"), ("macs", "MACs"))
        ),
        Row("latency, median", {role: latency(model.get("latency_ms")) for role, model in models.items()}, "lower"),
    ]
    return always + [row for row in others if any(value != NOTHING for value, _ in row.cells.values())]


def of_maps(models: Mapping[str, dict[str, Any]]) -> list[Row]:
    """Two rows an explainer: where its maps are as the teacher's, and how much of them lies on the object."""
    found = []
    for name in dict.fromkeys(name for model in models.values() for name in model.get("maps") or {}):
        maps = {role: (model.get("maps") or {}).get(name) or {} for role, model in models.items()}
        teacher, student = maps.get("teacher"), maps.get("student") or {}
        alike = {role: similarity(entry, teacher) for role, entry in maps.items()}
        inside = {role: energy(entry) for role, entry in maps.items()}
        title = plain_name(name)
        found.append(Row(f"same places as the teacher ({title})", alike, "higher", student.get("more_than_base")))
        apart = student.get("energy_more_than_base")
        found.append(Row(f"on the object ({title})", inside, "higher", apart, in_points=True))
    return found


def balanced(model: dict[str, Any]) -> Cell:
    return (NOTHING if model.get("balanced") is None else percent(model["balanced"])), ""


def by_class(scores: dict, most: int = MOST_CLASSES) -> tuple[list[tuple[str, list[Cell]]], int]:
    """The accuracy of each class on the test split, a cell for each measured model; and how many classes there are.

    The classes that the student (or the last model) knows least come first; of very many only these are given.
    """
    models = measured(scores)
    found = {role: model.get("by class") or {} for role, model in models.items()}
    names = next(iter(found.values()), {})
    if not all(found.values()) or len(names) < 2:
        return [], 0
    judged = found[list(found)[-1]]
    known = [name for name in names if judged.get(name)]
    ordered = sorted(known, key=lambda name: judged[name]["accuracy"])
    return [(name, [share(found[role].get(name)) for role in models]) for name in ordered[:most]], len(ordered)


def headline(scores: dict) -> str:
    """One sentence that says how the student did, computed from the numbers: what it reaches, against the control."""
    models = measured(scores)
    student, base, teacher = models.get("student"), models.get("base"), models.get("teacher")
    split = judged_split(models)
    if student is None or split is None:
        return "No student has been measured yet."
    reached = student[split]["accuracy"]
    found = f"The student{size(student, teacher)} reaches {percent(reached)} on the {split} split"
    if base is None or accuracy(base, split) is None:
        return f"{found}; the same network without a teacher has not been measured."
    # The difference is rounded once, from the full numbers, so that it may differ by 0.1 from that of the rounded ones.
    points = round(100 * (reached - base[split]["accuracy"]), 1)
    control = "the same network trained without a teacher"
    if points == 0:
        return f"{found}, the same as {control} (to 0.1 points)."
    apart = (student.get("more than base") or {}).get(split)
    doubt = " – a difference that these images do not settle" if apart and apart["low"] <= 0 <= apart["high"] else ""
    return f"{found}, {abs(points):.1f} points {'above' if points > 0 else 'below'} {control}{doubt}."


def imbalance(scores: dict) -> str | None:
    """What guessing the commonest class would give, where one class is half as frequent again as an even share or more."""
    about = scores.get("data") or {}
    guess, classes = about.get("commonest"), about.get("classes") or ()
    if not guess or guess["share"] * len(classes) < UNEVEN:
        return None
    return (
        f"Guessing the commonest class, {guess['class']}, for every image would be right for {percent(guess['share'])} of the "
        "test split: read the accuracies beside that, and the one that is balanced over the classes."
    )


def measured(scores: dict) -> dict[str, dict[str, Any]]:
    """The models that were measured, teacher, base, student in that order."""
    models = scores.get("models") or {}
    return {role: models[role] for role in MODELS if models.get(role)}


def judged_split(models: Mapping[str, dict]) -> str | None:
    """The split that the headline speaks of: test where the student has it, else validation."""
    student = models.get("student", {})
    return next((split for split in ("test", "validation") if accuracy(student, split) is not None), None)


def accuracy(model: dict, split: str) -> float | None:
    return (model.get(split) or {}).get("accuracy")


def size(student: dict, teacher: dict | None) -> str:
    """` (77,850 parameters, 3.5 times fewer than the teacher)`, or as much of it as is known."""
    count, other = student.get("parameters"), (teacher or {}).get("parameters")
    if not count:
        return ""
    if not other:
        return f" ({count:,} parameters)"
    if count == other:
        return f" ({count:,} parameters, as many as the teacher)"
    ratio = max(count, other) / min(count, other)
    # 1.04 would be written "1.0 times fewer", which says nothing.
    factor = "slightly" if ratio < 1.05 else f"{ratio:.1f} times"
    return f" ({count:,} parameters, {factor} {'fewer' if count < other else 'more'} than the teacher)"
