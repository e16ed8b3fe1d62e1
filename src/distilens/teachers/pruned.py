"""A teacher with its smallest weights taken out: less sure of itself, and wrong on what is hard."""

from __future__ import annotations

import copy

from distilens.core import Model
from distilens.pruning import LAYERS, leave_out


def pruned(model: Model, share: float) -> Model:
    """A copy whose smallest weights, of all convolutions and linear layers together, are 0.

    Args:
        model: left as it is.
        share: of the weights, in (0, 1).
    """
    made = copy.deepcopy(model)
    leave_out([module.weight for module in made.network.modules() if isinstance(module, LAYERS)], share)
    return made
