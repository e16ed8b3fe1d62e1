"""What is seen of long work: a bar with an estimate; of a training the loss terms too, and the rows of `metrics.jsonl`."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, cast

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
)
from rich.table import Column
from rich.text import Text
from torch import Tensor

from distilens.core import Batch
from distilens.errors import UserError
from distilens.files import Metrics
from distilens.trackers import Trackers

WIDE = 100
"""Columns of a terminal from which the speed stands in the bar as well."""

ADVICE = "The last good checkpoint was kept; try a lower learning rate, clip=1, or precision=float32"


class NotFinite(UserError):  # noqa: N818  # it is what the loss is
    """A loss that is no number: training stopped, and the last good checkpoint stays."""

    code = 1


def shows_bars(console: Console) -> bool:
    """Whether a bar can be drawn: in a terminal, and in a notebook that has ipywidgets; elsewhere there are lines."""
    return console.is_terminal or (console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None)


def watched() -> Console | None:
    """Where progress is shown by itself: in a terminal and in a notebook; None where nobody watches."""
    console = Console(stderr=True)
    return console if console.is_terminal or console.is_jupyter else None


class Left(ProgressColumn):
    """The time that is left: `0:17 left`; of what is done the time that it took."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        if task.finished:
            return Text(f"took {clock(task.finished_time or 0)}")
        return Text("" if task.time_remaining is None else f"{clock(task.time_remaining)} left")


def clock(seconds: float) -> str:
    """`0:17`, `12:05`, `1:02:03`."""
    text = str(timedelta(seconds=round(seconds)))
    return text[2:].removeprefix("0") if text.startswith("0:") else text


class Log:
    """Progress and metrics of one training.

    Losses stay on the device until `every` steps have gathered, so that logging costs no synchronisation; that is also when
    they are checked.

    Args:
        metrics: the run's `metrics.jsonl`.
        stage: what is trained, for its rows: `teacher`, `base`, `student`.
        console: where the bar goes; None shows nothing.
        main: False on all but one process: neither bar nor rows, but checks.
        trackers: other services that show the rows.
    """

    def __init__(
        self,
        metrics: Metrics | None = None,
        stage: str = "student",
        *,
        console: Console | None = None,
        main: bool = True,
        trackers: Trackers | None = None,
    ):
        self.metrics = metrics if metrics and main else Metrics(None)
        self.stage, self.console = stage, console if main else None
        self.rows: list[dict[str, Any]] = []
        self.pending: list[tuple[int, Tensor, dict[str, Tensor]]] = []
        self.trackers = trackers if trackers and main else Trackers()
        self.told: dict[bool, int] = {}  # up to which step the trackers have heard of losses, and of validations
        self.bar: Progress | None = None

    def start(self, *, epochs: int, steps: int, images: int, at: int, epoch: int) -> None:
        """Say how long the training is, and at which step of which epoch it starts; rows behind that point are dropped."""
        self.epochs, self.steps, self.images, self.at = epochs, steps, images, at

        def is_before(row: dict[str, Any]) -> bool:
            return row["epoch"] < epoch if is_validation(row) else row["step"] <= at

        before = [row for row in self.metrics.rows() if row["stage"] == self.stage]
        for row in before:
            self.told[is_validation(row)] = max(row["step"], self.told.get(is_validation(row), 0))
        self.trackers.begin(self.stage, resumed=bool(before))
        self.metrics.keep(lambda row: row["stage"] != self.stage or is_before(row))
        self.rows = [row for row in self.metrics.rows() if row["stage"] == self.stage]
        self.since = self.begun = (time.perf_counter(), at)
        self.learning_rate = 0.0

    def __enter__(self) -> Log:
        if self.console is not None:
            self.wide = self.console.width >= WIDE
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=20 if self.wide else 8),
                TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
                Left(table_column=Column(no_wrap=True, min_width=9)),
            )
            self.bar = Progress(*columns, console=self.console, disable=not shows_bars(self.console))
            self.validated = ""
            self.task = self.bar.add_task(self.stage, total=self.epochs * self.steps, completed=self.at, note="")
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def step(self, batch: Batch, terms: dict[str, Tensor], learning_rate: float, *, every: int) -> None:
        """Take note of a step: of the losses of all processes, which are as many in each."""
        self.pending.append((batch.epoch, batch.index, averaged(terms)))
        self.at += 1
        self.learning_rate = learning_rate
        if len(self.pending) >= every:
            self.flush()

    def flush(self) -> None:
        """Fetch the gathered losses, check them, and write a row of their means.

        Raises:
            NotFinite: with the epoch, the batch's indices and each term.
        """
        if not self.pending:
            return
        names = list(dict.fromkeys(name for _, _, terms in self.pending for name in terms))
        there = torch.tensor(
            [[name in terms for name in names] for _, _, terms in self.pending]
        )  # not all at each step
        nothing = next(iter(self.pending[0][2].values())).new_zeros(())
        values = torch.stack(
            [torch.stack([terms.get(name, nothing) for name in names]) for _, _, terms in self.pending]
        ).cpu()
        for (epoch, index, _), row in zip(self.pending, values, strict=True):
            if not row.isfinite().all():
                said = ", ".join(f"{name}={value:g}" for name, value in zip(names, row.tolist(), strict=True))
                raise NotFinite(
                    f"the loss of {self.stage} is not finite in epoch {epoch + 1} ({said}), on the images with index "
                    f"{index.tolist()}. {ADVICE}"
                )
        terms = dict(zip(names, (values.sum(0) / there.sum(0)).tolist(), strict=True))
        now = time.perf_counter()
        rate = (self.at - self.since[1]) * self.images / max(now - self.since[0], 1e-9)
        self.since = (now, self.at)
        epoch = self.pending[-1][0]
        self.pending = []
        self.write(
            epoch=epoch,
            step=self.at,
            terms=terms,
            loss=values.sum(1).mean().item(),
            learning_rate=self.learning_rate,
            images_per_second=round(rate, 1),
        )
        if self.bar is not None:
            losses = " ".join(f"{name} {value:.3g}" for name, value in terms.items())
            parts = [f"epoch {epoch + 1}/{self.epochs}", self.validated, losses, f"{rate:,.0f} images/s" * self.wide]
            self.bar.update(self.task, completed=self.at, note=" · ".join(part for part in parts if part))

    def epoch(self, epoch: int, scores: dict[str, float], notes: dict[str, float] | None = None) -> None:
        """Take note of an epoch's validation, and of what methods and teacher have counted.

        Raises:
            NotFinite: the last step broke the weights, so that no later loss could say it.
        """
        if not math.isfinite(scores["loss"]):
            raise NotFinite(
                f"the validation loss of {self.stage} is not finite after epoch {epoch + 1} ({scores['loss']:g}). {ADVICE}"
            )
        self.write(epoch=epoch, step=self.at, validation=scores, **({"notes": notes} if notes else {}))
        self.since = (time.perf_counter(), self.at)  # validation is no training time
        self.validated = f"{scores['accuracy']:.1%} val"
        if self.console is not None and not shows_bars(self.console):
            last = next((row for row in reversed(self.rows) if "terms" in row), None)
            terms = " ".join(f"{name} {value:.3f}" for name, value in last["terms"].items()) if last else ""
            rate = f"{last['images_per_second']:,.0f} images/s" if last else ""
            terms = " ".join([terms, *(f"{name} {value:.3g}" for name, value in (notes or {}).items())])
            done = f"{self.stage} epoch {epoch + 1}/{self.epochs}  {terms}  validation {scores['accuracy']:.1%}  {rate}"
            self.console.print(f"{done}{self.left()}", highlight=False)

    def left(self) -> str:
        """An estimate of the time to the end, for logs without a bar."""
        elapsed, done = time.perf_counter() - self.begun[0], self.at - self.begun[1]
        rest = elapsed / max(done, 1) * (self.epochs * self.steps - self.at)
        return f"  {timedelta(seconds=round(rest))} left" if rest else ""

    def write(self, **row: Any) -> None:
        row = {"stage": self.stage, **row}
        self.rows.append(row)
        self.metrics.append(**row)
        if row["step"] > self.told.get(is_validation(row), 0):  # others were heard before the run was stopped
            self.trackers.log(self.stage, row)


