"""Several teachers that answer as one: the base classes, and the combination of their answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distilens.core import Answer, Batch, Teacher, as_teacher
from distilens.data.source import Rows
from distilens.data.splits import Data
from distilens.foundation.errors import UserError, shortened
from distilens.foundation.notation import Spec
from distilens.teachers.judges import on_smallest_grid
from distilens.teachers.needs import Need, make_answer, of_kind, read_needs

Join = Callable[[list[Tensor]], Tensor]
"""Combines the teachers' tensors, which have the same shape, into one."""

UNKNOWN = -2


class Several(Teacher):
    """Teachers that answer as one. A subclass implements `__call__`. It can itself be one of several teachers.

    Args:
        teachers: at least two, live, stored or combined, with the same classes in the same order.

    Attributes:
        name: the name in notation.
        options: the given options, in notation.
        drawing: whether the answers to the same picture change with the epoch.

    Raises:
        UserError: there are fewer than two teachers, or their classes differ.
    """

    name: str = ""

    def __init__(self, teachers: Sequence[Teacher], **options: Any):
        self.teachers, self.options = tuple(map(as_teacher, teachers)), options
        if len(self.teachers) < 2:
            raise UserError(f"{self.name} takes at least two teachers; given {len(self.teachers)}")
        self.classes = agreed([teacher.classes for teacher in self.teachers])
        self.drawing = self.drawing or any(teacher.drawing for teacher in self.teachers)

    def __repr__(self) -> str:
        options = [f"{name}={value!r}" for name, value in self.options.items()]
        return f"{type(self).__name__}({', '.join([*map(repr, self.teachers), *options])})"

    def asks(self, needs: Sequence[Need]) -> list[Need]:
        """The needs of each teacher besides those of the methods, so that they can be recorded in advance."""
        return []

    def check(self, data: Data) -> None:
        """Raise a `UserError` if the training set lacks something that this needs."""

    @property
    def identity(self) -> dict[str, Any]:
        """What the answers depend on.

        Raises:
            UserError: the answers are drawn again in each epoch, so they cannot be stored.
        """
        if self.drawing:
            raise UserError(
                f"{self.notation} draws a teacher in each epoch, so its answers cannot be stored: store those of its teachers"
            )
        own = [teacher.identity for teacher in self.teachers]
        return {"teacher": self.notation, "teachers": own, "classes": self.classes and list(self.classes)}

    @property
    def notation(self) -> str:
        return str(Spec(self.name, None, self.options))

    @property
    def precision(self) -> str:  # type: ignore[override]
        """The precision of the teachers' logits and features."""
        return " and ".join(dict.fromkeys(teacher.precision for teacher in self.teachers))

    def live(self) -> Several:
        """The same combination of the live teachers inside stored and control teachers, for images outside any data set."""
        return type(self)([teacher.live() for teacher in self.teachers], **self.options)

    def notes(self) -> dict[str, float]:
        """The counts of the teachers; each name starts with the position of the teacher."""
        numbered = enumerate(self.teachers, 1)
        return {f"{position}/{key}": value for position, teacher in numbered for key, value in teacher.notes().items()}

    def parsed(self, needs: Sequence[str]) -> list[Need]:
        """The parsed needs. Several teachers cannot answer a need for a module."""
        wanted = read_needs(needs)
        modules = [need.text for need in of_kind(wanted, "module")]
        if modules:
            raise UserError(f"{', '.join(modules)}: a part of one teacher, but {self.name} has {len(self.teachers)}")
        return wanted


class Following(Several):
    """Several teachers; each image follows one of them. A subclass implements `follow`.

    Once per epoch, `notes` gives the share of the images that followed each teacher (`follow/1`, `follow/2`, ..., by position)
    and that followed none (`follow/none`). `follow/switched` is how often an image followed a different teacher than last time.
    """

    def __init__(self, teachers: Sequence[Teacher], **options: Any):
        super().__init__(teachers, **options)
        drawing = [str(place) for place, each in enumerate(self.teachers, 1) if each.drawing]
        if drawing:
            raise UserError(
                f"{self.name}: teacher {', '.join(drawing)} itself draws a teacher in each epoch, so it cannot be chosen as one: "
                "give all the teachers in one list"
            )
        self.followed = Followed(len(self.teachers))

    def follow(self, batch: Batch) -> tuple[Int[Tensor, " b"], Float[Tensor, " b"] | None]:
        """The number, from 0, of the teacher that each image follows, and the trust in it (None: full trust)."""
        raise NotImplementedError

    def __call__(self, batch: Batch, needs: Sequence[str]) -> Answer:
        wanted = self.parsed(needs)
        if not wanted:
            return Answer()
        followed, trust = self.follow(batch)
        self.followed.note(batch, followed if trust is None else followed.where(trust > 0, -1))
        answers = [teacher(batch, needs) for teacher in self.teachers]
        places = torch.arange(len(batch), device=followed.device)

        def pick(values: list[Tensor]) -> Tensor:
            return torch.stack(values)[followed, places]

        targets = {need.text: pick([each.targets[need.text] for each in answers]) for need in of_kind(wanted, "maps")}
        own = trust_of(answers, pick)
        both = [each for each in (trust, own) if each is not None]
        return joined(answers, wanted, pick, pick, targets=targets, trust=torch.stack(both).prod(0) if both else None)

    def notes(self) -> dict[str, float]:
        return {**self.followed.notes(), **super().notes()}


