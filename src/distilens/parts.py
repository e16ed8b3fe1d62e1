"""The parts that can be put into a model, by name: so that a saved model says how its parts are built again."""

from __future__ import annotations

from torch import nn

from distilens.specs import Registry, Spec

PARTS = Registry(
    "part",
    {
        "kd_layer": "distilens.methods.kd_layer:KDPart",
        "map_channel": "distilens.methods.ig_overlay:MapChannel",
        "map_fusion": "distilens.methods.cam_fusion:MapFusion",
        "folded_fusion": "distilens.methods.cam_fusion:FoldedFusion",
        "projector": "distilens.methods.simkd:Projector",
    },
)


def build_part(part: str | Spec) -> nn.Module:
    """A part from its notation, which it keeps: see `Model.insert`.

    A part is called with a feature `[b c h w]` and the student's extra inputs by name, and returns a feature of the same
    shape. Its attribute `requires` names the inputs that it cannot do without. One that changes the number of channels has a
    method `enter(network)` that makes the network fit.

    Raises:
        UserError: an unknown name or option.
    """
    spec = PARTS.resolve(part)
    made = PARTS.build(spec)
    made.notation = str(spec)
    return made
