"""Which methods should I use? The lists that were measured, read for a recipe's data, models and budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from distilens.core import Batch, Model, Objective, Teacher
from distilens.data import Data, load
from distilens.data.batches import Batches
from distilens.errors import UserError
from distilens.evidence import KINDS, harmful, read_evidence
from distilens.measure import parameters
from distilens.methods import build_methods
from distilens.models import build_model
from distilens.recipe import Recipe
from distilens.rehearsal import rehearsed
from distilens.specs import Spec
from distilens.teachers import LiveTeacher, nobody

NOISE = 0.1
"""How exactly steps were measured, in multiples of the student's own: what is above the most by less is let through."""
FAR = 2.0
"""How many doublings of the images a class another kind of pair is worth, when the nearest study is looked for."""


@dataclass(frozen=True)
class Candidate:
    """A list that was measured.

    Attributes:
        name: as the study calls it.
        methods: in notation.
        accuracy, gain: mean and half of the 95 % interval, in percent and points beside `kd` alone; None for `kd` itself.
        seeds: how many.
        settings: of its training, where they were not the study's.
        step: a step's time to that of the student alone, with stored answers; None where it was not measured.
        refused: why it is not for this recipe; None where it may be.
    """

    name: str
    methods: tuple[str, ...]
    accuracy: tuple[float, float]
    gain: tuple[float, float] | None
    seeds: int
    settings: Mapping[str, Any]
    step: float | None
    refused: str | None = None

    @property
    def surely(self) -> float:
        """The lower end of the gain's interval: above 0 where it was clearly better than `kd`."""
        return self.gain[0] - self.gain[1] if self.gain else 0.0


@dataclass(frozen=True)
class Advice:
    """What the evidence says for a recipe.

    Attributes:
        chosen: the list that it suggests: of those that fit, the one whose gain beside `kd` is largest at the lower end of its
            interval; `kd` where none is above 0.
        candidates: all lists of the study, the best first.
        reasons: why, a sentence each.
        settings: how the student was trained in that study, in the notation of `[train]`.
    """

    chosen: Candidate
    candidates: tuple[Candidate, ...]
    reasons: tuple[str, ...]
    settings: Mapping[str, Any]


def recommend(
    recipe: Recipe, *, step: float | None = None, localise: bool = False, cache: Path | None = None
) -> Advice:
    """The list of methods that was best under the conditions nearest to a recipe's.

    Args:
        recipe: its data, teacher and student count; its methods do not.
        step: the most that a step may cost, as a multiple of the student's own; None for any.
        localise: whether it matters that the student looks at the object, as where backgrounds give classes away.
        cache: where generated and downloaded data are kept.

    Raises:
        UserError: no study was measured, or nothing that was is left.
    """
    found = read_evidence()
    data = load(recipe.data, cache or Path("runs/data"))
    student = build_model(recipe.student.model, data.classes, data.size)
    teacher = build_model(recipe.teacher.model, data.classes, data.size) if recipe.teacher else None
    shots, kind = images_a_class(data), kind_of(teacher, student)
    study = nearest_study(found["studies"], shots, kind, localise)
    harms = harmful(found["studies"], kind) if study["kind"] != kind else {}  # what was measured here speaks for itself
    every = [candidate(row, found["steps"]) for row in study["rows"]]
    judged = [refused(each, data, student, teacher, step, harms) for each in every]
    fit = [each for each in judged if each.refused is None]
    if not fit:
        raise UserError(
            "nothing that was measured is left:\n" + "\n".join(f"{each.name}: {each.refused}" for each in judged)
        )
    best = max((each for each in fit if each.surely > 0), key=lambda each: each.surely, default=None)
    plain = next((each for each in fit if each.gain is None), None)
    chosen = best or plain or max(fit, key=lambda each: each.accuracy[0])
    ordered = sorted(judged, key=lambda each: (each.refused is not None, -each.accuracy[0]))
    reasons = [*why(chosen, study, shots, kind, localise), *larger(chosen, data, student, teacher)]
    return Advice(chosen, tuple(ordered), tuple(reasons), {**study["settings"], **chosen.settings})


def images_a_class(data: Data) -> float:
    """The mean number of training images of a class that has any.

    Raises:
        UserError: no image has a label.
    """
    known = data.train.labels[data.train.labels >= 0]
    if not len(known):
        raise UserError("no training image has a label, and what was measured is told apart by images a class")
    return len(known) / len(np.unique(known))


def kind_of(teacher: Model | None, student: Model) -> str:
    """Which of `KINDS` a pair is."""
    if teacher is None:
        return "alone"
    if attends(student):
        return "vit student"
    if attends(teacher):
        return "vit"
    if any(isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1 for m in student.network.modules()):
        return "depthwise"
    return "same" if type(teacher.network) is type(student.network) else "other"


