"""What all parts share: the device, the data, the time that is left, and how a training is timed."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from distilens.core import Method, Model
from distilens.data import Data, Split, load
from distilens.data.pipeline import Batches
from distilens.foundation.notation import Spec
from distilens.measure import predict
from distilens.measure.accuracies import EVALUATION_BATCH
from distilens.measure.scores import labels_of
from distilens.models import build_model
from distilens.teachers import nobody
from distilens.training.log import Log
from distilens.training.loop import lays_channels_last, train
from distilens.training.settings import Training

CIFAR10 = "parquet:path=data/cifar10"
TINY = "shapes:train=400,test=100,size=32"


class OutOfTime(Exception):  # noqa: N818  # it is what happened
    """What is left of the part's time is too short for a row."""


class Bench:
    """Where and with what is measured.

    Attributes:
        tiny: sizes that show that all runs, on a CPU.
        folder: for weights and answers, which later rows and later commands use.
    """

    def __init__(self, device: str, data: str, folder: Path, seconds: float):
        self.device, self.folder = torch.device(device), folder
        self.tiny = device == "cpu"
        self.notation = data or (TINY if self.tiny else CIFAR10)
        if self.tiny:
            self.notation = str(Spec.parse(self.notation).replaced(limit=400))
        self.end = time.monotonic() + seconds
        self._data: Data | None = None
        folder.mkdir(parents=True, exist_ok=True)
        if self.tiny:
            torch.set_num_threads(1)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    @property
    def data(self) -> Data:
        if self._data is None:
            self._data = load(self.notation)
        return self._data

    def of(self, full: Any, tiny: Any) -> Any:
        """A size: the one that is measured, or the one that shows that it works."""
        return tiny if self.tiny else full

    def some(self, images: int) -> Data:
        """The data with so many training images, and few validation images."""
        few = dataclasses.replace(self.data.train, index=self.data.train.index[:images])
        watched = dataclasses.replace(self.data.validation, index=self.data.validation.index[:64])
        return dataclasses.replace(self.data, train=few, validation=watched)

    def model(self, notation: str) -> Model:
        model = build_model(notation, self.data.classes, self.data.size).to(self.device)
        if lays_channels_last(Training(), self.device):
            model.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object], repeats: int = 5, warm_up: int = 2) -> float:
        """The median of some calls' times."""
        for _ in range(warm_up):
            call()
        times = []
        for _ in range(repeats):
            self.synchronise()
            start = time.perf_counter()
            call()
            self.synchronise()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def peak(self, call: Callable[[], object]) -> float | None:
        """GiB of the card that a call takes at most; None on a CPU."""
        if self.device.type != "cuda":
            call()
            return None
        torch.cuda.reset_peak_memory_stats()
        call()
        return round(torch.cuda.max_memory_allocated() / 2**30, 3)

    def train(
        self, student: Model, methods: Mapping[str, Method], data: Data, settings: Training, **options: Any
    ) -> tuple[Model, Watch]:
        """`distilens.train`, watched; it is given up where it would not end in time."""
        watch = Watch(self)
        options.setdefault("teacher", nobody)
        return train(student, methods, data, settings, log=watch, **options), watch


def percent_right(model: Model, split: Split, device: torch.device) -> float:
    """Accuracy on a split, in percent. (`distilens.measure.accuracy` also has the interval, for which it needs scipy.)"""
    logits = predict(model, Batches(split, EVALUATION_BATCH, device=device))
    return round(100 * (logits.argmax(1) == labels_of(split)).float().mean().item(), 2)


class Watch(Log):
    """A log that knows when each epoch ended, and stops a training that has no time to end.

    Attributes:
        ends: seconds from the start of training to the end of each epoch's validation.
    """

    def __init__(self, bench: Bench):
        super().__init__()
        self.bench, self.ends, self.begun_at = bench, [], 0.0

    def __enter__(self) -> Watch:
        self.begun_at = time.monotonic()
        super().__enter__()
        return self

    def epoch(self, epoch: int, scores: dict[str, float], notes: dict[str, float] | None = None) -> None:
        super().epoch(epoch, scores, notes)
        self.ends.append(time.monotonic() - self.begun_at)
        later = self.ends[-1] - self.ends[0]  # the first epoch warms up, or compiles
        rest = (self.epochs - epoch - 1) * (later / epoch if epoch else self.ends[0] / 2)
        if rest > self.bench.left:
            raise OutOfTime(f"about {rest:.0f} s more were needed, and {max(0, self.bench.left):.0f} s were left")

    @property
    def rates(self) -> list[float]:
        """Images a second by epoch, without the first."""
        by_epoch: dict[int, list[float]] = {}
        for row in self.rows:
            if "images_per_second" in row:
                by_epoch.setdefault(row["epoch"], []).append(row["images_per_second"])
        return [statistics.harmonic_mean(rates) for epoch, rates in by_epoch.items() if epoch]

    def seconds_to(self, share: float) -> float | None:
        """Seconds of training until validation accuracy first was so high."""
        scores = [row["validation"]["accuracy"] for row in self.rows if "validation" in row]
        return next((round(end, 1) for end, score in zip(self.ends, scores, strict=True) if score >= share), None)
