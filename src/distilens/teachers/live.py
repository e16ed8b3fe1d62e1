"""A model that answers as training goes, and the teacher of those who have none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distilens.core import Answer, Batch, Model
from distilens.errors import UserError
from distilens.explain import EXPLAINERS, Explainer
from distilens.specs import Spec
from distilens.taps import find


@dataclass(frozen=True)
class Need:
    """What a method asks of a teacher, read from its notation: `logits`, `features:layer3`, `maps:ig:steps=32,of=images`."""

    text: str
    kind: str
    what: str

    @classmethod
    def parse(cls, text: str) -> Need:
        kind, _, what = text.partition(":")
        if kind not in ("logits", "features", "maps", "module") or bool(what) != (kind != "logits"):
            raise UserError(f"unknown need {text!r}: logits, features:TAP, maps:EXPLAINER or module:PATH")
        return cls(text, kind, what)

    def explainer(self) -> tuple[Spec, str, str]:
        """The explainer of a maps need, whose maps (`canonical` or `images`) and of which class (`top1` or `label`)."""
        spec = Spec.parse(self.what)
        options = dict(spec.options)
        of, target = options.pop("of", "images"), options.pop("target", "top1")
        if of not in ("canonical", "images") or target not in ("top1", "label"):
            raise UserError(f"{self.text!r}: of=canonical|images, target=top1|label")
        return EXPLAINERS.resolve(Spec(spec.name, spec.argument, options)), of, target


class LiveTeacher:
    """A model that answers each batch: frozen, in eval mode, without a graph, and only what is needed.

    Args:
        model: taken over: its parameters no longer require gradients, and it stays in eval mode.
    """

    def __init__(self, model: Model):
        self.model = model.eval().requires_grad_(False)
        self.explainers: dict[str, Explainer] = {}  # by need, built once

    def __call__(self, batch: Batch, needs: Sequence[str]) -> Answer:
        wanted = [Need.parse(need) for need in needs]
        for need in wanted:
            if need.kind == "features":
                self.model.tap(need.what)
        logits, features = None, {}
        if any(need.kind in ("logits", "features") for need in wanted):
            with torch.no_grad():
                output = self.model(batch.images)
            logits, features = output.logits, output.features
        return Answer(
            logits=logits,
            features=features,
            maps={need.text: self.maps(batch, need) for need in wanted if need.kind == "maps"},
            modules={need.what: find(self.model.network, need.what) for need in wanted if need.kind == "module"},
        )

    def maps(self, batch: Batch, need: Need) -> torch.Tensor:
        """Maps of the very images, or of the canonical ones, moved with the image."""
        spec, of, target = need.explainer()
        images = batch.canonical if of == "canonical" else batch.images
        if need.text not in self.explainers:
            self.explainers[need.text] = EXPLAINERS.build(spec)
        explanation = self.explainers[need.text](self.model, images, batch.labels if target == "label" else None)
        if of == "images" or batch.geometry is None:
            return explanation.maps
        return batch.geometry.move(explanation.maps)


def nobody(batch: Batch, needs: Sequence[str]) -> Answer:
    """The teacher of the base student, and of any list of methods that asks for nothing."""
    if needs:
        raise UserError(f"these methods need a teacher ({', '.join(needs)}), and there is none: name one in [teacher]")
    return Answer()
