"""A smaller network made from a larger one: its first blocks and a new classifier."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from distilens.foundation.errors import UserError
from distilens.models.adapters import Expecting

SIDE = 224  # of the empty image that is used to find the width, if the network takes any size


def shrink(classes: int, *, blocks: int, model: str = "mobilenetv2") -> Expecting:
    """A network without the last `blocks` modules of its `features`: a student that is the beginning of its teacher.

    The rest of `features` is averaged over the image and classified by one new linear layer. `model` is any network with the
    form of mobilenetv2: an `nn.Sequential` named `features`, then `classifier`. Pretrained weights are kept. mobilenetv2 has
    19 such modules: with 5 removed it is 4.1 times smaller (543,498 parameters for 10 classes).

    Source: Hernandez, Chang and Nordling 2025 (arXiv 2503.13008) and their code's `SmallerMobileNet`.
    Taps: the remaining ones of `model`, `features.0` and so on; `classifier`.
    Raises: UserError if the network has another form, or if `blocks` leaves nothing or removes nothing.
    """
    from distilens.models import build_network

    made = build_network(model, classes)
    if not isinstance(made, Expecting):
        raise UserError(
            f"shrink needs an architecture as model=, such as mobilenetv2; given {model!r}, a trained model"
        )
    parts = dict(made.network.named_children())
    features = parts.get("features")
    if not isinstance(features, nn.Sequential) or "classifier" not in parts:
        raise UserError(
            f"shrink needs a network of the form of mobilenetv2, an nn.Sequential named `features` and then `classifier`; "
            f"{model!r} has: {', '.join(parts) or 'no modules'}"
        )
    if not 1 <= blocks < len(features):
        raise UserError(f"shrink:model={model} removes 1 to {len(features) - 1} of its blocks; blocks was {blocks}.")
    left = features[:-blocks]
    side = max(made.size) if isinstance(made.size, tuple) else made.size or SIDE
    return Expecting(Shrunken(left, width(left, side), classes), made.size, made.mean, made.std)


class Shrunken(nn.Module):
    """Features, average over the image, linear classifier. Built by `shrink`."""

    def __init__(self, features: nn.Sequential, width: int, classes: int):
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, classes)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        return self.classifier(torch.flatten(self.avgpool(self.features(images)), 1))


def width(features: nn.Sequential, side: int) -> int:
    """The output channels of `features`, found on the meta device: only shapes, no arithmetic.

    Raises: UserError if the output is not a feature map.
    """
    empty = copy.deepcopy(features).to("meta").eval()
    shape = empty(torch.empty(1, 3, side, side, device="meta")).shape
    if len(shape) != 4:
        raise UserError(
            f"shrink needs `features` that end in a feature map [b c h w]; the remaining ones give {list(shape)}"
        )
    return shape[1]
