"""The log of a training: the progress bar, and the rows of `metrics.jsonl`."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from rich.console import Console
from torch import Tensor

from distilens.data.batch import Batch
from distilens.foundation.errors import UserError
from distilens.foundation.files import explain_disk_errors, write_text
from distilens.foundation.metric import ACCURACY, Metric
from distilens.foundation.progress import Work
from distilens.training.trackers import Trackers

ADVICE = "The last good checkpoint was kept; try a lower learning rate, clip=1, or precision=float32"


class NotFinite(UserError):  # noqa: N818  # named after the loss
    """The loss is NaN or infinite. Training stopped, and the last good checkpoint stays."""

    code = 1


class Metrics:
    """The log of a run: one JSON object per line. When training resumes, rows after the checkpoint are dropped."""

    def __init__(self, path: Path | None):
        self.path = path

    def append(self, **row: Any) -> None:
        if self.path is None:
            return
        with explain_disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a") as file:
                file.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """All complete rows. A line that a kill cut short is skipped."""
        if self.path is None or not self.path.exists():
            return []
        rows = []
        for line in self.path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
        return rows

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the rows for which `wanted` is False, such as those after the checkpoint that is resumed."""
        if self.path is not None and self.path.exists():
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in self.rows() if wanted(row)))


class Log:
    """Progress and metrics of one training.

    The losses of `every` steps stay on the device and are then fetched and checked together, so that steps do not wait for the
    device.

    Args:
        metrics: the run's `metrics.jsonl`.
        stage: the trained model, for its rows: `teacher`, `base`, `student`.
        console: where the bar is shown; None shows nothing.
        main: True on the main process. The others check losses, but show no bar and write no rows.
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
        # the last step sent to the trackers, of losses (False) and of validations (True)
        self.told: dict[bool, int] = {}
        self.work: Work | None = None

    def start(self, *, epochs: int, steps: int, images: int, at: int, epoch: int, metric: Metric = ACCURACY) -> None:
        """Start the log of a training with its length and its first step and epoch. Rows after that point are dropped."""
        self.epochs, self.steps, self.images, self.at, self.metric = epochs, steps, images, at, metric

        def is_before(row: dict[str, Any]) -> bool:
            return row["epoch"] < epoch if is_validation(row) else row["step"] <= at

        before = [row for row in self.metrics.rows() if row["stage"] == self.stage]
        for row in before:
            self.told[is_validation(row)] = max(row["step"], self.told.get(is_validation(row), 0))
        self.trackers.begin(self.stage, resumed=bool(before))
        self.metrics.keep(lambda row: row["stage"] != self.stage or is_before(row))
        self.rows = [row for row in self.metrics.rows() if row["stage"] == self.stage]
        self.since = (time.perf_counter(), at)
        self.learning_rate = 0.0

    def __enter__(self) -> Log:
        if self.console is not None:
            self.validated = ""
            self.work = Work(self.console, self.stage, self.epochs * self.steps, done=self.at)
            self.work.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self.work is not None:
            self.work.__exit__()

    def step(self, batch: Batch, terms: dict[str, Tensor], learning_rate: float, *, every: int) -> None:
        """Note the losses of a step: their means over all processes, which have equal numbers of images."""
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
        # some terms are missing at some steps
        there = torch.tensor([[name in terms for name in names] for _, _, terms in self.pending])
        nothing = next(iter(self.pending[0][2].values())).new_zeros(())
        values = torch.stack(
            [torch.stack([terms.get(name, nothing) for name in names]) for _, _, terms in self.pending]
        ).cpu()
        for (epoch, index, _), row in zip(self.pending, values, strict=True):
            if not row.isfinite().all():
                listed = ", ".join(f"{name}={value:g}" for name, value in zip(names, row.tolist(), strict=True))
                raise NotFinite(
                    f"the loss of {self.stage} is not finite in epoch {epoch + 1} ({listed}), on the images with index "
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
        if self.work is not None:
            losses = " ".join(f"{name} {value:.3g}" for name, value in terms.items())
            speed = f"{rate:,.0f} images/s" if self.work.wide else ""
            parts = (f"epoch {epoch + 1}/{self.epochs}", self.validated, losses, speed)
            self.work.advance(self.at - self.work.done, " · ".join(filter(None, parts)))

    def epoch(self, epoch: int, scores: dict[str, float], notes: dict[str, float] | None = None) -> None:
        """Note an epoch's validation scores, and the notes of methods and teacher.

        Raises:
            NotFinite: the validation loss is not finite: the epoch's last step broke the weights.
        """
        if not math.isfinite(scores["loss"]):
            raise NotFinite(
                f"the validation loss of {self.stage} is not finite after epoch {epoch + 1} ({scores['loss']:g}). {ADVICE}"
            )
        more = {"notes": notes} if notes else {}
        if self.metric != ACCURACY:  # without it, the metric is the accuracy
            more |= {"metric": self.metric.plain()}
        self.write(epoch=epoch, step=self.at, validation=scores, **more)
        self.since = (time.perf_counter(), self.at)  # the time of validation does not count
        value = self.metric.written(next(iter(scores.values())))
        self.validated = f"{value} val"
        if self.work is not None:
            last = next((row for row in reversed(self.rows) if "terms" in row), None)
            terms = " ".join(f"{name} {value:.3f}" for name, value in last["terms"].items()) if last else ""
            rate = f"{last['images_per_second']:,.0f} images/s" if last else ""
            terms = " ".join([terms, *(f"{name} {value:.3g}" for name, value in (notes or {}).items())])
            epochs = f"{self.stage} epoch {epoch + 1}/{self.epochs}"
            self.work.line(f"{epochs}  {terms}  validation {value}  {rate}")

    def write(self, **row: Any) -> None:
        row = {"stage": self.stage, **row}
        self.rows.append(row)
        self.metrics.append(**row)
        if row["step"] > self.told.get(is_validation(row), 0):  # earlier rows were sent before the run was stopped
            self.trackers.log(self.stage, row)


def is_validation(row: Mapping[str, Any]) -> bool:
    """Whether a log row has an epoch's validation scores, not losses."""
    return "validation" in row


def averaged(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean of each term over all processes. It is computed in the step, because processes fetch losses at different times."""
    if PartialState().num_processes == 1:
        return {name: term.detach() for name, term in terms.items()}
    values = cast(Tensor, reduce(torch.stack([term.detach() for term in terms.values()]), reduction="mean"))
    return dict(zip(terms, values.unbind(), strict=True))
