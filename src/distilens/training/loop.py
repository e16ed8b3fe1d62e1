"""The training loop. It has no hooks: if yours must differ, copy it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from distilens.core import (
    Answering,
    Batch,
    Method,
    Model,
    Objective,
    Teacher,
    accompany,
    as_teacher,
    needs_of,
    with_terms,
)
from distilens.data.augment import AUGMENTS
from distilens.data.pipeline import Batches
from distilens.data.splits import Data
from distilens.foundation.devices import fastest_convolutions, processes, profits_from_bfloat16
from distilens.foundation.errors import UserError
from distilens.foundation.fingerprints import key_of
from distilens.foundation.memory import reuse_freed_memory as memory_kept
from distilens.models.taps import evaluating
from distilens.teachers import nobody
from distilens.training.balance import BALANCES
from distilens.training.checkpoints import Checkpoints, Interrupted, interruptible
from distilens.training.defaults import kind_of_model, settled
from distilens.training.log import Log
from distilens.training.optimizers import OPTIMIZERS, SCHEDULES
from distilens.training.settings import Training

ONE_AT_A_TIME = threading.RLock()
"""Trainings in threads take turns, because torch's random numbers and accelerate's state belong to the whole process."""


def train(
    student: Model,
    methods: Mapping[str, Method],
    data: Data,
    settings: Training,
    *,
    teacher: Answering = nobody,
    folder: Path | None = None,
    log: Log | None = None,
    seed: int = 0,
) -> Model:
    """Train a student with a list of methods, and return the finished student: the best epoch on validation, or the last.

    With a `folder`, checkpoints are saved there, and the same call resumes a stopped training. On a CPU the result is
    bit-identical to that of a training that never stopped.

    Args:
        student: trained in place.
        methods: term name -> method, from `build_methods`.
        data: trained on the training split, selected on the validation split; the test split is not used.
        settings: the `[train]` section of a recipe.
        teacher: answers each batch; it is never trained and never saved.
        folder: where checkpoints are saved; None saves nothing.
        log: receives progress and metrics.
        seed: the seed of order and dropout; `settings.variant_seed` is the seed of the augmentation.

    Raises:
        UserError: a loss is not finite (the last good checkpoint stays), or no method has a loss.
        Interrupted: Ctrl-C or SIGTERM; the state was saved.

    Trainings in threads of one process take turns, so that a seed gives the same result there. To train in parallel, use
    processes.
    """
    with ONE_AT_A_TIME:
        return train_alone(student, methods, data, settings, as_teacher(teacher), folder, log or Log(), seed)


def train_alone(
    student: Model,
    methods: Mapping[str, Method],
    data: Data,
    settings: Training,
    teacher: Teacher,
    folder: Path | None,
    log: Log,
    seed: int,
) -> Model:
    """`train`, while no other thread of this process trains."""
    settings = settled(settings, kind_of_model(student))
    accelerator = make_accelerator(settings)
    torch.manual_seed(seed + 1_000_003 * accelerator.process_index)

    def batches(split, augment=None):
        ranks = {"rank": accelerator.process_index, "world": accelerator.num_processes, **settings.reading}
        options = {"seed": seed, "variant_seed": settings.variant_seed, "variants": settings.variants, **ranks}
        even = settings.sampling == "balanced"
        return Batches(split, settings.batch_size, augment=augment, balanced=even, device=accelerator.device, **options)

    training, validation = batches(data.train, AUGMENTS.build(settings.augment)), batches(data.validation)
    if training.size % accelerator.num_processes:
        raise UserError(
            f"batches of {training.size} images cannot be shared evenly by {accelerator.num_processes} processes: "
            f"train.batch_size={max(1, training.size // accelerator.num_processes) * accelerator.num_processes}"
        )
    balance = BALANCES.build(settings.balance, with_terms(methods))
    objective = Objective(student.to(accelerator.device), methods, balance).to(accelerator.device)
    first, _ = split_up(next(training.epoch(0)), settings.micro_batch)[0]
    with accelerator.autocast():
        objective.prepare(first, teacher(first, objective.needs))
    objective.to(accelerator.device)
    accompany(objective.student, methods.values(), teacher)
    if lays_channels_last(settings, accelerator.device):
        student.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if settings.compile:
        compile_student(objective, graphs=settings.compile == "graphs")
    average = ema_of(objective.student, settings.ema)
    optimizer = OPTIMIZERS.build(settings.optimizer, objective)
    schedule = SCHEDULES.build(settings.schedule)
    peaks = [group["lr"] for group in optimizer.param_groups]
    wrapped, optimizer = accelerator.prepare(objective, optimizer)
    steps = settings.epochs * len(training)

    listed = {name: (method.notation, method.weight, method.warmup, method.decay) for name, method in methods.items()}
    plan = key_of(settings.decisive(), listed, data.fingerprint, seed)
    state = Checkpoints(folder, objective, optimizer, average, plan=plan, main=accelerator.is_main_process)
    place = state.resume()
    metric = student.task.metric
    length = {"epochs": settings.epochs, "steps": len(training), "images": training.size}
    log.start(**length, at=place.step, epoch=place.epoch, metric=metric)
    with log, memory_kept(), fastest_convolutions(), interruptible() as stop:
        for epoch in range(place.epoch, settings.epochs):
            objective.train()
            for batch in training.epoch(epoch, start=place.within, epochs=settings.epochs):
                set_learning_rate(optimizer, peaks, schedule(place.step, steps))
                parts = []
                for part, share in split_up(batch, settings.micro_batch):
                    with accelerator.autocast():
                        answer = teacher(part, needs_of(objective.at_work(part.progress).values()))
                    terms = wrapped(part, answer)
                    accelerator.backward(share * total(terms))
                    parts.append((share, terms))
                terms = joined(parts)
                if settings.clip:
                    accelerator.clip_grad_norm_(objective.parameters(), settings.clip)
                optimizer.step()
                optimizer.zero_grad()
                if average is not None:
                    average.update_parameters(objective.student)
                place.advance()
                log.step(batch, terms, optimizer.param_groups[0]["lr"], every=settings.log_every)
                if stop.requested:
                    log.flush()
                    state.save(place)
                    raise Interrupted(stop.signal, folder)
                if state.due():
                    log.flush()
                    state.save(place)
            log.flush()
            place.next_epoch()
            score = None
            if place.epoch % settings.validate_every == 0 or place.epoch == settings.epochs:
                scores = validate(student_to_save(objective, average), validation, accelerator)
                log.epoch(epoch, scores, objective.notes() | teacher.notes())
                score = metric.rank(scores[metric.name]) if scores["n"] else None
            state.save(place, score=score, keep=settings.keep_every)
            if stop.requested:  # during validation
                raise Interrupted(stop.signal, folder)
    accelerator.wait_for_everyone()  # until the main process has written what the others read next
    if settings.select == "best":
        state.restore_best()
    objective.student.load_bare_state(student_to_save(objective, average).bare_state())
    return objective.finish().eval()


def student_to_save(objective: Objective, average: AveragedModel | None) -> Model:
    """The student that is validated and saved: the mean of the weights, if there is one."""
    return objective.student if average is None else cast(Model, average.module)


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """The loss: the sum of the named terms."""
    if not terms:
        raise UserError("these methods have no loss (at this step): add one with a loss, such as ce or kd")
    return torch.stack(list(terms.values())).sum()


def split_up(batch: Batch, most: int | None) -> list[tuple[Batch, float]]:
    """A batch in equal parts of at most `most` images, each with its share of the batch; their gradients add up."""
    if most is None or len(batch) <= most:
        return [(batch, 1.0)]
    rows = np.array_split(np.arange(len(batch)), -(-len(batch) // most))
    return [(batch.select(part), len(part) / len(batch)) for part in rows]


def joined(parts: Sequence[tuple[float, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """The terms of a batch from those of its parts. A term that is missing in a part counts as zero there."""
    if len(parts) == 1:
        return dict(parts[0][1])
    names = dict.fromkeys(name for _, terms in parts for name in terms)
    return {
        name: torch.stack([share * terms[name].detach() for share, terms in parts if name in terms]).sum(0)
        for name in names
    }


def set_learning_rate(optimizer: Optimizer, peaks: list[float], factor: float) -> None:
    """Set all learning rates. The schedule is a function of the step, so it needs no state and resumes exactly."""
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        group["lr"] = peak * factor


def validate(student: Model, batches: Batches, accelerator: Accelerator) -> dict[str, float]:
    """The task's metric and loss on a split, in the precision of training, over all processes."""
    with evaluating(student), as_written(student), torch.inference_mode(), accelerator.autocast():
        sums = torch.stack([tally(student, batch) for batch in batches]).sum(0)
    loss, n, *tallied = cast(Tensor, accelerator.reduce(sums)).unbind()
    score = student.task.value(torch.stack(tallied)) or 0.0
    return {student.task.metric.name: score, "loss": float(loss) / max(float(n), 1), "n": int(n)}


