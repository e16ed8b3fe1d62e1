"""Score the maps of a gallery: all measures per explainer, and the conclusions in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distilens.explain import Explanation
from distilens.explain.maps import empty
from distilens.foundation.devices import now
from distilens.foundation.errors import UserError
from distilens.foundation.estimate import Estimate, mean_of, share_of
from distilens.measure import (
    average_drop,
    complexity,
    curves,
    energy_in_mask,
    increase_in_confidence,
    masked_confidence,
    mean_interval,
    pointing_game,
    randomisation,
    sparseness,
    stability,
)
from distilens.measure.maps.columns import Part
from distilens.measure.maps.images import Chosen
from distilens.models.model import Model
from distilens.models.taps import evaluating
from distilens.report.gallery_page import format_short
from distilens.tasks import Task

CHUNK = 16  # images per pass
STEPS = 20  # steps of the insertion and deletion curves
SANITY = 6  # about how many explanations the sanity checks of one explanation need

Scores = Mapping[str, Mapping[str, float | int | None]]
"""Per measure: the mean over images, its 95 % interval (`low`, `high`), `n`, and `empty`, the number of missing values."""


SHARES = ("increase", "pointing_game")  # yes or no per image


@dataclass(frozen=True)
class Measure:
    """A measure: a row of the table."""

    key: str
    title: str
    better: Literal["higher", "lower", "near 0", ""]
    meaning: str
    as_percent: bool = False

    @property
    def arrow(self) -> str:
        return {"higher": " ↑", "lower": " ↓", "near 0": " →0", "": ""}[self.better]

    @property
    def direction(self) -> str:
        return {"higher": "higher is better", "lower": "lower is better", "near 0": "near 0 is good", "": ""}[
            self.better
        ]


MEASURES = (
    Measure("insertion", "insertion AUC", "higher", "confidence while the strongest pixels are put back first"),
    Measure("deletion", "deletion AUC", "lower", "confidence while the strongest pixels are removed first"),
    Measure("average_drop", "average drop", "lower", "confidence lost when the image is weighted by its map", True),
    Measure(
        "increase",
        "increase in confidence",
        "higher",
        "share of images whose confidence rises with this weighting",
        True,
    ),
    Measure("energy_in_mask", "energy in mask", "higher", "share of the map that lies on the evidence", True),
    Measure("pointing_game", "pointing game", "higher", "share of images whose map has its peak on the evidence", True),
    Measure("sparseness", "sparseness", "", "0: spread evenly, 1: in one pixel"),
    Measure("complexity", "complexity", "", "entropy; 0: in one place, 1: equal everywhere"),
    Measure(
        "randomisation",
        "random-model likeness",
        "near 0",
        "rank correlation with the map of a model with random weights",
    ),
    Measure("stability", "stability", "higher", "similarity to the maps of slightly changed images"),
    Measure("empty", "empty maps", "lower", "share of images whose map is 0 everywhere", True),
    Measure("seconds", "seconds per image", "lower", "on this machine"),
    Measure("forwards", "cost in forwards", "lower", "the same time, in plain forward passes of the model"),
)


OF_PLACES = {
    "insertion": {"meaning": "confidence while the strongest pixels outside the explained places are put back first"},
    "deletion": {"meaning": "confidence while the strongest pixels outside the explained places are removed first"},
    "average_drop": {"meaning": "confidence lost when the other pixels are weighted by the map"},
    "energy_in_mask": {
        "title": "energy on the explained places",
        "meaning": "share of the map there; the rest is context",
        "better": "",
    },
    "pointing_game": {
        "title": "peak on the explained places",
        "meaning": "share of images whose map has its peak there",
        "better": "",
    },
}
"""What differs in a dense task, where only pixels outside the explained places are changed."""


def measures_of(task: Task) -> list[Measure]:
    """The measures, in words that fit the task."""
    return [replace(measure, **OF_PLACES.get(measure.key, {})) if task.dense else measure for measure in MEASURES]


def answered(model: Model, images: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b classes ..."], float]:
    """The logits on the CPU, and the seconds per image of a plain forward pass: the fastest of three, as the first warms up."""
    passes = []
    with evaluating(model), torch.inference_mode():
        for _ in range(3):
            start = now(model.device)
            logits = torch.cat([model.logits(chunk.to(model.device)).float().cpu() for chunk in images.split(CHUNK)])
            passes.append((now(model.device) - start, logits))
    return passes[0][1].clone(), min(seconds for seconds, _ in passes) / len(images)


def tried(
    model: Model,
    images: Float[Tensor, "b 3 h w"],
    target: Int[Tensor, "b ..."],
    parts: Mapping[str, Part],
    say: Callable[[str], object],
) -> dict[str, float]:
    """Try each explainer on one image. Returns the seconds per explainer.

    Raises:
        UserError: explainers do not work with this model; it lists all problems.
    """
    image, aim = images[:1].to(model.device), target[:1].to(model.device)
    seconds, problems = {}, []
    for label, part in parts.items():
        say(f"{label}: first image")
        try:
            start = now(model.device)
            maps = part.explain(model, image, aim).maps
            seconds[label] = now(model.device) - start
            if seconds[label] < 1:  # the first call may include loading
                start = now(model.device)
                part.explain(model, image, aim)
                seconds[label] = now(model.device) - start
            if maps.ndim != 3 or len(maps) != 1:
                raise UserError(f"maps are [b h w]; for one image these are {list(maps.shape)}")
        except UserError as error:
            problems.append(f"{label}: {error}")
    if problems:
        raise UserError("\n".join(problems))
    return seconds


def scored(
    part: Part,
    model: Model,
    chosen: Chosen,
    explanation: Explanation,
    original: Model | None,
    done: Callable[[int], object],
) -> tuple[dict[str, Float[Tensor, " b"]], dict[str, list[float]]]:
    """The scores per image, by measure, and the mean curves. `original` is the unchanged model, for the sanity checks."""
    scores: dict[str, list[Tensor]] = {}
    shares, insertion, deletion = [], [], []
    # in parts of equal size: batch-norm statistics are measured on them, and a last part of one image may be too small
    for at in torch.arange(len(chosen.images)).tensor_split(-(-len(chosen.images) // CHUNK)):
        images, maps, target = (
            values[at].to(model.device) for values in (chosen.images, explanation.maps, explanation.target)
        )
        curve = curves(model, images, maps, target, steps=STEPS)
        whole, kept = masked_confidence(model, images, maps, target)
        values = {
            "insertion": curve.insertion_auc,
            "deletion": curve.deletion_auc,
            "average_drop": average_drop(whole, kept),
            "increase": increase_in_confidence(whole, kept),
            "sparseness": sparseness(maps),
            "complexity": complexity(maps),
            "empty": empty(maps).float(),
        }
        if chosen.mask is not None:
            masks = chosen.mask[at].to(model.device)
            values |= {"energy_in_mask": energy_in_mask(maps, masks), "pointing_game": pointing_game(maps, masks)}
        if original is not None and not part.floor:
            values["randomisation"] = randomisation(part.explain, original, images, target)["all"]
            values["stability"] = stability(part.explain, model, images, target)
        for key, value in values.items():
            scores.setdefault(key, []).append(value.float().cpu())
        shares = curve.shares.tolist()
        insertion.append(curve.insertion.float().cpu())
        deletion.append(curve.deletion.float().cpu())
        done(len(at))
    means = {"insertion": torch.cat(insertion).nanmean(0).tolist(), "deletion": torch.cat(deletion).nanmean(0).tolist()}
    return {key: torch.cat(chunks) for key, chunks in scores.items()}, {"shares": shares, **means}


def means_of(values: Mapping[str, Float[Tensor, " b"]], seconds: float, forward: float) -> Scores:
    """The mean and interval per measure; the cost per image is a single number."""
    n = len(values["insertion"])
    single = {"empty": float(values["empty"].mean()), "seconds": seconds, "forwards": seconds / forward}
    scores = {key: share_interval(value) if key in SHARES else mean_interval(value) for key, value in values.items()}
    return scores | {key: Estimate(value, n=n, empty=0).plain() for key, value in single.items()}


def share_interval(values: Float[Tensor, " b"]) -> dict[str, float | int | None]:
    """The share of images with the value 1, with Wilson's interval. NaN is left out and counted as `empty`."""
    kept = values[~values.isnan()]
    if not len(kept):
        return mean_interval(values)
    return share_of(kept > 0.5).plain() | {"empty": len(values) - len(kept)}


