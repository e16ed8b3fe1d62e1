"""Distillation in one call, for Python users."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from pydantic import ValidationError
from rich.console import Console
from torch import nn

from distilens.core import Answering, Method, Model, Teacher, as_teacher, check_task
from distilens.data import as_data
from distilens.foundation.devices import processes
from distilens.foundation.errors import UserError
from distilens.foundation.notation import Spec
from distilens.foundation.progress import visible_console
from distilens.foundation.settings import explain_errors
from distilens.methods import build_methods
from distilens.models import check_classes
from distilens.models.objects import as_model
from distilens.report.concerns import rising_loss
from distilens.teachers import LiveTeacher, nobody
from distilens.training.dry_run import check_logits, check_trainable
from distilens.training.history import History
from distilens.training.log import Log, Metrics
from distilens.training.loop import ONE_AT_A_TIME, train
from distilens.training.settings import Training, TrainingOptions
from distilens.training.trackers import Trackers, check_installed

Part = str | Mapping[str, Any] | Spec

USUAL = ("ce:weight=0.1", "kd:temperature=4,weight=0.9")
"""The default methods."""


def distill(
    student: Part | Model | nn.Module,
    teacher: Part | Model | nn.Module | Answering | None,
    data: Any,
    methods: Sequence[Part | Method] | None = None,
    *,
    settings: Training | Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    seed: int = 0,
    progress: Console | Literal[False] | None = None,
    **training: Unpack[TrainingOptions],
) -> tuple[Model, History]:
    """Train a student under a teacher. Returns the finished student and the log (`log.plot()`).

    Args:
        student: a notation (`resnet8`), a `Model`, or any module from normalised images to logits (see `as_model`);
            `student.network` is the bare module again.
        teacher: likewise, or any `teacher(batch, needs) -> Answer`, or None. It must be trained already.
        data: a notation (`parquet:path=data/cifar10`), `Data`, or what `as_data` takes: `(X, y)`, a torch `Dataset`, a
            `DataLoader`, a Hugging Face `Dataset`, a pair `(train, test)` of these.
        methods: notations or `Method` objects; by default labels and softened answers (`ce:weight=0.1` and
            `kd:temperature=4,weight=0.9`), without a teacher labels alone.
        settings: the settings of a recipe's `[train]` as a dict: `{"epochs": 20, "optimizer": "sgd:lr=0.1"}`.
        folder: where checkpoints and `metrics.jsonl` are saved; the same call then resumes a stopped training.
        seed: the seed of weights, order and dropout; `variant_seed` in the settings is the seed of the augmentation.
        progress: a rich console for the bar; by default the bar is shown in terminals and notebooks. False shows nothing.
        **training: the same settings as keywords: `epochs=20, batch_size=64`, and `lr=0.001` for the default optimizer at this
            learning rate.

    Raises:
        UserError: an argument is wrong, the folder contains another training, or a loss is not finite.

    Example:
        >>> import distilens
        >>> student, log = distilens.distill(
        ...     "resnet8", None, "shapes:limit=64", epochs=1, batch_size=32
        ... )
        >>> student.logits(student.example()).shape
        torch.Size([1, 8])
    """
    with ONE_AT_A_TIME:  # from the first random weight on
        return distilled(student, teacher, data, methods, merged(settings, training), folder, seed, progress)


def distilled(
    student: Part | Model | nn.Module,
    teacher: Part | Model | nn.Module | Answering | None,
    data: Any,
    methods: Sequence[Part | Method] | None,
    given: Training,
    folder: str | Path | None,
    seed: int,
    progress: Console | Literal[False] | None,
) -> tuple[Model, History]:
    """`distill`, while no other thread of this process trains."""
    dataset = as_data(data)
    for line in dataset.inventory.lines():
        warnings.warn(f"{dataset.name}: {line}", stacklevel=3)
    torch.manual_seed(seed)
    model = as_model(student, dataset.task, dataset.size)
    check_classes(model, dataset.task, "student")
    check_logits(model, dataset, "student")
    check_trainable(model, given.together, "student")
    answering: Teacher = nobody
    if isinstance(teacher, nn.Module | str | Mapping | Spec):
        large = as_model(teacher, dataset.task, dataset.size)
        for line in () if isinstance(teacher, Model) else large.notes:
            warnings.warn(f"the teacher {large.name}: {line}", stacklevel=3)
        check_classes(large, dataset.task, "teacher")
        if line := check_logits(large, dataset, "teacher", used=True):
            warnings.warn(line, stacklevel=3)
        answering = LiveTeacher(large.to(processes().device))
    elif teacher is not None:
        answering = as_teacher(teacher)
    metrics, main = Metrics(Path(folder) / "metrics.jsonl") if folder else None, processes().is_main_process
    check_installed(given.tracker)
    trackers = Trackers(given.tracker, Path(folder) if folder else None, settings=given.model_dump())
    checkpoints = Path(folder) / "checkpoints" if folder else None
    chosen = build_methods((USUAL if teacher is not None else ("ce",)) if methods is None else methods)
    check_task(chosen, dataset.task)
    with contextlib.closing(trackers):
        log = Log(
            metrics, main=main, trackers=trackers, console=visible_console() if progress is None else progress or None
        )
        trained = train(model, chosen, dataset, given, teacher=answering, folder=checkpoints, log=log, seed=seed)
        if line := rising_loss(log.rows, log.stage):
            warnings.warn(line, stacklevel=3)
        return trained, History(log.rows)


def checked(settings: Mapping[str, Any]) -> Training:
    """The settings of a dict.

    Raises:
        UserError: the settings are wrong; the message lists all errors.
    """
    try:
        return Training(**settings)
    except ValidationError as error:
        raise UserError("settings: " + "; ".join(explain_errors(error, Training))) from None


def merged(settings: Training | Mapping[str, Any] | None, keywords: Mapping[str, Any]) -> Training:
    """Settings and keywords as one `Training`; `lr` is the rate of the default optimizer.

    Raises:
        UserError: a setting is given twice or is unknown, or a value is wrong.
    """
    if isinstance(settings, Training):
        settings = settings.model_dump(exclude_unset=True)
    given, keywords = dict(settings or {}), dict(keywords)
    twice = sorted(given.keys() & keywords.keys())
    if twice:
        raise UserError(f"{', '.join(twice)} is given twice: in settings= and as a keyword")
    if "device" in {**given, **keywords}:
        raise UserError(
            "distill takes no device: it uses an accelerator if there is one. Set os.environ before the first training: "
            "ACCELERATE_USE_CPU='1' for the CPU, CUDA_VISIBLE_DEVICES='1' for the second GPU"
        )
    if "learning_rate" in keywords:
        raise UserError(f"unknown key 'learning_rate'. Did you mean lr={keywords['learning_rate']}?")
    if "lr" in keywords:
        rate = keywords.pop("lr")
        if "optimizer" in {**given, **keywords}:
            raise UserError(
                f"lr={rate} is for the default optimizer. With another one, write the rate in its notation: "
                f"optimizer='sgd:lr={rate}'"
            )
        keywords["optimizer"] = f"auto:lr={rate}"
    return checked({**given, **keywords})
