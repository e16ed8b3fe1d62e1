"""Needs: what a method asks of a teacher, in notation.

logits                          the logits of the images
logits:top=10                   the ten largest logits, all others equal: an approximation with small records
features:layer3                 the features at a tap
maps:ig:steps=32                the explainer's maps, with its own options and these:
    of=images|canonical         for the crops of the batch, or for the untransformed images, moved with the crops
    target=top1|label           for the teacher's own top class, or for the label
    share=0.1,draw=NAME         only for the images with `batch.draw(NAME) < share`; zero for the others
    every=4                     only at every fourth step; zero at the others
    classes=one|all             for one class, or for all: `[b classes h w]`
    pool=2                      averaged to this number of cells along a side
scores:confidence               a judge's score of the untransformed images
pruned:0.3                      the logits of a copy of the teacher without the smallest 30 % of its weights
module:fc                       a module of the teacher; module:head is the one that gives the logits, whatever its name
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Optional

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from distilens.core import Answer, Batch
from distilens.explain import EXPLAINERS
from distilens.foundation import randomness
from distilens.foundation.errors import UserError
from distilens.foundation.notation import Spec, convert
from distilens.models.grids import resized
from distilens.teachers.judges import JUDGES

FORMS = "logits, logits:top=K, features:TAP, maps:EXPLAINER, scores:JUDGE, pruned:SHARE or module:PATH"
KINDS = {kind: kind for kind in ("logits", "features", "maps", "scores", "pruned")} | {"module": "modules"}
"""The kinds of needs, each with the field of an `Answer` that holds its values."""
FURTHER = {
    "of": (Literal["images", "canonical"], "images"),
    "target": (Literal["top1", "label"], "top1"),
    "share": (Annotated[float, Field(ge=0, le=1)], 1.0),
    "draw": (str, None),
    "every": (Annotated[int, Field(ge=1)], 1),
    "classes": (Literal["one", "all"], "one"),
    "pool": (Optional[Annotated[int, Field(ge=1)]], None),  # noqa: UP045  # built at run time from a type that is not a class
}
"""The options of a need for maps besides the explainer's own: type and default."""


@dataclass(frozen=True)
class Need:
    """A need, read from its notation.

    Attributes:
        text: as the method wrote it.
        kind: one of `KINDS`.
        what: the tap, explainer, judge, share or path.
        of: whether the answer is for the images of the batch, or for the untransformed images.
        target: the class that maps explain.
        share, draw, every: the images of the batch, and the steps, that are asked for.
        classes, pool: whether there are maps of all classes, and the number of cells along a side that maps are averaged to.
        top: the number of logits; None for all.
    """

    text: str
    kind: str
    what: str
    of: Literal["images", "canonical"] = "images"
    target: Literal["top1", "label"] = "top1"
    share: float = 1.0
    draw: str | None = None
    every: int = 1
    classes: Literal["one", "all"] = "one"
    pool: int | None = None
    top: int | None = None

    @property
    def exact(self) -> bool:
        """Whether the answer is computed in float32, whatever the precision of the step."""
        return self.kind in ("maps", "scores")

    @classmethod
    @cache
    def parse(cls, text: str) -> Need:
        """Read the notation.

        Raises:
            UserError: the kind of need is unknown, or an option is unknown or wrong.
        """
        kind, _, what = text.partition(":")
        if kind == "logits" and what:
            top = what.removeprefix("top=")
            if top == what or not top.isdecimal() or not int(top):
                raise UserError(f"unknown need {text!r}: {FORMS}")
            return cls(text, kind, "", top=int(top))
        if kind not in KINDS or bool(what) != (kind != "logits"):
            raise UserError(f"unknown need {text!r}: {FORMS}")
        if kind == "pruned":
            check_share(text, what)
        if kind == "scores":
            return cls(text, kind, str(JUDGES.resolve(what)), of="canonical")
        if kind != "maps":
            return cls(text, kind, what)
        spec = Spec.parse(what)
        own = {key: value for key, value in spec.options.items() if key not in FURTHER}
        explainer = EXPLAINERS.resolve(Spec(spec.name, spec.argument, own))
        further = {name: spec.options.get(name, default) for name, (_, default) in FURTHER.items()}
        for name, value in further.items():
            if name in spec.options:
                try:
                    further[name] = convert(value, FURTHER[name][0])
                except ValueError as error:
                    raise UserError(f"{text!r}: {name}: {error}; of=canonical|images, target=top1|label") from None
        if (further["share"] < 1) != (further["draw"] is not None):
            raise UserError(f"{text!r}: share= and draw= go together: share is compared with the numbers of draw")
        if further["classes"] == "all":
            further["target"] = "top1"  # it makes no difference, so it must not change the name
        return cls(text, kind, str(explainer), **further)

    @property
    def key(self) -> str:
        """Its key in the field of an answer."""
        return self.text if self.kind == "maps" else self.what

    def read(self, answer: Answer) -> Any:
        """Its value in an answer: a tensor, or a module."""
        field = getattr(answer, KINDS[self.kind])
        assert field is not None, "a teacher gives what it is asked for"
        return field if self.kind == "logits" else field[self.key]

    @property
    def question(self) -> str:
        """The need for all images, with every option of its explainer written out."""
        if self.kind == "logits":
            return "logits" if self.top is None else f"logits:top={self.top}"
        if self.kind != "maps":
            return f"{self.kind}:{self.what}"
        further = ["classes=all"] if self.classes == "all" else [f"target={self.target}"]
        if self.pool is not None and self.of == "images":  # canonical maps are first moved, then averaged
            further.append(f"pool={self.pool}")
        return f"maps:{self.what}{',' if ':' in self.what else ':'}{','.join(further)}"

    @property
    def name(self) -> str:
        """The name of the stored answers: the question, and `of=canonical` if it is about the untransformed images."""
        return self.question + (f"{',' if ':' in self.question else ':'}of=canonical" if self.of == "canonical" else "")

    def rows(self, batch: Batch) -> np.ndarray:
        """The positions in the batch of the images that are asked for, computed on the host."""
        if batch.step % self.every:
            return np.arange(0)
        if self.draw is None or self.share >= 1:
            return np.arange(len(batch))
        index = batch.index.cpu() if batch.variant is None else torch.from_numpy(batch.variant.index)
        return np.flatnonzero(randomness.uniform(self.draw, index, batch.seed, batch.epoch)[:, 0].numpy() < self.share)


