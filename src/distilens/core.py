"""The whole idea on one page. A run trains a student with a list of methods; a method has up to five verbs.

    once, before     collect(teacher, data, folder)   prepare(student, batch, answer)
    each step        transform(batch, answer)         loss(batch, output, answer)
    once, after      finish(student)

The teacher turns a `Batch` into an `Answer`. Each method may change what the student sees (`transform`). The student gives an
`Output`. Each method may add a named term (`loss`). The optimizer minimises the sum of the terms, and the log records each term.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from distilens.data.batch import Batch, Mixed
from distilens.data.splits import Data
from distilens.foundation.errors import UserError
from distilens.foundation.notation import Spec, write
from distilens.models.model import Model, Output
from distilens.models.prediction import Masks, Prediction
from distilens.models.taps import INPUT
from distilens.tasks import Task

__all__ = [
    "Answer",
    "Answering",
    "Balance",
    "Batch",
    "Masks",
    "Method",
    "Mixed",
    "Model",
    "Objective",
    "Output",
    "Prediction",
    "Teacher",
    "accompany",
    "as_teacher",
    "needs_of",
]


@dataclass(frozen=True)
class Answer:
    """A teacher's answer to a batch. It holds only what some method needs.

    Attributes:
        logits: `[b classes]`; in a dense task `[b classes h w]`.
        features: by tap.
        maps: by need, `[b h w]`, float32; maps of all classes are `[b classes h w]`.
        targets: by the same need, the class that each map explains, `[b]`; in a dense task with its places, `[b h w]`.
        scores: by judge, `[b]`.
        modules: by path: modules of the teacher that a method reuses.
        pruned: by share: the logits of a copy of the teacher without that share of its weights.
        trust: `[b]` in [0, 1]; 0 if no teacher is right. It weights the loss of every method that needs a teacher.
    """

    logits: Float[Tensor, "b classes ..."] | None = None
    features: Mapping[str, Tensor] = field(default_factory=dict)
    maps: Mapping[str, Float[Tensor, "b *classes h w"]] = field(default_factory=dict)
    targets: Mapping[str, Int[Tensor, "b ..."]] = field(default_factory=dict)
    scores: Mapping[str, Float[Tensor, " b"]] = field(default_factory=dict)
    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    pruned: Mapping[str, Float[Tensor, "b classes ..."]] = field(default_factory=dict)
    trust: Float[Tensor, " b"] | None = None


class Teacher:
    """Anything that answers a batch: `teacher(batch, needs) -> Answer`. Write `__call__`; everything else has a default.

    Attributes:
        classes: the class names of its logits, in order; None if they are unknown.
        drawing: whether the answers to the same picture change with the epoch, so that they cannot be stored.
        precision: of its logits and features, for stored answers.
    """

    classes: tuple[str, ...] | None = None
    drawing: bool = False
    precision: str = ""

    def __call__(self, batch: Batch, needs: Sequence[str]) -> Answer:
        raise NotImplementedError

    @property
    def identity(self) -> dict[str, Any]:
        """What its answers depend on, as plain data: stored answers are found by it.

        Raises:
            UserError: its answers cannot be stored.
        """
        raise UserError(f"the answers of {self!r} cannot be stored: it has no identity")

    def live(self) -> Teacher:
        """The live teacher inside a stored or control teacher, for images outside any data set."""
        return self

    def notes(self) -> dict[str, float]:
        """Its counts since the last call, by name. They go into the log once per epoch."""
        return {}


Answering = Teacher | Callable[[Batch, Sequence[str]], Answer]
"""Everything that can be used as a teacher: a `Teacher`, or a plain function."""


class Function(Teacher):
    """A plain function `(batch, needs) -> Answer` as a teacher."""

    def __init__(self, function: Callable[[Batch, Sequence[str]], Answer]):
        self.function = function
        self.classes = getattr(function, "classes", None)  # an object with `__call__` may name them

    def __call__(self, batch: Batch, needs: Sequence[str]) -> Answer:
        return self.function(batch, needs)


def as_teacher(answering: Answering) -> Teacher:
    """Return a teacher unchanged; make a plain function a teacher."""
    return answering if isinstance(answering, Teacher) else Function(answering)


class Method(nn.Module):
    """A distillation method: one idea of one paper. Override the verbs that it needs; the defaults change nothing.

    Its own parameters and buffers are trained and checkpointed, but they are not shipped with the student.

    Attributes:
        needs: what it asks of the teacher, in notation: `logits`, `features:layer3`, `maps:gradcam`, `module:fc`; see
            `teachers/needs.py`.
        weight: the factor of its term; the notation's `weight=` sets it.
        second_order: its loss differentiates a gradient, which `torch.compile` cannot do.
        inserts: it puts a part into the student, so it is prepared before the methods that read the student's features.
        at_use: teacher needs that remain at inference; such a student cannot run without its teacher.
        tasks: the names of the tasks that it is for; empty for all.
        whole: it compares whole images, so it is not for tasks with a target for each place.
        because: why it is not for other tasks, for the message: "it compares places, and ...".
        one_teacher: it collects from a single teacher, so a run with several teachers cannot use it.
        every: its loss is computed at every n-th step, starting with the first.
        negative: its loss can be below 0.
        notation: the text it was built from, with all options. A checkpoint of another list of methods is recognised by it.
        alone: a share of the steps at the start, in which only methods with it work; then they are done, and the others begin.
        warmup, decay: shares of the steps. Its term grows from 0 over the first `warmup` and falls to 0 over the last `decay`.
    """

    needs: tuple[str, ...] = ()
    weight: float = 1.0
    second_order: bool = False
    inserts: bool = False
    at_use: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    whole: bool = False
    because: str = ""
    one_teacher: bool = False
    every: int = 1
    negative: bool = False
    notation: str = ""
    alone: float = 0.0
    warmup: float = 0.0
    decay: float = 0.0

    def collect(self, teacher: Teacher, data: Data, folder: Path, say: Callable[[str], None]) -> list[Path]:
        """Once, before `prepare`: compute what needs the teacher's answers to all training images.

        Args:
            teacher: a live teacher.
            data: the data of the run.
            folder: where the result is stored, so that it is computed once.
            say: receives lines for the terminal.

        Returns:
            The files that hold the result.
        """
        return []

    def improvise(self, student: Model, batch: Batch, answer: Answer) -> None:
        """In a dry run, instead of `collect`: make a placeholder of the same size as the real result."""

    def prepare(self, student: Model, batch: Batch, answer: Answer) -> Model:
        """Once, before training: add taps and parts; size the method's modules from the shapes of a first batch."""
        return student

    def transform(self, batch: Batch, answer: Answer) -> Batch:
        """Each step, before the student's forward: change `view` or `inputs`."""
        return batch

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Tensor | None:
        """Each step, after the student's forward: a term per image `[b]`, or a scalar; never one per place."""
        return None

    def finish(self, student: Model) -> Model:
        """Once, after training: turn the training form into the final one."""
        return student

    def unfinish(self, student: Model, state: Mapping[str, Tensor]) -> None:
        """Turn the final form back into the training form of the weights in `state`, in place, so that they can be loaded."""

    def __repr__(self) -> str:
        """The method as a call: `kd(temperature=4,weight=0.9)`. Options that are off or at their default are left out."""
        if not self.notation:
            return f"{type(self).__name__}()"
        spec = Spec.parse(self.notation)
        usual = {name: write(getattr(type(self), name)) for name in ("weight", "warmup", "decay")}
        shown = {
            name: value
            for name, value in spec.options.items()
            if value not in ("", "none", "false", usual.get(name)) and name != "as"
        }
        name, _, options = str(Spec(spec.name, spec.argument, shown)).partition(":")
        return f"{name}({options})"

    def ramp(self, progress: float) -> float:
        """The factor of its term at this progress, in [0, 1]."""
        grown = progress / self.warmup if self.warmup else 1.0
        left = (1 - progress) / self.decay if self.decay else 1.0
        return min(1.0, grown, left)

    def remembered(self) -> int:
        """Bytes that it stores about the training images."""
        return 0

    def notes(self) -> dict[str, float]:
        """Its counts since the last call, by name. They go into the log beside the terms, once per epoch."""
        return {}


