"""The live teacher, a model that answers during training; and `nobody`, for runs without a teacher."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cache, cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from distilens.core import Answer, Batch, Model, Teacher
from distilens.data.source import digest
from distilens.explain import Explainer, build_explainer
from distilens.explain.activation import ActivationMap
from distilens.explain.explanation import known_to_be_sound
from distilens.foundation.devices import to_device
from distilens.foundation.errors import UserError
from distilens.foundation.notation import Spec
from distilens.models import MODELS
from distilens.models.folding import Precision, prepare
from distilens.models.heads import heads
from distilens.models.saved import architecture
from distilens.models.taps import find
from distilens.teachers.judges import Judge, build_judge
from distilens.teachers.needs import (
    Need,
    levelled,
    make_answer,
    moved,
    moved_target,
    of_kind,
    read_needs,
    spread,
    unlevelled,
)
from distilens.teachers.pruned import pruned


class LiveTeacher(Teacher):
    """A model that answers each batch: frozen, in eval mode, without a graph. It computes only what is needed.

    It uses copies of the model that are made for inference (`prepare`). Logits and features have the precision of the autocast
    around the call; maps are float32.

    Args:
        model: the model. It is changed: its parameters no longer require gradients, and it stays in eval mode.
    """

    def __init__(self, model: Model):
        self.model = model.eval().requires_grad_(False)
        self.prepared: dict[str, Model] = {}  # by precision
        self.kept: set[str] = set()  # taps that must not be folded away
        self.explainers: dict[str, Explainer] = {}  # by need, built once
        self.judges: dict[str, Judge] = {}
        self.copies: dict[str, LiveTeacher] = {}  # pruned, by share

    def __repr__(self) -> str:
        return f"LiveTeacher({self.model.name!r})"

    def __call__(self, batch: Batch, needs: Sequence[str]) -> Answer:
        wanted = read_needs(needs)
        values: dict[Need, Any] = {}
        if passed := of_kind(wanted, "logits", "features"):
            logits, features = self.forward(batch.images, [need.what for need in of_kind(wanted, "features")])
            for need in passed:
                values[need] = approximate(logits, need.top) if need.kind == "logits" else features[need.what]
        for together in at_several_taps(tuple(of_kind(wanted, "maps"))):
            values |= zip(together, self.explained(batch, together), strict=True)
        for need in of_kind(wanted, "scores"):
            values[need] = self.judged(batch, need)
        for need in of_kind(wanted, "pruned"):
            values[need] = self.pruned(need.what).forward(batch.images)[0]
        for need in of_kind(wanted, "module"):
            values[need] = self.part(need.what)
        return make_answer(values)

    @property
    def classes(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.model.classes

    def part(self, path: str) -> nn.Module:
        """A module of the network, by path; `head` is the module that gives the logits, whatever its name."""
        return find(self.model.network, heads(self.model)[-1] if path == "head" else path)

    def pruned(self, share: str) -> LiveTeacher:
        """A copy without the smallest weights."""
        if share not in self.copies:
            self.copies[share] = LiveTeacher(pruned(self.model, float(share)))
        return self.copies[share]

    @property
    def precision(self) -> Precision:  # type: ignore[override]
        """The precision of logits and features: that of the autocast around the call, else float32."""
        device = self.model.device.type
        if not torch.is_autocast_enabled(device):
            return "float32"
        return "bfloat16" if torch.get_autocast_dtype(device) == torch.bfloat16 else "float16"

    @cached_property
    def identity(self) -> dict[str, Any]:  # type: ignore[override]
        """What the answers depend on: the network, its weights, and its input size and normalisation."""
        model = self.model
        weights = [part for key, value in model.bare_state().items() for part in (key, plain(value))]
        pixels = [*model.mean.flatten().tolist(), *model.std.flatten().tolist()]
        return {
            "teacher": without_weights(model),
            "weights": digest(*weights),
            "pixels": {"size": list(model.size), "mean and std": pixels},
            "classes": list(model.classes),
        }

    def forward(self, images: Tensor, taps: Collection[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, and the features at some taps."""
        model = self.form(self.precision, [self.model.path_of(tap) for tap in taps])
        for tap in taps:
            model.tap(tap)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            output = model(images)
        return output.logits, {tap: output.features[tap].to(images.dtype) for tap in taps}

    @property
    def exact(self) -> Model:
        """The model in float32, for maps and everything computed from them."""
        return self.form("float32")

    def form(self, precision: Precision, taps: Collection[str] = ()) -> Model:
        """The model prepared in a precision. It is prepared again if a tap that is read now was folded away."""
        made = self.prepared.get(precision)
        if made is None or made.folded.intersection(taps):
            self.kept.update(taps)
            made = self.prepared[precision] = prepare(self.model, precision=precision, keep=self.kept)
        return made

    def explained(self, batch: Batch, needs: Sequence[Need]) -> list[tuple[Tensor, Tensor]]:
        """The maps, and the classes that they explain, for needs that differ only in the tap."""
        need = needs[0]
        chosen = need.rows(batch)
        rows = to_device(chosen, batch.images.device)
        if not len(rows):  # one image shows the shape of the maps
            ones = [replace(need, draw=None, every=1) for need in needs]
            answers = self.explained(batch.select(np.zeros(1, int)), ones)
            return [(spread(batch, rows, maps[:0]), spread(batch, rows, target[:0])) for maps, target in answers]
        selected = batch if len(rows) == len(batch) else batch.select(chosen)
        images = selected.canonical if need.of == "canonical" else selected.images
        explainer, model = self.explainer(need.what)
        target = selected.targets if need.target == "label" else None
        # pixels come from bytes, and the teacher's own top class exists; a label may be missing
        with contextlib.nullcontext() if target is not None else known_to_be_sound():
            if need.classes == "all":
                return [(spread(batch, rows, moved(selected, need, explainer.classwise(model, images))), batch.targets)]
            if len(needs) == 1:
                explanations = [explainer(model, images, target)]
            else:
                taps = [cast(str, self.explainer(need.what)[0].tap) for need in needs]
                model = self.form("float32", [self.model.path_of(tap) for tap in taps])
                by_tap = cast(ActivationMap, explainer).at(list(dict.fromkeys(taps)), model, images, target)
                explanations = [by_tap[tap] for tap in taps]
        return [
            (
                spread(batch, rows, moved(selected, need, explanation.maps)),
                spread(batch, rows, moved_target(selected, need, explanation.target)),
            )
            for need, explanation in zip(needs, explanations, strict=True)
        ]

    def judged(self, batch: Batch, need: Need) -> Tensor:
        """A judge's scores, in float32, whatever the precision of the step."""
        if need.what not in self.judges:
            self.judges[need.what] = build_judge(need.what)
        judge = self.judges[need.what]
        with torch.no_grad(), torch.autocast(batch.images.device.type, enabled=False):
            return judge(self.exact_for(judge.explainer), batch)

    def explainer(self, part: str) -> tuple[Explainer, Model]:
        """The explainer, and the prepared model that it explains."""
        if part not in self.explainers:
            self.explainers[part] = build_explainer(part)
        explainer = self.explainers[part]
        return explainer, self.exact_for(explainer)

    def exact_for(self, explainer: Explainer | None) -> Model:
        """The model in float32, with the tap that an explainer reads."""
        taps = [explainer.tap] if explainer and explainer.tap else []
        return self.form("float32", [self.model.path_of(tap) for tap in taps])


