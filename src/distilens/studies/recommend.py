"""Recommend methods: choose among the measured lists for a recipe's data, models and budget."""

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
from distilens.data.pipeline import batch_at
from distilens.foundation.errors import UserError
from distilens.foundation.notation import Spec
from distilens.measure import parameters
from distilens.methods import build_methods
from distilens.models import build_model
from distilens.runs.recipe import Recipe
from distilens.studies.evidence import KINDS, harmful, read_evidence
from distilens.tasks import Classification
from distilens.teachers import LiveTeacher, nobody
from distilens.training.dry_run import rehearsed

NOISE = 0.1
"""The error of the measured step times, in multiples of the student's own: steps up to NOISE above the budget are accepted."""
FAR = 2.0
"""For the nearest study, a different kind of pair counts as much as this many doublings of the images per class."""


@dataclass(frozen=True)
class Candidate:
    """A measured list of methods.

    Attributes:
        name: its name in the study.
        methods: in notation.
        accuracy: mean and half of the 95 % interval, in percent.
        gain: mean and half of the 95 % interval, in points over `kd` alone; None for `kd` itself.
        seeds: the number of seeds.
        settings: settings of its training that differ from the study's.
        step: the time of a step as a multiple of the student's own, with stored answers; None if it was not measured.
        refused: why it does not fit this recipe; None if it fits.
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
        """The lower end of the gain's interval. Above 0, the list was clearly better than `kd`."""
        return self.gain[0] - self.gain[1] if self.gain else 0.0


@dataclass(frozen=True)
class Advice:
    """The recommendation for a recipe.

    Attributes:
        chosen: the recommended list: among those that fit, the one whose gain over `kd` has the highest lower end of its
            interval; `kd` if no lower end is above 0.
        candidates: all lists of the study, the best first.
        reasons: why, one sentence each.
        settings: the student's training settings in that study, in the notation of `[train]`.
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
        step: the maximum cost of a step, as a multiple of the student's own; None for no limit.
        localise: whether the student must look at the object, such as when backgrounds give classes away.
        cache: where generated and downloaded data are stored.

    Raises:
        UserError: there is no evidence, or no measured list fits.
    """
    evidence = read_evidence()
    data = load(recipe.data, cache or Path("runs/data"))
    student = build_model(recipe.student.model, data.task, data.size)
    teacher = build_model(recipe.teacher.model, data.task, data.size) if recipe.teacher else None
    shots, kind = images_a_class(data), kind_of(teacher, student)
    study = nearest_study(evidence["studies"], shots, kind, localise)
    # a study of the same kind of pair has measured the lists itself, so it needs no warnings from others
    harms = harmful(evidence["studies"], kind) if study["kind"] != kind else {}
    every = [candidate(row, evidence["steps"]) for row in study["rows"]]
    judged = [check_candidate(entry, data, student, teacher, step, harms) for entry in every]
    fit = [entry for entry in judged if entry.refused is None]
    if not fit:
        raise UserError("no measured list fits:\n" + "\n".join(f"{entry.name}: {entry.refused}" for entry in judged))
    best = max((entry for entry in fit if entry.surely > 0), key=lambda entry: entry.surely, default=None)
    plain = next((entry for entry in fit if entry.gain is None), None)
    first = best or plain or max(fit, key=lambda entry: entry.accuracy[0])
    ordered = sorted(judged, key=lambda entry: (entry.refused is not None, -entry.accuracy[0]))
    reasons = [*give_reasons(first, study, shots, kind, localise), *describe_growth(first, data, student, teacher)]
    return Advice(first, tuple(ordered), tuple(reasons), {**study["settings"], **first.settings})


def images_a_class(data: Data) -> float:
    """The mean number of training images per class, over the classes that have any.

    Raises:
        UserError: no image has a label.
    """
    if not isinstance(data.task, Classification):
        raise UserError(f"the evidence is about classification, but the task of {data.name} is {data.task.name}")
    known = data.train.targets[data.train.targets >= 0]
    if not len(known):
        raise UserError("no training image has a label, but the evidence is chosen by the number of images per class")
    return len(known) / len(np.unique(known))


def kind_of(teacher: Model | None, student: Model) -> str:
    """The kind of a pair of models, one of `KINDS`."""
    if teacher is None:
        return "alone"
    if has_attention(student):
        return "vit student"
    if has_attention(teacher):
        return "vit"
    if any(isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1 for m in student.network.modules()):
        return "depthwise"
    return "same" if type(teacher.network) is type(student.network) else "other"


def has_attention(model: Model) -> bool:
    """Whether a model has attention layers."""
    return any("attention" in type(module).__name__.lower() for module in model.network.modules())


