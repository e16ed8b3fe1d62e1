"""Using the teacher's own classifier: the student only has to make the features that it reads."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from distilens import losses
from distilens.core import Answer, Batch, Model, Output
from distilens.errors import UserError
from distilens.explain.activation import full
from distilens.methods.paired import Paired, shapes
from distilens.models.heads import give_head, head_of
from distilens.parts import build_part
from distilens.specs import Spec
from distilens.taps import LAST, grid

Count = Annotated[int, Field(ge=1)]
NAME = "projector"
CLOSE = 0.05
"""How far, as a share of the largest, the teacher's logits may be from its classifier's of the mean feature: bfloat16 rounds."""


class Projector(nn.Module):
    """The last feature in the teacher's channels, `[b c h w]` to `[b t h w]`: convolutions 1×1, 3×3 and 1×1, batch norms, ReLUs.

    A part that changes the number of channels: the model's head is replaced by one that takes the new number.

    Costs about `c m + 9 m^2 + m t` parameters, `m = t / factor`, and as many MACs a place.

    Args:
        channels: of the feature, `c`.
        wanted: `t`.
        classes: of the head.
        factor: how much narrower the middle is.
    """

    def __init__(self, *, channels: Count, wanted: Count, classes: Count, factor: Count = 2):
        super().__init__()
        narrow = max(1, wanted // factor)
        self.wanted, self.classes = wanted, classes
        self.layers = nn.Sequential(block(channels, narrow, 1), block(narrow, narrow, 3), block(narrow, wanted, 1))

    def enter(self, network: nn.Module) -> None:
        """What it changes of the network that it is put into."""
        give_head(network, nn.Linear(self.wanted, self.classes))

    def forward(self, feature: Float[Tensor, "b c h w"], inputs: Mapping[str, Tensor]) -> Float[Tensor, "b t h w"]:
        return self.layers(feature)


def block(channels: int, wanted: int, side: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, wanted, side, padding=side // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(wanted), nn.ReLU())


class SimKD(Paired):
    """Make the teacher's last features, and answer with the teacher's classifier.

    `mean (p(F_s) - F_t)^2` over channels and places of the last features, `p` a projector (see `Projector`) that becomes a part
    of the student, whose classifier is replaced by a copy of the teacher's that is not trained. Of two grids the smaller
    counts. No label is needed, nor another loss.

    Args:
        factor: how much narrower than the teacher's feature the projector is in the middle.

    Raises:
        UserError: in `prepare`, a teacher or a student whose logits are not one linear layer of the mean of its last feature,
            or a student that cannot take another number of channels there.

    Source: Chen et al. 2022 (arXiv 2203.14001), equation 3; factor 2 in most of its tables.
    """

    inserts = True

    def __init__(self, *, factor: Count = 2):
        super().__init__([LAST])
        self.factor = factor
        self.needs = ("logits", f"features:{LAST}", "module:head")

    def prepare(self, student: Model, batch: Batch, answer: Answer) -> Model:
        theirs = grid(answer.features[LAST], student.size)
        classifier = fitting(answer.modules["head"], full(theirs), answer.logits)
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
                f"simkd: {student.name} cannot take {theirs.shape[1]} channels behind {before!r}, as the teacher's classifier "
                f"does: {error}"
            ) from None
        if not ends_in(classifier, feature, logits):
            raise UserError(
                f"simkd answers with the teacher's classifier of the mean of the last feature, and {student.name} does something "
                "else between the two (such as a maximum, or another layer): take a student that ends so, or crd, fitnet or vid"
            )
        return student

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"]:
        ours = full(grid(output.features[NAME], output.size))
        return losses.fitnet(ours, full(grid(answer.features[LAST], output.size)), reduction="none")


@torch.no_grad()
def fitting(head: nn.Module, feature: Float[Tensor, "b t h w"], logits: Tensor | None) -> nn.Linear:
    """A copy of the teacher's classifier, which must be one linear layer of the mean of its last feature.

    Raises:
        UserError: it is not.
    """
    if isinstance(head, nn.Linear) and head.in_features == feature.shape[1] and logits is not None:
        copied = copy.deepcopy(head).float().to(feature.device)
        copied = copied if copied.bias is not None else with_bias(copied)
        if ends_in(copied, feature, logits):
            return copied
    raise UserError(
        "simkd answers with the teacher's classifier, and this teacher's logits are not one linear layer of the mean of its "
        f"last feature ({feature.shape[1]} channels; its head is {type(head).__name__}): take a teacher that ends so, or crd, "
        "fitnet or vid, which need no classifier"
    )


@torch.no_grad()
def ends_in(classifier: nn.Linear, feature: Float[Tensor, "b t h w"], logits: Float[Tensor, "b classes"]) -> bool:
    """Whether logits are a classifier's of the mean of a feature, within what bfloat16 rounds."""
    expected = classifier(feature.float().mean((2, 3)))
    return bool(((expected - logits.float()).abs() <= CLOSE * logits.float().abs().max()).all())


def with_bias(linear: nn.Linear) -> nn.Linear:
    made = nn.Linear(linear.in_features, linear.out_features, device=linear.weight.device)
    nn.init.zeros_(made.bias)
    made.weight.copy_(linear.weight)
    return made
