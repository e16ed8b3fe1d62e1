"""Scores computed from a run's predictions only: accuracy, calibration, confusion, agreement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distilens.measure.mistakes import confused, worst_errors
from distilens.measure.predictions import Predictions, SplitPredictions
from distilens.measure.reliability import calibration, calibration_apart, with_temperature
from distilens.measure.shares import accuracy, agreement, among_top, balanced, by_class, right, share_apart, top_k

TOP = 5


def tensors(split: SplitPredictions) -> tuple[dict[str, Tensor], Tensor]:
    """The logits by model, and the labels."""
    return {model: torch.from_numpy(values) for model, values in split.logits.items()}, torch.from_numpy(split.targets)


def score_answers(found: Predictions) -> dict[str, dict[str, Any]]:
    """Each model's scores from its predictions, as plain data for `scores.json`; on the test split unless named otherwise."""
    (test, labels), (validation, known) = tensors(found.test), tensors(found.validation)
    scores: dict[str, dict[str, Any]] = {}
    for model, logits in test.items():
        classes = by_class(logits, labels, found.classes)
        scores[model] = {
            "validation": accuracy(validation[model], known),
            "test": accuracy(logits, labels),
            "top5": top_k(logits, labels, TOP) if len(found.classes) > TOP else None,
            "by class": classes,
            "balanced": balanced(classes),
            "confusion": confused(logits, labels, found.classes),
            "calibration": calibration(logits, labels),
            "temperature": with_temperature((logits, labels), (validation[model], known)),
            "agreement": agreement(logits, test["teacher"]) if "teacher" in test and model != "teacher" else None,
        }
    if {"student", "base"} <= test.keys():
        scores["student"]["more than base"] = answers_apart(test, labels, validation, known)
    return scores


def answers_apart(
    test: Mapping[str, Tensor], labels: Tensor, validation: Mapping[str, Tensor], known: Tensor
) -> dict[str, Any]:
    """The differences of the scores between student and base, on the same images."""
    labelled, known_labelled = labels >= 0, known >= 0

    def apart(scored: Mapping[str, Tensor]) -> dict[str, Any] | None:
        return share_apart(scored["student"], scored["base"])

    roles = ("student", "base")
    top = {role: among_top(test[role], labels, TOP)[labelled] for role in roles if test[role].shape[1] > TOP}
    return {
        "validation": apart({role: right(validation[role], known)[known_labelled] for role in roles}),
        "test": apart({role: right(test[role], labels)[labelled] for role in roles}),
        "top5": apart(top) if top else None,
        "agreement": apart({role: test[role].argmax(1) == test["teacher"].argmax(1) for role in roles})
        if "teacher" in test
        else None,
        **calibration_apart(test["student"], test["base"], labels),
    }


def errors_of(found: SplitPredictions, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """The wrong predictions of the student (else of the last model) with the highest confidence, with the images' files."""
    logits, labels = tensors(found)
    listed = worst_errors(logits, labels, classes, of="student" if "student" in logits else list(logits)[-1])
    return [{**one, "index": int(found.index[one["row"]]), "name": found.name(one["row"])} for one in listed]
