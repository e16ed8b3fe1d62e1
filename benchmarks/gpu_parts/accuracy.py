"""A CIFAR-10 teacher and its student to accuracy: seconds of training until validation first reaches 90, 93 and 94 %.

One seed each. Validation, a tenth of the training images, is seen after each epoch and chooses the epoch; the test split is read
once at the end. The time holds training and validation, not the start of the process.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from distilens.core import Model
from distilens.methods import build_methods
from distilens.models.saved import load_model, save_model
from distilens.teachers import LiveTeacher
from distilens.training.settings import Training
from gpu_parts.bench import Bench, percent_right
from gpu_parts.card import Rows

LEVELS = (0.90, 0.93, 0.94)
SETTINGS = {"batch_size": 256, "optimizer": "sgd:lr=0.2", "schedule": "one_cycle", "augment": "crop:flip=alternate"}


def rows(bench: Bench) -> Rows:
    teacher = bench.of("wrn:depth=16,width=4", "resnet14")
    student = bench.of("resnet20", "resnet8")
    short, long = bench.of((24, 40), (2, 2))
    kd = ["ce:weight=0.1", "kd:temperature=4,weight=0.9"]
    yield f"teacher {teacher}, {short} epochs", lambda: teach(bench, teacher, short)
    yield f"{student} under it, {long} epochs", lambda: learn(bench, student, kd, long)
    yield f"{student} alone, {long} epochs", lambda: learn(bench, student, ["ce"], long)
    yield f"teacher {teacher}, {2 * short} epochs", lambda: trained(bench, teacher, ["ce"], 2 * short)[1]
    yield f"{student} under it, {long} epochs, CUDA graphs", lambda: learn(bench, student, kd, long, compile="graphs")


def teach(bench: Bench, notation: str, epochs: int) -> dict[str, Any]:
    model, found = trained(bench, notation, ["ce"], epochs)
    save_model(model, bench.folder / "teacher")
    return found


def learn(bench: Bench, notation: str, parts: list[str], epochs: int, **settings: Any) -> dict[str, Any]:
    teacher = LiveTeacher(load_model(bench.folder / "teacher").to(bench.device)) if len(parts) > 1 else None
    options = {"teacher": teacher} if teacher else {}
    return trained(bench, notation, parts, epochs, settings=settings, **options)[1]


def trained(
    bench: Bench,
    notation: str,
    parts: list[str],
    epochs: int,
    *,
    settings: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[Model, dict[str, Any]]:
    """A network trained on all of the data, and how it went."""
    torch.manual_seed(0)
    chosen = Training(**{**SETTINGS, "epochs": epochs, **bench.of({}, {"batch_size": 64}), **(settings or {})})
    model, watch = bench.train(bench.model(notation), build_methods(parts), bench.data, chosen, **options)
    best = max(row["validation"]["accuracy"] for row in watch.rows if "validation" in row)
    return model, {
        **{f"seconds_to_{100 * level:.0f}": watch.seconds_to(level) for level in LEVELS},
        "validation": round(100 * best, 2),
        "test": percent_right(model, bench.data.test, bench.device),
        "seconds": round(watch.ends[-1], 1),
        "images_per_second": round(sum(watch.rates) / len(watch.rates)) if watch.rates else math.nan,
        "seed": 0,
    }
