"""Training: one visible loop. Copy it when your loop must differ; it has no hooks."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from distilens.allocation import kept as memory_kept
from distilens.balance import BALANCES
from distilens.checkpoints import Checkpoints, Interrupted, interruptible
from distilens.core import Batch, Method, Model, Objective, Teacher, accompany, with_terms
from distilens.data.augment import AUGMENTS
from distilens.data.batches import Batches
from distilens.data.subset import Data
from distilens.errors import UserError
from distilens.files import key_of
from distilens.optimizers import OPTIMIZERS, SCHEDULES
from distilens.processor import fastest_convolutions, profits_from_bfloat16
from distilens.progress import Log
from distilens.recipe import Training
from distilens.taps import evaluating
from distilens.teachers import nobody
from distilens.usual import kind_of_model, settled

ONE_AT_A_TIME = threading.RLock()
"""Torch's random numbers and accelerate's state belong to the whole process: trainings in threads take turns."""


def train(
    student: Model,
    methods: Mapping[str, Method],
    data: Data,
    settings: Training,
    *,
    teacher: Teacher = nobody,
    folder: Path | None = None,
    log: Log | None = None,
    seed: int = 0,
) -> Model:
    """Train a student with a list of methods, and return it as it will be used: the best epoch on validation, or the last.

    With a `folder`, the state is kept there, and the same call goes on where it was stopped; on a CPU the result is then
    bit-identical to a run that never stopped.

    Args:
        student: trained in place.
        methods: term name -> method, from `build_methods`.
        data: its training split is learnt, its validation split chooses; the test split is not touched.
        settings: the `[train]` section of a recipe.
        teacher: answers each batch; never trained, never saved.
        folder: where checkpoints go; None keeps nothing.
        log: where progress and metrics go.
        seed: of order and dropout; augmentation is drawn from `settings.variant_seed`.

    Raises:
        UserError: a loss that is not finite (the last good checkpoint stays), or a list of methods without any loss.
        Interrupted: Ctrl-C or SIGTERM; the state was saved.

    In threads of one process trainings take turns, so that a seed means the same there: to train at once, take processes.
    """
    with ONE_AT_A_TIME:
        return train_alone(student, methods, data, settings, teacher, folder, log or Log(), seed)


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
    first = next(training.epoch(0))
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

    listed = {name: (each.notation, each.weight, each.warmup, each.decay) for name, each in methods.items()}
    plan = key_of(settings.decisive(), listed, data.fingerprint, seed)
    state = Checkpoints(folder, objective, optimizer, average, plan=plan, main=accelerator.is_main_process)
    place = state.resume()
    log.start(epochs=settings.epochs, steps=len(training), images=training.size, at=place.step, epoch=place.epoch)
    with log, memory_kept(), fastest_convolutions(), interruptible() as stop:
        for epoch in range(place.epoch, settings.epochs):
            objective.train()
            for batch in training.epoch(epoch, start=place.within, epochs=settings.epochs):
                set_learning_rate(optimizer, peaks, schedule(place.step, steps))
                with accelerator.autocast():
                    answer = teacher(batch, objective.needs)
                terms = wrapped(batch, answer)
                accelerator.backward(total(terms))
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
            scores = validate(kept_by(objective, average), validation, accelerator)
            place.next_epoch()
            log.epoch(epoch, scores, objective.notes() | getattr(teacher, "notes", dict)())
            state.save(place, accuracy=scores["accuracy"], keep=settings.keep_every)
            if stop.requested:  # during validation
                raise Interrupted(stop.signal, folder)
    accelerator.wait_for_everyone()  # the main process writes what the others read now
    if settings.select == "best":
        state.restore_best()
    objective.student.load_bare_state(kept_by(objective, average).bare_state())
    return objective.finish().eval()


def kept_by(objective: Objective, average: AveragedModel | None) -> Model:
    """The student that is validated and kept: the mean of the weights where there is one."""
    return objective.student if average is None else cast(Model, average.module)


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """The loss: the sum of the named terms."""
    if not terms:
        raise UserError("these methods have no loss (at this step): add one that has, such as ce or kd")
    return torch.stack(list(terms.values())).sum()


def set_learning_rate(optimizer: Optimizer, peaks: list[float], factor: float) -> None:
    """The schedule is a function of the step, so it needs no state and resumes exactly."""
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        group["lr"] = peak * factor


def validate(student: Model, batches: Batches, accelerator: Accelerator) -> dict[str, float]:
    """Accuracy and cross-entropy on a split, in the precision of training, over all processes."""
    sums = torch.zeros(3, device=accelerator.device)
    with evaluating(student), as_written(student), torch.inference_mode(), accelerator.autocast():
        for batch in batches:
            sums += counted(student, batch)
    right, loss, n = cast(Tensor, accelerator.reduce(sums)).tolist()
    return {"accuracy": right / max(n, 1), "loss": loss / max(n, 1), "n": int(n)}


def counted(student: Model, batch: Batch) -> Tensor:
    logits = student.logits(batch.images).float()
    loss = nn.functional.cross_entropy(logits, batch.labels, reduction="sum", ignore_index=-1)
    known = batch.labels >= 0
    return torch.stack([(logits.argmax(1) == batch.labels)[known].sum().float(), loss, known.sum().float()])


def make_accelerator(settings: Training) -> Accelerator:
    """Device, precision and processes; one a training, because accelerate keeps the first one's precision for good."""
    AcceleratorState._reset_state()
    precision = settings.precision
    if precision == "auto":
        precision = "bfloat16" if profits_from_bfloat16() else "float32"
    mixed = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[precision]
    return Accelerator(mixed_precision=mixed, cpu=cast(torch.device, processes().device).type == "cpu")


def processes() -> PartialState:
    """This process among those of one launch, and its device. Processors count as well, which accelerate must be told."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())


def lays_channels_last(settings: Training, device: torch.device) -> bool:
    """Whether convolutions are faster with the channels last in memory."""
    if settings.channels_last != "auto":
        return settings.channels_last
    return device.type == "cuda" or profits_from_bfloat16()


def compile_student(objective: Objective, *, graphs: bool = False) -> None:
    """Compile the student's network in place: its state keeps its names. With `graphs`, its kernels become CUDA graphs."""
    second = [name for name, method in objective.methods.items() if method.second_order]
    if second:
        raise UserError(f"compile=true cannot go with {', '.join(second)}: torch.compile has no second derivative")
    if objective.balance.measures:
        from torch._functorch import config

        config.donated_buffer = False  # the graph is gone through more than once
    objective.student.network.compile(mode="reduce-overhead" if graphs else None)


@contextlib.contextmanager
def as_written(student: Model) -> Iterator[None]:
    """Run a compiled network as it was written: compiling it once more for evaluation takes longer than the evaluation."""
    network = student.network
    compiled, network._compiled_call_impl = network._compiled_call_impl, None
    try:
        yield
    finally:
        network._compiled_call_impl = compiled


def ema_of(student: Model, decay: float) -> AveragedModel | None:
    """The exponential mean of the weights and statistics, which is then what is validated and kept."""
    if not decay:
        return None
    return AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
