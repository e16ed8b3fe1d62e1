"""Judges: a score per image and teacher. A higher score means a better teacher for this image.

A judge scores the untransformed images. So an image has one score for a whole run, and the score can be stored. A judge of maps
reads the map of the teacher's own top class. If the map is empty, or the score is NaN, the image gets the worst score; each
judge names its worst score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import AfterValidator, Field
from torch import Tensor
from torch.nn import functional

from distilens.core import Answer, Batch, Model
from distilens.explain import EXPLAINERS, Explainer, build_explainer
from distilens.explain.maps import empty, strength
from distilens.foundation.errors import UserError
from distilens.foundation.notation import Registry, Spec
from distilens.measure.maps.faithfulness import average_drop, insertion, masked_confidence
from distilens.measure.maps.localisation import energy_in_mask
from distilens.models.grids import resized

JUDGES = Registry(
    "judge",
    {
        "confidence": "distilens.teachers.judges:Confidence",
        "correct": "distilens.teachers.judges:Correct",
        "insertion": "distilens.teachers.judges:Insertion",
        "average_drop": "distilens.teachers.judges:AverageDrop",
        "energy_in_mask": "distilens.teachers.judges:EnergyInMask",
        "focus": "distilens.teachers.judges:Focus",
        "consensus": "distilens.teachers.judges:Consensus",
    },
)

ExplainerPart = Annotated[str, AfterValidator(lambda part: str(EXPLAINERS.resolve(part)))]
"""An explainer in notation, checked when the recipe is read, with every option written out."""
GRADCAM = str(EXPLAINERS.resolve("gradcam"))


def build_judge(part: str) -> Judge:
    """Build a judge from its notation; the judge stores the notation with all options.

    Raises:
        UserError: a name or an option is unknown.
    """
    spec = JUDGES.resolve(part)
    made = JUDGES.build(spec)
    made.notation = str(spec)
    return made


class Judge:
    """Scores a model on images (`judge(model, batch)`), or compares several teachers (`compare`).

    Override `__call__` to judge one model by itself. Override `needs` and `compare` if the score needs several teachers.

    Attributes:
        notation: the notation with all options; its scores are stored under this name.
        reads: what it reads from the data set besides the images: `labels`, `masks`.
        part, explainer: notation and explainer of the maps, if it judges maps.
    """

    notation: str = ""
    reads: tuple[str, ...] = ()
    part: str | None = None
    explainer: Explainer | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """The needs that each teacher answers, for the untransformed images, before they are compared."""
        return (f"scores:{self.notation}",)

    def __call__(self, model: Model, batch: Batch) -> Float[Tensor, " b"]:
        """The scores of one model. `batch` shows any variant; its untransformed images are judged."""
        raise NotImplementedError

    def compare(self, answers: Sequence[Answer]) -> Float[Tensor, "b teachers"]:
        """The scores of several teachers, from their answers to `needs`."""
        return torch.stack([answer.scores[self.notation] for answer in answers], 1)


class Confidence(Judge):
    """The probability, in [0, 1], of the teacher's own top class for the untransformed image."""

    def __call__(self, model: Model, batch: Batch) -> Float[Tensor, " b"]:
        return model.logits(batch.canonical).softmax(1).amax(1)


class Correct(Judge):
    """1 if the teacher's top class of the untransformed image is the label, else 0; 0 for an image without a label."""

    reads = ("labels",)

    def __call__(self, model: Model, batch: Batch) -> Float[Tensor, " b"]:
        return (model.logits(batch.canonical).argmax(1) == batch.targets).float()


