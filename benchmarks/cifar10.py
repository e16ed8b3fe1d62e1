"""Accuracy and time of the CIFAR-10 recipe's ResNet-20 over several seeds: chosen on validation, the test read once a seed.

Resumable: each seed is a run folder, `OUT/seed-0` and so on, that `distilens run` can take through the other stages.

    python benchmarks/cifar10.py --data parquet:path=data/cifar10,val_fraction=0.05 --seeds 0 1 2 --out runs/cifar10
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import tyro
from rich.console import Console
from scipy.stats import t

from distilens.data.pipeline import Batches
from distilens.measure import accuracy, predict
from distilens.measure.scores import EVALUATION_BATCH, labels_of
from distilens.runs.recipe_file import read_recipe
from distilens.runs.run import Run, lock_run
from distilens.runs.training import train_teacher


def main(
    data: str = "parquet:path=data/cifar10,val_fraction=0.05",
    seeds: tuple[int, ...] = (0, 1, 2),
    out: Path = Path("runs/cifar10"),
) -> None:
    rows = []
    for seed in seeds:
        recipe = read_recipe("cifar10-resnet20-resnet8", [f"data={data}", f"seed={seed}", f"name=cifar10-{seed}"])
        run = Run(out / f"seed-{seed}", recipe, Console(stderr=True))
        with lock_run(run):
            train_teacher(run)
        model = run.model("teacher")
        found = {}
        for split in ("validation", "test"):
            part = getattr(run.data, split)
            share = accuracy(predict(model, Batches(part, EVALUATION_BATCH)), labels_of(part))
            found[split] = share["accuracy"] if share else math.nan
        steps = [r for r in run.metrics.rows() if r["stage"] == "teacher" and "images_per_second" in r]
        rate = statistics.median(row["images_per_second"] for row in steps)
        rows.append({"seed": seed, **found, "seconds": run.seconds["teacher"], "images_per_second": rate})
        print(json.dumps(rows[-1]), flush=True)
    tests = [100 * row["test"] for row in rows]
    half = (
        t.ppf(0.975, len(tests) - 1) * statistics.stdev(tests) / math.sqrt(len(tests)) if len(tests) > 1 else math.nan
    )
    print(f"test accuracy {statistics.mean(tests):.2f} ± {half:.2f} % (mean of {len(tests)} seeds, 95 % interval)")
    print(f"time {statistics.median(row['seconds'] for row in rows):.0f} s a training with validation (median)")


if __name__ == "__main__":
    tyro.cli(main)
