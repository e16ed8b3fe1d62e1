"""The registry of parts that can be inserted into a model. A saved model stores their notation, to build them again."""

from __future__ import annotations

from torch import nn

from distilens.foundation.notation import Registry, Spec

PARTS = Registry(
    "part",
    {
        "kd_layer": "distilens.models.parts.kd_layer:KDPart",
        "map_channel": "distilens.models.parts.map_channel:MapChannel",
        "map_fusion": "distilens.models.parts.map_fusion:MapFusion",
        "folded_fusion": "distilens.models.parts.map_fusion:FoldedFusion",
        "projector": "distilens.models.parts.projector:Projector",
    },
)


def build_part(part: str | Spec) -> nn.Module:
    """Build a part from its notation, which the part stores: see `Model.insert`.

    A part is called with a feature `[b c h w]` and the student's extra inputs by name. It returns a feature of the same shape.
    Its attribute `requires` names the inputs that it needs. A part that changes the number of channels has a method
    `enter(network)`, which adapts the network.

    Raises:
        UserError: a name or an option is unknown.
    """
    spec = PARTS.resolve(part)
    made = PARTS.build(spec)
    made.notation = str(spec)
    return made
