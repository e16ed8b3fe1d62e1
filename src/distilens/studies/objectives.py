"""What a search is for: the task's metric on validation, speed, size, and maps like the teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from distilens.data import load
from distilens.data.pipeline import batch_at
from distilens.explain import build_explainer
from distilens.foundation.errors import UserError
from distilens.measure import latency
from distilens.measure.maps.likeness import cosine
from distilens.measure.scores import draw_positions
from distilens.runs.recipe import Recipe
from distilens.runs.run import Run

MAPS = 64
"""The number of validation images whose maps are compared, if likeness is an objective."""
OBJECTIVES = {"score": None, "latency": "minimize", "size": "minimize", "maps": "maximize"}
"""What can be searched for, with its direction: the task's metric on validation (in its own direction), milliseconds per image,
parameters, and the cosine of the student's Grad-CAM maps to the teacher's on validation images."""


def direction_of(objective: str, recipe: Recipe) -> str:
    """The direction of an objective: `maximize` or `minimize`."""
    return OBJECTIVES[objective] or ("maximize" if load(recipe.data).task.metric.higher_is_better else "minimize")


def value_of(run: Run, result: Mapping[str, Any], objective: str) -> float:
    """The value of an objective for a trained student.

    Args:
        result: what its training gave, as in `result.json`.

    Raises:
        UserError: the recipe has no teacher, but the maps are to be compared with the teacher's.
    """
    if objective == "score":
        return result["validation"][result["metric"]["name"]]
    if objective == "size":
        return result["parameters"]
    if objective == "latency":
        return float(latency(run.models()["student"])["median"])
    return map_likeness(run)


def map_likeness(run: Run) -> float:
    """The mean cosine of the student's Grad-CAM maps to the teacher's, on validation images."""
    models, split = run.models(), run.data.validation
    if "teacher" not in models:
        raise UserError("the objective maps compares with the teacher's maps, but this recipe has no [teacher]")
    images = batch_at(split, draw_positions(split, MAPS)).images.to(models["student"].device)
    with torch.no_grad():
        target = run.data.task.explained(models["teacher"].logits(images))
    explainer = build_explainer("gradcam", run.data)
    ours, theirs = (explainer(models[role], images, target).maps for role in ("student", "teacher"))
    return float(cosine(ours, theirs).nanmean())
