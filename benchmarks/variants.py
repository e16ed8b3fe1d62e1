"""What few augmentations cost in accuracy: a student learns from stored answers of 1, 4, 16 variants, or ever new ones.

The teacher is a trained run's. Each seed draws its own images and its own weights; all settings of a seed share them. Accuracy
is of the last epoch, on the teacher's validation split, for this is a choice. A setting that is done is not done again, and
answers are shared by all settings and seeds.

    python benchmarks/variants.py --run runs/cifar10 [--shots 200] [--epochs 80] [--seeds 3]
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
import tyro
from scipy import stats

from distilens.data.pipeline import Batches
from distilens.foundation.files import read_json, write_json
from distilens.measure import predict
from distilens.methods import build_methods
from distilens.models import build_model
from distilens.runs.run import load_run
from distilens.teachers import LiveTeacher, StoredTeacher
from distilens.training.loop import train
from distilens.training.settings import Training


def main(
    run: Path,
    student: str = "resnet8",
    shots: int = 200,
    epochs: int = 80,
    variants: tuple[int, ...] = (1, 4, 16, 0),
    seeds: int = 3,
    out: Path = Path("runs/variants.json"),
) -> None:
    found = load_run(run)
    data = found.data
    few_to_watch = dataclasses.replace(data.validation, index=data.validation.index[:64])
    teacher = StoredTeacher(out.with_suffix(""), LiveTeacher(found.model("teacher")), say=print)
    scores = read_json(out) or {}
    for seed in range(seeds):
        chosen = stratified(data.train.labels, shots, seed)
        few = dataclasses.replace(data.train, index=data.train.index[chosen])
        seen = dataclasses.replace(data, train=few, validation=few_to_watch)
        for count in variants:
            key = f"{student} {shots} {epochs} variants={count} seed={seed}"
            if key not in scores:
                torch.manual_seed(seed)
                settings = Training(
                    **{**found.recipe.train.model_dump(), "epochs": epochs, "variants": count, "select": "last"}
                )
                methods = build_methods(["ce:weight=0.1", "kd:temperature=4,weight=0.9"])
                model = build_model(student, data.classes, data.size)
                model = train(model, methods, seen, settings, teacher=teacher, seed=seed)
                right = predict(model, Batches(data.validation, 250)).argmax(1) == torch.from_numpy(
                    data.validation.labels
                )
                scores[key] = 100 * right.float().mean().item()
                write_json(out, scores)
            print(key, f"{scores[key]:.2f} %  ({teacher.recorded:,} answers asked of the teacher)", flush=True)
    for count in variants:
        values = [scores[f"{student} {shots} {epochs} variants={count} seed={seed}"] for seed in range(seeds)]
        fresh = [scores[f"{student} {shots} {epochs} variants=0 seed={seed}"] for seed in range(seeds)]
        against = np.subtract(values, fresh)
        print(f"variants={count}: {interval(values)}; against a new one each epoch {interval(against)}")


def stratified(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """So many positions of every class."""
    chance = np.random.default_rng(seed)
    each = [chance.permutation(np.flatnonzero(labels == label))[:shots] for label in np.unique(labels[labels >= 0])]
    return np.sort(np.concatenate(each))


def interval(values) -> str:
    """Mean ± half of the 95 % interval by t."""
    values = np.asarray(values)
    if len(values) < 2 or not values.std():
        return f"{values.mean():.2f}"
    return f"{values.mean():.2f} ± {stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5:.2f}"


if __name__ == "__main__":
    tyro.cli(main)
