"""Inspect a recipe before it is run: time and memory, what methods add, parameters, MACs, shapes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import psutil
import torch

from distilens.core import Model, Teacher
from distilens.data import load
from distilens.data.augment import AUGMENTS
from distilens.data.pipeline import Batches
from distilens.data.places import describe_places
from distilens.data.splits import Data
from distilens.explain import check_taps
from distilens.foundation.devices import processes
from distilens.measure import macs, parameters
from distilens.models import build_model
from distilens.runs.recipe import Recipe
from distilens.runs.training import describe_model, finetuning_of, make_teacher
from distilens.teachers import LiveTeacher, as_one, following, nobody
from distilens.training.costs import TIMED_STEPS, Added, Timed, added, time_step
from distilens.training.defaults import in_words, kind_of_model, settled
from distilens.training.settings import Training

OTHERS = 0.25
"""The machine counts as busy if other processes use more than this share of the processors."""
LOOKED = 0.3
"""Seconds for which that share is measured; nothing is computed here meanwhile."""


@dataclass(frozen=True)
class Plan:
    """A training of a run, and its cost on this machine.

    Attributes:
        role: the role of the trained model.
        steps: the number of steps in all epochs.
        images: the number of images per step.
        step: the timed step.
    """

    role: str
    steps: int
    images: int
    step: Timed

    @property
    def seconds(self) -> tuple[float, float, float]:
        """The seconds of the training: by the median step, the fastest and the slowest."""
        return self.steps * self.step.median, self.steps * self.step.fastest, self.steps * self.step.slowest


@dataclass(frozen=True)
class Inspection:
    """The data and models of a recipe, and the cost of a run.

    Attributes:
        recipe: the inspected recipe.
        data: the data sets, by their key in the recipe.
        models: plain data about each network, by role.
        plans: the trainings; empty if nothing was timed.
        methods: what each method of the student adds by itself; None for a method that reads what another one inserts.
        others: the share of the processors' time that other processes used just before.
    """

    recipe: Recipe
    data: Mapping[str, Data]
    models: Mapping[str, Mapping[str, Any]]
    plans: tuple[Plan, ...] = ()
    methods: Mapping[str, Added | None] = field(default_factory=dict)
    others: float = 0.0

    @property
    def seconds(self) -> tuple[float, float, float]:
        """The seconds of all trainings: an estimate, its lower and its upper end."""
        middle, low, high = (sum(ends) for ends in zip(*(plan.seconds for plan in self.plans), strict=True))
        return middle, low, high

    @property
    def memory(self) -> int:
        """Bytes that the largest step needs."""
        return max(plan.step.memory for plan in self.plans)

    @property
    def busy(self) -> str:
        """A warning if other processes used the machine; else empty."""
        if self.others > OTHERS:
            return (
                f"this machine is busy: other processes use {self.others:.0%} of its processors, so the estimate is too long. "
                "Try again when nothing else runs"
            )
        slow = [plan for plan in self.plans if plan.step.busy]
        if not slow:
            return ""
        worst = max(slow, key=lambda plan: plan.step.slowest / plan.step.median)
        times = worst.step.slowest / worst.step.median
        return (
            f"this machine is busy: the slowest of {TIMED_STEPS} timed steps of {worst.role} took {times:.1f} times as long as "
            "the median one. The estimate is not reliable: try again when nothing else runs"
        )

    def plain(self) -> dict[str, Any]:
        """The inspection as plain data, with the resolved recipe."""
        trainings = {
            plan.role: {
                "steps": plan.steps,
                "images_per_second": plan.images / plan.step.median,
                **dict(zip(("seconds", "low", "high"), plan.seconds, strict=True)),
                "memory": plan.step.memory,
            }
            for plan in self.plans
        }
        cost = dict(zip(("seconds", "low", "high"), self.seconds, strict=True)) if self.plans else {}
        return {
            "recipe": self.recipe.resolved(),
            "data": {name: about_data(data) for name, data in self.data.items()},
            "models": dict(self.models),
            "trainings": trainings,
            "cost": {
                **cost,
                "memory": self.memory,
                "timed_steps": TIMED_STEPS,
                "others": self.others,
                "busy": self.busy,
            }
            if self.plans
            else None,
            "methods": {part: what and vars(what) for part, what in self.methods.items()},
        }


def inspect_recipe(recipe: Recipe, *, timed: bool = True) -> Inspection:
    """Inspect a recipe: its data, the shapes in its models and, with `timed`, the cost of a few steps of each training.

    Raises:
        UserError: data, models, taps or methods do not fit.
    """
    cache = Path("runs/data")
    data = load(recipe.data, cache)
    parts = {role: recipe.data_of(role) for role in (recipe.teacher.models if recipe.teacher else ())}
    loaded = {recipe.data: data} | {part: load(part, cache) for part in set(parts.values()) - {recipe.data}}
    teachers_data = {role: loaded[part] for role, part in parts.items()}
    sets = {"data": data}
    sets |= {f"{role}.data": seen for role, seen in teachers_data.items() if seen is not data}
    student = build_model(recipe.student.model, data.task, data.size)
    part = recipe.teacher
    teachers = {
        role: make_teacher(recipe, data, notation, finetuning_of(part, notation))
        for role, notation in (part.models if part else {}).items()
        if part
    }
    several = following(part.joined, len(part.models)) if part else None
    if several is not None:
        several.check(data)
    models = {}
    for role, model in (*teachers.items(), ("student", student)):
        trained = recipe.train
        if part and role in part.models:
            trained = recipe.teacher_training if finetuning_of(part, part.models[role]) != "none" else None
        models[role] = about_model(model, trained)
        check_taps(recipe.explain.explainers, model)
    if not timed:
        return Inspection(recipe, sets, models)
    others = psutil.cpu_percent(LOOKED) / 100
    plans, answering = plans_of(recipe, data, teachers_data, student, teachers)
    batches = batches_of(data, recipe.train, student.device)
    methods = added(student, recipe.student.methods, batches, recipe.train, answering)
    return Inspection(recipe, sets, models, plans, methods, others)


def about_data(data: Data) -> dict[str, Any]:
    """Plain data about a data set."""
    return {
        "name": data.name,
        **{name: len(split) for name, split in zip(("train", "validation", "test"), splits_of(data), strict=True)},
        "classes": [str(name) for name in data.classes],
        "size": list(data.size),
        "masks": data.test.rows.masks is not None,
        "fingerprint": data.fingerprint,
        "notes": [*data.inventory.origins(), *data.inventory.lines(), *describe_places(data)],
    }


def splits_of(data: Data) -> tuple:
    return data.train, data.validation, data.test


def about_model(model: Model, settings: Training | None) -> dict[str, Any]:
    """Plain data about a network: parameters, MACs, how it is trained, and the output of each top-level module in order."""
    last = model.last_tap
    shapes = {
        path: shape_of(output)
        for path, (output, _) in model.observe().items()
        if path and (path.count(".") == 0 or path == last)
    }
    weights = {True: "loaded", False: "random", None: "as your module brings them"}[model.loaded]
    kind = kind_of_model(model)
    return {
        "model": model.name,
        "parameters": parameters(model),
        "macs": macs(model),
        "size": list(model.size),
        "classes": len(model.classes),
        "weights": weights,
        "mean": model.mean.flatten().tolist(),
        "std": model.std.flatten().tolist(),
        "interpolation": model.interpolation,
        "trained_with": None if settings is None else f"{in_words(settled(settings, kind))} ({kind})",
        "notes": list(describe_model(model)),
        "matched": dict(model.matched),
        "last": last,
        "shapes": shapes,
    }


def shape_of(output: object) -> list[int] | str:
    return list(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__


def batches_of(data: Data, settings: Training, device: torch.device) -> Batches:
    return Batches(data.train, settings.batch_size, augment=AUGMENTS.build(settings.augment), device=device)


def plans_of(
    recipe: Recipe, data: Data, teachers_data: Mapping[str, Data], student: Model, teachers: Mapping[str, Model]
) -> tuple[tuple[Plan, ...], Teacher]:
    """The trainings of a run, each with a few timed steps, and the teacher of the student."""
    trainings: list[tuple[str, Model, Data, tuple[str, ...], Training, Teacher]] = []
    part = recipe.teacher
    for role, model in teachers.items():
        if part and finetuning_of(part, part.models[role]) != "none":
            model = copy.deepcopy(model)  # the model that answers is frozen
            trainings.append((role, model, teachers_data[role], part.methods, recipe.teacher_training, nobody))
    trainings.append(("base", student, data, recipe.base.methods, recipe.train, nobody))
    device = cast(torch.device, processes().device)
    live = [LiveTeacher(model.to(device)) for model in teachers.values()]
    answering = as_one(live, part.joined, part.control) if part else nobody
    trainings.append(("student", student, data, recipe.student.methods, recipe.train, answering))
    plans = []
    for role, model, seen, methods, settings, who in trainings:
        batches = batches_of(seen, settings, device)
        step = time_step(model, methods, batches, settings, who)
        plans.append(Plan(role, settings.epochs * len(batches), batches.size, step))
    return tuple(plans), answering
