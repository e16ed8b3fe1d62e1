"""The part of the method `kd_layer`: it compares each place of a feature with templates."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from distilens.foundation.settings import Count


class KDPart(nn.Module):
    """Adds a mixture of template vectors to the feature, by similarity: `[b c h w]` to the same shape. `alpha=0` is the identity.

    At every place, with `x` the feature: `s = g1 cos(x, w_k)` (the module `scores`, which can be tapped), `p = relu(BN(s))`, and
    the output `x + alpha g2 V (p / |p|)`. The rows of V (one per channel) have length 1. g1 and g2 are learnt; they start at 3
    and 1. If no template passes the ReLU, nothing is added.

    It has `2 c k + 2 k` parameters and the two gains, and takes `2 c k h w` MACs.

    Args:
        channels: the channels of the feature, `c`.
        templates: `k`.
        alpha: how much is added to the feature.

    Source: Gorgun, Gurbuz and Alatan 2023 (letKD, arXiv 2309.02843), supplement and code. They use the last feature before its
    ReLU. A part stands behind a module, so here it is the feature after that ReLU if a block ends in one.
    """

    def __init__(self, *, channels: Count, templates: Count, alpha: float = 1.0):
        super().__init__()
        self.scores = Scores(channels, templates)
        self.norm = nn.BatchNorm2d(templates)
        self.values = nn.Parameter(torch.randn(channels, templates, 1, 1))
        self.gain = nn.Parameter(torch.tensor(1.0))
        self.alpha: Tensor
        self.register_buffer("alpha", torch.tensor(alpha), persistent=False)  # the notation stores it
        self.leaving = False  # see `release` of `methods/kd_layer.py`: the part works in training only

    def forward(self, feature: Float[Tensor, "b c h w"], inputs: Mapping[str, Tensor]) -> Float[Tensor, "b c h w"]:
        fits = self.norm(self.scores(feature)).relu()
        # it divides the c channels after V, not the k templates before it: usually c < k
        length = torch.linalg.vector_norm(fits, dim=1, keepdim=True, dtype=torch.float32).clamp_min(1e-6)
        added = self.gain * functional.conv2d(fits, unit(self.values)) / length
        alpha = torch.zeros_like(self.alpha) if self.leaving and not self.training else self.alpha
        return feature + (alpha * added).to(feature.dtype)


class Scores(nn.Module):
    """The similarity of each place to each template: `g cos(x, w_k)`, `[b c h w]` to `[b k h w]`, from -|g| to |g|."""

    def __init__(self, channels: int, templates: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(templates, channels, 1, 1))
        self.gain = nn.Parameter(torch.tensor(3.0))

    def forward(self, feature: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        return self.gain * functional.conv2d(unit(feature).to(self.weight.dtype), unit(self.weight))


def unit(vectors: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Vectors along axis 1, scaled to length 1 in float32; a zero vector stays 0."""
    return functional.normalize(vectors.float(), dim=1, eps=1e-6).to(vectors.dtype)
