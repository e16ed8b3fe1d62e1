"""The cost of a training: time and memory per step, and what each method adds to them and to the student."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distilens.core import Model, Objective, Teacher, accompany
from distilens.data.pipeline import Batches
from distilens.foundation.devices import now
from distilens.foundation.errors import UserError
from distilens.measure import macs, parameters
from distilens.methods import METHODS
from distilens.training.balance import Balance
from distilens.training.dry_run import rehearsed
from distilens.training.loop import lays_channels_last, make_accelerator, split_up, total
from distilens.training.settings import Training

TIMED_STEPS = 5
FEW_STEPS = 3
"""Timed steps per single method; the fastest one counts."""
BUSY = 3.0
"""The machine counts as busy if the slowest step takes more than this many times the median."""
LABELS = "ce"
ALONE = f"{LABELS}:as=the labels alone"
"""Each method is timed together with this loss, because some methods have no loss."""


@dataclass(frozen=True)
class Timed:
    """A training step that was timed a few times.

    Attributes:
        seconds: the time of each repetition, sorted.
        memory: bytes that the forward pass keeps for the backward pass, with weights, gradients and optimizer state.
    """

    seconds: tuple[float, ...]
    memory: int

    @property
    def fastest(self) -> float:
        return self.seconds[0]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def slowest(self) -> float:
        return self.seconds[-1]

    @property
    def busy(self) -> bool:
        """Whether other processes took computing time meanwhile."""
        return self.slowest > BUSY * self.median


@dataclass(frozen=True)
class Added:
    """What a method adds.

    Attributes:
        trained: parameters that are trained with the student and then dropped.
        kept: bytes that it stores about the training images.
        parameters, macs: added to the student at inference.
        seconds: added per step, compared with a step with labels alone.
    """

    trained: int
    kept: int
    parameters: int
    macs: int
    seconds: float


def added(
    model: Model, methods: Sequence[str], batches: Batches, settings: Training, teacher: Teacher
) -> dict[str, Added | None]:
    """What each method adds by itself, in order, with times of this machine.

    None for a method that cannot run by itself, because it reads what another one inserts into the student.
    """
    floor = time_step(model, (ALONE,), batches, settings, teacher, steps=FEW_STEPS).fastest
    found: dict[str, Added | None] = {}
    for part in methods:
        with_it = (part,) if METHODS.resolve(part).name == LABELS else (ALONE, part)
        try:
            seconds = time_step(model, with_it, batches, settings, teacher, steps=FEW_STEPS).fastest - floor
        except UserError:
            found[part] = None
            continue
        batch = next(batches.epoch(0))
        objective = rehearsed(model.to(batch.images.device), with_it, batch, teacher)
        trained, kept = trained_numbers(objective), remembered(objective)
        student = objective.finish().eval()
        accompany(student, objective.terms().values(), teacher)
        more = (parameters(student) - parameters(model), macs(student) - macs(model))
        found[part] = Added(trained - parameters(student), kept, *more, seconds)
    return found


def trained_numbers(objective: Objective) -> int:
    """The number of trained parameters: the student's, in its training form, and the methods' own."""
    return sum(parameter.numel() for parameter in objective.parameters())


def remembered(objective: Objective) -> int:
    """Bytes that the methods store about the training images."""
    return sum(method.remembered() for method in objective.terms().values())


def time_step(
    model: Model,
    methods: tuple[str, ...],
    batches: Batches,
    settings: Training,
    teacher: Teacher,
    *,
    steps: int = TIMED_STEPS,
) -> Timed:
    """Time a training step a few times, after a first one that does not count."""
    accelerator = make_accelerator(settings)
    batch, share = split_up(next(batches.epoch(0)), settings.micro_batch)[0]
    with accelerator.autocast():
        objective = rehearsed(model.to(accelerator.device), methods, batch, teacher, balance=settings.balance)
    objective.balance = Balance()  # a balance measures at few steps only, but would measure at each of these
    if lays_channels_last(settings, accelerator.device):
        objective.student.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    kept: dict[int, int] = {}  # by storage: a tensor that several operations keep counts once

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    times = []
    for _ in range(steps + 1):
        kept.clear()
        start = now(accelerator.device)
        with accelerator.autocast(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = total(objective(batch, teacher(batch, objective.needs)))
        loss.backward()
        times.append((now(accelerator.device) - start) / share)  # the other parts take as long
    weights = sum(parameter.numel() * parameter.element_size() for parameter in objective.parameters())
    # 4: weights, gradients, two optimizer states per weight
    return Timed(tuple(sorted(times[1:])), sum(kept.values()) + 4 * weights)