def attends(model: Model) -> bool:
    """Whether a model has layers of attention."""
    return any("attention" in type(module).__name__.lower() for module in model.network.modules())


def nearest_study(studies: Sequence[Mapping[str, Any]], shots: float, kind: str, localise: bool) -> Mapping[str, Any]:
    """The study whose conditions are nearest: first what the data are like, then the kind of pair and the images a class."""

    def far(study: Mapping[str, Any]) -> tuple[bool, float]:
        return study["shortcut"] != localise, abs(math.log2(shots / study["shots"])) + FAR * (study["kind"] != kind)

    return min((study for study in studies if study["ranks"]), key=far)


def candidate(row: Mapping[str, Any], steps: Mapping[str, float]) -> Candidate:
    """A row of a study."""
    gain = (row["gain"][0], row["gain"][1]) if row["gain"] else None
    accuracy = (row["accuracy"][0], row["accuracy"][1])
    own = row.get("settings", {})
    return Candidate(row["row"], tuple(row["methods"]), accuracy, gain, row["seeds"], own, steps.get(row["row"]))


def refused(
    each: Candidate, data: Data, student: Model, teacher: Model | None, step: float | None, harms: Mapping[str, str]
) -> Candidate:
    """The candidate with the reason why it is not for this recipe, if there is one."""
    reason = None
    needs = {need for method in build_methods(each.methods).values() for need in method.needs}
    if step is not None and each.step is None:
        reason = "its step was not measured"
    elif step is not None and each.step is not None and each.step > step + NOISE:
        reason = f"a step costs about {each.step:.1f} times the student's own, and {step:g} is the most"
    elif needs and teacher is None:
        reason = "it needs a teacher, and the recipe names none"
    else:
        own = next((harms[name] for name in (Spec.parse(part).name for part in each.methods) if name in harms), None)
        reason = own or unfit(each.methods, data, student, teacher)
    return Candidate(**{**vars(each), "refused": reason})


def larger(chosen: Candidate, data: Data, student: Model, teacher: Model | None) -> list[str]:
    """What the list adds to the student that is shipped, where it adds anything."""
    made = prepared(chosen.methods, data, student, teacher)[0].finish()
    more = parameters(made) - parameters(student)
    return [f"It adds {more:,} parameters to the student's {parameters(student):,}."] if more else []


def prepared(
    methods: Sequence[str], data: Data, student: Model, teacher: Model | None
) -> tuple[Objective, Batch, Teacher]:
    """A copy of the student with its methods, the few images that it was prepared on, and who answers."""
    batch = Batches(data.train, 4, resident=False).batch(torch.arange(min(4, len(data.train))), None, 0, 0.0)
    answering = LiveTeacher(teacher) if teacher is not None else nobody
    return rehearsed(student, methods, batch, answering), batch, answering


def unfit(methods: Sequence[str], data: Data, student: Model, teacher: Model | None) -> str | None:
    """What stops a list with these models, found by preparing it; None where nothing does."""
    try:
        objective, batch, answering = prepared(methods, data, student, teacher)
        objective(batch, answering(batch, objective.needs))
    except UserError as error:
        return str(error)
    return None


def why(chosen: Candidate, study: Mapping[str, Any], shots: float, kind: str, localise: bool) -> list[str]:
    """The reasons, a sentence each."""
    said = [
        f"Your training set has {shots:,.0f} images a class, and {KINDS[kind]}. The nearest conditions that were measured: "
        f"{study['about']}."
    ]
    mean, half = chosen.accuracy
    split = f"on that study's {study['split']} images"
    if chosen.gain is not None and chosen.surely <= 0:
        said.append(f"kd does not fit, and of what does {chosen.name} had most: {mean:.1f} ± {half:.1f} % {split}.")
    elif chosen.gain is None:
        said.append(
            f"No list that fits was better than {chosen.name} beyond its interval: {mean:.1f} ± {half:.1f} % {split}."
        )
    else:
        gain, spread = chosen.gain
        said.append(
            f"{chosen.name} had {mean:.1f} ± {half:.1f} % {split}, {gain:+.1f} ± {spread:.1f} points beside kd alone "
            f"({chosen.seeds} seeds, paired): the most at the lower end of its interval."
        )
    if chosen.step is not None:
        said.append(f"A step costs about {chosen.step:.1f} times the student's own, with stored answers.")
    if study["kind"] != kind and kind != "alone":
        said.append(f"That study's pair was another kind ({KINDS[study['kind']]}): no more than a first guess.")
    if shots > 4 * study["shots"]:
        said.append("You have far more images a class than it had, and gains shrink with data: measure on yours.")
    elif shots < study["shots"] / 4:
        said.append("You have far fewer images a class than it had: measure on yours.")
    if localise and not study["shortcut"]:
        said.append("No study of backgrounds that give classes away was measured.")
    return said
