"""Scores computed from a run's predictions only: accuracy, calibration, confusion, agreement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distilens.measure.accuracies import agreement, among_top, balanced, by_class, share_apart, top_k
from distilens.measure.mistakes import confused, worst_errors
from distilens.measure.places import places_apart, score_places
from distilens.measure.predictions import Predictions, SplitPredictions
from distilens.measure.reliability import calibration, calibration_apart, with_temperature
from distilens.tasks import Classification, Segmentation, Task

TOP = 5


def tensors(split: SplitPredictions) -> tuple[dict[str, Tensor], Tensor]:
    """The logits by model, and the targets."""
    return {model: torch.from_numpy(values) for model, values in split.logits.items()}, torch.from_numpy(split.targets)


def score_answers(found: Predictions) -> dict[str, dict[str, Any]]:
    """Each model's scores from its predictions, as plain data for `scores.json`; on the test split unless named otherwise."""
    task = found.task
    (test, targets), (validation, known) = tensors(found.test), tensors(found.validation)
    scores: dict[str, dict[str, Any]] = {}
    for model, logits in test.items():
        scores[model] = {
            "validation": main_score(task, validation[model], known),
            "test": main_score(task, logits, targets),
        }
        if isinstance(task, Classification):
            scores[model] |= score_classes(found, model)
        if isinstance(task, Segmentation):
            scores[model] |= score_places(task, test, targets, model)
    if {"student", "base"} <= test.keys():
        splits = {"validation": (validation, known), "test": (test, targets)}
        apart = {
            name: difference and difference.plain()
            for name, (logits, truth) in splits.items()
            for difference in [task.apart(logits["student"], logits["base"], truth)]
        }
        more = classes_apart(test, targets) if isinstance(task, Classification) else {}
        more |= places_apart(test, targets) if isinstance(task, Segmentation) else {}
        scores["student"]["more than base"] = {**apart, **more}
    return scores


def main_score(task: Task, outputs: Tensor, targets: Tensor) -> dict[str, Any] | None:
    """The task's metric with its interval; None without a target."""
    estimate = task.measure(outputs, targets)[task.metric.name]
    return estimate.plain(task.metric.name) if estimate.n else None


def score_classes(found: Predictions, model: str) -> dict[str, Any]:
    """The further scores of a classification: by class, confusion, calibration, agreement with the teacher."""
    (test, labels), (validation, known) = tensors(found.test), tensors(found.validation)
    logits, classes = test[model], by_class(test[model], labels, found.classes)
    return {
        "top5": top_k(logits, labels, TOP) if len(found.classes) > TOP else None,
        "by class": classes,
        "balanced": balanced(classes),
        "confusion": confused(logits, labels, found.classes),
        "calibration": calibration(logits, labels),
        "temperature": with_temperature((logits, labels), (validation[model], known)),
        "agreement": agreement(logits, test["teacher"]) if "teacher" in test and model != "teacher" else None,
    }


def classes_apart(test: Mapping[str, Tensor], labels: Tensor) -> dict[str, Any]:
    """The differences of these scores between student and base, on the same images."""
    labelled, (student, base) = labels >= 0, (test["student"], test["base"])
    top = [among_top(logits, labels, TOP)[labelled] for logits in (student, base) if logits.shape[1] > TOP]
    alike = [logits.argmax(1) == test["teacher"].argmax(1) for logits in (student, base) if "teacher" in test]
    return {
        "top5": share_apart(*top) if top else None,
        "agreement": share_apart(*alike) if alike else None,
        **calibration_apart(student, base, labels),
    }


def errors_of(found: Predictions) -> list[dict[str, Any]]:
    """The wrong predictions of the student (else of the last model) with the highest confidence, with the images' files.

    It is empty for tasks that are not a classification.
    """
    if not isinstance(found.task, Classification):
        return []
    test = found.test
    logits, labels = tensors(test)
    listed = worst_errors(logits, labels, found.classes, of="student" if "student" in logits else list(logits)[-1])
    return [{**one, "index": int(test.index[one["row"]]), "name": test.name(one["row"])} for one in listed]
