"""Verify an exported file against the student: the same answers, the same accuracy, the same maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from distilens.data.pipeline import batch_at
from distilens.data.splits import Data, Split
from distilens.deploy.mask_verification import compare_images, compare_split
from distilens.deploy.shipped import at_size
from distilens.explain import build_explainer
from distilens.foundation.errors import UserError
from distilens.foundation.estimate import mcnemar, share_of
from distilens.measure.accuracies import agreement, evaluation_batches, predict
from distilens.measure.answers import main_score
from distilens.measure.maps.faithfulness import insertion
from distilens.measure.maps.likeness import cosine, mean_interval, spearman
from distilens.measure.places import same_answers
from distilens.measure.reliability import calibration
from distilens.measure.scores import draw_positions
from distilens.models.model import Model
from distilens.tasks import Classification, Segmentation

TIE = 1e-4
"""Two classes whose probabilities differ by less are tied: a float file may order them differently."""

SPLITS = ("validation", "test")
EXPLAINERS_OF_FILES = ("occlusion", "rise:masks=200")
"""They need only forward passes, so the exported file itself is explained, in its runtime."""
FLOORS = ("random", "centre")


@dataclass
class Student:
    """The student's own answers, to which every file is compared.

    Attributes:
        model: the student.
        data: the images; None compares on example images only.
        teacher: the teacher's logits by split, if known.
        images: the number of test images for the maps; 0 compares no maps.
        logits: the student's own logits, by split; in a segmentation its classes at the places of the targets.
        maps: the student's own maps, by explainer and size of the file's input.
    """

    model: Model
    data: Data | None
    teacher: Mapping[str, Tensor] = field(default_factory=dict)
    images: int = 32
    logits: dict[str, Tensor] = field(default_factory=dict)
    maps: dict[tuple[str, tuple[int, int]], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.logits = {name: self.answers_of(self.model, split) for name, split in self.splits().items()}

    def splits(self) -> dict[str, Split]:
        """The splits with images, by name."""
        if self.data is None:
            return {}
        found: dict[str, Split] = {name: getattr(self.data, name) for name in SPLITS}
        return {name: split for name, split in found.items() if len(split)}

    @staticmethod
    def answers_of(model: Model, split: Split) -> Float[Tensor, "n classes"] | UInt8[Tensor, "n h w"]:
        """A model's logits on a whole split; in a segmentation its classes at the places of the targets."""
        return predict(model, evaluation_batches(split, model.device))


def verify(student: Student, file: Model) -> dict[str, Any]:
    """Compare a file with the student, on all validation and test images.

    Args:
        student: the student's answers.
        file: the file as a model: see `exporters.as_model`.

    Returns:
        `answers` by split, `maps` by explainer, all with n and intervals.
    """
    is_dense = isinstance(student.model.task, Segmentation)
    if student.data is None:
        images = examples(student.model)
        if is_dense:
            return {"answers": {"examples": compare_images(student.model, file, images)}, "maps": {}}
        with torch.no_grad():
            ours = student.model.logits(images)
            return {"answers": {"examples": compare_outputs(student, ours, file.logits(images))}, "maps": {}}
    answers = {}
    for name, split in student.splits().items():
        if is_dense:
            compared, theirs = compare_split(student.model, file, split)
        else:
            theirs = student.answers_of(file, split)
            compared = compare_outputs(student, student.logits[name], theirs)
        answers[name] = {**compared, **compare_scores(student, name, theirs, torch.from_numpy(split.targets))}
    return {"answers": answers, "maps": compare_maps(student, file)}


def examples(model: Model, count: int = 64) -> Tensor:
    """Random smooth images, for a comparison without data."""
    generator = torch.Generator().manual_seed(0)
    channels = 3 if model.mean.shape[1] == 1 else model.mean.shape[1]
    coarse = torch.rand(count, channels, 8, 8, generator=generator)
    return torch.nn.functional.interpolate(coarse, model.size, mode="bicubic").clamp(0, 1)


