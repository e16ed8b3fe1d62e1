"""Warnings about a finished training, with advice: a rising loss, accuracy at chance, a student below the base."""

from collections.abc import Mapping, Sequence
from typing import Any

from distilens.foundation.estimate import Estimate
from distilens.foundation.metric import ACCURACY, Metric
from distilens.report.cells import in_percent, sentence, share
from distilens.report.table import measured_models, metric_of

SLOWER = "Try a lower learning rate (optimizer=auto:lr=..., a tenth of the previous one), or clip=1"
LEARN = (
    "Check that the labels fit the images and that the objects can be seen at this size. Then train for longer (train.epochs=), "
    "start from pretrained weights, or add images"
)
WEIGH = (
    "Try smaller weights of the methods (kd:weight=0.3 for example), a teacher that is better on these data, or the "
    "list of `distilens recommend`"
)


def concerns(scores: dict, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The warnings to read before the numbers of a run.

    Args:
        scores: the content of `scores.json`.
        records: the rows of `metrics.jsonl`.
    """
    stages = dict.fromkeys(str(row.get("stage")) for row in records)
    warnings = [
        line for stage in stages if (line := rising_loss([row for row in records if row.get("stage") == stage], stage))
    ]
    models = measured_models(scores)
    warnings += [line] if (line := guessing_models(models, scores.get("data") or {})) else []
    return warnings + ([line] if (line := student_below_base(models, metric_of(scores))) else [])


def rising_loss(rows: Sequence[Mapping[str, Any]], stage: str) -> str | None:
    """A warning if every loss term of a training ends above its start: the last epoch's mean against the first row.

    Terms may grow because their weights warm up, so a falling term is enough to avoid the warning.
    """
    losses = [row for row in rows if row.get("terms") and "epoch" in row]
    if len(losses) < 2:
        return None
    last = [row for row in losses if row["epoch"] == losses[-1]["epoch"] and row is not losses[0]]
    first, ends = losses[0]["terms"], {}
    for name in first:
        values = [row["terms"][name] for row in last if name in row["terms"]]
        if values:
            ends[name] = sum(values) / len(values)
    if not ends or not all(end > first[name] for name, end in ends.items()):
        return None
    shown = ", ".join(f"{name} {first[name]:.3g} → {end:.3g}" for name, end in ends.items())
    return f"The loss of the {stage} did not fall: it ends above its start ({shown}). {SLOWER}."


def guessing_models(models: Mapping[str, dict], data: Mapping[str, Any]) -> str | None:
    """A warning about models that are not better than guessing the most common class, by the 95 % intervals on test."""
    guess, classes = data.get("commonest"), data.get("classes") or ()
    if len(classes) < 2 or "task" in data:  # of other tasks: there is no accuracy to compare with
        return None
    chance = guess["share"] if guess else 1 / len(classes)
    lost = {
        role: f"{role} {sentence(share(model['test']))}"
        for role, model in models.items()
        if (reached := Estimate.read(model.get("test"))) is not None and not reached.above(chance)
    }
    if not lost:
        return None
    teaches = " A student learns nothing from a teacher that guesses." if "teacher" in lost else ""
    return (
        f"The test split does not show that these are better than guessing the most common class, which is right for "
        f"{100 * chance:.1f} %: {'; '.join(lost.values())}.{teaches} {LEARN}."
    )


def student_below_base(models: Mapping[str, dict], metric: Metric = ACCURACY) -> str | None:
    """A warning if the student is significantly worse than the base, on the same images."""
    difference = Estimate.read((models.get("student", {}).get("more than base") or {}).get("test"))
    if difference is None or not (difference.below(0) if metric.higher_is_better else difference.above(0)):
        return None
    if metric.is_share:
        worse = f"{difference.number(in_percent).removeprefix('−')} points below the base"
    else:
        worse = f"worse than the base, by a {metric.name} of {metric.written(abs(difference.value or 0))}"
    return f"The methods harmed the student: it is {worse}. {WEIGH}."
