"""Sentences on what was distilled, computed from the scores of a comparison, each with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distilens.foundation.estimate import Estimate, minus
from distilens.report.cells import points, signed_decimals

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
    apart = {(one["what"], one["of"]): estimate_of(one) for one in level["apart"]}
    name, relevance = level["name"], {one["of"]: estimate_of(one) for one in level["rs"]}
    if one := apart.get(("rs", "student")):
        sentences.append(
            f"At {name} the student's features contain {more_or_less(one)} about the task than the base's: "
            f"RS {relevance['student'].number()} against {relevance['base'].number()}, a difference of {difference(one)}."
        )
    if one := apart.get(("given", "distilled")):
        sentences.append(
            f"What the student knows and the base does not (distilled) contains {more_or_less(one)} about the task than what "
            f"the base knows and the student does not (residual): a difference of {difference(one)}."
        )
    if one := apart.get(("fss", "student")):
        sentences.append(
            f"The student's features are {more_or_less(one)} similar to the teacher's than the base's are: a "
            f"difference in FSS of {difference(one)}."
        )
    if not sentences:
        best = max(level["rs"], key=lambda one: one["value"])["of"]
        certain = relevance[best].ends is None or relevance[best].above(0)
        what = (
            f"the features of {best} contain most about the task"
            if certain
            else "no model's features are significantly related to the task"
        )
        sentences.append(f"At {name} {what}: RS {relevance[best].with_interval()}.")
    sentences += energies(scores, name)
    if scores["n"] < 64:
        sentences.append(f"{scores['n']} images are few: below 64, a single value says little.")
    return sentences


def energies(scores: Scores, level: str) -> list[str]:
    """Whether distilled maps lie on the evidence more than residual ones, if that is known."""
    entry = (scores["maps"].get("levels") or {}).get(level, {}).get("distilled") or {}
    one = Estimate.read(entry.get("energy_above_residual"))
    if one is None or one.ends is None:
        return []
    apart = f"{one.number(points)} points {one.interval(points)}{doubt(one)}"
    return [f"The distilled maps lie {more_or_less(one)} on the evidence than the residual ones: {apart}."]


def judged_level(scores: Scores) -> dict[str, Any]:
    """The level of the findings: the last one before the logits."""
    grids = [level for level in scores["levels"] if "logits" not in level["taps"].values()]
    return (grids or scores["levels"])[-1]


def estimate_of(one: Mapping[str, Any]) -> Estimate:
    """A score of a level. Its n is the same for all, and is not repeated."""
    return Estimate(one["value"], one["low"], one["high"])


def more_or_less(one: Estimate) -> str:
    return "more" if one.positive else "less"


def difference(one: Estimate) -> str:
    return one.with_interval(signed_decimals) + doubt(one)


def doubt(one: Estimate) -> str:
    """A note if the interval of a difference contains 0."""
    return ", which may be chance" if one.holds(0) else ""


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
