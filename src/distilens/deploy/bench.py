"""The true cost of models: parameters, MACs, size, memory, latency, throughput and energy, in every runtime that can run them.

Each runtime has a process of its own. The processes of one number of threads live at the same time and take turns, round by
round, and in each turn all models take theirs. So a slow second of the machine hits all of them, and their ratios stay fair.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from distilens import __version__
from distilens.deploy.bench_rows import NAMES, Timed, count_of, describe, row_of, versions_of
from distilens.deploy.processor import Processor, read_processor, usable_cores
from distilens.deploy.targets import Candidate, candidates_of, find_targets
from distilens.deploy.timing import OPENERS
from distilens.foundation.errors import UserError
from distilens.foundation.files import write_json
from distilens.foundation.progress import Work

FILE = "bench.json"
KIND = "distilens bench 1"
SECONDS_TO_START = {"compiled": 40.0, "onnx": 2.0, "openvino": 4.0}
"""About how long a process takes until it is ready; 8 s for the others."""


@dataclass(frozen=True)
class Settings:
    """How is measured.

    Attributes:
        threads: the numbers of threads, one after the other.
        batches: the numbers of images per call.
        rounds: how often all models take their turns. An interval needs at least six.
        pace: how many seconds a model's turn takes.
        runtimes: the runtimes, of `NAMES`.
    """

    threads: tuple[int, ...] = (1, 2)
    batches: tuple[int, ...] = (1, 64)
    rounds: int = 20
    pace: float = 0.25
    runtimes: tuple[str, ...] = tuple(OPENERS)

    def __post_init__(self) -> None:
        for name, values in (("threads", self.threads), ("batches", self.batches), ("rounds", (self.rounds,))):
            if not values or min(values) < 1:
                raise UserError(
                    f"{name} must be whole numbers of at least 1; given {', '.join(map(str, values)) or 'none'}"
                )
        if self.pace <= 0:
            raise UserError(f"pace must be above 0 seconds; given {self.pace}")
        if wrong := [name for name in self.runtimes if name not in NAMES]:
            raise UserError(f"unknown runtime {', '.join(wrong)}; the runtimes are {', '.join(NAMES)}")
        if max(self.threads) > usable_cores():
            raise UserError(f"{max(self.threads)} threads are more than the {usable_cores()} cores of this machine")


@dataclass(frozen=True)
class Bench:
    """What was measured: the content of `bench.json`.

    Attributes:
        rows: one row per model, runtime, number of threads and batch; see `bench`.
        processor: where it was measured.
        settings: how it was measured.
        remarks: what a reader must know, one sentence each.
        versions: the versions of the runtimes.
    """

    rows: tuple[Mapping[str, Any], ...]
    processor: Processor
    settings: Settings
    remarks: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """The content of `bench.json`."""
        return {
            "kind": KIND,
            "distilens": __version__,
            "processor": {
                "name": self.processor.name,
                "cores": self.processor.cores,
                "int8": list(self.processor.int8),
            },
            "versions": dict(self.versions),
            "rounds": self.settings.rounds,
            "pace": self.settings.pace,
            "remarks": list(self.remarks),
            "rows": [dict(row) for row in self.rows],
        }

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        write_json(path, self.plain())


def bench(
    targets: Any,
    *,
    threads: Sequence[int] | None = None,
    batches: Sequence[int] = (1, 64),
    rounds: int = 20,
    pace: float = 0.25,
    runtimes: Sequence[str] = tuple(OPENERS),
    data: Any = None,
    classes: int | Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    console: Console | None = None,
) -> Bench:
    """Measure what models cost: parameters, MACs, size, memory, latency, throughput, and energy where it can be read.

    A row has `name`, `runtime`, `precision`, `file`, `fingerprint` (of the student's weights), `parameters`, `macs` (per image),
    `bytes`, `threads`, `batch`, `median` and `p95` (milliseconds per call, warmed up), `images_per_second`, `memory` (bytes: the
    peak of the resident set of a process of its own, above the runtime alone), `joules` (per image, of the whole processor),
    `calls` (the number of timed calls), `faster` (the throughput as a multiple of that of the same network in PyTorch eager, with
    its interval), and `to_first` (the same to the first network in the same runtime). Intervals are those of the median of the
    rounds' ratios.

    Args:
        targets: one or several of: a run folder (its student and its exported files), a folder of a saved model or of an
            export, an exported file, a model notation, a `Model`, or a `Target`.
        threads: the numbers of threads; by default 1 and 2, as far as there are cores.
        batches: the numbers of images per call. A file that takes one image per call is measured with one only.
        rounds, pace, runtimes: see `Settings`.
        data, classes, size: what a notation needs: the data, or the classes (their number or names) and height and width.
        console: shows progress; None is silent.

    Raises:
        UserError: there is nothing to measure, or nothing of it could be run.
    """
    counts = tuple(threads) if threads is not None else tuple(range(1, min(2, usable_cores()) + 1))
    settings = Settings(counts, tuple(sorted(set(batches))), rounds, pace, tuple(runtimes))
    with tempfile.TemporaryDirectory() as scratch:
        given = [targets] if isinstance(targets, str | Path) or not isinstance(targets, Sequence) else targets
        found = find_targets(given, Path(scratch), data=data, classes=classes, size=size)
        candidates, skipped = [], []
        for target in found:
            made, left_out = candidates_of(target, settings.runtimes)
            candidates, skipped = candidates + made, skipped + left_out
        if not candidates:
            raise UserError(f"there is nothing to measure: {'; '.join(skipped) or 'no runtime runs what was named'}")
        rows: list[dict[str, Any]] = []
        with Work(console, "bench", seconds_of(candidates, settings)) as work:
            for count in settings.threads:
                rows += measure(candidates, count, settings, work, skipped)
    if not rows:
        raise UserError(f"nothing could be measured: {'; '.join(dict.fromkeys(skipped))}")
    processor = read_processor()
    remarks = (*describe(rows, settings.batches, settings.rounds, processor), *dict.fromkeys(skipped))
    return Bench(tuple(rows), processor, settings, remarks, versions_of(candidates))


def batches_of(candidate: Candidate, settings: Settings) -> list[int]:
    """The batch sizes that a candidate is measured with."""
    return list(settings.batches) if candidate.batch is None else [candidate.batch]


def seconds_of(candidates: Sequence[Candidate], settings: Settings) -> float:
    """About how long the measurement takes, in the units in which its progress is counted."""
    runtimes = {candidate.runtime for candidate in candidates}
    turns = settings.rounds * sum(len(batches_of(candidate, settings)) for candidate in candidates) * settings.pace
    starts = sum(start_of(runtime) for runtime in runtimes)
    memory = sum(start_of(candidate.runtime) for candidate in candidates if candidate.runtime != "compiled")
    return len(settings.threads) * (turns + starts + memory)


def start_of(runtime: str) -> float:
    """About how many seconds the start of a runtime's process takes."""
    return SECONDS_TO_START.get(runtime, 8.0)


# --------------------------------------------------------------------------------------------------------------- processes


def job_of(
    runtime: str, threads: int, models: Sequence[Candidate], settings: Settings, *, memory: bool
) -> dict[str, Any]:
    """The job that a process of `timing` reads."""
    return {
        "runtime": runtime,
        "threads": threads,
        "pace": settings.pace,
        "memory": memory,
        "models": [
            {
                "key": model.key,
                "path": str(model.path),
                "shape": model.shape,
                "type": model.type,
                "batches": batches_of(model, settings),
            }
            for model in models
        ],
    }


class Process:
    """A process of `timing`: one runtime with a number of threads."""

    def __init__(self, runtime: str, threads: int, models: Sequence[Candidate], settings: Settings, *, memory: bool):
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed in stop
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        environment.pop("OMP_WAIT_POLICY", None)  # the command line sets it for training
        self.process = subprocess.Popen(
            [sys.executable, "-m", "distilens.deploy.timing"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment,
        )
        self.ready = self.ask(json.dumps(job_of(runtime, threads, models, settings, memory=memory)))

    def ask(self, line: str = "") -> Any:
        """Send a line and wait for the answer; an ended process answers with the reason."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
        answer = self.process.stdout.readline()
        return json.loads(answer) if answer else {"unusable": self.why_ended()}

    def why_ended(self) -> str:
        """The last line of the process's errors, or its exit code."""
        code = self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines()
        return f"its process ended with {code}" + (f": {lines[-1]}" if lines else "")

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def measure(
    candidates: Sequence[Candidate], threads: int, settings: Settings, work: Work, skipped: list[str]
) -> list[dict[str, Any]]:
    """The rows of all candidates with a number of threads; what cannot be run is added to `skipped`."""
    memory = {
        (candidate.key, batch): found
        for candidate in candidates
        if candidate.runtime != "compiled"  # its process also holds the compiler
        for batch, found in measure_memory(candidate, threads, settings, work).items()
    }
    by_key = {candidate.key: candidate for candidate in candidates}
    timed: dict[tuple[str, int], Timed] = {}
    with contextlib.ExitStack() as stack:
        processes: dict[str, Process] = {}
        for runtime in dict.fromkeys(candidate.runtime for candidate in candidates):
            models = [candidate for candidate in candidates if candidate.runtime == runtime]
            work.begin(f"{NAMES[runtime]}, {count_of(threads, 'thread')}")
            work.say(f"bench: start {NAMES[runtime]}")
            process = Process(runtime, threads, models, settings, memory=False)
            stack.callback(process.stop)
            work.advance(start_of(runtime))
            for key, reason in process.ready.get("failed", {}).items():
                skipped.append(f"{by_key[key].name} is not measured in {NAMES[runtime]}: {reason}")
            if "unusable" in process.ready:
                skipped.append(f"{NAMES[runtime]} is not measured: {process.ready['unusable']}")
            else:
                processes[runtime] = process
        for number in range(settings.rounds):
            work.say(f"bench: {count_of(threads, 'thread')}, round {number + 1} of {settings.rounds}")
            for runtime, process in list(processes.items()):
                turns = process.ask()
                if isinstance(turns, dict):
                    skipped.append(f"{NAMES[runtime]} stopped in round {number + 1}: {turns['unusable']}")
                    del processes[runtime]
                    continue
                for turn in turns:
                    entry = timed.setdefault((turn["key"], turn["batch"]), Timed(by_key[turn["key"]], turn["batch"]))
                    entry.rounds.append(turn["times"])
                    entry.joules += [] if turn["joules"] is None else [turn["joules"]]
                work.advance(settings.pace * len(turns))
    complete = [timed[key] for candidate in candidates for key in timed if key[0] == candidate.key]
    complete = [entry for entry in complete if len(entry.rounds) == settings.rounds]
    return [row_of(entry, complete, threads, memory.get((entry.candidate.key, entry.batch))) for entry in complete]


def measure_memory(candidate: Candidate, threads: int, settings: Settings, work: Work) -> dict[int, int]:
    """The peak of the resident set above the runtime alone, in bytes by batch size; empty if it cannot be run."""
    work.say(f"bench: memory of {candidate.name} in {NAMES[candidate.runtime]}")
    process = Process(candidate.runtime, threads, [candidate], settings, memory=True)
    process.stop()
    work.advance(start_of(candidate.runtime))
    return {int(batch): found for batch, found in process.ready.get("memory", {}).items()}
