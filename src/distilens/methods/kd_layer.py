"""Knowing what the teacher sees where: a layer of the student that names every place by templates, as the teacher would."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from distilens.codebook import DIMENSIONS, Codebook, chosen, nearness
from distilens.core import Answer, Batch, Method, Model, Output
from distilens.errors import UserError
from distilens.explain.maps import resized
from distilens.parts import build_part
from distilens.specs import Spec
from distilens.taps import grid

Count = Annotated[int, Field(ge=1)]
NAME = "kd_layer"


class KDPart(nn.Module):
    """What each place is like, in templates, added to the feature: `[b c h w]` to the same shape. `alpha=0` is the identity.

    At every place, with `x` the feature: `s = g1 cos(x, w_k)` (the module `scores`, which can be tapped), `p = relu(BN(s))`, and
    `x + alpha g2 V (p / |p|)`, the rows of V (one a channel) of length 1. g1 and g2 are learnt, from 3 and 1. Where no template
    passes the ReLU nothing is added.

    Costs `2 c k + 2 k` parameters and the two gains; `2 c k h w` MACs.

    Args:
        channels: of the feature, `c`.
        templates: `k`.
        alpha: how much of it is added.

    Source: Gorgun, Gurbuz and Alatan 2023 (letKD, arXiv 2309.02843), supplement and code. Theirs takes the last feature before
    its ReLU; a part stands behind a module, so here it is the feature behind that ReLU where a block ends in it.
    """

    def __init__(self, *, channels: Count, templates: Count, alpha: float = 1.0):
        super().__init__()
        self.scores = Scores(channels, templates)
        self.norm = nn.BatchNorm2d(templates)
        self.values = nn.Parameter(torch.randn(channels, templates, 1, 1))
        self.gain = nn.Parameter(torch.tensor(1.0))
        self.alpha: Tensor
        self.register_buffer("alpha", torch.tensor(alpha), persistent=False)  # the notation says it
        self.leaving = False  # see `KDLayer.release`: it is there in training alone

    def forward(self, feature: Float[Tensor, "b c h w"], inputs: Mapping[str, Tensor]) -> Float[Tensor, "b c h w"]:
        fits = self.norm(self.scores(feature)).relu()
        # the length is taken off the c channels behind V, not off the k templates in front of it
        length = torch.linalg.vector_norm(fits, dim=1, keepdim=True, dtype=torch.float32).clamp_min(1e-6)
        added = self.gain * functional.conv2d(fits, unit(self.values)) / length
        alpha = torch.zeros_like(self.alpha) if self.leaving and not self.training else self.alpha
        return feature + (alpha * added).to(feature.dtype)


class Scores(nn.Module):
    """How well each place fits each template: `g cos(x, w_k)`, `[b c h w]` to `[b k h w]`, from -|g| to |g|."""

    def __init__(self, channels: int, templates: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(templates, channels, 1, 1))
        self.gain = nn.Parameter(torch.tensor(3.0))

    def forward(self, feature: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        return self.gain * functional.conv2d(unit(feature).to(self.weight.dtype), unit(self.weight))


def unit(vectors: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Vectors along axis 1, of length 1, measured in float32; an empty one stays 0."""
    return functional.normalize(vectors.float(), dim=1, eps=1e-6).to(vectors.dtype)