def nearest_study(studies: Sequence[Mapping[str, Any]], shots: float, kind: str, localise: bool) -> Mapping[str, Any]:
    """The study with the nearest conditions: first the kind of data, then the kind of pair and the images per class."""

    def distance(study: Mapping[str, Any]) -> tuple[bool, float]:
        return study["shortcut"] != localise, abs(math.log2(shots / study["shots"])) + FAR * (study["kind"] != kind)

    return min((study for study in studies if study["ranks"]), key=distance)


def candidate(row: Mapping[str, Any], steps: Mapping[str, float]) -> Candidate:
    """The candidate of a study's row."""
    gain = (row["gain"][0], row["gain"][1]) if row["gain"] else None
    accuracy = (row["accuracy"][0], row["accuracy"][1])
    own = row.get("settings", {})
    return Candidate(row["row"], tuple(row["methods"]), accuracy, gain, row["seeds"], own, steps.get(row["row"]))


def check_candidate(
    each: Candidate, data: Data, student: Model, teacher: Model | None, step: float | None, harms: Mapping[str, str]
) -> Candidate:
    """The candidate with the reason why it does not fit this recipe, if any."""
    reason = None
    needs = {need for method in build_methods(each.methods).values() for need in method.needs}
    if step is not None and each.step is None:
        reason = "its step was not measured"
    elif step is not None and each.step is not None and each.step > step + NOISE:
        reason = f"a step costs about {each.step:.1f} times the student's own, but at most {step:g} is allowed"
    elif needs and teacher is None:
        reason = "it needs a teacher, but the recipe has no teacher"
    else:
        own = next((harms[name] for name in (Spec.parse(part).name for part in each.methods) if name in harms), None)
        reason = own or explain_unfit(each.methods, data, student, teacher)
    return Candidate(**{**vars(each), "refused": reason})


def describe_growth(first: Candidate, data: Data, student: Model, teacher: Model | None) -> list[str]:
    """How many parameters the list adds to the finished student, if any, as a sentence."""
    made = prepare_student(first.methods, data, student, teacher)[0].finish()
    more = parameters(made) - parameters(student)
    return [f"It adds {more:,} parameters to the student's {parameters(student):,}."] if more else []


def prepare_student(
    methods: Sequence[str], data: Data, student: Model, teacher: Model | None
) -> tuple[Objective, Batch, Teacher]:
    """A copy of the student prepared by the methods, the few images that it was prepared on, and the teacher."""
    batch = batch_at(data.train, torch.arange(min(4, len(data.train))))
    answering = LiveTeacher(teacher) if teacher is not None else nobody
    return rehearsed(student, methods, batch, answering), batch, answering


def explain_unfit(methods: Sequence[str], data: Data, student: Model, teacher: Model | None) -> str | None:
    """Why a list does not work with these models, found by preparing it; None if it works."""
    try:
        objective, batch, answering = prepare_student(methods, data, student, teacher)
        objective(batch, answering(batch, objective.needs))
    except UserError as error:
        return str(error)
    return None


def give_reasons(first: Candidate, study: Mapping[str, Any], shots: float, kind: str, localise: bool) -> list[str]:
    """The reasons, one sentence each."""
    reasons = [
        f"Your training set has {shots:,.0f} images per class, and {KINDS[kind]}. The nearest conditions that were measured: "
        f"{study['about']}."
    ]
    mean, half = first.accuracy
    split = f"on that study's {study['split']} images"
    if first.gain is not None and first.surely <= 0:
        reasons.append(
            f"kd does not fit; of the lists that do, {first.name} scored highest: {mean:.1f} ± {half:.1f} % {split}."
        )
    elif first.gain is None:
        reasons.append(
            f"No list that fits was better than {first.name} beyond its interval: {mean:.1f} ± {half:.1f} % {split}."
        )
    else:
        gain, spread = first.gain
        reasons.append(
            f"{first.name} scored {mean:.1f} ± {half:.1f} % {split}, {gain:+.1f} ± {spread:.1f} points over kd alone "
            f"({first.seeds} seeds, paired): no list that fits has a higher lower end of the interval."
        )
    if first.step is not None:
        reasons.append(f"A step costs about {first.step:.1f} times the student's own, with stored answers.")
    if study["kind"] != kind and kind != "alone":
        reasons.append(f"That study's pair was another kind ({KINDS[study['kind']]}): no more than a first guess.")
    if shots > 4 * study["shots"]:
        reasons.append(
            "You have far more images per class than that study, and gains shrink with data: measure on yours."
        )
    elif shots < study["shots"] / 4:
        reasons.append("You have far fewer images per class than that study: measure on yours.")
    if localise and not study["shortcut"]:
        reasons.append("There is no study of backgrounds that give classes away.")
    return reasons
