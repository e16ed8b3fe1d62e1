"""The log of trainings: rows with losses and rows with validation scores, as a list, a table or a chart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from distilens.foundation.errors import UserError
from distilens.foundation.metric import Metric
from distilens.foundation.notebook import heading, table

if TYPE_CHECKING:
    import pandas


class History(list[dict[str, Any]]):
    """The rows of a log, in order: rows with losses (`terms`, by name) and rows with an epoch's `validation`.

    It is a list of dicts. `frame()` makes a table of it, and `plot()` a chart.
    """

    def __repr__(self) -> str:
        summaries = [f"{stage}: {summarize(rows)}" for stage, rows in self.stages().items()]
        return f"History({'; '.join(summaries) or 'empty'})"

    def _repr_html_(self) -> str:
        rows = [numbers_of(row) | {"stage": row["stage"]} for row in self if "validation" in row]
        names = list(dict.fromkeys(name for row in rows for name in row if name not in ("stage", "epoch")))
        header = ["stage", "epoch", *names]
        return heading(repr(self)) + table([[short(row.get(name, "")) for name in header] for row in rows], header)

    def stages(self) -> dict[str, list[dict[str, Any]]]:
        """The rows by trained model: `teacher`, `base`, `student`."""
        rows: dict[str, list[dict[str, Any]]] = {}
        for row in self:
            rows.setdefault(row["stage"], []).append(row)
        return rows

    def frame(self) -> pandas.DataFrame:
        """A pandas table with a row per stage and step: `epoch` (from 1), and a column per number; NaN where a number is missing.

        Raises:
            UserError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise UserError("frame() needs pandas: pip install pandas") from None
        joined: dict[tuple[str, int], dict[str, Any]] = {}  # losses and validation of the same step are one row
        for row in self:
            stage, step = row["stage"], row["step"]
            joined.setdefault((stage, step), {"stage": stage, "step": step}).update(numbers_of(row))
        rows = list(joined.values())
        frame = pandas.DataFrame(rows, columns=None if rows else ["stage", "epoch", "step"])
        first = ["stage", "epoch", "step"]
        return frame.reindex(columns=[*first, *(name for name in frame.columns if name not in first)])

    def plot(self) -> Any:
        """Draw the losses and the validation metric over epochs, with matplotlib; returns both axes.

        Raises:
            UserError: matplotlib is not installed, or the log is empty.
        """
        try:
            from matplotlib import pyplot
        except ImportError:
            raise UserError("plot() needs matplotlib: pip install matplotlib") from None
        if not self:
            raise UserError("the log is empty: there is nothing to plot")
        _, (losses, scores) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
        several = len(self.stages()) > 1
        for stage, rows in self.stages().items():
            prefix = f"{stage} " if several else ""
            for name in dict.fromkeys(name for row in rows for name in row.get("terms", {})):
                of_term = [row for row in rows if name in row.get("terms", {})]
                epochs = [row["step"] / steps_of_epoch(rows) for row in of_term]
                losses.plot(epochs, [row["terms"][name] for row in of_term], label=prefix + name)
            scored = [row for row in rows if "validation" in row]
            metric = metric_of(scored)
            factor = 100 if metric.unit == "%" else 1
            values = [factor * row["validation"][metric.name] for row in scored]
            scores.plot([row["epoch"] + 1 for row in scored], values, marker="o", markersize=3, label=stage)
            scores.set(xlabel="epoch", ylabel=f"validation {metric.name}" + f" in {metric.unit}" * bool(metric.unit))
        losses.set(xlabel="epoch", ylabel="loss")
        losses.legend()
        scores.legend()
        return losses, scores


def steps_of_epoch(rows: list[dict[str, Any]]) -> float:
    """The number of steps per epoch, from the last row with a validation; 1 if no epoch has ended."""
    scored = [row for row in rows if "validation" in row]
    return scored[-1]["step"] / (scored[-1]["epoch"] + 1) if scored else 1.0


def summarize(rows: list[dict[str, Any]]) -> str:
    """A short summary of a stage's rows."""
    scored = [row for row in rows if "validation" in row]
    if not scored:
        return f"{rows[-1]['step']} steps"
    metric = metric_of(scored)
    best = max((row["validation"][metric.name] for row in scored), key=metric.rank)
    epochs = scored[-1]["epoch"] + 1
    return f"{epochs} epoch{'s' * (epochs != 1)}, validation {metric.name} {metric.written(best)} at best"


def metric_of(scored: list[dict[str, Any]]) -> Metric:
    """The metric of rows with a validation: the accuracy, unless they name another."""
    return Metric.read(scored[-1].get("metric") if scored else None)


def numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a log row by name: loss terms, validation, learning rate, notes, and the epoch from 1."""
    validation = {f"validation {name}": value for name, value in row.get("validation", {}).items() if name != "n"}
    named = {"loss": "total loss", "learning_rate": "learning rate", "images_per_second": "images per second"}
    others = {name: row[key] for key, name in named.items() if key in row}
    return {**row.get("terms", {}), **others, **validation, **row.get("notes", {}), "epoch": row["epoch"] + 1}


def short(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value