class Balance(nn.Module):
    """How the terms are balanced. This class leaves them unchanged; for others see `training/balance.py`.

    Attributes:
        measures: it measures gradients at some steps.
        of_losses: it compares the size of losses, so no loss may be negative.
    """

    measures: bool = False
    of_losses: bool = False

    def forward(self, terms: Mapping[str, Tensor], student: nn.Module, step: int) -> dict[str, Tensor]:
        """The balanced terms.

        Args:
            terms: this step's terms by name: scalars, with their weights applied.
            student: gradients are measured with respect to its parameters.
            step: steps since the start of training.
        """
        return dict(terms)

    def notes(self) -> dict[str, float]:
        """The factor of each term, by its name."""
        return {}


class Objective(nn.Module):
    """The objective of training: a student and a list of methods, whose terms are summed.

    Args:
        student: the model that is trained.
        methods: name -> method; the names are the terms' names in the log.
        balance: how the terms are balanced; by default their weights decide.
    """

    def __init__(self, student: Model, methods: Mapping[str, Method], balance: Balance | None = None):
        super().__init__()
        self.balance = balance or Balance()
        signed = [name for name, method in methods.items() if method.negative]
        if self.balance.of_losses and signed:
            raise UserError(
                f"balance={type(self.balance).__name__.lower()} compares the size of losses, but the loss of "
                f"{', '.join(signed)} can be negative: use balance=ratio, which compares gradients, or no balance"
            )
        self.student = student
        self.methods = nn.ModuleDict(dict(methods))

    def terms(self) -> dict[str, Method]:
        """The methods by the names of their terms."""
        return cast(dict[str, Method], dict(self.methods.items()))

    @property
    def needs(self) -> tuple[str, ...]:
        """The needs of all methods, without duplicates."""
        return needs_of(self.terms().values())

    def at_work(self, progress: float) -> dict[str, Method]:
        """The methods that work at this progress: in a first phase those with `alone`, then the others."""
        terms = self.terms()
        first = {name: method for name, method in terms.items() if progress < method.alone}
        return first or {name: method for name, method in terms.items() if not method.alone}

    def prepare(self, batch: Batch, answer: Answer) -> None:
        """Let each method prepare the student on a first batch; methods that insert parts come first.

        Raises:
            UserError: teacher and student have different numbers of classes.
        """
        task = self.student.task
        if answer.logits is not None and answer.logits.shape[1] != task.outputs:
            raise UserError(
                f"the teacher answers for {answer.logits.shape[1]} classes, but the student {self.student.name} has "
                f"{task.outputs}"
            )
        check_task(self.terms(), task)
        for method in sorted(self.terms().values(), key=lambda method: not method.inserts):
            before = INPUT in self.student.taps
            self.student = method.prepare(self.student, batch, answer)
            if INPUT in self.student.taps and not before:
                raise UserError(
                    f"{method.notation or type(method).__name__} compares the student's tap 'input'. That is the image "
                    "itself, so nothing can be learnt there. Name a layer of the student"
                )

    def forward(self, batch: Batch, answer: Answer) -> dict[str, Tensor]:
        """The weighted terms of one batch, by name; their sum is the loss."""
        working = self.at_work(batch.progress)
        for method in working.values():
            batch = method.transform(batch, answer)
        output = self.student(batch.view, batch.inputs)
        terms: dict[str, Tensor] = {}
        for name, method in working.items():
            loss = None if batch.step % method.every else method.loss(batch, output, answer)
            if loss is not None:
                if loss.ndim and loss.shape != batch.index.shape:
                    raise UserError(
                        f"the loss of {name} is {list(loss.shape)}: expected a scalar, or one number per image, "
                        f"[{len(batch)}]. Take the mean over the places of an image"
                    )
                if loss.ndim and method.needs and answer.trust is not None:
                    loss = loss * answer.trust
                terms[name] = method.weight * loss.float().mean()
        balanced = self.balance(terms, self.student, batch.step)
        return {name: self.terms()[name].ramp(batch.progress) * term for name, term in balanced.items()}

    def notes(self) -> dict[str, float]:
        """The counts of all methods since the last call, as `term/name`."""
        counts = {name: method.notes() for name, method in self.terms().items()} | {"balance": self.balance.notes()}
        return {f"{name}/{key}": value for name, notes in counts.items() for key, value in notes.items()}

    def finish(self) -> Model:
        """The finished student: it needs no method, no teacher and no label."""
        for method in self.terms().values():
            self.student = method.finish(self.student)
        return self.student


