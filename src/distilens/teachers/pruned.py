"""A teacher with its smallest weights taken out: less sure of itself, and wrong on what is hard."""

from __future__ import annotations

import copy

import torch
from torch import nn

from distilens.core import Model

LAYERS = (nn.Linear, nn.Conv2d)


@torch.no_grad()
def pruned(model: Model, share: float) -> Model:
    """A copy whose smallest weights, of all convolutions and linear layers together, are 0.

    Args:
        model: left as it is.
        share: of the weights, in (0, 1).
    """
    made = copy.deepcopy(model)
    weights = [module.weight for module in made.network.modules() if isinstance(module, LAYERS)]
    sizes = torch.cat([weight.abs().flatten() for weight in weights])
    limit = sizes.kthvalue(max(1, int(share * len(sizes)))).values
    for weight in weights:
        weight[weight.abs() <= limit] = 0
    return made
