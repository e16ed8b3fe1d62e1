"""SimKD: reuse the teacher's classifier and match the features that it reads."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from distilens import losses
from distilens.core import Answer, Batch, Model, Output
from distilens.explain.activation import full
from distilens.foundation.errors import UserError
from distilens.foundation.notation import Spec
from distilens.foundation.settings import Count
from distilens.methods.paired import Paired, shapes
from distilens.models.heads import head_of
from distilens.models.parts import build_part
from distilens.models.taps import LAST, grid

NAME = "projector"
CLOSE = 0.05
"""Allowed difference between the teacher's logits and its classifier on the mean feature, as a share of the largest logit.

It covers the rounding of bfloat16."""


class SimKD(Paired):
    """Match the teacher's last features and classify with a copy of the teacher's classifier.

    `mean (p(F_s) - F_t)^2` over channels and places of the last features. The projector `p` (see `Projector`) becomes a part of
    the student. A frozen copy of the teacher's classifier replaces the student's classifier. If the grids differ, the smaller
    one is used. The method needs no labels and no other loss.

    Args:
        factor: the middle of the projector has 1 / `factor` of the teacher's channels.

    Raises:
        UserError: in `prepare`, if the logits of teacher or student are not one linear layer on the mean of the last feature,
            or if the student cannot take another number of channels there.

    Source: Chen et al. 2022 (arXiv 2203.14001), equation 3. Most of its tables use factor 2.
    """

    inserts = True
    whole = True
    because = "its classifier is one linear layer on the mean over all places"

    def __init__(self, *, factor: Count = 2):
        super().__init__([LAST])
        self.factor = factor
        self.needs = ("logits", f"features:{LAST}", "module:head")

    def prepare(self, student: Model, batch: Batch, answer: Answer) -> Model:
        theirs = grid(answer.features[LAST], student.size)
        classifier = teacher_classifier(answer.modules["head"], full(theirs), answer.logits)
        path = student.last_tap
        ((channels, *_),) = shapes(student, [student.behind(path)])
        options = {
            "channels": channels,
            "wanted": theirs.shape[1],
            "classes": len(student.classes),
            "factor": self.factor,
        }
        before = student.behind(path)
        student.insert(path, build_part(Spec(NAME, None, options)), name=NAME)
        student.tap(NAME)
        head = student.network.get_submodule(head_of(student.network))
        head.load_state_dict(classifier.state_dict())
        head.requires_grad_(False)
        try:
            with student.reading(NAME) as read:
                logits = student.probe()
                feature = full(grid(read.take(), student.size))
        except RuntimeError as error:
            raise UserError(
                f"simkd: the teacher's classifier takes {theirs.shape[1]} channels, but {student.name} cannot take them behind "
                f"{before!r}: {error}"
            ) from None
        if not reproduces_logits(classifier, feature, logits):
            raise UserError(
                f"simkd applies the teacher's classifier to the mean of the last feature, but {student.name} has something else "
                "there, such as a maximum or another layer: use a student that ends in the mean and one linear layer, or use "
                "crd, fitnet or vid"
            )
        return student

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"]:
        ours = full(grid(output.features[NAME], output.size))
        return losses.fitnet(ours, full(grid(answer.features[LAST], output.size)), reduction="none")


@torch.no_grad()
def teacher_classifier(head: nn.Module, feature: Float[Tensor, "b t h w"], logits: Tensor | None) -> nn.Linear:
    """A copy of the teacher's classifier, which must be one linear layer on the mean of its last feature.

    Raises:
        UserError: the teacher ends in something else.
    """
    if isinstance(head, nn.Linear) and head.in_features == feature.shape[1] and logits is not None:
        copied = copy.deepcopy(head).float().to(feature.device)
        copied = copied if copied.bias is not None else add_bias(copied)
        if reproduces_logits(copied, feature, logits):
            return copied
    raise UserError(
        "simkd reuses the teacher's classifier, but this teacher's logits are not one linear layer on the mean of its last "
        f"feature ({feature.shape[1]} channels; its head is a {type(head).__name__}): use a teacher that ends so, or use crd, "
        "fitnet or vid, which need no classifier"
    )


@torch.no_grad()
def reproduces_logits(
    classifier: nn.Linear, feature: Float[Tensor, "b t h w"], logits: Float[Tensor, "b classes"]
) -> bool:
    """Whether a classifier on the mean of a feature gives these logits, within the rounding of bfloat16."""
    expected = classifier(feature.float().mean((2, 3)))
    return bool(((expected - logits.float()).abs() <= CLOSE * logits.float().abs().max()).all())


def add_bias(linear: nn.Linear) -> nn.Linear:
    made = nn.Linear(linear.in_features, linear.out_features, device=linear.weight.device)
    nn.init.zeros_(made.bias)
    made.weight.copy_(linear.weight)
    return made
