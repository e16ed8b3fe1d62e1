"""Remarks on the numbers of a run: which differences are significant, and which numbers are missing."""

from collections.abc import Mapping
from typing import Any

from distilens.foundation.estimate import Estimate
from distilens.foundation.metric import ACCURACY, Metric
from distilens.report.cells import cell, is_busy, points, sentence, signed_decimals
from distilens.report.names import plain_name
from distilens.report.table import imbalance, judged_split, measured_models, metric_of, score_cell, score_of


def remarks(scores: dict) -> list[str]:
    """The remarks below the headline: whether student and base differ on the same images, and how to read the other numbers."""
    models = measured_models(scores)
    metric = metric_of(scores)
    split = judged_split(models, metric)
    lines = []
    if split is not None:
        lines += compare_answers(models, split, metric)
    lines += [line] if (line := perfect_teacher(models)) else []
    lines += [line] if (line := imbalance(scores)) else []
    for name, entry in (models.get("student", {}).get("maps") or {}).items():
        lines += [line] if (line := against_base(name, (entry or {}).get("more_than_base"))) else []
    lines += [line] if (line := busy_warning(models)) else []
    return lines + ([line] if (line := describe_missing_rows(scores)) else [])


def compare_answers(models: Mapping[str, dict], split: str, metric: Metric = ACCURACY) -> list[str]:
    """Whether the student is right more often than the base; for runs of earlier versions, whether their intervals overlap."""
    student, base = models.get("student", {}), models.get("base", {})
    difference = Estimate.read((student.get("more than base") or {}).get(split))
    if difference is not None and metric != ACCURACY:
        return [compare_scores(difference, split, metric)]
    if difference is not None:
        value, about = cell(difference, write=points, unit=" points")
        if difference.holds(0):
            return [
                f"The {split} split does not show whether student or base is right more often: the difference on the same "
                f"images is {value} {about}."
            ]
        more = "more" if difference.positive else "less"
        return [
            f"The student is right {more} often than the base: on the same images of the {split} split {value} {about}."
        ]
    shown = {role: model for role, model in models.items() if score_of(model, split, metric) is not None}
    listed = "; ".join(f"{role} {sentence(score_cell(model[split], metric))}" for role, model in shown.items())
    lines = [f"{metric.name.capitalize()} on the {split} split, with 95 % intervals: {listed}."]
    if intervals_overlap(student, base, split, metric):
        lines.append("The intervals of student and base overlap: this comparison alone does not show which is better.")
    return lines


def compare_scores(difference: Estimate, split: str, metric: Metric) -> str:
    """Whether student and base differ in a metric that is not the accuracy."""
    if metric.is_share:
        number = sentence(cell(difference, write=points, unit=" points"))
    else:
        number = sentence(cell(difference, write=signed_decimals, unit=f" {metric.unit}".rstrip()))
    if difference.holds(0):
        return f"The {split} split does not show which of student and base has the better {metric.name}: they differ by {number}."
    worse = difference.positive != metric.higher_is_better
    return (
        f"The student has a {'worse' if worse else 'better'} {metric.name} than the base: on the same images {number}."
    )


def intervals_overlap(one: dict | None, other: dict | None, split: str, metric: Metric = ACCURACY) -> bool:
    """Whether both models have an interval on this split and the intervals overlap."""
    first, second = (Estimate.read((model or {}).get(split), metric.name) for model in (one, other))
    return first is not None and second is not None and first.overlaps(second)


def perfect_teacher(models: Mapping[str, dict]) -> str | None:
    """Why two rows are equal: if the teacher is always right, agreement with it equals accuracy."""
    teacher = models.get("teacher", {})
    others = [model for role, model in models.items() if role != "teacher" and model.get("agreement")]
    if score_of(teacher, "test") != 1 or not others:
        return None
    if any(score_of(model, "test") != model["agreement"]["accuracy"] for model in others):
        return None
    return (
        "The teacher is right on all images of the test split, so the same answer as the teacher is always right: "
        "both rows are equal."
    )


def against_base(name: str, entry: dict | None) -> str | None:
    """Whether the student's maps are more similar to the teacher's than the base's are, by differences on the same images."""
    difference = Estimate.read(entry)
    if difference is None:
        return None
    value = difference.written(signed_decimals)
    whose, other = f"the student's {plain_name(name)} maps", "like the teacher's than the base's are"
    if difference.ends is None or difference.holds(0):
        return f"These images do not show whether {whose} are more {other}: the cosine differs by {value} on the same images."
    more = "more" if difference.positive else "less"
    return f"{whose[0].upper()}{whose[1:]} are {more} {other}: the cosine differs by {value} on the same images."


def busy_warning(models: Mapping[str, dict]) -> str | None:
    """A warning if other work on the machine slowed the latency measurement."""
    slowed = [role for role, model in models.items() if is_busy(model.get("latency_ms"))]
    if not slowed:
        return None
    return (
        f"This machine was busy while the latency of {', '.join(slowed)} was measured: one forward in ten took three times the "
        "median or more. Measure again on an idle machine before you compare latencies."
    )


def describe_missing_rows(scores: dict) -> str | None:
    """The rows that are missing in the table, and why."""
    models = measured_models(scores)
    rows = []
    if models and not any(model.get("agreement") for model in models.values()):
        why = "there is only one model" if len(models) == 1 else "no teacher was measured"
        rows.append(f"same answer as the teacher ({why})")
    maps: list[dict[str, Any]] = [
        entry or {} for model in models.values() for entry in (model.get("maps") or {}).values()
    ]
    if (
        maps
        and all(entry.get("energy_in_mask") is None for entry in maps)
        and any(without_masks(entry) for entry in maps)
    ):
        rows.append("on the object (the data do not say where in an image the object is)")
    classes = (scores.get("data") or {}).get("classes") or ()
    if any("top5" in model for model in models.values()) and not any(model.get("top5") for model in models.values()):
        rows.append(f"label among the top five (there are {len(classes)} classes)")
    unsound = {role: (model.get("calibration") or {}).get("not finite") for role, model in models.items()}
    rows += [
        f"the {role}'s likelihood and calibration for {count:,} images (its logits are not finite numbers)"
        for role, count in unsound.items()
        if count
    ]
    return f"Missing in the table: {'; '.join(rows)}." if rows else None


def without_masks(entry: dict[str, Any]) -> bool:
    """Whether maps could not be compared with evidence because the data have no masks."""
    return not entry.get("masks", entry.get("empty") == entry.get("n"))


def cost(scores: dict, seconds: Mapping[str, Any]) -> str | None:
    """The time of the training and the savings of the student, in one sentence."""
    models = measured_models(scores)
    spent = [value for stage, value in seconds.items() if stage in models and isinstance(value, int | float)]
    student, teacher = models.get("student", {}), models.get("teacher", {})
    saved = [
        f"{max(one, other) / min(one, other):.1f} times {words[one > other]}"
        for one, other, words in (
            (student.get("parameters"), teacher.get("parameters"), ("fewer parameters", "more parameters")),
            (student.get("macs"), teacher.get("macs"), ("less arithmetic", "more arithmetic")),
            (
                *((model.get("latency_ms") or {}).get("median") for model in (student, teacher)),
                ("less time", "more time"),
            ),
        )
        if one and other and max(one, other) / min(one, other) >= 1.05
    ]
    phrases = [f"training took {duration(sum(spent))} in all"] if spent else []
    phrases += [f"the student needs {', '.join(saved)} than the teacher"] if saved else []
    return "; ".join(phrases) or None


def duration(seconds: float) -> str:
    """`95` → `1 min 35 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 3600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"
