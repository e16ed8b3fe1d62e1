"""What a training costs: time and memory of a step, and what each method adds to it and to the student."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distilens.balance import Balance
from distilens.core import Model, Objective, Teacher, accompany
from distilens.data.batches import Batches
from distilens.errors import UserError
from distilens.measure import macs, parameters
from distilens.methods import METHODS
from distilens.methods.bank import Bank
from distilens.recipe import Training
from distilens.rehearsal import rehearsed
from distilens.train import lays_channels_last, make_accelerator, total

TIMED_STEPS = 5
FEW_STEPS = 3
"""Timed for each method by itself, of which the fastest counts."""
BUSY = 3.0
"""How many times the median the slowest step may take before the machine is called busy."""
LABELS = "ce"
ALONE = f"{LABELS}:as=the labels alone"
"""The loss beside which a method is timed, for some have none."""


@dataclass(frozen=True)
class Timed:
    """A step of a training, a few times.

    Attributes:
        seconds: of each, in order of size.
        memory: bytes that its forward keeps for its backward, with weights and state.
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
        """Whether something else took the machine's time meanwhile."""
        return self.slowest > BUSY * self.median


@dataclass(frozen=True)
class Added:
    """What a method adds.

    Attributes:
        trained: numbers that are trained beside the student's, and thrown away.
        kept: bytes that it remembers of images.
        parameters, macs: of the student as it is used.
        seconds: of a step, to one with the labels alone.
    """

    trained: int
    kept: int
    parameters: int
    macs: int
    seconds: float


def added(
    model: Model, methods: Sequence[str], batches: Batches, settings: Training, teacher: Teacher
) -> dict[str, Added | None]:
    """What each of some methods adds by itself, in order; the time is of this machine.

    None for one that cannot be by itself, for it reads what another one puts into the student.
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


def done(device: torch.device) -> None:
    """Wait until a device has done what it was told to."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def trained_numbers(objective: Objective) -> int:
    """The parameters of a training: the student's, in the form in which it is trained, and the methods' own."""
    return sum(parameter.numel() for parameter in objective.parameters())


def remembered(objective: Objective) -> int:
    """Bytes that methods keep of the images of the training set."""
    return sum(module.rows.nbytes for module in objective.modules() if isinstance(module, Bank))


def time_step(
    model: Model,
    methods: tuple[str, ...],
    batches: Batches,
    settings: Training,
    teacher: Teacher,
    *,
    steps: int = TIMED_STEPS,
) -> Timed:
    """A step of a training, timed a few times after a first one that does not count."""
    accelerator = make_accelerator(settings)
    batch = next(batches.epoch(0))
    with accelerator.autocast():
        objective = rehearsed(model.to(accelerator.device), methods, batch, teacher, balance=settings.balance)
    objective.balance = Balance()  # which is measured now and then, and would be at each of these steps
    if lays_channels_last(settings, accelerator.device):
        objective.student.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    kept: dict[int, int] = {}  # by storage: what several operations keep counts once

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    times = []
    for _ in range(steps + 1):
        kept.clear()
        done(accelerator.device)
        start = time.perf_counter()
        with accelerator.autocast(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = total(objective(batch, teacher(batch, objective.needs)))
        loss.backward()
        done(accelerator.device)
        times.append(time.perf_counter() - start)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in objective.parameters())
    return Timed(tuple(sorted(times[1:])), sum(kept.values()) + 4 * weights)  # weights, gradients, two of state
