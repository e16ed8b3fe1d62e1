"""What methods ask of a teacher, as notation.

logits                          the logits of the images
logits:top=10                   the ten largest of them, the others level: an approximation that takes little room
features:layer3                 the features at a tap
maps:ig:steps=32                the explainer's maps; its own options, and further ones:
    of=images|canonical         of these very crops, or of the untransformed images, moved with them
    target=top1|label           of the teacher's own first class, or of the label
    share=0.1,draw=NAME         of the images alone for which `batch.draw(NAME) < share`; zero for the others
    every=4                     at every fourth step alone; zero at the others
    classes=one|all             of that class, or of all: `[b classes h w]`
    pool=2                      averaged to so many cells along a side
scores:confidence               a judge's score of the untransformed images
pruned:0.3                      the logits of a copy of the teacher without that share of its weights, the smallest
module:fc                       a part of the teacher; module:head is what gives the logits, whatever its name
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Annotated, Literal, Optional

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from distilens import draws
from distilens.core import Batch
from distilens.errors import UserError
from distilens.explain import EXPLAINERS
from distilens.explain.maps import resized
from distilens.specs import Spec, convert
from distilens.teachers.judges import JUDGES

FORMS = "logits, logits:top=K, features:TAP, maps:EXPLAINER, scores:JUDGE, pruned:SHARE or module:PATH"
KINDS = ("logits", "features", "maps", "scores", "pruned", "module")
FURTHER = {
    "of": (Literal["images", "canonical"], "images"),
    "target": (Literal["top1", "label"], "top1"),
    "share": (Annotated[float, Field(ge=0, le=1)], 1.0),
    "draw": (str, None),
    "every": (Annotated[int, Field(ge=1)], 1),
    "classes": (Literal["one", "all"], "one"),
    "pool": (Optional[Annotated[int, Field(ge=1)]], None),  # noqa: UP045  # made at run time, of what is no class
}
"""What a maps need says beside the explainer's own options: type and default."""


@dataclass(frozen=True)
class Need:
    """A need, read from its notation.

    Attributes:
        text: as the method wrote it; answers are found by it.
        kind: one of `KINDS`.
        what: the tap, explainer, judge or path.
        of: whether the answer is of these images, or of the untransformed ones.
        target: of which class maps are.
        share, draw, every: of which images of the batch, at which steps.
        classes, pool: whether maps are of all classes, and the cells along a side that they are averaged to.
        top: how many logits; None for all.
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
            UserError: no such kind of need, or an option that it does not have.
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
            raise UserError(f"{text!r}: share= and draw= go together, for share is compared with what is drawn")
        if further["classes"] == "all":
            further["target"] = "top1"  # it makes no difference, and so is no part of the name
        return cls(text, kind, str(explainer), **further)

    @property
    def question(self) -> str:
        """The need for all images, with every option of its explainer written out."""
        if self.kind == "logits":
            return "logits" if self.top is None else f"logits:top={self.top}"
        if self.kind != "maps":
            return f"{self.kind}:{self.what}"
        further = ["classes=all"] if self.classes == "all" else [f"target={self.target}"]
        if self.pool is not None and self.of == "images":  # maps that are moved yet are averaged afterwards
            further.append(f"pool={self.pool}")
        return f"maps:{self.what}{',' if ':' in self.what else ':'}{','.join(further)}"

    @property
    def name(self) -> str:
        """What answers are stored under: the question, and where it is asked of the untransformed images."""
        return self.question + (f"{',' if ':' in self.question else ':'}of=canonical" if self.of == "canonical" else "")

    def rows(self, batch: Batch) -> np.ndarray:
        """The positions in the batch of the images that are asked for, found on the host."""
        if batch.step % self.every:
            return np.arange(0)
        if self.draw is None or self.share >= 1:
            return np.arange(len(batch))
        index = batch.index.cpu() if batch.variant is None else torch.from_numpy(batch.variant.index)
        return np.flatnonzero(draws.uniform(self.draw, index, batch.seed, batch.epoch)[:, 0].numpy() < self.share)


def check_share(text: str, share: str) -> None:
    """Raise a `UserError` where the share of weights that a pruned copy lacks is none."""
    try:
        fits = 0 < float(share) < 1
    except ValueError:
        fits = False
    if not fits:
        raise UserError(f"{text!r}: the share of the weights that the copy lacks is a number between 0 and 1")


def moved(batch: Batch, need: Need, maps: Tensor, rows: Tensor | None = None) -> Tensor:
    """Maps of the untransformed images (of those at `rows` alone), moved as the batch's were; others as they are. Averaged.

    Raises:
        UserError: another image was mixed in, of which the map of the untransformed one says nothing.
    """
    if need.of == "images":
        return pooled(maps, need)
    if batch.mixed is not None:
        raise UserError(
            f"{need.text}: maps of=canonical are of one image, and mix= shows two: take one of the two away"
        )
    if batch.geometry is None or not len(maps):
        return pooled(maps, need)
    return pooled((batch.geometry if rows is None else batch.geometry.select(rows)).move(maps), need)


def pooled(maps: Tensor, need: Need) -> Tensor:
    """Maps averaged to as many cells as the need asks for."""
    return maps if need.pool is None else resized(maps, (need.pool, need.pool))


def spread(batch: Batch, rows: Tensor, values: Tensor) -> Tensor:
    """Values of some of the images, at their places in the batch; zero for the others."""
    if len(rows) == len(batch):
        return values
    return values.new_zeros(len(batch), *values.shape[1:]).index_copy(0, rows, values)


def levelled(logits: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `top` largest logits, their classes, and the one logit that gives the others together the mass that they had.

    `r = logsumexp(others) - log(classes - top)`: with it the probabilities of the largest are exact at temperature 1.
    """
    classes = logits.shape[1]
    values, places = logits.topk(min(top, classes), dim=1)
    if values.shape[1] == classes:
        return values, places, values[:, -1]
    others = logits.scatter(1, places, float("-inf"))
    return values, places, others.logsumexp(1) - float(np.log(classes - values.shape[1]))


def unlevelled(values: Tensor, places: Tensor, rest: Tensor, classes: int) -> Tensor:
    """The inverse of `levelled`, as far as it goes."""
    return rest[:, None].repeat(1, classes).scatter(1, places, values)