def finding(label: str, own: Float[Tensor, " b"], floors: Mapping[str, Float[Tensor, " b"]]) -> str:
    """A sentence: whether an explainer is above the floors, by whether the intervals of the insertion AUC overlap.

    All explainers have the same images, so the paired difference from the best floor is more precise; the sentence gives it too.
    """
    scores = {name: mean_of(values) for name, values in floors.items()}
    mine = mean_of(own)
    score = f"insertion AUC {mine.with_interval(format_short)}"
    if not mine.n and not any(score.n for score in scores.values()):
        return f"{label} has no insertion AUC: the explained places fill every image, or the maps are empty."
    if not mine.n:
        return f"{label} says nothing: all of its maps are empty."
    if mine.ends is None:
        return f"{label}: {score}. One image is not enough for a comparison with the floors."
    best = max(scores, key=lambda name: scores[name].value or 0.0)
    ahead = {name: mean_of(own - values) for name, values in floors.items()}
    more = {name: difference.with_interval(partial(format_short, sign="+")) for name, difference in ahead.items()}
    against = f"the best floor, {best}, {scores[best].with_interval(format_short)}; image by image {more[best]}"
    below = [name for name, other in scores.items() if other.ends is not None and mine.below(other.ends[0])]
    alike = [name for name, other in scores.items() if mine.overlaps(other)]
    if not below and not alike:
        return f"{label} is above the floors: {score}; {against}."
    relations = [f"overlaps with {', '.join(alike)}"] * bool(alike) + [f"is below {', '.join(below)}"] * bool(below)
    verdict = "is above the floors only image by image"
    undecided = [name for name, difference in ahead.items() if not difference.above(0)]
    if undecided:
        verdict = "is NOT above the floors"
        against += "".join(f"; {name} {more[name]}" for name in undecided if name != best)
    return f"{label} {verdict}: its {score} {' and '.join(relations)} ({against})."