class MapJudge(Judge):
    """Judges the maps of an explainer; a subclass implements `judge`. The worst score, also for an empty map, is 0.

    Args:
        explainer: the explainer of the maps.
    """

    def __init__(self, *, explainer: ExplainerPart = GRADCAM):
        self.part, self.explainer = explainer, build_explainer(explainer)

    def __call__(self, model: Model, batch: Batch) -> Float[Tensor, " b"]:
        assert self.explainer is not None
        shown = batch.untransformed()
        explanation = self.explainer(model, shown.images)
        scores = self.judge(model, shown, explanation.maps, explanation.target)
        return scores.masked_fill(empty(explanation.maps) | scores.isnan(), 0.0)

    def judge(
        self, model: Model, batch: Batch, maps: Float[Tensor, "b h w"], target: Int[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        """The scores of the maps of an untransformed batch, for the classes `target`."""
        raise NotImplementedError


class Insertion(MapJudge):
    """The area under the insertion curve, in [0, 1]: do the places with high map values suffice?

    Pixels are inserted into the blurred image in the order of the map. The score is the mean probability of the class over the
    steps. It costs `steps + 1` forward passes per image besides the map. The worst score, also for an empty map, is 0.

    Args:
        explainer: the explainer of the maps.
        steps: steps of the insertion.

    Source: Petsiuk et al. 2018 (RISE, arXiv 1806.07421), section 4.2; see `distilens.measure.insertion`.
    """

    def __init__(self, *, explainer: ExplainerPart = GRADCAM, steps: Annotated[int, Field(ge=1)] = 10):
        super().__init__(explainer=explainer)
        self.steps = steps

    def judge(
        self, model: Model, batch: Batch, maps: Float[Tensor, "b h w"], target: Int[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        return insertion(model, batch.images, maps, target, steps=self.steps)


class AverageDrop(MapJudge):
    """The share of confidence that stays if the image is masked with the teacher's map: `1 - max(0, Y - O) / Y`, in [0, 1].

    `Y` is the probability of the class, `O` the probability for the image multiplied by its map. It costs two forward passes per
    image besides the map. The worst score, also for an empty map, is 0.

    Args:
        explainer: the explainer of the maps.

    Source: Chattopadhay et al. 2018 (Grad-CAM++, arXiv 1710.11063), section 4.1; see `distilens.measure.average_drop`.
    """

    def judge(
        self, model: Model, batch: Batch, maps: Float[Tensor, "b h w"], target: Int[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        return 1 - average_drop(*masked_confidence(model, batch.images, maps, target))


class EnergyInMask(MapJudge):
    """The share of the map's strength inside the evidence mask, in [0, 1], for data with such masks.

    The worst score, also for an empty map, is 0.

    Args:
        explainer: the explainer of the maps.

    Source: Wang et al. 2020 (Score-CAM, arXiv 1910.01279), section 4.3; see `distilens.measure.energy_in_mask`.
    """

    reads = ("masks",)

    def judge(
        self, model: Model, batch: Batch, maps: Float[Tensor, "b h w"], target: Int[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        if batch.mask is None:
            raise UserError(NO_MASKS)
        return energy_in_mask(maps, batch.mask)


NO_MASKS = (
    "the judge energy_in_mask compares maps with evidence masks, but these data have no masks: use another judge (insertion, "
    "focus) or data with masks (shapes, from_arrays(masks=...))"
)


class Focus(MapJudge):
    """The concentration of the map: `1 - H(p) / log(cells)`, in [0, 1]; `p` is the map's strength as shares that sum to 1.

    It is 1 if a single cell has all the strength, and 0 for a flat map. The logarithm makes maps of different grids comparable.
    The score does not tell whether the map is true. The worst score, also for an empty map or a map with one cell, is 0.

    Args:
        explainer: the explainer of the maps.
    """

    def judge(
        self, model: Model, batch: Batch, maps: Float[Tensor, "b h w"], target: Int[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        cells = maps.shape[-2] * maps.shape[-1]
        entropy = torch.special.entr(strength(maps)).sum((1, 2))
        return 1 - entropy / (math.log(cells) if cells > 1 else math.nan)


class Consensus(Judge):
    """The agreement with the other teachers: the cosine of the map to the mean of their unit maps, in [-1, 1].

    Maps are compared on the smallest grid. Two teachers always have the same score, so it takes three to choose between them;
    with two, the first is followed. The worst score, also for an empty map or if no other teacher has a map, is -1.

    Args:
        explainer: the explainer of the maps. If a method asks for the same maps with `of=canonical`, they are made only once.
    """

    def __init__(self, *, explainer: ExplainerPart = GRADCAM):
        self.part = explainer
        self.asked = f"maps:{Spec.parse(explainer).replaced(of='canonical')}"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.asked,)

    def __call__(self, model: Model, batch: Batch) -> Float[Tensor, " b"]:
        raise UserError("the judge consensus compares several teachers: it cannot score a single one")

    def compare(self, answers: Sequence[Answer]) -> Float[Tensor, "b teachers"]:
        maps = torch.stack(on_smallest_grid([answer.maps[self.asked] for answer in answers]))
        units = functional.normalize(level(maps).flatten(2), dim=2)
        others = units.sum(0) - units
        unknown = empty(maps) | (others.norm(dim=2) < 1e-6)
        return functional.cosine_similarity(units, others, dim=2).masked_fill(unknown, -1.0).T


def on_smallest_grid(maps: Sequence[Float[Tensor, "*b _ _"]]) -> list[Float[Tensor, "*b h w"]]:
    """Maps of several teachers, averaged to the smallest of their grids."""
    size = (min(batch.shape[-2] for batch in maps), min(batch.shape[-1] for batch in maps))
    return [resized(batch, size) for batch in maps]


def level(maps: Float[Tensor, "*b h w"]) -> Float[Tensor, "*b h w"]:
    """Maps scaled to strength 1, with their signs, so that the maps of all teachers weigh the same. An empty map stays 0."""
    total = maps.abs().sum((-2, -1), keepdim=True)
    return maps / total.where(total > 0, 1)
