"""All scores of a run: teacher, base and student on the same images, as plain data for `scores.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from distilens.data.pipeline import batch_at
from distilens.data.splits import Data, Split
from distilens.explain import Explainer, build_explainer, in_chunks, labels
from distilens.explain.maps import empty
from distilens.foundation import randomness
from distilens.measure.accuracies import commonest, evaluation_batches, predict
from distilens.measure.answers import score_answers
from distilens.measure.corruptions import accuracy_under_shift
from distilens.measure.cost import latency, macs, parameters
from distilens.measure.known import Known
from distilens.measure.maps.likeness import cosine, mean_interval
from distilens.measure.maps.localisation import energy_in_mask
from distilens.measure.predictions import Predictions, SplitPredictions, predictions_of
from distilens.models.model import Model
from distilens.models.saved import fingerprint_of
from distilens.tasks import Classification, Task

Say = Callable[[str], object]


def predict_all(
    models: Mapping[str, Model], data: Data, *, teachers: Known | None = None, say: Say = lambda text: None
) -> Predictions:
    """All models' predictions for all images of test and validation. The test split is read here.

    Args:
        teachers: the results of teachers from earlier calls; a teacher that is in it is not asked again.
    """
    known = teachers or Known()

    def answered(split: Split, name: str) -> SplitPredictions:
        def ask(role: str, model: Model) -> Tensor:
            def compute() -> Tensor:
                say(f"predictions of {role} on {name}")
                return predict(model, evaluation_batches(split, model.device))

            return known.get(model, split, "predictions", compute) if role == "teacher" else compute()

        return predictions_of(split, {role: ask(role, model) for role, model in models.items()})

    return Predictions(data.task, answered(data.test, "test"), answered(data.validation, "validation"))


def score_models(
    models: Mapping[str, Model],
    data: Data,
    explainers: Sequence[str],
    *,
    measured: int,
    predictions: Predictions | None = None,
    corruptions: Sequence[str] = (),
    teachers: Known | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Score models by role (`teacher`, `base`, `student`): their predictions, maps and cost.

    Maps explain the teacher's top-1 class, on `measured` test images, a fixed random sample of the data set.

    Args:
        predictions: the models' predictions, if they exist already.
        corruptions: also score the models on test images that are corrupted in these ways.
        teachers: the results of teachers from earlier calls; a teacher that is in it is not asked again.
    """
    known = teachers or Known()
    answers = predict_all(models, data, teachers=known, say=say) if predictions is None else predictions
    say("scores of the predictions")
    scores = score_answers(answers)
    for role, model in models.items():
        say(f"cost of {role}")
        scores[role] = {
            "model": model.name,
            "fingerprint": fingerprint_of(model),
            **scores[role],
            "maps": {},
            "parameters": parameters(model),
            "macs": macs(model),
            "latency_ms": latency(model),
        }
        if corruptions:
            say(f"corrupted images of {role}")
            compute = partial(accuracy_under_shift, model, data.test, corruptions)
            under = known.get(model, data.test, tuple(corruptions), compute) if role == "teacher" else compute()
            scores[role]["shift"] = {kind: found.plain(data.task.metric.name) for kind, found in under.items()}
    positions = draw_positions(data.test, measured)
    logits = answers.test.logits
    reference = torch.from_numpy(logits.get("teacher", next(iter(logits.values()))))
    for explainer, label in labels(explainers).items():
        say(f"maps by {explainer}")
        explain = build_explainer(explainer, data)
        compared = compare_maps(models, data.test, positions, explain, data.task.explained(reference)[positions])
        for role, values in compared.items():
            scores[role]["maps"][label] = {"explainer": explainer, "split": "test", **values}
    return {
        "data": {
            "name": data.name,
            "classes": list(data.classes),
            "train": len(data.train),
            "validation": len(data.validation),
            "test": len(data.test),
            "skipped": list(data.skipped),
            "commonest": commonest(labels_of(data.test), data.classes)
            if isinstance(data.task, Classification)
            else None,
            **about_task(data.task),
            **data.inventory.plain(),
        },
        "models": scores,
    }


def compare_maps(
    models: Mapping[str, Model], split: Split, positions: Tensor, explain: Explainer, target: Tensor
) -> dict[str, dict[str, Any]]:
    """Per role: the mean cosine of its maps to the teacher's, and the share of its maps on the evidence.

    In a dense task the evidence is the region that is explained; the rest of a map is its context.

    The student also gets its differences to the base in both, image by image.
    """
    if not len(positions):
        return {}
    batch = batch_at(split, positions)
    evidence = (
        (target >= 0).float() if split.task.dense else batch.mask
    )  # in a dense task: the places that are explained
    maps = {role: in_chunks(explain, model, batch.images, target).maps for role, model in models.items()}
    others = {
        role: cosine(own, maps["teacher"]) for role, own in maps.items() if "teacher" in maps and role != "teacher"
    }
    scores: dict[str, dict[str, Any]] = {}
    inside = {role: energy_in_mask(own, evidence) for role, own in maps.items() if evidence is not None}
    for role, own in maps.items():
        alike = mean_interval(others[role]) if role in others else {"mean": None, "low": None, "high": None, "n": None}
        on_mask = (
            mean_interval(inside[role]) if role in inside else {"mean": None, "low": None, "high": None, "n": None}
        )
        scores[role] = {
            "similarity": alike["mean"],
            "low": alike["low"],
            "high": alike["high"],
            "n": len(positions),
            "empty": int(empty(own).sum()),
            "compared": alike["n"],
            "energy_in_mask": on_mask["mean"],
            "energy": on_mask,
            "masks": evidence is not None,
        }
    if {"student", "base"} <= maps.keys():  # paired by image, which is more precise than two means
        for name, values in (("more_than_base", others), ("energy_more_than_base", inside)):
            scores["student"][name] = mean_interval(values["student"] - values["base"]) if "student" in values else None
    return scores


def about_task(task: Task) -> dict[str, Any]:
    """The task and its metric, as plain data; nothing for classification, which needs no word."""
    return {} if isinstance(task, Classification) else {"task": task.name, "metric": task.metric.plain()}


def labels_of(split: Split) -> Tensor:
    return torch.from_numpy(split.targets)


def draw_positions(split: Split, count: int) -> Tensor:
    """`count` positions of a split, sampled with a fixed seed, in ascending order."""
    order = torch.randperm(len(split), generator=randomness.generator("measured", 0))
    return order[:count].sort().values
