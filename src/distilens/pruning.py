"""Leaving out the smallest weights of a network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

LAYERS = (nn.Linear, nn.Conv2d)
"""The layers whose weights are pruned, or written in another form."""


@torch.no_grad()
def leave_out(weights: Sequence[Tensor], share: float) -> None:
    """Set a share of some weights, the smallest of all of them together, to 0, in place."""
    sizes = torch.cat([weight.abs().flatten() for weight in weights])
    count = int(share * len(sizes))
    if count:
        limit = sizes.kthvalue(count).values
        for weight in weights:
            weight[weight.abs() <= limit] = 0
