"""What measuring the terms' gradients costs: one measurement as a share of the steps between two of them.

python benchmarks/balance.py [--pair resnet56 resnet20] [--methods ce kd fitnet] [--rounds 20]
"""

from __future__ import annotations

import statistics
import time

import torch
import tyro

from distilens.core import Objective
from distilens.data import load
from distilens.data.augment import AUGMENTS
from distilens.data.pipeline import Batches
from distilens.methods import build_methods
from distilens.models import build_model
from distilens.teachers import LiveTeacher
from distilens.training.balance import BALANCES, Measured
from distilens.training.loop import lays_channels_last, make_accelerator, total
from distilens.training.optimizers import OPTIMIZERS
from distilens.training.settings import Training


def main(
    pair: tuple[str, str] = ("resnet56", "resnet20"),
    methods: tuple[str, ...] = ("ce", "kd", "fitnet:weight=1e-6"),
    data: str = "shapes:train=600,size=32",
    batch_size: int = 128,
    rounds: int = 20,
) -> None:
    """Take turns, a step with a measurement and one without, on one batch with its answers, and print the medians."""
    accelerator = make_accelerator(Training())
    found = load(data)
    student, teacher = (build_model(part, found.classes, found.size).to(accelerator.device) for part in pair[::-1])
    if lays_channels_last(Training(), accelerator.device):
        student.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch = next(Batches(found.train, batch_size, augment=AUGMENTS.build("crop"), device=accelerator.device).epoch(0))
    listed = build_methods(methods)
    balance = BALANCES.build("ratio:0.3", list(listed))
    assert isinstance(balance, Measured)
    objective = Objective(student, listed, balance).train()
    with accelerator.autocast():
        answer = LiveTeacher(teacher)(batch, objective.needs)
        objective.prepare(batch, answer)
    optimizer = OPTIMIZERS.build("sgd:lr=1e-4", objective)

    def step(number: int) -> float:
        start = time.perf_counter()
        with accelerator.autocast():
            loss = total(objective(batch.replaced(step=number), answer))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    step(0), step(1)
    measured, plain = zip(*((step(0), step(1)) for _ in range(rounds)), strict=True)
    shares = [(one - other) / (other * balance.every) for one, other in zip(measured, plain, strict=True)]
    print(
        f"{' → '.join(pair)}, {len(methods)} terms, batch {batch_size}, {accelerator.device}: a step "
        f"{1000 * statistics.median(plain):.0f} ms, with a measurement {1000 * statistics.median(measured):.0f} ms; every "
        f"{balance.every} steps that is {100 * statistics.median(shares):.2f} % of a training (goal 3)"
    )


if __name__ == "__main__":
    tyro.cli(main)
