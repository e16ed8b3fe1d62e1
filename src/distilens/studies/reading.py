"""Read the test split: once for each student of a study, after all are trained. `study.json` says when and by which command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from distilens.foundation.errors import UserError, shortened
from distilens.foundation.progress import Work
from distilens.measure.known import Known
from distilens.runs.run import wait_and_lock
from distilens.runs.stages import measure_stage, report_stage
from distilens.studies.study import Study, updating
from distilens.studies.trial import run_of
from distilens.studies.work import missing


def read_test(study: Study, rows: Sequence[str], command: str, console: Console | None = None) -> Study:
    """Measure the students of some rows on the test split, and write their pages; returns the study with the new reading.

    What was read before is not measured again.

    Args:
        rows: the names of the rows, which must be chosen without the test split.
        command: the command that reads it, for `study.json`.

    Raises:
        UserError: not every student of these rows is trained.
    """
    due = [(row, seed) for row, seed in missing(study) if row in rows]
    if due:
        raise UserError(
            f"the test split is read at the end, when all rows are trained; {len(due)} runs are missing: "
            f"{shortened([f'{row}, seed {seed}' for row, seed in due])}"
        )
    with updating(study) as known:  # another process with the same command may read it too
        study = replace(known, readings=(*known.readings, *new_readings(known, rows, command)))
        study.write()  # before the split is read: a stop in between does not hide it
    unread = [(row, seed) for row in rows for seed in study.results(study.row(row)) if not is_read(study, row, seed)]
    teachers = Known()
    with Work(console, "test split", len(unread), unit="students") as work:
        for name, seed in unread:
            work.say(f"test split: {name}, seed {seed}")
            run = run_of(study, study.row(name), seed)
            with wait_and_lock(run):
                measure_stage(run, teachers=teachers)
                report_stage(run)
            work.advance()
    return study


def new_readings(study: Study, rows: Sequence[str], command: str) -> list[dict[str, Any]]:
    """What `study.json` says about the students that were not read before: one entry for all rows with the same new seeds."""
    known = {(row, seed) for reading in study.readings for row in reading["rows"] for seed in reading["seeds"]}
    when = datetime.now(UTC).isoformat(timespec="seconds")
    by_seeds: dict[tuple[int, ...], list[str]] = {}
    for row in rows:
        seeds = tuple(seed for seed in study.results(study.row(row)) if (row, seed) not in known)
        if seeds:
            by_seeds.setdefault(seeds, []).append(row)
    return [
        {"when": when, "command": command, "rows": named, "seeds": list(seeds)} for seeds, named in by_seeds.items()
    ]


def is_read(study: Study, row: str, seed: int) -> bool:
    """Whether the student of a row and seed was measured on the test split."""
    return (study.place(study.row(row), seed) / "scores.json").is_file()
