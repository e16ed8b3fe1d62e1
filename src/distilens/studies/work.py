"""Train a study's rows, one after the other or several at once. A stopped study goes on where it was.

Any number of processes may work on one folder, also on several machines: each locks the run that it trains.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from distilens.foundation.errors import UserError
from distilens.foundation.files import Busy, readable
from distilens.foundation.progress import Work
from distilens.runs.inspection import inspect_recipe
from distilens.runs.recipe_file import make_recipe
from distilens.studies.study import RESULT, Study, read_study
from distilens.studies.teachers import train_teachers
from distilens.studies.trial import run_of, sources_of, train_row

PAUSE = 0.5
"""Seconds between two looks at what other processes have finished."""
PROCESS = 700e6
"""Bytes that a process needs for PyTorch and the data, beside its step."""


def train_study(study: Study, *, jobs: int = 1, console: Console | None = None) -> None:
    """Train what is missing of a study.

    Args:
        jobs: how many runs are trained at once, each with its share of the cores.
        console: shows one bar for the whole study.

    Raises:
        UserError: a teacher cannot be trained, or no row can.
    """
    study.save()
    forget_failures(study)
    train_teachers(study, console)
    forget_outdated(study, console)
    jobs = min(fitting_jobs(study, jobs, console), len(missing(study)))
    with Work(console, study.kind, len(study.jobs), done=len(study.jobs) - len(missing(study)), unit="runs") as work:
        if jobs > 1:
            work_together(study, jobs, work)
        else:
            work_alone(study, work)
    report_failures(study, console)


def missing(study: Study) -> list[tuple[str, int]]:
    """The rows and seeds without a result."""
    return [(row.name, seed) for row, seed in study.jobs if study.result(row, seed) is None]


def forget_failures(study: Study) -> None:
    """Remove the results of rows that could not be trained: the same command tries them again."""
    for row, seed in study.jobs:
        if "failed" in (study.result(row, seed) or {}):
            (study.place(row, seed) / RESULT).unlink(missing_ok=True)


def forget_outdated(study: Study, console: Console | None = None) -> None:
    """Remove the results of trainings whose data, teacher or model files have changed since: they are trained again."""
    for row, seed in study.jobs:
        result = study.result(row, seed)
        run = None if result is None else run_of(study, row, seed)
        if result is None or run is None or result.get("sources") in (None, sources_of(run)):
            continue
        if console:
            line = f"{row.name}, seed {seed}: its data or models have changed since: it is trained again"
            console.print(line, highlight=False, markup=False)
        for name in (RESULT, "scores.json"):
            (run.folder / name).unlink(missing_ok=True)


def work_alone(study: Study, work: Work | None = None) -> None:
    """Train in this process until every row and seed has a result. What another process trains is waited for."""
    while due := missing(study):
        busy = 0
        for name, seed in due:
            if work:
                work.say(f"{study.kind}: {name}, seed {seed}")
            try:
                train_row(study, study.row(name), seed)
            except Busy:
                busy += 1
                continue
            if work:
                work.advance(len(study.jobs) - len(missing(study)) - work.done)
        if busy == len(due):
            time.sleep(PAUSE)


def work_together(study: Study, jobs: int, work: Work) -> None:
    """Train in several processes, each with its share of the cores, until every row and seed has a result.

    Raises:
        UserError: a process ended with an error.
    """
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    command = [sys.executable, "-m", "distilens.studies.work", str(study.folder)]
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as files:
        logs = [files.enter_context(open(Path(scratch) / str(number), "w+")) for number in range(jobs)]
        workers = [subprocess.Popen(command, env=environment, stdout=log, stderr=log) for log in logs]
        try:
            while any(worker.poll() is None for worker in workers):
                work.advance(len(study.jobs) - len(missing(study)) - work.done)
                time.sleep(PAUSE)
            work.advance(len(study.jobs) - len(missing(study)) - work.done)
        finally:
            for worker in workers:
                worker.terminate()
            for worker in workers:
                worker.wait()
        broken = [log for log, worker in zip(logs, workers, strict=True) if worker.returncode != 0]
        if broken and missing(study):
            broken[0].seek(0)
            lines = broken[0].read().strip().splitlines() or ["it was killed"]
            raise UserError(f"a process of the study ended early: {lines[-1]}. The same command continues the study")


def fitting_jobs(study: Study, jobs: int, console: Console | None) -> int:
    """How many runs fit into the cores and the free memory at once, at most `jobs`."""
    cores = os.cpu_count() or 1
    fit = min(jobs, cores)
    if fit > 1 and missing(study):
        needed = PROCESS + memory_of_a_step(study)
        room = max(1, int(psutil.virtual_memory().available // needed))
        if room < fit and console:
            console.print(f"a run needs about {readable(needed)}: {room} instead of {fit} at once", highlight=False)
        fit = min(fit, room)
    return max(1, fit)


def memory_of_a_step(study: Study) -> int:
    """The bytes of the largest step, as `distilens validate` estimates them for the row with the most methods.

    A row that cannot be trained is left out, as it will be in the study.
    """
    for row in sorted(study.rows, key=lambda row: -len(row.recipe["student"].get("methods", ()))):
        with suppress(UserError):
            return inspect_recipe(make_recipe(row.recipe), timed=True).memory
    return 0


def report_failures(study: Study, console: Console | None) -> None:
    """Print why rows could not be trained.

    Raises:
        UserError: no row could.
    """
    failed = failures(study)
    if console:
        for name, reason in failed.items():
            console.print(f"{name}: left out: {reason}", style="yellow", highlight=False, markup=False)
    if len(failed) == len(study.rows):
        raise UserError(f"no row of the study can be trained: {next(iter(failed.values()))}")


def failures(study: Study) -> dict[str, str]:
    """Why rows could not be trained, by name."""
    found: dict[str, str] = {}
    for row, seed in study.jobs:
        result: Mapping[str, Any] = study.result(row, seed) or {}
        if "failed" in result:
            found.setdefault(row.name, result["failed"])
    return found


def main() -> None:
    """A worker: train what is missing of the study in a folder."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        work_alone(read_study(sys.argv[1]))
    except UserError as error:
        print(json.dumps(str(error))[1:-1], file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
