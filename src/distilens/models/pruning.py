"""Pruning: set the smallest weights of a network to 0."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

LAYERS = (nn.Linear, nn.Conv2d)
"""The layers whose weights are pruned or reparametrised."""


@torch.no_grad()
def leave_out(weights: Sequence[Tensor], share: float) -> None:
    """Set the given share of the weights to 0, in place: the smallest over all tensors together."""
    sizes = torch.cat([weight.abs().flatten() for weight in weights])
    count = int(share * len(sizes))
    if count:
        limit = sizes.kthvalue(count).values
        for weight in weights:
            weight[weight.abs() <= limit] = 0
