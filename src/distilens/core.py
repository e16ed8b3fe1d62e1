"""The whole idea on one page: a run trains a student with a list of methods, each of them up to four verbs.

             once, before                      each step                                               once, after
    Method:  prepare(student, batch, answer)   transform(batch, answer)   loss(batch, output, answer)   finish(student)

A `Batch` goes to the teacher, which gives an `Answer`. Each method may change what the student sees (`transform`); the student
gives an `Output`; each method may add a named term (`loss`). The sum of the terms is what is minimised, and the terms are
the log.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from distilens import draws
from distilens.balance import Balance
from distilens.errors import UserError
from distilens.model import Model, Output, Prediction
from distilens.processor import to_device
from distilens.specs import Spec, write
from distilens.taps import INPUT

if TYPE_CHECKING:
    from distilens.data.geometry import Geometry
    from distilens.data.variant import Variant

__all__ = [
    "Answer",
    "Batch",
    "Method",
    "Mixed",
    "Model",
    "Objective",
    "Output",
    "Prediction",
    "Teacher",
    "accompany",
    "at_use",
    "needs_of",
]


@dataclass(frozen=True)
class Mixed:
    """What was mixed into each image of a batch: the other image's label, and the share in [0, 1] that is still its own."""

    labels: Int[Tensor, " b"]
    share: Float[Tensor, " b"]


