"""KD layer (letKD): a layer of the student predicts the cluster of the teacher's feature at every place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Float, Integer
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from distilens.core import Answer, Batch, Method, Model, Output, Teacher
from distilens.data.splits import Data
from distilens.foundation.errors import UserError
from distilens.foundation.fingerprints import key_of
from distilens.foundation.notation import Spec
from distilens.foundation.settings import Count
from distilens.methods.codebook import DIMENSIONS, Codebook, check, make_codebook, nearest_own_subclass, nearness
from distilens.models.grids import resized
from distilens.models.parts import build_part
from distilens.models.parts.kd_layer import KDPart
from distilens.models.taps import grid
from distilens.teachers.live import LiveTeacher

NAME = "kd_layer"


class KDLayer(Method):
    """A layer of the student that predicts the clusters of the teacher's features at each place.

    The part `kd_layer` (see `KDPart`) is inserted behind a tap of the student. Its scores `s [b k h w]` have the loss
    `KL(p_T || softmax_k(s))` in nats, averaged over the places, per sample, in float32. If the grids differ, the teacher's
    features or the student's scores are first averaged to the smaller one.

    * `stage=1`, a layer near the end: `p_T = softmax_k(-tau |f_t - rho_k|^2)`, with `rho` the centres of the teacher's features.
    * `stage=2`, a layer before it: `p_T = S[i]`. `i` is the nearest sub-class of the image's label: the one whose centre is
      nearest to the teacher's feature after a discriminant analysis. `S` is the codebook's table; its rows are flat if the
      teacher's features do not separate the classes. Images without a label give 0; mixed images use the first label.

    The layer stays in the student, where it needs neither teacher nor label. `weight=0` is the control: the same layer without
    its loss. The explainer `channel:tap=kd_layer.scores,number=3` shows the scores.

    Args:
        stage: 1 or 2. For both, use two terms, one of them with `as=`; the second part is called `kd_layer2`.
        tap: the student's tap; `last` for stage 1, `last-1` for stage 2. (The paper's stage 2 is the first block of the last
            stage, such as `layer3.0`.) The feature must be `[b c h w]`.
        teacher_tap: the teacher's tap; by default the same notation.
        codebook: a file of `distilens codebook` or `make_codebook`; it sets the number of templates. Without it a run makes its
            own codebook, with the following two options.
        templates: the number of templates, in stage 1.
        subclasses: sub-classes per class, in stage 2; each sub-class is a template.
        alpha: how much of the layer is added to the feature. The paper uses less than 1 only for MobileNetV2.
        tau: the factor `tau` of stage 1.
        release: let alpha fall linearly to 0 over the run, and remove the layer at the end. Validation already leaves the layer
            out, so that the selected student is the shipped one.

    Source: Gorgun, Gurbuz and Alatan 2023 (letKD, arXiv 2309.02843). Their loss is `ce + kd_layer` with weight 1 each, without
    `kd`. Their pseudo-code lacks the minus before `tau`; their code has it. `release` is ours.
    """

    inserts = True
    one_teacher = True

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
        self.tasks = ("classification",) if stage == 2 else ()
        self.because = "in stage 2 each place has the label of its image"
        self.needs = (f"features:{self.teacher_tap}",)
        self.inserted: list[KDPart] = []  # a list, not a submodule: the parameters belong to the student
        self.place = ""

    @property
    def asked(self) -> dict[str, Any]:
        """The arguments of `make_codebook` for the codebook that it needs."""
        size = {"templates": self.templates} if self.stage == 1 else {"subclasses": self.subclasses}
        return {"stage": self.stage, "tap": self.teacher_tap, **size}

    def prepare(self, student: Model, batch: Batch, answer: Answer) -> Model:
        if self.codebook is None:
            raise UserError(
                "kd_layer needs a codebook of the teacher. A run makes its own; elsewhere make one with distilens codebook or "
                "distilens.methods.codebook.make_codebook(teacher, data).save(path), and pass it as codebook=PATH"
            )
        book = self.codebook if isinstance(self.codebook, Codebook) else Codebook.load(self.codebook)
        self.size, self.classes = book.size, len(student.classes)
        theirs = grid(answer.features[self.teacher_tap], book.size)
        self.check(book, theirs.shape[1])
        for name, value in book.tensors.items():
            self.register_buffer(name, value.to(student.device), persistent=False)
        count = sum(name.startswith(NAME) for name in student.parts)
        self.place = f"{NAME}{count + 1}" if count else NAME
        options = {"channels": channels_at(student, self.tap), "templates": book.templates, "alpha": self.alpha}
        part = build_part(Spec(NAME, None, options))
        assert isinstance(part, KDPart)
        part.leaving = self.release
        student.insert(self.tap, part, name=self.place)
        student.tap(f"{self.place}.scores")
        self.inserted = [part]
        return student

    def check(self, book: Codebook, channels: int) -> None:
        """Raise a `UserError` if a codebook does not fit the method, the teacher's features or the classes."""
        if book.stage != self.stage:
            raise UserError(f"the codebook is for stage {book.stage}, but kd_layer has stage={self.stage}")
        if book.channels != channels:
            raise UserError(
                f"the codebook is for features with {book.channels} channels, but the teacher's features at "
                f"{self.teacher_tap!r} have {channels}: make a codebook of that tap"
            )
        if self.stage == 2 and book.classes != self.classes:
            raise UserError(f"the codebook has {book.classes} classes, but the student has {self.classes}")

    def collect(self, teacher: Teacher, data: Data, folder: Path, say: Callable[[str], None]) -> list[Path]:
        """Use the named codebook, or the one in the folder; make it first if it does not exist.

        Raises:
            UserError: the codebook belongs to another teacher or tap, or cannot be made.
        """
        assert isinstance(teacher, LiveTeacher)
        if self.codebook is not None:
            check(Codebook.load(str(self.codebook)), teacher, self.teacher_tap)
        else:
            options = {**self.asked, "tap": teacher.model.path_of(self.teacher_tap)}
            path = folder / "codebooks" / f"{key_of(teacher.identity, data.fingerprint, options)}.safetensors"
            if not path.is_file():
                make_codebook(teacher, data, **options, say=say).save(path)
            self.codebook = str(path)
        return [Path(str(self.codebook))]

    def improvise(self, student: Model, batch: Batch, answer: Answer) -> None:
        if self.codebook is None:
            self.codebook = self.noise(answer, student)

    def noise(self, answer: Answer, student: Model) -> Codebook:
        """A codebook of noise, as large as a real one, to time a step before there is a trained teacher."""
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
            target = self.teacher_distribution(places(resized(theirs, size)), batch.targets)
            divergence = functional.kl_div(ours, target, reduction="none").sum(-1).mean(-1)
        return divergence if self.stage == 1 else divergence.where(batch.targets >= 0, 0)

    def teacher_distribution(
        self, features: Float[Tensor, "b n c"], labels: Integer[Tensor, "b ..."]
    ) -> Float[Tensor, "b n k"]:
        """The target shares of the templates at each place, from the teacher's features; in stage 2 also from the labels."""
        centres = self.get_buffer("centres")
        if self.stage == 1:
            return (self.tau * nearness(features, centres)).softmax(-1)
        seen = (features - self.get_buffer("mean")) @ self.get_buffer("projection")
        own = labels.clamp_min(0)[:, None].expand(features.shape[:2])
        return self.get_buffer("table")[nearest_own_subclass(nearness(seen, centres), own, self.classes)]

    def finish(self, student: Model) -> Model:
        if self.release:
            student.remove(self.place)
        return student


def places(feature: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n c"]:
    """A feature as one vector per place."""
    return feature.flatten(2).transpose(1, 2)


def channels_at(student: Model, tap: str) -> int:
    """The channels of the student's feature at a tap.

    Raises:
        UserError: the feature is not `[b c h w]`.
    """
    with student.reading(tap) as read:
        student.observe()
        feature = read.take()
    if feature.ndim != 4 or grid(feature, student.size) is not feature:
        raise UserError(
            f"kd_layer takes features [b c h w], but the feature of {student.name} at {tap!r} is {list(feature.shape)}: name "
            "another tap"
        )
    return feature.shape[1]
