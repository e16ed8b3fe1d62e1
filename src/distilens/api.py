"""Distillation in one call, for Python users."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from distilens.core import Method, Model, Teacher
from distilens.data import Data, load
from distilens.errors import UserError
from distilens.files import Metrics
from distilens.history import History
from distilens.methods import build_methods
from distilens.models import build_model, check_classes, own_pixels
from distilens.models.adapters import unwrapped_network
from distilens.progress import Log
from distilens.recipe import Training
from distilens.recipe_file import explain_errors
from distilens.rehearsal import check_logits, check_trainable
from distilens.specs import Spec
from distilens.teachers import LiveTeacher, nobody
from distilens.trackers import Trackers, check_installed
from distilens.train import ONE_AT_A_TIME, processes, train

Part = str | Mapping[str, Any] | Spec


def distill(
    student: Part | Model | nn.Module,
    teacher: Part | Model | nn.Module | Teacher | None,
    data: Part | Data,
    methods: Sequence[Part | Method] = ("ce:weight=0.1", "kd:temperature=4,weight=0.9"),
    *,
    settings: Training | Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    seed: int = 0,
) -> tuple[Model, History]:
    """Train a student under a teacher; returns the student as it will be used, and the log (`log.plot()`).

    Args:
        student: a notation (`resnet8`), a `Model`, or any module that maps normalised images (mean 0.5, deviation 0.25) to
            logits; `student.network` is the bare module again.
        teacher: likewise; or any `teacher(batch, needs) -> Answer`; None for none. It has to be trained already.
        data: a notation (`parquet:path=data/cifar10`), or `Data` from `load` or `from_arrays`.
        methods: notations or `Method` objects.
        settings: what a recipe's `[train]` says, as a dict: `{"epochs": 20, "optimizer": "sgd:lr=0.1"}`.
        folder: keeps checkpoints and `metrics.jsonl`; the same call then goes on where it was stopped.
        seed: of weights, order and dropout; augmentation is drawn from `variant_seed` in the settings.

    Raises:
        UserError: whatever is wrong with what was given, a folder with the state of another training, or a loss that is not
            finite.

    Example:
        >>> import distilens
        >>> student, log = distilens.distill(
        ...     "resnet8", None, "shapes:limit=64", ["ce"], settings={"epochs": 1, "batch_size": 32}
        ... )
        >>> student.logits(student.example()).shape
        torch.Size([1, 8])
    """
    with ONE_AT_A_TIME:  # from the first weight that is drawn on
        return distilled(student, teacher, data, methods, settings, folder, seed)


def distilled(
    student: Part | Model | nn.Module,
    teacher: Part | Model | nn.Module | Teacher | None,
    data: Part | Data,
    methods: Sequence[Part | Method],
    settings: Training | Mapping[str, Any] | None,
    folder: str | Path | None,
    seed: int,
) -> tuple[Model, History]:
    """`distill`, while no other thread of this process trains."""
    found = data if isinstance(data, Data) else load(data)
    for line in found.inventory.lines():
        warnings.warn(f"{found.name}: {line}", stacklevel=2)
    given = settings if isinstance(settings, Training) else checked(settings or {})
    torch.manual_seed(seed)
    model = as_model(student, found)
    check_classes(model, found.classes, "student")
    check_logits(model, found, "student")
    check_trainable(model, given.batch_size, "student")
    answering: Teacher = nobody
    if isinstance(teacher, nn.Module | str | Mapping | Spec):
        large = as_model(teacher, found)
        check_classes(large, found.classes, "teacher")
        check_logits(large, found, "teacher")
        answering = LiveTeacher(large.to(processes().device))
    elif teacher is not None:
        answering = teacher
    metrics, main = Metrics(Path(folder) / "metrics.jsonl") if folder else None, processes().is_main_process
    check_installed(given.tracker)
    trackers = Trackers(given.tracker, Path(folder) if folder else None, settings=given.model_dump())
    checkpoints = Path(folder) / "checkpoints" if folder else None
    chosen = build_methods(methods)
    with contextlib.closing(trackers):
        log = Log(metrics, main=main, trackers=trackers)
        trained = train(model, chosen, found, given, teacher=answering, folder=checkpoints, log=log, seed=seed)
        return trained, History(log.rows)


def checked(settings: Mapping[str, Any]) -> Training:
    """Settings from a dict, or all that is wrong with them."""
    try:
        return Training(**settings)
    except ValidationError as error:
        raise UserError("settings: " + "; ".join(explain_errors(error, Training))) from None


def as_model(given: Part | Model | nn.Module, data: Data) -> Model:
    """A `Model` from whatever a user has."""
    if isinstance(given, Model):
        return given
    if isinstance(given, nn.Module):
        given = unwrapped_network(given, type(given).__name__)
        return Model(given, data.classes, size=data.size, **own_pixels(given))
    if not isinstance(given, str | Mapping | Spec):
        raise UserError(f"a model is a notation or a torch module; given a {type(given).__name__}")
    return build_model(given, data.classes, data.size)
