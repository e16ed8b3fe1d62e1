"""What went wrong with a training that ended, and what to try: a loss that rose, answers no better than guessing, a student
below the base."""

from collections.abc import Mapping, Sequence
from typing import Any

from distilens.report.cells import sentence, share
from distilens.report.table import accuracy, measured

SLOWER = "Try a lower learning rate (optimizer=auto:lr=..., a tenth of what it was), or clip=1"
LEARN = (
    "Check that the labels fit the images and that the objects can be seen at this size. Then train for longer (train.epochs=), "
    "start from pretrained weights, or add images"
)
WEIGH = (
    "Try smaller weights of the methods (kd:weight=0.3 for example), a teacher that is better on these data, or what "
    "`distilens recommend` says"
)


def concerns(scores: dict, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What must be said before anybody believes the numbers of a run.

    Args:
        scores: what `scores.json` holds.
        records: the rows of `metrics.jsonl`.
    """
    stages = dict.fromkeys(str(row.get("stage")) for row in records)
    said = [line for stage in stages if (line := risen([row for row in records if row.get("stage") == stage], stage))]
    models = measured(scores)
    said += [line] if (line := guessing(models, scores.get("data") or {})) else []
    return said + ([line] if (line := below_base(models)) else [])


def risen(rows: Sequence[Mapping[str, Any]], stage: str) -> str | None:
    """Whether every loss of a training ends above where it began: the last epoch's mean against the first row's.

    Terms that grow by themselves, as their weights warm up, stand beside others that fall.
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
    return f"The training of {stage} did not go down: its loss ends above where it began ({shown}). {SLOWER}."


def guessing(models: Mapping[str, dict], data: Mapping[str, Any]) -> str | None:
    """Which models are not shown to be better than guessing the commonest class: by the 95 % intervals on the test split."""
    guess, classes = data.get("commonest"), data.get("classes") or ()
    if len(classes) < 2:
        return None
    chance = guess["share"] if guess else 1 / len(classes)
    lost = {
        role: f"{role} {sentence(share(model['test']))}"
        for role, model in models.items()
        if accuracy(model, "test") is not None and (model["test"].get("low") or 0) <= chance
    }
    if not lost:
        return None
    teaches = " A student learns nothing from a teacher that guesses." if "teacher" in lost else ""
    return (
        f"The test split does not show that these are better than guessing the commonest class, which is right for "
        f"{100 * chance:.1f} %: {'; '.join(lost.values())}.{teaches} {LEARN}."
    )


def below_base(models: Mapping[str, dict]) -> str | None:
    """Whether the student is right less often than the base, beyond what the same images leave open."""
    apart = (models.get("student", {}).get("more than base") or {}).get("test")
    if not apart or apart.get("high") is None or apart["high"] >= 0:
        return None
    return f"The methods harmed: the student is {100 * abs(apart['mean']):.1f} points below the base. {WEIGH}."
