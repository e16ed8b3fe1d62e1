"""A pruned teacher: its smallest weights are 0, so it is less sure and wrong on hard images."""

from __future__ import annotations

import copy

from distilens.core import Model
from distilens.models.pruning import LAYERS, leave_out


def pruned(model: Model, share: float) -> Model:
    """A copy of a model whose smallest weights, over all convolutions and linear layers together, are 0.

    Args:
        model: the model; it is not changed.
        share: the share of the weights, in (0, 1).
    """
    made = copy.deepcopy(model)
    leave_out([module.weight for module in made.network.modules() if isinstance(module, LAYERS)], share)
    return made
