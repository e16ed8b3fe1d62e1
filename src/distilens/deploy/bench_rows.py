"""The rows of a benchmark: from the times of all rounds to medians, ratios with intervals, and sentences."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from distilens.deploy.processor import EnergyMeter, Processor
from distilens.deploy.targets import Candidate
from distilens.foundation.estimate import Estimate, median_of
from distilens.measure.cost import BUSY

NAMES = {
    "eager": "PyTorch eager",
    "compiled": "PyTorch compiled",
    "pt2": "PyTorch pt2",
    "onnx": "ONNX Runtime",
    "executorch": "ExecuTorch",
    "openvino": "OpenVINO",
}
GOAL = 2.0
"""An INT8 file should answer at least this many times as many images per second as PyTorch eager in float."""


@dataclass
class Timed:
    """The calls of one model at one batch size: milliseconds by round, and joules per image by round."""

    candidate: Candidate
    batch: int
    rounds: list[list[float]] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)

    @property
    def medians(self) -> list[float]:
        """The median of each round."""
        return [statistics.median(times) for times in self.rounds]


def row_of(entry: Timed, others: Sequence[Timed], threads: int, memory: int | None) -> dict[str, Any]:
    """The row of one model, runtime and batch, with its ratios to the others."""
    candidate = entry.candidate
    times = [time for part in entry.rounds for time in part]
    same = [other for other in others if other.batch == entry.batch]
    eager = next(
        (one for one in same if one.candidate.name == candidate.name and one.candidate.runtime == "eager"), None
    )
    first = next(one for one in same if runtime_of(one.candidate) == runtime_of(candidate))
    return {
        "name": candidate.name,
        "runtime": runtime_of(candidate),
        "precision": candidate.precision,
        "file": None if candidate.path.is_dir() else candidate.path.name,
        "fingerprint": candidate.fingerprint,
        **candidate.cost,
        "bytes": candidate.size,
        "threads": threads,
        "batch": entry.batch,
        "median": statistics.median(times),
        "p95": float(np.quantile(times, 0.95)),
        "images_per_second": 1000 * entry.batch / statistics.median(times),
        "memory": memory,
        "joules": statistics.median(entry.joules) if entry.joules else None,
        "calls": len(times),
        "faster": ratio(entry, eager).plain() if eager and eager is not entry else None,
        "to_first": ratio(entry, first).plain() if first is not entry else None,
    }


def runtime_of(candidate: Candidate) -> str:
    """The runtime's name in a table, with INT8 for such a file."""
    return NAMES[candidate.runtime] + (" INT8" if candidate.precision == "int8" else "")


def ratio(one: Timed, other: Timed) -> Estimate:
    """How many times the throughput of `other` the throughput of `one` is: the median over rounds, with its interval."""
    return median_of([b / a for a, b in zip(one.medians, other.medians, strict=True)])


def describe(rows: Sequence[Mapping[str, Any]], batches: Sequence[int], rounds: int, processor: Processor) -> list[str]:
    """What a reader must know, one sentence each."""
    lines = [
        f"{processor.name}, {count_of(processor.cores, 'core')}. {processor.remark}",
        "Memory is the peak of the resident set of a process of its own, above the runtime alone.",
    ]
    lines += goals_of(rows)
    single = sorted({row["runtime"] for row in rows if row["runtime"].startswith("ExecuTorch")})
    if single and max(batches) > 1:
        lines.append(f"{' and '.join(single)}: one image per call, so larger batches are not measured.")
    if any(row["p95"] >= BUSY * row["median"] for row in rows):
        lines.append(
            "The machine was probably busy with other work: some latencies scatter much. Trust the ratios more."
        )
    if rounds < 6:
        lines.append("Ratios have no interval: that needs at least six rounds.")
    if not EnergyMeter().readable:
        lines.append("Energy is not measured: this machine has no energy counter (RAPL) that this user may read.")
    return lines


def goals_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """How much faster INT8 files are than PyTorch eager at batch 1 on one thread, one sentence each."""
    lines = []
    for row in rows:
        faster = Estimate.read(row["faster"])
        if faster and row["precision"] == "int8" and row["batch"] == row["threads"] == 1:
            verdict = "reached" if faster.above(GOAL) else "not reached" if faster.below(GOAL) else "undecided"
            lines.append(
                f"{row['name']} in {row['runtime']}: {faster.with_interval(two_digits)} times the images per second of PyTorch "
                f"eager in float, one image and one thread; the goal of {GOAL:g} times is {verdict}."
            )
    return lines


def two_digits(value: float) -> str:
    """A number with two decimals."""
    return f"{value:.2f}"


def count_of(number: int, what: str) -> str:
    """`1 thread`, `2 threads`."""
    return f"{number} {what}{'s' * (number != 1)}"


def versions_of(candidates: Sequence[Candidate]) -> dict[str, str]:
    """The versions of the packages that were measured."""
    packages = {"onnx": "onnxruntime", "executorch": "executorch", "openvino": "openvino"}
    found = {}
    for name in dict.fromkeys(packages.get(candidate.runtime, "torch") for candidate in candidates):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