def tally(student: Model, batch: Batch) -> Tensor:
    """The sum of the losses, the number of images with a target, and the task's tally: they add over batches and processes."""
    task, outputs = student.task, student.logits(batch.images).float()
    loss, known = task.masked_loss(outputs, batch.targets).sum(), task.known(batch.targets).sum()
    return torch.cat([torch.stack([loss, known.float()]), task.tally(outputs, batch.targets)])


def make_accelerator(settings: Training) -> Accelerator:
    """Device, precision and processes: a new one per training, because accelerate never changes the precision of the first."""
    AcceleratorState._reset_state()
    precision = settings.precision
    if precision == "auto":
        precision = "bfloat16" if profits_from_bfloat16() else "float32"
    mixed = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[precision]
    return Accelerator(mixed_precision=mixed, cpu=cast(torch.device, processes().device).type == "cpu")


def lays_channels_last(settings: Training, device: torch.device) -> bool:
    """Whether convolutions are faster with the channels last in memory."""
    if settings.channels_last != "auto":
        return settings.channels_last
    return device.type == "cuda" or profits_from_bfloat16()


def compile_student(objective: Objective, *, graphs: bool = False) -> None:
    """Compile the student's network in place, so that the names in its state stay. `graphs` replays kernels as CUDA graphs."""
    second = [name for name, method in objective.methods.items() if method.second_order]
    if second:
        raise UserError(
            f"compile=true cannot be used with {', '.join(second)}: torch.compile has no second derivatives"
        )
    if objective.balance.measures:
        from torch._functorch import config

        config.donated_buffer = False  # measuring runs backward through the graph more than once
    objective.student.network.compile(mode="reduce-overhead" if graphs else None)


@contextlib.contextmanager
def as_written(student: Model) -> Iterator[None]:
    """Run a compiled network uncompiled: compiling it again for evaluation takes longer than the evaluation."""
    network = student.network
    compiled, network._compiled_call_impl = network._compiled_call_impl, None
    try:
        yield
    finally:
        network._compiled_call_impl = compiled


def ema_of(student: Model, decay: float) -> AveragedModel | None:
    """The exponential mean of weights and statistics; None without a decay. If there is one, it is validated and saved."""
    if not decay:
        return None
    return AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
