"""Images a second of training ResNet-20 at batch 128: end to end, and the floor, which is the step alone.

End to end is `distilens.train` with data, augmentation and logging. The floor runs the same network, precision, memory layout
and optimizer on one batch that is there already. Rounds are interleaved in one process; medians and their ratio are reported.

    python benchmarks/step.py [--model resnet20] [--steps 60] [--rounds 5]
"""

from __future__ import annotations

import dataclasses
import statistics
import time

import torch
import tyro

from distilens.core import Answer, Objective
from distilens.data import load
from distilens.data.augment import crop
from distilens.data.batches import Batches
from distilens.data.subset import Split
from distilens.methods import build_methods
from distilens.models import build_model
from distilens.optimizers import sgd
from distilens.progress import Log
from distilens.recipe import Training
from distilens.train import lays_channels_last, make_accelerator, train


def main(
    model: str = "resnet20", data: str = "shapes:train=9000,val_fraction=0.01", steps: int = 60, rounds: int = 5
) -> None:
    found = load(data)
    settings = Training(epochs=1, batch_size=128, optimizer="sgd:lr=0.01")
    accelerator = make_accelerator(settings)
    batch = next(Batches(found.train, 128, augment=crop()).epoch(0))
    network = build_model(model, found.classes, found.size).to(accelerator.device)
    if lays_channels_last(settings, accelerator.device):
        network.network.to(memory_format=torch.channels_last)
    objective = Objective(network, build_methods(["ce"])).train()
    optimizer = sgd(objective, lr=0.01)
    enabled = accelerator.mixed_precision == "bf16"

    few = dataclasses.replace(
        found,
        train=Split(found.train.rows, found.train.index[: steps * 128]),
        validation=Split(found.validation.rows, found.validation.index[:8]),
    )

    def floor() -> float:
        start = time.perf_counter()
        for _ in range(steps):
            with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=enabled):
                terms = objective(batch, Answer())
            terms["ce"].backward()
            optimizer.step()
            optimizer.zero_grad()
        return steps * 128 / (time.perf_counter() - start)

    def end_to_end() -> float:
        log = Log()
        train(build_model(model, few.classes, few.size), build_methods(["ce"]), few, settings, log=log)
        rows = [row for row in log.rows if "images_per_second" in row]
        return len(rows) / sum(1 / row["images_per_second"] for row in rows)

    rates: dict[str, list[float]] = {"floor": [], "end to end": []}
    floor()
    for _ in range(rounds):
        rates["floor"].append(floor())
        rates["end to end"].append(end_to_end())
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(
        f"{model}, batch 128, {torch.get_num_threads()} threads, {accelerator.mixed_precision}, {rounds} rounds of {steps}"
    )
    for name, rate in medians.items():
        print(f"{name:>12}  {rate:>8,.0f} images/s")
    ratios = [a / b for a, b in zip(rates["floor"], rates["end to end"], strict=True)]
    print(f"       ratio  {statistics.median(ratios):.3f} (goal at most 1.15)")


if __name__ == "__main__":
    tyro.cli(main)
