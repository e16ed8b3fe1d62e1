"""What the students of a compression curve cost, and which one is the best for a budget."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from distilens.core import Model
from distilens.foundation.errors import UserError
from distilens.foundation.estimate import Estimate
from distilens.foundation.files import read_json, readable, write_json
from distilens.foundation.metric import Metric
from distilens.measure import latency
from distilens.studies.study import Study
from distilens.studies.trial import run_of

FILE = "costs.json"
ROUNDS = 5
"""How often each network is measured, in turns: what else the machine does meets all of them."""


@dataclass(frozen=True)
class Budget:
    """What a student may cost.

    Attributes:
        latency: the longest time for one image, in seconds; None for any.
        size: the largest file of weights, in bytes; None for any.
    """

    latency: float | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        if (self.latency is not None and self.latency <= 0) or (self.size is not None and self.size <= 0):
            raise UserError(f"--latency and --size are above 0; given {self.latency} s and {self.size} bytes")

    def __bool__(self) -> bool:
        return self != Budget()

    def __str__(self) -> str:
        parts = [] if self.latency is None else [f"{1000 * self.latency:g} ms"]
        return " and ".join([*parts, *([] if self.size is None else [readable(self.size)])])

    def fits(self, cost: Mapping[str, Any]) -> bool:
        """Whether a network of this cost is within the budget."""
        slow = self.latency is not None and cost["milliseconds"] > 1000 * self.latency
        return not slow and not (self.size is not None and cost["bytes"] > self.size)


def measure_costs(study: Study, budget: Budget) -> None:
    """Measure each network of a compression curve, and write `costs.json`: milliseconds for one image, bytes of the weights.

    The networks take turns, on the device that trained them. Costs that are there already are kept.
    """
    before = read_json(study.folder / FILE) or {}
    costs = dict(before.get("networks", {}))
    models: dict[str, Model] = {}
    for row in study.rows:
        notation = row.facts["model"]
        if notation in costs or notation in models or not study.results(row):
            continue
        run = run_of(study, row, next(iter(study.results(row))))
        models[notation] = run.models()["student"]
        costs[notation] = {"bytes": (run.folder / "student" / "model.safetensors").stat().st_size}
    times: dict[str, list[float]] = {notation: [] for notation in models}
    for _ in range(ROUNDS):
        for notation, model in models.items():
            times[notation].append(float(latency(model, repeats=10, warm_up=3)["median"]))
    for notation, measured in times.items():
        costs[notation]["milliseconds"] = statistics.median(measured)
    write_json(study.folder / FILE, {"budget": asdict(budget) if budget else before.get("budget"), "networks": costs})


def best_for_budget(rows: Sequence[Mapping[str, Any]], budget: Budget, metric: Metric) -> Mapping[str, Any] | None:
    """The row within a budget whose validation score is best; None if no row is.

    Args:
        rows: the rows of a verdict with their `cost`.
    """
    fitting = [row for row in rows if row["cost"] and budget.fits(row["cost"])]
    scored = [(row, found.value) for row in fitting if (found := Estimate.read(row["validation"]))]
    known = [(metric.rank(value), row) for row, value in scored if value is not None]
    return max(known, key=lambda each: each[0])[1] if known else None
