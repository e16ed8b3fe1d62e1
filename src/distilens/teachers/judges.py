"""Judges: a number for each image that says how far a teacher is to be followed there. Higher is better.

A judge looks at the untransformed images, so that what it says of an image is one number for a whole run, and can be stored. One
that looks at maps looks at those of the teacher's own first class; an image whose map is empty (or whose score is no number)
gets the worst score, which each judge names.
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
from distilens.errors import UserError
from distilens.explain import EXPLAINERS, Explainer, build_explainer
from distilens.explain.maps import empty, resized, strength
from distilens.measure.faithfulness import average_drop, insertion, masked_confidence
from distilens.measure.localisation import energy_in_mask
from distilens.specs import Registry, Spec

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
    """A judge from its notation, which it keeps with every option written out.

    Raises:
        UserError: an unknown name or option.
    """
    spec = JUDGES.resolve(part)
    made = JUDGES.build(spec)
    made.notation = str(spec)
    return made


class Judge:
    """Scores a model on images (`judge(model, batch)`), or several teachers beside each other (`compare`).

    Write `__call__`, where one model is judged by itself; or `needs` and `compare`, where it takes several to tell.

    Attributes:
        notation: with every option: what its scores are stored under.
        reads: what of the data set it reads beside the images: `labels`, `masks`.
        part, explainer: of the maps that it judges, where it judges maps.
    """

    notation: str = ""
    reads: tuple[str, ...] = ()
    part: str | None = None
    explainer: Explainer | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """What is asked of each teacher, of the untransformed images, in order to compare them."""
        return (f"scores:{self.notation}",)

    def __call__(self, model: Model, batch: Batch) -> Float[Tensor, " b"]:
        """The scores of one model. `batch` shows any variant; its untransformed images are judged."""
        raise NotImplementedError

    def compare(self, answers: Sequence[Answer]) -> Float[Tensor, "b teachers"]:
        """The scores of several teachers, from their answers to `needs`."""
        return torch.stack([answer.scores[self.notation] for answer in answers], 1)


class Confidence(Judge):
    """The probability in [0, 1] that the teacher gives to its own first class, of the untransformed image."""

    def __call__(self, model: Model, batch: Batch) -> Float[Tensor, " b"]:
        return model.logits(batch.canonical).softmax(1).amax(1)


class Correct(Judge):
    """1 where the teacher's first class of the untransformed image is the label, else 0 (also where there is no label)."""

    reads = ("labels",)

    def __call__(self, model: Model, batch: Batch) -> Float[Tensor, " b"]:
        return (model.logits(batch.canonical).argmax(1) == batch.labels).float()


class MapJudge(Judge):
    """Judges the maps of an explainer: a member writes `judge`. The worst score, and that of an empty map, is 0.

    Args:
        explainer: whose maps.
    """

    def __init__(self, *, explainer: ExplainerPart = GRADCAM):
        self.part, self.explainer = explainer, build_explainer(explainer)

    def __call__(self, model: Model, batch: Batch) -> Float[Tensor, " b"]:
        assert self.explainer is not None
        shown = batch.untransformed()
        found = self.explainer(model, shown.images)
        scores = self.judge(model, shown, found.maps, found.target)
        return scores.masked_fill(empty(found.maps) | scores.isnan(), 0.0)

    def judge(
        self, model: Model, batch: Batch, maps: Float[Tensor, "b h w"], target: Int[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        """The scores of maps of an untransformed batch, of the classes `target`."""
        raise NotImplementedError


class Insertion(MapJudge):
    """Whether the places that the map names suffice: the area under the insertion curve, in [0, 1].

    Pixels are shown in the order of the map on the blurred image; the score is the mean probability of the class on the way.
    Costs `steps + 1` forwards an image beside the map. The worst score, and that of an empty map, is 0.

    Args:
        explainer: whose maps.
        steps: points on the way.

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
    """How much of its confidence the teacher keeps behind its own map: `1 - max(0, Y - O) / Y`, in [0, 1].

    `Y` is the class's probability, `O` that of the image multiplied by its map. Costs two forwards an image beside the map.
    The worst score, and that of an empty map, is 0.

    Args:
        explainer: whose maps.

    Source: Chattopadhay et al. 2018 (Grad-CAM++, arXiv 1710.11063), section 4.1; see `distilens.measure.average_drop`.
    """

    def judge(
        self, model: Model, batch: Batch, maps: Float[Tensor, "b h w"], target: Int[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        return 1 - average_drop(*masked_confidence(model, batch.images, maps, target))


class EnergyInMask(MapJudge):
    """The share of the map's strength that lies on the evidence, in [0, 1], for data with evidence masks.

    The worst score, and that of an empty map, is 0.

    Args:
        explainer: whose maps.

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
    "the judge energy_in_mask compares maps with evidence masks, and these data have none: take another judge (insertion, focus) "
    "or data with masks (shapes, from_arrays(masks=...))"
)


class Focus(MapJudge):
    """How little room the map takes: `1 - H(p) / log(cells)`, in [0, 1]; `p` is the map's strength as shares that sum to 1.

    1 for a single cell, 0 for a flat map; by the logarithm, maps of different grids compare. It says nothing of whether the map
    is true. The worst score, and that of an empty map or of a map of one cell, is 0.

    Args:
        explainer: whose maps.
    """

    def judge(
        self, model: Model, batch: Batch, maps: Float[Tensor, "b h w"], target: Int[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        cells = maps.shape[-2] * maps.shape[-1]
        entropy = torch.special.entr(strength(maps)).sum((1, 2))
        return 1 - entropy / (math.log(cells) if cells > 1 else math.nan)


class Consensus(Judge):
    """How far the teacher's map is that of the others: its cosine to the mean of their unit maps, in [-1, 1].

    On the smallest of their grids. Two teachers agree equally with each other, so it takes three to tell them apart (of two, the
    first is followed). The worst score, and that of an empty map or of others without any map, is -1.

    Args:
        explainer: whose maps; those of `of=canonical` that a method asks for are the same, and made once.
    """

    def __init__(self, *, explainer: ExplainerPart = GRADCAM):
        self.part = explainer
        self.asked = f"maps:{Spec.parse(explainer).replaced(of='canonical')}"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.asked,)

    def __call__(self, model: Model, batch: Batch) -> Float[Tensor, " b"]:
        raise UserError("the judge consensus compares several teachers: it says nothing of one alone")

    def compare(self, answers: Sequence[Answer]) -> Float[Tensor, "b teachers"]:
        maps = torch.stack(on_smallest_grid([answer.maps[self.asked] for answer in answers]))
        units = functional.normalize(level(maps).flatten(2), dim=2)
        others = units.sum(0) - units
        unknown = empty(maps) | (others.norm(dim=2) < 1e-6)
        return functional.cosine_similarity(units, others, dim=2).masked_fill(unknown, -1.0).T


def on_smallest_grid(maps: Sequence[Float[Tensor, "*b _ _"]]) -> list[Float[Tensor, "*b h w"]]:
    """Maps of several teachers, averaged to the smallest of their grids."""
    size = (min(each.shape[-2] for each in maps), min(each.shape[-1] for each in maps))
    return [resized(each, size) for each in maps]


def level(maps: Float[Tensor, "*b h w"]) -> Float[Tensor, "*b h w"]:
    """Maps of strength 1, with their signs: maps of different teachers then weigh the same. An empty map stays 0."""
    total = maps.abs().sum((-2, -1), keepdim=True)
    return maps / total.where(total > 0, 1)