class KDLayer(Method):
    """A layer of the student that says what each place is like, taught by clusters of the teacher's features.

    The part `kd_layer` (see `KDPart`) is put behind a tap of the student, and its scores `s [b k h w]` are taught:
    `KL(p_T || softmax_k(s))` in nats, averaged over the places, per sample, in float32. Of two grids the smaller counts: the
    teacher's features, or the student's scores, are averaged to it first.

    * `stage=1`, a layer near the end: `p_T = softmax_k(-tau |f_t - rho_k|^2)`, with `rho` the centres of the teacher's features.
    * `stage=2`, a layer before it: `p_T = S[i]`, with `i` the sub-class, of those of the image's label, whose centre is nearest
      to the teacher's feature in the space of a discriminant analysis, and `S` the codebook's table: flat where the teacher's
      features do not tell classes apart. Images without a label count 0; where images are mixed, the first one's label counts.

    The layer stays in the student, and needs neither teacher nor label there. `weight=0` is the control: the same layer,
    untaught.
    The scores can be looked at: `channel:tap=kd_layer.scores,number=3`.

    Args:
        stage: 1 or 2; for both, two terms, one of them with `as=`. The second part is called `kd_layer2`.
        tap: the student's; `last` for stage 1, `last-1` for stage 2. (The paper's stage 2 is the first block of the last stage,
            such as `layer3.0`.) The feature must be `[b c h w]`.
        teacher_tap: the teacher's; by default the same notation.
        codebook: a file of `distilens codebook` or `make_codebook`, which says how many templates there are. Where none is named
            a run makes its own, with the following two.
        templates: how many, in stage 1.
        subclasses: how many a class, in stage 2, which has as many templates as sub-classes.
        alpha: how much of the layer is added to the feature. The paper takes less than 1 for MobileNetV2 alone.
        tau: of stage 1.
        release: alpha falls linearly to 0 over the run, and the layer is taken out at the end. It is left out already when the
            student is validated, so that what is selected is what is shipped.

    Source: Gorgun, Gurbuz and Alatan 2023 (letKD, arXiv 2309.02843). Their total is `ce + kd_layer` with weight 1 each, without
    `kd`. Their pseudo-code leaves out the minus before `tau`; their code has it. `release` is not theirs.
    """

    inserts = True

    def __init__(
        self,
        *,
        stage: Annotated[int, Field(ge=1, le=2)] = 1,
        tap: str | None = None,
        teacher_tap: str | None = None,
        codebook: str | None = None,
        templates: Count = 4096,
        subclasses: Count = 8,
        alpha: float = 1.0,
        tau: Annotated[float, Field(gt=0)] = 1.0,
        release: bool = False,
    ):
        super().__init__()
        self.stage, self.alpha, self.tau, self.release = stage, alpha, tau, release
        self.codebook: str | Codebook | None = codebook
        self.templates, self.subclasses = templates, subclasses
        self.tap = tap or ("last" if stage == 1 else "last-1")
        self.teacher_tap = teacher_tap or self.tap
        self.needs = (f"features:{self.teacher_tap}",)
        self.inserted: list[KDPart] = []  # of the student, whose parameters they are
        self.place = ""

    @property
    def asked(self) -> dict[str, Any]:
        """The codebook that it needs, as arguments of `make_codebook`."""
        size = {"templates": self.templates} if self.stage == 1 else {"subclasses": self.subclasses}
        return {"stage": self.stage, "tap": self.teacher_tap, **size}

    def prepare(self, student: Model, batch: Batch, answer: Answer) -> Model:
        if self.codebook is None:
            raise UserError(
                "kd_layer needs a codebook of the teacher: a run makes its own; elsewhere make one with distilens codebook or "
                "distilens.codebook.make_codebook(teacher, data).save(path), and give it as codebook=PATH"
            )
        book = self.codebook if isinstance(self.codebook, Codebook) else Codebook.load(self.codebook)
        self.size, self.classes = book.size, len(student.classes)
        theirs = grid(answer.features[self.teacher_tap], book.size)
        self.check(book, theirs.shape[1])
        for name, value in book.tensors.items():
            self.register_buffer(name, value.to(student.device), persistent=False)
        taken = sum(name.startswith(NAME) for name in student.parts)
        self.place = f"{NAME}{taken + 1}" if taken else NAME
        options = {"channels": channels_at(student, self.tap), "templates": book.templates, "alpha": self.alpha}
        part = build_part(Spec(NAME, None, options))
        assert isinstance(part, KDPart)
        part.leaving = self.release
        student.insert(self.tap, part, name=self.place)
        student.tap(f"{self.place}.scores")
        self.inserted = [part]
        return student

    def check(self, book: Codebook, channels: int) -> None:
        """Raise a `UserError` where a codebook is of something else than what the teacher and the labels give."""
        if book.stage != self.stage:
            raise UserError(f"the codebook is of stage {book.stage}, and kd_layer has stage={self.stage}")
        if book.channels != channels:
            raise UserError(
                f"the codebook is of features with {book.channels} channels, and the teacher's at "
                f"{self.teacher_tap!r} have {channels}: make one of that tap"
            )
        if self.stage == 2 and book.classes != self.classes:
            raise UserError(f"the codebook is of {book.classes} classes, and the student has {self.classes}")

    def stand_in(self, answer: Answer, student: Model) -> Codebook:
        """A codebook of noise, as large as a run's own: to time a step before there is a trained teacher."""
        channels = grid(answer.features[self.teacher_tap], student.size).shape[1]
        if self.stage == 1:
            return Codebook(1, self.teacher_tap, student.size, torch.randn(self.templates, channels))
        classes = len(student.classes)
        count, seen = self.subclasses * classes, min(DIMENSIONS, classes - 1, channels)
        table = torch.rand(count, count).softmax(1)
        numbers = (torch.randn(count, seen), torch.zeros(channels), torch.randn(channels, seen), table)
        return Codebook(2, self.teacher_tap, student.size, *numbers, classes)

    def transform(self, batch: Batch, answer: Answer) -> Batch:
        if self.release:
            for part in self.inserted:
                part.alpha.fill_(self.alpha * (1 - batch.progress))
        return batch

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"]:
        scores = output.features[f"{self.place}.scores"]
        with torch.autocast(scores.device.type, enabled=False):
            theirs = grid(answer.features[self.teacher_tap], self.size).float()
            size = (min(scores.shape[-2], theirs.shape[-2]), min(scores.shape[-1], theirs.shape[-1]))
            ours = places(resized(scores.float(), size)).log_softmax(-1)
            wanted = self.wanted(places(resized(theirs, size)), batch.labels.clamp_min(0))
            apart = functional.kl_div(ours, wanted, reduction="none").sum(-1).mean(-1)
        return apart if self.stage == 1 else apart.where(batch.labels >= 0, 0)

    def wanted(self, features: Float[Tensor, "b n c"], labels: Int[Tensor, " b"]) -> Float[Tensor, "b n k"]:
        """What the templates' shares are to be at each place, by the teacher's features."""
        centres = self.get_buffer("centres")
        if self.stage == 1:
            return (self.tau * nearness(features, centres)).softmax(-1)
        seen = (features - self.get_buffer("mean")) @ self.get_buffer("projection")
        own = labels[:, None].expand(features.shape[:2])
        return self.get_buffer("table")[chosen(nearness(seen, centres), own, self.classes)]

    def finish(self, student: Model) -> Model:
        if self.release:
            student.remove(self.place)
        return student


def places(feature: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n c"]:
    """A feature as one vector a place."""
    return feature.flatten(2).transpose(1, 2)


def channels_at(student: Model, tap: str) -> int:
    """The channels of the student's feature at a tap.

    Raises:
        UserError: it is not `[b c h w]`.
    """
    with student.reading(tap) as read:
        student.observe()
        feature = read.take()
    if feature.ndim != 4 or grid(feature, student.size) is not feature:
        raise UserError(
            f"kd_layer takes features [b c h w]; that of {student.name} at {tap!r} is {list(feature.shape)}: name another tap"
        )
    return feature.shape[1]
