"""Several teachers that answer as one: what they share, and how their answers become one answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distilens.core import Answer, Batch, Teacher, at_use
from distilens.data.source import Rows, shortened
from distilens.data.subset import Data
from distilens.errors import UserError
from distilens.specs import Spec
from distilens.teachers.judges import on_smallest_grid
from distilens.teachers.needs import Need

Join = Callable[[list[Tensor]], Tensor]
"""Makes one tensor of the teachers' tensors, which are of one shape."""

UNKNOWN = -2


class Several:
    """Teachers that answer as one. A member says how by `__call__`; it can itself be one of several teachers.

    Args:
        teachers: at least two, live, stored or combined, with the same classes in the same order.

    Attributes:
        name: in notation.
        options: as they were given, in notation's words.
        drawing: whether the answers to the same picture change with the epoch.

    Raises:
        UserError: fewer than two teachers, or teachers of different classes.
    """

    name: str = ""
    drawing: bool = False

    def __init__(self, teachers: Sequence[Teacher], **options: Any):
        self.teachers, self.options = tuple(teachers), options
        if len(self.teachers) < 2:
            raise UserError(f"{self.name} takes at least two teachers; given {len(self.teachers)}")
        self.classes = agreed([getattr(teacher, "classes", None) for teacher in self.teachers])
        self.drawing = self.drawing or any(getattr(teacher, "drawing", False) for teacher in self.teachers)

    def __repr__(self) -> str:
        options = [f"{name}={value!r}" for name, value in self.options.items()]
        return f"{type(self).__name__}({', '.join([*map(repr, self.teachers), *options])})"

    def __call__(self, batch: Batch, needs: Sequence[str]) -> Answer:
        raise NotImplementedError

    def asks(self, needs: Sequence[Need]) -> list[Need]:
        """What each teacher is asked beside what methods need: for those who record it ahead of time."""
        return []

    def check(self, data: Data) -> None:
        """Raise a `UserError` where the training set lacks what this needs."""

    @property
    def identity(self) -> dict[str, Any]:
        """What the answers depend on.

        Raises:
            UserError: they are drawn anew in each epoch, so there is nothing to store.
        """
        if self.drawing:
            raise UserError(
                f"{self.notation} draws in each epoch whom it follows, so its answers cannot be stored: store its teachers'"
            )
        own = [teacher.identity for teacher in self.teachers]  # type: ignore[attr-defined]
        return {"teacher": self.notation, "teachers": own, "classes": self.classes and list(self.classes)}

    @property
    def notation(self) -> str:
        return str(Spec(self.name, None, self.options))

    @property
    def precision(self) -> str:
        """That of the teachers' logits and features."""
        return " and ".join(dict.fromkeys(teacher.precision for teacher in self.teachers))  # type: ignore[attr-defined]

    @property
    def teacher(self) -> Several:
        """The same, of the teachers behind stored answers and controls: for images that no data set has."""
        return type(self)([at_use(teacher) for teacher in self.teachers], **self.options)

    def notes(self) -> dict[str, float]:
        """What the teachers have counted, with the position of each in front."""
        every = enumerate(self.teachers, 1)
        return {
            f"{position}/{key}": value
            for position, teacher in every
            for key, value in getattr(teacher, "notes", dict)().items()
        }

    def parsed(self, needs: Sequence[str]) -> list[Need]:
        """The needs, which must be such as several teachers can answer."""
        wanted = [Need.parse(need) for need in needs]
        modules = [need.text for need in wanted if need.kind == "module"]
        if modules:
            raise UserError(f"{', '.join(modules)}: a part of one teacher, and {self.name} has {len(self.teachers)}")
        return wanted