def is_validation(row: Mapping[str, Any]) -> bool:
    """Whether a row of the log is of an epoch's validation, not of losses."""
    return "validation" in row


def averaged(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean of each term over all processes; in the step and not when losses are fetched, for that is each one's own time."""
    if PartialState().num_processes == 1:
        return {name: term.detach() for name, term in terms.items()}
    values = cast(Tensor, reduce(torch.stack([term.detach() for term in terms.values()]), reduction="mean"))
    return dict(zip(terms, values.unbind(), strict=True))


class Work:
    """A bar over all of some work, with the time that is left; where there is no terminal, a line for each part of it.

    Args:
        console: where it goes; None is silent.
        name: what the work is called in a log.
    """

    def __init__(self, console: Console | None, name: str):
        self.console, self.name = console, name
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            Left(table_column=Column(no_wrap=True, min_width=9)),
        )
        self.bar = Progress(*columns, console=console, disable=console is None or not shows_bars(console))
        self.task = self.bar.add_task(name, total=None)
        self.total = self.done = self.start = 0.0

    def __enter__(self) -> Work:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """What is done now."""
        self.bar.update(self.task, description=text)

    def begin(self, label: str) -> None:
        """Say in a log which part is begun."""
        if self.console is not None and not shows_bars(self.console):
            self.console.print(f"{self.name}: {label}{self.left()}", highlight=False, markup=False)

    def plan(self, seconds: Mapping[str, float]) -> None:
        """What there is to be done, by an estimate."""
        self.total, self.start = sum(seconds.values()), time.perf_counter()
        self.bar.update(self.task, total=self.total)

    def heard(self, text: str, seconds: float) -> Callable[[int], object]:
        """Say what is begun; the function returned hears of so many images, each of which was estimated at `seconds`."""
        self.say(text)

        def done(images: int) -> None:
            self.done += seconds * images
            self.bar.update(self.task, completed=self.done)

        return done

    def left(self) -> str:
        """An estimate of the time to the end, for logs without a bar."""
        if not self.total:
            return ""
        pace = (time.perf_counter() - self.start) / self.done if self.done else 1.0
        return f"  {timedelta(seconds=max(0, round(pace * (self.total - self.done))))} left"