@cache
def at_several_taps(needs: tuple[Need, ...]) -> list[list[Need]]:
    """Group needs for maps that one forward pass can answer: the same explainer at different taps."""
    groups: dict[Any, list[Need]] = {}
    for need in needs:
        spec = Spec.parse(need.what)
        one = need.classes == "one" and "tap" in spec.options and isinstance(build_explainer(need.what), ActivationMap)
        key = replace(need, text="", what=str(spec.replaced(tap=None)), pool=None) if one else need
        groups.setdefault(key, []).append(need)
    return list(groups.values())


def approximate(logits: Tensor, top: int | None) -> Tensor:
    """The `top` largest logits, all others equal; all logits if `top` is None."""
    return logits if top is None else unlevelled(*levelled(logits.float(), top), logits.shape[1])


def without_weights(model: Model) -> str:
    """The network in notation with all options, but without the source of its weights, its size and its normalisation.

    For a module that is not in the registry, its name.
    """
    try:
        spec = MODELS.resolve(architecture(model.name, model.size))
    except UserError:
        return model.name
    kept = {name: value for name, value in spec.options.items() if name not in ("size", "mean", "std")}
    return str(Spec(spec.name, spec.argument, kept))


def plain(value: Tensor) -> Any:
    """The bytes of a tensor of any type."""
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy() if value.numel() else b""


class Nobody(Teacher):
    """The teacher of the base student, and of any list of methods without needs."""

    def __call__(self, batch: Batch, needs: Sequence[str]) -> Answer:
        if needs:
            raise UserError(
                f"these methods need a teacher ({', '.join(needs)}), but there is none: name one in [teacher]"
            )
        return Answer()


nobody = Nobody()