def read_needs(texts: Sequence[str]) -> list[Need]:
    """The needs, from their notation; of several needs for logits only the most exact one, which answers them all."""
    needs = [Need.parse(text) for text in texts]
    most = max(of_kind(needs, "logits"), key=lambda need: need.top or sys.maxsize, default=None)
    return [need for need in needs if need.kind != "logits" or need is most]


def of_kind(needs: Sequence[Need], *kinds: str) -> list[Need]:
    return [need for need in needs if need.kind in kinds]


def make_answer(values: Mapping[Need, Any], trust: Tensor | None = None) -> Answer:
    """An answer that holds one value per need: a tensor or a module; for maps a pair, the maps and the classes explained."""
    fields: dict[str, Any] = {field: {} for field in KINDS.values()} | {"logits": None, "targets": {}}
    for need, value in values.items():
        if need.kind == "logits":
            fields["logits"] = value
        elif need.kind == "maps":
            fields["maps"][need.key], fields["targets"][need.key] = value
        else:
            fields[KINDS[need.kind]][need.key] = value
    return Answer(**fields, trust=trust)


def check_share(text: str, share: str) -> None:
    """Raise a `UserError` if the share of a pruned copy is not between 0 and 1."""
    try:
        fits = 0 < float(share) < 1
    except ValueError:
        fits = False
    if not fits:
        raise UserError(f"{text!r}: the share of weights to prune must be a number between 0 and 1")


def moved(batch: Batch, need: Need, maps: Tensor, rows: Tensor | None = None) -> Tensor:
    """Move maps of untransformed images (only those at `rows`) as the batch was moved, and average them if `pool` is set.

    Maps of the batch's own images are only averaged.

    Raises:
        UserError: a second image was mixed in, and the maps are of one image.
    """
    if need.of == "images":
        return pooled(maps, need)
    if batch.mixed is not None:
        raise UserError(
            f"{need.text}: maps of=canonical are of one image, but mix= shows two: remove one of the two options"
        )
    if batch.geometry is None or not len(maps):
        return pooled(maps, need)
    return pooled((batch.geometry if rows is None else batch.geometry.select(rows)).move(maps), need)


def pooled(maps: Tensor, need: Need) -> Tensor:
    """Maps averaged to the number of cells that the need asks for."""
    return maps if need.pool is None else resized(maps, (need.pool, need.pool))


def spread(batch: Batch, rows: Tensor, values: Tensor) -> Tensor:
    """Put the values of some images at their positions in the batch; the others get zero."""
    if len(rows) == len(batch):
        return values
    return values.new_zeros(len(batch), *values.shape[1:]).index_copy(0, rows, values)


def levelled(logits: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `top` largest logits, their classes, and one logit `r` for all others, which keeps their total mass.

    `r = logsumexp(others) - log(classes - top)`, so the probabilities of the largest are exact at temperature 1.
    """
    classes = logits.shape[1]
    values, places = logits.topk(min(top, classes), dim=1)
    if values.shape[1] == classes:
        return values, places, values[:, -1]
    others = logits.scatter(1, places, float("-inf"))
    return values, places, others.logsumexp(1) - float(np.log(classes - values.shape[1]))


def unlevelled(values: Tensor, places: Tensor, rest: Tensor, classes: int) -> Tensor:
    """The approximate inverse of `levelled`."""
    return rest[:, None].repeat(1, classes, *[1] * (rest.ndim - 1)).scatter(1, places, values)
