"""Sentences on what was distilled, computed from the scores of a comparison, each with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distilens.report.cells import bounds, minus, points

Scores = Mapping[str, Any]

NAMED = ("distilled", "residual", "missed")
"""The pairs of a run's models that have a name."""

RELIABLE = 0.8
"""Below this correlation over reference sets, the page warns against reading single maps."""

ALIKE = 0.1
"""The page reports the share of images that the reference sets have in common if it is above this."""


def findings(scores: Scores) -> list[str]:
    """The conclusions at the last level with a grid, with their intervals."""
    level, sentences = judged_level(scores), []
    apart = {(one["what"], one["of"]): one for one in level["apart"]}
    name = level["name"]
    if one := apart.get(("rs", "student")):
        sentences.append(
            f"At {name} the student's features contain {more_or_less(one)} about the task than the base's: "
            f"RS {values(level['rs'], 'student')} against {values(level['rs'], 'base')}, "
            f"a difference of {interval(one, '+')}{doubt(one)}."
        )
    if one := apart.get(("given", "distilled")):
        sentences.append(
            f"What the student knows and the base does not (distilled) contains {more_or_less(one)} about the task than what the "
            f"base knows and the student does not (residual): a difference of {interval(one, '+')}{doubt(one)}."
        )
    if one := apart.get(("fss", "student")):
        alike = "more" if one["value"] > 0 else "less"
        sentences.append(
            f"The student's features are {alike} similar to the teacher's than the base's are: a difference in FSS of "
            f"{interval(one, '+')}{doubt(one)}."
        )
    if not sentences:
        best = max(level["rs"], key=lambda one: one["value"])
        sure = best["low"] is None or best["low"] > 0
        what = (
            f"the features of {best['of']} contain most about the task"
            if sure
            else "no model's features are significantly related to the task"
        )
        sentences.append(f"At {name} {what}: RS {interval(best)}.")
    sentences += energies(scores, name)
    if scores["n"] < 64:
        sentences.append(f"{scores['n']} images are few: below 64, a single value says little.")
    return sentences


def energies(scores: Scores, level: str) -> list[str]:
    """Whether distilled maps lie on the evidence more than residual ones, if that is known."""
    entry = (scores["maps"].get("levels") or {}).get(level, {}).get("distilled") or {}
    one = entry.get("energy_above_residual")
    if not one or one["low"] is None:
        return []
    where = "more" if one["mean"] > 0 else "less"
    difference = f"{points(one['mean'])} points [{points(one['low'])} to {points(one['high'])}]"
    return [f"The distilled maps lie {where} on the evidence than the residual ones: {difference}{doubt(one)}."]


def judged_level(scores: Scores) -> dict[str, Any]:
    """The level of the findings: the last one before the logits."""
    grids = [level for level in scores["levels"] if "logits" not in level["taps"].values()]
    return (grids or scores["levels"])[-1]


def more_or_less(one: Mapping[str, Any]) -> str:
    return "more" if one["value"] > 0 else "less"


def doubt(one: Mapping[str, Any]) -> str:
    """A note if the interval of a difference contains 0."""
    return ", which may be chance" if one["low"] <= 0 <= one["high"] else ""


def values(listed: Sequence[Mapping[str, Any]], of: str) -> str:
    return minus(f"{next(one['value'] for one in listed if one['of'] == of):.3f}")


def interval(one: Mapping[str, Any], sign: str = "") -> str:
    return minus(f"{one['value']:{sign}.3f} {bounds(dict(one), lambda bound: f'{bound:{sign}.3f}')}".strip())


def reliability(scores: Scores) -> str:
    """How far a single map can be trusted: its correlation over other reference sets."""
    reference = scores["maps"].get("reference")
    if not reference:
        return ""
    stable = [
        (level, called, entry["stability"])
        for level, entries in scores["maps"]["levels"].items()
        for called, entry in entries.items()
        if entry["stability"]["mean"] is not None
    ]
    if not stable:
        return "All maps are empty: no model knows anything that the others do not."
    least, most = (pick(stable, key=lambda one: one[2]["mean"]) for pick in (min, max))
    lowest, highest = (minus(f"{one[2]['mean']:.2f}") for one in (least, most))
    firm = [f"{called} at {level}" for level, called, entry in stable if entry["mean"] >= RELIABLE]
    verdict = {
        0: f"None reach {RELIABLE}: do not read single maps; look for what many maps have in common.",
        len(stable): f"All are above {RELIABLE}, so single maps can be read.",
    }.get(
        len(firm),
        f"Above {RELIABLE} are {', '.join(firm)}. Do not read single maps of the others; look for what many maps have in common.",
    )
    share = reference["shared"]
    flattered = (
        f" (they share {100 * share:.0f} % of their images, which raises the correlation)" if share > ALIKE else ""
    )
    return (
        f"A map depends on its reference images: here {reference['n']} of the test split, the same for all maps. "
        f"With {reference['sets']} other reference sets{flattered}, the maps of {reference['measured']} images correlate "
        f"{lowest} ({least[1]} at {least[0]}) to {highest} ({most[1]} at {most[0]}). {verdict}"
    )


def facts(scores: Scores) -> list[tuple[str, str]]:
    """The models, data and settings behind the numbers."""
    how = scores["settings"]
    task = "labels, one-hot" if how["embeddings"] == "one_hot" else f"embeddings of the classes: {how['embeddings']}"
    seen = "explained images (the stronger half by HiResCAM)" if how["explained"] else "unchanged images"
    removed = (
        "the other model removed from the task too" if how["full"] else "the other model removed from the features"
    )
    return [
        *((name, f"{about['model']}, weights {about['weights']}") for name, about in scores["models"].items()),
        ("data", f"{scores['data']}, {scores['n']:,} images of the {scores['split']} split, the same number per class"),
        ("task", task),
        ("features", f"{how['features']}, of {seen}; {removed}"),
        (
            "statistic",
            "biased, as in the paper's code" if how["biased"] else "unbiased; intervals by jackknife over images",
        ),
    ]


def pairs(scores: Scores) -> list[tuple[str, str]]:
    """The meaning of each pair's name."""
    meanings = {
        one["called"]: f"what the {one['of']} knows and the {one['given']} does not"
        for one in judged_level(scores)["given"]
    }
    return [(name, meanings[name]) for name in NAMED if name in meanings]