def compare_outputs(student: Student, ours: Tensor, theirs: Tensor) -> dict[str, Any]:
    """How far the file's answers are from the student's: probabilities for a classification, else the outputs."""
    classes = isinstance(student.model.task, Classification)
    first, second = (values.double().softmax(1) if classes else values.double() for values in (ours, theirs))
    apart = (first - second).abs()
    entry = {"n": len(ours), "largest": float(apart.max()), "mean": float(apart.mean())}
    if not classes:
        scale = float(ours.double().abs().max())
        return {**entry, "different": int((apart.flatten(1).amax(1) > TIE * max(1.0, scale)).sum())}
    same = ours.argmax(1) == theirs.argmax(1)
    two = first.topk(2).values if first.shape[1] > 1 else torch.cat([first, torch.zeros_like(first)], 1)
    beyond = ~same & (two[:, 0] - two[:, 1] > TIE)
    wrong = beyond | ~theirs.isfinite().all(1)
    return {**entry, "same top-1": share_of(same).plain("share"), "different": int(wrong.sum())}


def compare_scores(student: Student, name: str, theirs: Tensor, targets: Tensor) -> dict[str, Any]:
    """The task's metric of the file, with the paired difference to the student; calibration; agreement with the teacher."""
    task, ours = student.model.task, student.logits[name]
    apart = task.apart(theirs, ours, targets)
    entry: dict[str, Any] = {
        "metric": task.metric.name,
        "unit": task.metric.unit,
        "student": main_score(task, ours, targets),
        "file": main_score(task, theirs, targets),
        "apart": apart and apart.plain(),
    }
    if isinstance(task, Classification):
        known = targets >= 0
        hits = [values.argmax(1)[known] == targets[known] for values in (theirs, ours)]
        entry |= {
            "mcnemar": mcnemar(*hits) if known.any() else None,
            "calibration": calibration(theirs, targets),
            "student's calibration": calibration(ours, targets),
        }
        if name in student.teacher:
            entry["agreement"] = agreement(theirs, student.teacher[name])
            entry["student's agreement"] = agreement(ours, student.teacher[name])
    if isinstance(task, Segmentation) and name in student.teacher:
        for key, masks in (("agreement", theirs), ("student's agreement", ours)):
            entry[key] = same_answers(masks, student.teacher[name]).plain("accuracy")
    return entry


def compare_maps(student: Student, file: Model) -> dict[str, Any]:
    """The likeness of the file's maps to the student's (cosine, rank correlation), and insertion beside the floors.

    Both explain the student's top class, on the same test images. In a segmentation they explain the class that the student
    predicts at most places, at these places.
    """
    data = student.data
    assert data is not None
    split = data.test if len(data.test) else data.validation
    positions = draw_positions(split, student.images)
    if not len(positions) or not isinstance(student.model.task, Classification | Segmentation):
        return {}
    images = batch_at(split, positions).images.cpu()
    model = student.model.cpu()
    target = aim_of(model, images, file.size)
    found: dict[str, Any] = {}
    for part in EXPLAINERS_OF_FILES:
        if (part, file.size) not in student.maps:
            explain = build_explainer(part)
            ours = explain(model, images, target).maps
            student.maps[part, file.size] = (ours, insertion(model, images, ours, target))
        ours, before = student.maps[part, file.size]
        theirs = build_explainer(part)(file, images, target).maps
        found[part] = {
            "cosine": mean_interval(cosine(theirs, ours)),
            "rank correlation": mean_interval(spearman(theirs, ours)),
            "insertion": mean_interval(insertion(file, images, theirs, target)),
            "student's insertion": mean_interval(before),
        }
    floors = {}
    for part in FLOORS:
        maps = build_explainer(part)(model, images, target).maps
        floors[part] = mean_interval(insertion(file, images, maps, target))
    return {"n": len(images), "explainers": found, "floors": floors}


def aim_of(model: Model, images: Tensor, size: tuple[int, int]) -> Tensor:
    """What is explained: the student's top class. In a segmentation its largest class, at the places of a file's mask."""
    with torch.no_grad():
        logits = model.logits(images)
    return model.task.explained(at_size(logits, size) if model.task.dense else logits)


def compare_gradcam(student: Student, simulated: Model) -> dict[str, Any]:
    """The likeness of Grad-CAM maps, which need gradients: of the student, and of the same student with fake INT8 rounding."""
    data = student.data
    assert data is not None
    split = data.test if len(data.test) else data.validation
    images = batch_at(split, draw_positions(split, student.images)).images.cpu()
    target = student.model.task.explained(student.model.cpu().logits(images)).detach()
    try:
        ours = build_explainer("gradcam")(student.model, images, target).maps
        theirs = build_explainer("gradcam")(simulated.cpu(), images, target).maps
    except UserError as error:  # a network without a feature map
        return {"missing": str(error)}
    return {
        "cosine": mean_interval(cosine(theirs, ours)),
        "rank correlation": mean_interval(spearman(theirs, ours)),
    }