class Followed:
    """Counts and remembers which teacher each image followed, once per image and epoch."""

    def __init__(self, teachers: int):
        self.teachers = teachers
        self.counts: Tensor | None = None  # by teacher + 1; then the images seen before, and those that switched
        self.last: dict[
            Rows, Tensor
        ] = {}  # by set: the teacher that each image followed (-1: no teacher), and the epoch

    def note(self, batch: Batch, followed: Int[Tensor, " b"]) -> None:
        """Count a batch on its device, without a transfer to the host."""
        if self.counts is None:
            self.counts = torch.zeros(self.teachers + 3, dtype=torch.int64, device=followed.device)
        new = torch.ones_like(followed)
        if batch.variant is not None:
            rows = batch.variant.split.rows
            if rows not in self.last:
                self.last[rows] = torch.full((len(rows), 2), UNKNOWN, dtype=torch.int32, device=followed.device)
            before, epoch = self.last[rows][batch.index].long().unbind(1)
            new = (epoch != batch.epoch).long()
            again = new * (before != UNKNOWN)
            self.counts[-2] += again.sum()
            self.counts[-1] += (again * (before != followed)).sum()
            now = torch.stack([followed, torch.full_like(followed, batch.epoch)], 1)
            self.last[rows][batch.index] = now.to(torch.int32)
        self.counts.index_add_(0, followed + 1, new)

    def notes(self) -> dict[str, float]:
        """The shares since the last call."""
        if self.counts is None:
            return {}
        none, *each, again, switched = self.counts.tolist()
        self.counts.zero_()
        total = max(none + sum(each), 1)
        shares = {f"follow/{position}": count / total for position, count in enumerate(each, 1)}
        return {**shares, "follow/none": none / total, "follow/switched": switched / max(again, 1)}


def joined(
    answers: Sequence[Answer],
    wanted: Sequence[Need],
    join: Join,
    join_maps: Join,
    *,
    targets: dict[str, Tensor],
    trust: Tensor | None,
) -> Answer:
    """Join several answers into one. Maps are brought to the smallest grid; everything else must have the same shape.

    Raises:
        UserError: the teachers' features (or logits) have different shapes.
    """
    values = {}
    for need in wanted:
        each = [need.read(answer) for answer in answers]
        if need.kind == "maps":
            values[need] = join_maps(on_smallest_grid(each)), targets[need.text]
        else:
            values[need] = join(alike(need.text, each))
    return make_answer(values, trust)


def alike(name: str, tensors: list[Tensor]) -> list[Tensor]:
    """The tensors, if they have the same shape; else a `UserError` that names all shapes."""
    if len({tensor.shape for tensor in tensors}) > 1:
        shapes = ", ".join(str(list(tensor.shape[1:])) for tensor in tensors)
        raise UserError(
            f"{name}: the teachers' answers have the shapes {shapes}, but they can only be joined if the shapes are equal"
        )
    return tensors


def trust_of(answers: Sequence[Answer], join: Join) -> Tensor | None:
    """The joined trust of the teachers; None if all are fully trusted."""
    known = next((each.trust for each in answers if each.trust is not None), None)
    if known is None:
        return None
    return join([torch.ones_like(known) if each.trust is None else each.trust for each in answers])


def agreed(each: Sequence[Sequence[str] | None]) -> tuple[str, ...] | None:
    """The common classes of all teachers whose classes are known; a `UserError` names two teachers that differ."""
    known = [(place, tuple(classes)) for place, classes in enumerate(each, 1) if classes is not None]
    for place, classes in known[1:]:
        first, expected = known[0]
        if classes == expected:
            continue
        if len(classes) != len(expected):
            what = f"{len(classes)} classes, teacher {first} {len(expected)}"
        elif sorted(classes) == sorted(expected):
            what = f"the classes of teacher {first} in another order: {shortened(classes)}, not {shortened(expected)}"
        else:
            what = f"other classes than teacher {first}: {shortened(classes)}, not {shortened(expected)}"
        raise UserError(f"several teachers must know the same classes: teacher {place} has {what}")
    return known[0][1] if known else None