@dataclass(frozen=True)
class Batch:
    """Some images and all that is known about them.

    Attributes:
        images: pixels in [0, 1]: what teachers see. Never changed by a method.
        labels: the class of each image; -1 where there is none.
        index: the row of each image in the *source* data set, before `limit`, `shots` and splits.
        view: what the student sees; starts as `images`, and only methods change it.
        inputs: named extra inputs of the student, such as a map.
        mask: evidence in [0, 1], where the data set has it.
        mixed: the other image that was mixed in, where augmentation mixes: its labels, and the first image's share.
        geometry: the source box and flip that were drawn for each image; None for untransformed images.
        variant: which augmentation of which set the images are, and `index` on the host: what answers are stored by.
        source: makes the untransformed images; read them as `canonical`.
        epoch, step, progress, seed: where in the run this is (`step` counts from the beginning, `progress` is in [0, 1]), and
            the data seed.
    """

    images: Float[Tensor, "b c h w"]
    labels: Int[Tensor, " b"]
    index: Int[Tensor, " b"]
    view: Float[Tensor, "b c h w"] = None  # type: ignore[assignment]  # set to `images` below
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    mask: Float[Tensor, "b h w"] | None = None
    mixed: Mixed | None = None
    geometry: Geometry | None = None
    variant: Variant | None = None
    source: Callable[[], Tensor] | None = None
    epoch: int = 0
    step: int = 0
    progress: float = 0.0
    seed: int = 0

    def __post_init__(self):
        if self.view is None:
            object.__setattr__(self, "view", self.images)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def canonical(self) -> Float[Tensor, "b c h w"]:
        """The untransformed images, made when asked for."""
        return self.images if self.source is None else self.source()

    def untransformed(self) -> Batch:
        """The same images as they are in the data set: nothing moved, coloured, erased or mixed."""
        variant = self.variant and dataclasses.replace(self.variant, number=None)
        mask = variant.masks(self.images.device) if variant else self.mask if self.geometry is None else None
        return Batch(
            self.canonical, self.labels, self.index, mask=mask, variant=variant,
            epoch=self.epoch, step=self.step, progress=self.progress, seed=self.seed,
        )  # fmt: skip

    def select(self, positions: Int[Tensor, " n"] | np.ndarray) -> Batch:
        """Some of the images, by position in the batch. Positions on the host cost no waiting for a GPU."""
        rows = to_device(positions, self.images.device) if isinstance(positions, np.ndarray) else positions
        changes: dict[str, object] = {
            name: value[rows] for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        changes["inputs"] = {name: value[rows] for name, value in self.inputs.items()}
        changes["mixed"] = self.mixed and Mixed(self.mixed.labels[rows], self.mixed.share[rows])
        changes["geometry"] = self.geometry and self.geometry.select(rows)
        changes["variant"] = self.variant and self.variant.select(positions)
        changes["source"] = None if self.source is None else lambda: self.canonical[rows]
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def draw(self, name: str, count: int = 1) -> Float[Tensor, "b count"]:
        """Numbers in [0, 1) that depend on (seed, epoch, index, name) alone, whatever the order or the batch."""
        return draws.uniform(name, self.index, self.seed, self.epoch, count=count)

    def replaced(self, **changes: object) -> Batch:
        """This batch with some of its fields changed: what `transform` returns."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class Answer:
    """What a teacher says of a batch: only what some method needs is there.

    Attributes:
        logits: `[b classes]`.
        features: by tap.
        maps: by need, `[b h w]`, float32; of all classes, `[b classes h w]`.
        targets: by the same need, the class that each map explains, `[b]`.
        scores: by judge, `[b]`.
        modules: by path: a part of the teacher that a method reuses.
        pruned: by share: the logits of a copy of the teacher that lacks that share of its weights.
        trust: `[b]` in [0, 1]; 0 where no teacher is to be believed. Weights every loss that asks something of a teacher.
    """

    logits: Float[Tensor, "b classes"] | None = None
    features: Mapping[str, Tensor] = field(default_factory=dict)
    maps: Mapping[str, Float[Tensor, "b *classes h w"]] = field(default_factory=dict)
    targets: Mapping[str, Int[Tensor, " b"]] = field(default_factory=dict)
    scores: Mapping[str, Float[Tensor, " b"]] = field(default_factory=dict)
    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    pruned: Mapping[str, Float[Tensor, "b classes"]] = field(default_factory=dict)
    trust: Float[Tensor, " b"] | None = None


class Method(nn.Module):
    """One idea of one paper. Write the verbs that it has; each default changes nothing.

    Its own parameters and buffers are trained and checkpointed with it, and never shipped.

    Attributes:
        needs: what it asks of the teacher, in notation: `logits`, `features:layer3`, `maps:gradcam`, `module:fc`; see
            `teachers/needs.py`.
        weight: the factor of its term; the notation's `weight=` sets it.
        second_order: its loss differentiates a gradient, which `torch.compile` cannot.
        inserts: it puts a part into the student, and so is prepared before those that read the student's features.
        at_use: what it asks of the teacher even when the student is used: such a student is none without its teacher.
        every: its loss is taken at every so many steps, the first among them.
        negative: its loss can be below 0.
        notation: what it was built from, with all options: what a checkpoint of another list is told by.
        warmup, decay: over the first of these shares of the steps its term grows from 0, over the last it falls to 0.
    """

    needs: tuple[str, ...] = ()
    weight: float = 1.0
    second_order: bool = False
    inserts: bool = False
    at_use: tuple[str, ...] = ()
    every: int = 1
    negative: bool = False
    notation: str = ""
    warmup: float = 0.0
    decay: float = 0.0

    def prepare(self, student: Model, batch: Batch, answer: Answer) -> Model:
        """Once, before training: add taps and parts, size own modules from the shapes of a first batch."""
        return student

    def transform(self, batch: Batch, answer: Answer) -> Batch:
        """Each step, before the student: change `view` or `inputs`."""
        return batch

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Tensor | None:
        """Each step, after the student: a term per sample `[b]`, or a scalar."""
        return None

    def finish(self, student: Model) -> Model:
        """Once, after training: turn the training form into the final one."""
        return student

    def __repr__(self) -> str:
        """As a call: `kd(temperature=4,weight=0.9)`; what is left out of it is off, or as usual."""
        if not self.notation:
            return f"{type(self).__name__}()"
        spec = Spec.parse(self.notation)
        usual = {name: write(getattr(type(self), name)) for name in ("weight", "warmup", "decay")}
        told = {
            name: value
            for name, value in spec.options.items()
            if value not in ("", "none", "false", usual.get(name)) and name != "as"
        }
        name, _, options = str(Spec(spec.name, spec.argument, told)).partition(":")
        return f"{name}({options})"

    def ramp(self, progress: float) -> float:
        """How large its term is by now, in [0, 1]."""
        grown = progress / self.warmup if self.warmup else 1.0
        left = (1 - progress) / self.decay if self.decay else 1.0
        return min(1.0, grown, left)

    def notes(self) -> dict[str, float]:
        """What it has counted since it was last asked, by name: goes into the log beside the terms, once an epoch."""
        return {}


Teacher = Callable[[Batch, Sequence[str]], Answer]
"""Anything that answers a batch: `teacher(batch, needs) -> Answer`."""


class Objective(nn.Module):
    """What is minimised: the student, seen through a list of methods.

    Args:
        student: the model that is trained.
        methods: name -> method; the names are the terms' names in the log.
        balance: how the terms are weighed against each other; by default as their weights say.
    """

    def __init__(self, student: Model, methods: Mapping[str, Method], balance: Balance | None = None):
        super().__init__()
        self.balance = balance or Balance()
        signed = [name for name, method in methods.items() if method.negative]
        if self.balance.of_losses and signed:
            raise UserError(
                f"balance={type(self.balance).__name__.lower()} judges losses by their size, and that of {', '.join(signed)} "
                "can be negative: take ratio, which goes by gradients alone, or leave it out"
            )
        self.student = student
        self.methods = nn.ModuleDict(dict(methods))

    def terms(self) -> dict[str, Method]:
        """The methods by the names of their terms."""
        return cast(dict[str, Method], dict(self.methods.items()))

    @property
    def needs(self) -> tuple[str, ...]:
        """What all methods together ask of the teacher, each once."""
        return needs_of(self.terms().values())

    def prepare(self, batch: Batch, answer: Answer) -> None:
        """Let each method prepare the student on a first batch: first those that put parts into it.

        Raises:
            UserError: a teacher that answers for another number of classes than the student has.
        """
        if answer.logits is not None and answer.logits.shape[1] != len(self.student.classes):
            raise UserError(
                f"the teacher answers for {answer.logits.shape[1]} classes, and the student {self.student.name} has "
                f"{len(self.student.classes)}"
            )
        for method in sorted(self.terms().values(), key=lambda method: not method.inserts):
            before = INPUT in self.student.taps
            self.student = method.prepare(self.student, batch, answer)
            if INPUT in self.student.taps and not before:
                raise UserError(
                    f"{method.notation or type(method).__name__} compares the student's tap 'input', which is the images: "
                    "nothing can be learnt there. Name a layer of the student"
                )

    def forward(self, batch: Batch, answer: Answer) -> dict[str, Tensor]:
        """The weighted terms of one batch, by name; their sum is the loss."""
        for method in self.terms().values():
            batch = method.transform(batch, answer)
        output = self.student(batch.view, batch.inputs)
        terms: dict[str, Tensor] = {}
        for name, method in self.terms().items():
            loss = None if batch.step % method.every else method.loss(batch, output, answer)
            if loss is not None:
                if loss.ndim and method.needs and answer.trust is not None:
                    loss = loss * answer.trust
                terms[name] = method.weight * loss.float().mean()
        balanced = self.balance(terms, self.student, batch.step)
        return {name: self.terms()[name].ramp(batch.progress) * term for name, term in balanced.items()}

    def notes(self) -> dict[str, float]:
        """What the methods have counted since they were last asked, as `term/name`."""
        found = {name: method.notes() for name, method in self.terms().items()} | {"balance": self.balance.notes()}
        return {f"{name}/{key}": value for name, notes in found.items() for key, value in notes.items()}

    def finish(self) -> Model:
        """The student as it will be used: no method, no teacher, no label."""
        for method in self.terms().values():
            self.student = method.finish(self.student)
        return self.student


def with_terms(methods: Mapping[str, Method]) -> list[str]:
    """The names of those methods that have a loss; others change the student or the batch alone."""
    return [name for name, method in methods.items() if type(method).loss is not Method.loss]


def accompany(student: Model, methods: Iterable[Method], teacher: Teacher) -> None:
    """Give a student the inputs that it cannot do without, wherever it is used, from its teacher; most students need none."""
    asking = [method for method in methods if method.at_use]
    if not asking:
        return
    answering = at_use(teacher)

    def inputs(images: Tensor) -> Mapping[str, Tensor]:
        unknown = torch.full((len(images),), -1, device=images.device)
        batch = Batch(images, unknown, unknown)
        with torch.inference_mode(False):  # explaining takes gradients, whatever the student is run under
            answer = answering(batch, [need for method in asking for need in method.at_use])
        for method in asking:
            batch = method.transform(batch, answer)
        return batch.inputs

    student.companion = inputs


def at_use(teacher: Teacher) -> Teacher:
    """Who answers for images that no data set has: the teacher behind stored answers and controls."""
    return getattr(teacher, "teacher", None) or teacher


def needs_of(methods: Iterable[Method]) -> tuple[str, ...]:
    """What some methods together ask of the teacher, each need once, in order."""
    return tuple(dict.fromkeys(need for method in methods for need in method.needs))