class Following(Several):
    """Several teachers of which each image follows one. A member says which by `follow`.

    `notes` says, once an epoch, what share of the images followed each teacher (`follow/1`, `follow/2`, ..., by position) and
    none (`follow/none`), and of how many that had been seen before it is another one than then (`follow/switched`).
    """

    def __init__(self, teachers: Sequence[Teacher], **options: Any):
        super().__init__(teachers, **options)
        drawing = [str(place) for place, each in enumerate(self.teachers, 1) if getattr(each, "drawing", False)]
        if drawing:
            raise UserError(
                f"{self.name}: teacher {', '.join(drawing)} draws in each epoch whom it follows, so there is no one teacher to "
                "choose: give all the teachers in one list"
            )
        self.followed = Followed(len(self.teachers))

    def follow(self, batch: Batch) -> tuple[Int[Tensor, " b"], Float[Tensor, " b"] | None]:
        """Which teacher each image follows, from 0, and how far it is to be trusted (None: fully)."""
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
    """Counts whom images followed, each image once an epoch, and remembers whom it was."""

    def __init__(self, teachers: int):
        self.teachers = teachers
        self.counts: Tensor | None = None  # by teacher + 1; then images seen before, and those of them that switched
        self.last: dict[Rows, Tensor] = {}  # by set: whom each image followed (-1: none), and in which epoch

    def note(self, batch: Batch, followed: Int[Tensor, " b"]) -> None:
        """Count a batch, on its device: nothing is fetched."""
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
        """The shares since this was last asked."""
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
    """One answer of several: maps on the smallest grid, everything else of one shape.

    Raises:
        UserError: the teachers' features (or logits) have different shapes.
    """
    logits = join(alike("logits", [each.logits for each in answers])) if of_kind(wanted, "logits") else None
    features = {
        need.what: join(alike(need.text, [each.features[need.what] for each in answers]))
        for need in of_kind(wanted, "features")
    }
    maps = {
        need.text: join_maps(on_smallest_grid([each.maps[need.text] for each in answers]))
        for need in of_kind(wanted, "maps")
    }
    scores = {need.what: join([each.scores[need.what] for each in answers]) for need in of_kind(wanted, "scores")}
    pruned = {need.what: join([each.pruned[need.what] for each in answers]) for need in of_kind(wanted, "pruned")}
    return Answer(
        logits=logits, features=features, maps=maps, targets=targets, scores=scores, pruned=pruned, trust=trust
    )


def of_kind(wanted: Sequence[Need], kind: str) -> list[Need]:
    return [need for need in wanted if need.kind == kind]


def alike(name: str, values: Sequence[Tensor | None]) -> list[Tensor]:
    """Tensors that have one shape, or a `UserError` that names all of them."""
    found = [value for value in values if value is not None]
    if len({value.shape for value in found}) > 1:
        shapes = ", ".join(str(list(value.shape[1:])) for value in found)
        raise UserError(
            f"{name}: the teachers' answers have the shapes {shapes}, and can be joined if they are one shape"
        )
    return found


def trust_of(answers: Sequence[Answer], join: Join) -> Tensor | None:
    """The teachers' own trust, joined; None where all are fully trusted."""
    known = next((each.trust for each in answers if each.trust is not None), None)
    if known is None:
        return None
    return join([torch.ones_like(known) if each.trust is None else each.trust for each in answers])


def agreed(each: Sequence[Sequence[str] | None]) -> tuple[str, ...] | None:
    """The classes that all teachers have that say theirs, or a `UserError` with the two that differ."""
    known = [(place, tuple(classes)) for place, classes in enumerate(each, 1) if classes is not None]
    for place, classes in known[1:]:
        first, expected = known[0]
        if classes == expected:
            continue
        if len(classes) != len(expected):
            what = f"{len(classes)} classes, teacher {first} {len(expected)}"
        elif sorted(classes) == sorted(expected):
            what = (
                f"the classes of teacher {first} in another order: {shortened(classes)}, and not {shortened(expected)}"
            )
        else:
            what = f"other classes than teacher {first}: {shortened(classes)}, and not {shortened(expected)}"
        raise UserError(f"several teachers must know the same classes: teacher {place} has {what}")
    return known[0][1] if known else None
