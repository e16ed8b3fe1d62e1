"""The step beside its floor, and where it waits.

The floor is the student's forward, backward and update on a batch that is there, in the same precision, memory layout and
form. Every other row is `distilens.train`, end to end, with data, augmentation and log; its first epoch warms up, records
what is stored and compiles. The floor is timed again right before each row (once where it is compiled). A live teacher's
row is also compared with the floor and the teacher's forward together.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distilens.core import Answer, Batch, Objective, Teacher
from distilens.data.augment import AUGMENTS
from distilens.data.pipeline import Batches
from distilens.foundation.devices import fastest_convolutions
from distilens.foundation.memory import reuse_freed_memory as memory_kept
from distilens.methods import build_methods
from distilens.teachers import LiveTeacher, StoredTeacher, nobody
from distilens.training.defaults import kind_of_model, settled
from distilens.training.log import Log
from distilens.training.loop import compile_student, make_accelerator, total
from distilens.training.optimizers import OPTIMIZERS
from distilens.training.settings import Training
from gpu_parts.bench import Bench
from gpu_parts.card import Rows

KD = ["ce:weight=0.1", "kd:temperature=4,weight=0.9"]
LISTS = {
    "student alone": ["ce"],
    "kd, live": KD,
    "kd, stored": KD,
    "class maps, live": [*KD, "map_match:explainer=cam,classes=all,pool=4"],
    "attention, live": [*KD, "at"],
    "Grad-CAM, live": [*KD, "map_match"],
}
COMPILED = (
    "student alone",
    "kd, live",
    "kd, stored",
    "class maps, live",
)  # Grad-CAM in a loss needs a second derivative
FORMS: dict[str, Any] = {"eager": False, "compile": True, "graphs": "graphs"}


def rows(bench: Bench) -> Rows:
    pairs = bench.of(
        (("resnet56", "resnet20"), ("mobilenetv2", "shrink:blocks=5")),
        (("resnet14", "resnet8"), ("mobilenetv2:width=0.25", "shrink:blocks=5,model=[mobilenetv2:width=0.25]")),
    )
    sizes = bench.of((128, 1024), (8, 16))
    order = [("eager", pair, size) for pair in pairs for size in sizes]
    order += [(form, pair, size) for size in sizes for pair in pairs for form in ("graphs", "compile")]
    for form, pair, size in order:
        group = Group(bench, pair, size, form)
        for name in LISTS if form == "eager" else COMPILED:
            yield f"{' → '.join(pair)} · {size} · {form} · {name}", lambda group=group, name=name: group.row(name)


class Group:
    """One pair of networks at one batch size in one form.

    Args:
        form: `eager`, `compile`, or `graphs`: compiled, and replayed as CUDA graphs.
    """

    def __init__(self, bench: Bench, pair: tuple[str, str], size: int, form: str):
        self.bench, self.pair, self.size, self.form = bench, pair, size, form
        # an epoch, by itself
        self.steps = bench.of(40, 2)
        self.settings = Training(
            epochs=4, batch_size=size, optimizer="sgd:lr=0.01", compile=FORMS[form], log_every=10**6, variants=1,
            select="last", workers=0,
        )  # fmt: skip
        self.floor_step: Callable[[], None] | None = None
        self.floor_rate: float | None = None
        self.teacher: LiveTeacher | None = None

    def row(self, name: str) -> dict[str, Any]:
        torch.manual_seed(0)
        accelerator = make_accelerator(self.settings)
        with fastest_convolutions(), memory_kept():
            if self.floor_rate is None or self.form == "eager":
                self.floor_rate = self.floor(accelerator)
            forward = self.forward(accelerator) if name.endswith("live") else None
        floor = self.floor_rate
        if self.form != "eager":
            torch._dynamo.reset()  # each row's network is a new one, and dynamo compiles a function so many times only
        teacher = self.answering(name)
        data = self.bench.some(self.steps * self.size)
        watch, rates = None, []

        def once() -> None:
            nonlocal watch, rates
            model = self.bench.model(self.pair[1])
            _, watch = self.bench.train(model, build_methods(LISTS[name]), data, self.settings, teacher=teacher)
            rates = watch.rates

        peak = self.bench.peak(once)
        rate = sorted(rates)[len(rates) // 2]
        both = 1 / (1 / floor + 1 / forward) if forward else floor
        found = {"images_per_second": round(rate), "floor": round(floor), "share": round(rate / floor, 3)}
        if forward:
            found |= {"teacher_forward": round(forward), "share_of_both": round(rate / both, 3)}
        if peak is not None:
            found["peak_gib"] = peak
            if self.form == "eager":
                found["waits"] = self.waits(LISTS[name], teacher, accelerator)
        return found

    def answering(self, name: str) -> Teacher:
        if name == "student alone":
            return nobody
        if self.teacher is None:
            self.teacher = LiveTeacher(self.bench.model(self.pair[0]))
        if name.endswith("live"):
            return self.teacher
        return StoredTeacher(self.bench.folder / "steps" / self.pair[0].replace(":", "-"), self.teacher)

    def batch(self) -> Batch:
        train = self.bench.some(self.size).train
        return next(Batches(train, self.size, augment=AUGMENTS.build("crop"), device=self.bench.device).epoch(0))

    def floor(self, accelerator: Any) -> float:
        """Images a second of the student's own forward, backward and update."""
        if self.floor_step is None:
            batch = self.batch()
            objective = Objective(self.bench.model(self.pair[1]), build_methods(["ce"])).train()
            if self.settings.compile:
                compile_student(objective, graphs=self.settings.compile == "graphs")
            optimizer = OPTIMIZERS.build(settled(self.settings, kind_of_model(objective.student)).optimizer, objective)

            def step() -> None:
                with accelerator.autocast():
                    loss = total(objective(batch, Answer()))
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()

            self.floor_step = step
        return self.rate(self.floor_step)

    def forward(self, accelerator: Any) -> float:
        """Images a second of the live teacher's logits."""
        teacher, batch = self.answering("kd, live"), self.batch()

        def step() -> Tensor | None:
            with accelerator.autocast():
                return teacher(batch, ["logits"]).logits

        return self.rate(step)

    def rate(self, step: Callable[[], object]) -> float:
        def steps() -> None:
            for _ in range(self.steps):
                step()

        return self.steps * self.size / self.bench.seconds(steps, repeats=3, warm_up=1)

    def waits(self, parts: list[str], teacher: Teacher, accelerator: Any) -> dict[str, float]:
        """By place, how often the host waits for the card in a step: what torch's own debug mode warns of."""
        steps, data = 4, self.bench.some(4 * self.size)
        batches = Batches(data.train, self.size, augment=AUGMENTS.build("crop"), variants=1, device=self.bench.device)
        objective = Objective(self.bench.model(self.pair[1]), build_methods(parts)).to(self.bench.device).train()
        first = next(batches.epoch(0))
        with accelerator.autocast():
            objective.prepare(first, teacher(first, objective.needs))
        objective.to(self.bench.device)
        optimizer = OPTIMIZERS.build(settled(self.settings, kind_of_model(objective.student)).optimizer, objective)
        log = Log()
        log.start(epochs=2, steps=steps, images=self.size, at=0, epoch=0)

        def epoch() -> None:
            for batch in batches.epoch(0):
                with accelerator.autocast():
                    answer = teacher(batch, objective.needs)
                terms = objective(batch, answer)
                total(terms).backward()
                optimizer.step()
                optimizer.zero_grad()
                log.step(batch, terms, 0.01, every=10**6)

        epoch()  # warms up
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                epoch()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        places = Counter(
            f"{Path(one.filename).name}:{one.lineno}" for one in seen if "synchroniz" in str(one.message).lower()
        )
        return {place: count / steps for place, count in places.items()}