def check_task(methods: Mapping[str, Method], task: Task) -> None:
    """Raise a `UserError` if a method is not for a task."""
    for name, method in methods.items():
        because = method.because and f": {method.because}"
        if method.tasks and task.name not in method.tasks:
            wanted = " and ".join(method.tasks)
            raise UserError(f"{name} is for {wanted}, but the task of these data is {task.name}{because}")
        if method.whole and task.dense:
            raise UserError(f"{name} is for whole images, but the task of these data is {task.name}{because}")


def with_terms(methods: Mapping[str, Method]) -> list[str]:
    """The names of the methods that have a loss. The others only change the student or the batch."""
    return [name for name, method in methods.items() if type(method).loss is not Method.loss]


def accompany(student: Model, methods: Iterable[Method], teacher: Answering) -> None:
    """Attach the teacher that supplies a student's required extra inputs. Most students need none."""
    asking = [method for method in methods if method.at_use]
    if not asking:
        return
    answering = as_teacher(teacher).live()

    def inputs(images: Tensor) -> Mapping[str, Tensor]:
        unknown = torch.full((len(images),), -1, device=images.device)
        batch = Batch(images, unknown, unknown)
        with torch.inference_mode(False):  # explainers need gradients, even if the student runs in inference mode
            answer = answering(batch, [need for method in asking for need in method.at_use])
        for method in asking:
            batch = method.transform(batch, answer)
        return batch.inputs

    student.companion = inputs


def needs_of(methods: Iterable[Method]) -> tuple[str, ...]:
    """The needs of several methods, in order, without duplicates."""
    return tuple(dict.fromkeys(need for method in methods for need in method.needs))
