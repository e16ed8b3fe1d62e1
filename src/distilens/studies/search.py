"""Search settings of a recipe by validation, with Optuna. Any number of processes, on any number of machines, share one search.

The trials are trained with a seed of their own (`TUNING`). The setting that is chosen is then trained again with fresh seeds, and
only these students are read on the test split. So the gain of the search is separated from its luck.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from distilens.foundation.errors import UserError, nearest
from distilens.foundation.files import Busy, lock_file, lock_folder, read_json, write_json
from distilens.foundation.fingerprints import key_of
from distilens.foundation.progress import Work
from distilens.runs.recipe_file import make_recipe
from distilens.studies.objectives import OBJECTIVES, direction_of, value_of
from distilens.studies.search_database import (
    FAILED,
    Sampler,
    SharedTrials,
    Standing,
    Unreachable,
    import_optuna,
    should_stop,
)
from distilens.studies.space import Dimension, changes_of, read_space
from distilens.studies.study import LOCK, Question, Row, Study, plain
from distilens.studies.teachers import train_teachers, with_own_training
from distilens.studies.trial import remove_checkpoints, run_of, train_row
from distilens.training.settings import Training
from distilens.training.trackers import Trackers

FILE, TRIALS = "search.json", "trials.json"
KIND = "distilens search 1"
TUNING = 1000
"""The seed of all trials: no result is reported for it."""
PAUSE = 0.5
"""Seconds between two looks at what other workers have finished."""


@dataclass(frozen=True)
class Search:
    """The plan of a search.

    Attributes:
        content: the recipe, as plain data.
        space: what is searched, in the notation of `--space`.
        trials: how many settings are tried, by all workers together.
        timeout: seconds after which a worker begins no further trial; None for no limit.
        sampler: how settings are proposed.
        objectives: what is searched for, of `OBJECTIVES`.
    """

    content: Mapping[str, Any]
    space: tuple[str, ...]
    trials: int = 50
    timeout: float | None = None
    sampler: Sampler = "tpe"
    objectives: tuple[str, ...] = ("score",)

    def __post_init__(self) -> None:
        if self.trials < 1 or (self.timeout is not None and self.timeout <= 0):
            raise UserError(f"--trials and --timeout are above 0; given {self.trials} and {self.timeout}")
        for name in self.objectives:
            if name not in OBJECTIVES:
                raise UserError(
                    f"unknown objective {name!r}.{nearest(name, list(OBJECTIVES))} Known: {', '.join(OBJECTIVES)}"
                )
        if not self.objectives or len(set(self.objectives)) < len(self.objectives):
            raise UserError("name each objective once")
        object.__setattr__(self, "content", with_own_training(self.content))  # a search must not change the teacher

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The space, checked against the recipe."""
        return read_space(self.space, self.content)

    def plain(self) -> dict[str, Any]:
        """The part that all workers of a search must share."""
        return {
            "kind": KIND,
            "recipe": plain(self.content),
            "space": list(self.space),
            "objectives": list(self.objectives),
        }


def open_search(folder: Path, search: Search, storage: str | None, console: Console | None = None) -> SharedTrials:
    """The trials of the search in a folder; its database is made if it is not there.

    Args:
        storage: the address of a database (`postgresql+psycopg://...`); by default SQLite in the folder.
        console: says when the database does not answer.

    Raises:
        UserError: the folder holds another search, Optuna is missing, or the database cannot be reached.
    """
    import_optuna()
    with lock_file(folder / LOCK):
        before = read_json(folder / FILE)
        if before is not None and before != search.plain():
            raise UserError(f"{folder} holds a search of another recipe or space. Choose another folder with --out")
        write_json(folder / FILE, search.plain())
    recipe = make_recipe(search.content)
    return SharedTrials(
        storage or f"sqlite:///{(folder / 'search.db').resolve()}",
        f"distilens {folder.name} {key_of(search.plain())[:12]}",
        [direction_of(name, recipe) for name in search.objectives],
        search.sampler,
        first=first_comparison(recipe.train),
        say=lambda line: console and console.print(line, style="yellow", highlight=False, markup=False),
    )


def first_comparison(settings: Training) -> int:
    """The epoch after which trainings are first compared: about a tenth of all, and one that is validated."""
    every = settings.validate_every
    return every * max(1, round(settings.epochs / (10 * every)))


class Watch(Trackers):
    """Sees the rows of a trial's log, and stops a training that is worse than others were at this epoch."""

    def __init__(self, trial: Any, metric: str):
        super().__init__()
        self.trial, self.metric = trial, metric

    def log(self, stage: str, row: Mapping[str, Any]) -> None:
        """Report a validation to Optuna.

        Raises:
            optuna.TrialPruned: the training is stopped.
        """
        value = row.get("validation", {}).get(self.metric) if stage == "student" else None
        if value is not None and should_stop(self.trial, value, row["epoch"] + 1):
            raise import_optuna().TrialPruned


def run_search(
    study: Study, search: Search, *, storage: str | None = None, console: Console | None = None
) -> SharedTrials:
    """Try settings until all trials of the search are done, together with any other workers; returns the trials.

    Raises:
        UserError: a teacher cannot be trained, every trial fails, or the database cannot be reached.
    """
    shared = open_search(study.folder, search, storage, console)
    train_teachers(study, console)
    space, start = search.dimensions, time.monotonic()
    standing = shared.look()
    with Work(console, "search", search.trials, done=len(standing.done), unit="trials") as work:
        while len(standing.done) < search.trials:
            late = search.timeout is not None and time.monotonic() - start > search.timeout
            if late and not standing.running:
                break
            trial = None if late else shared.take(standing, search.trials)
            if trial is None:
                time.sleep(PAUSE)  # other workers train the last ones
            else:
                work.say(f"search: trial {trial.number}")
                try_setting(study, search, space, shared, trial)
            standing = shared.look()
            work.advance(len(standing.done) - work.done)
    check_some_finished(standing)
    return shared


def check_some_finished(standing: Standing) -> None:
    """Check that a trial has values to choose by.

    Raises:
        UserError: none has.
    """
    if not any(trial.state.name == "COMPLETE" for trial in standing.done):
        reasons = [trial.user_attrs[FAILED] for trial in standing.done if FAILED in trial.user_attrs]
        raise UserError(f"no trial of the search was finished{': ' + reasons[0] if reasons else ''}")


def try_setting(study: Study, search: Search, space: Sequence[Dimension], shared: SharedTrials, trial: Any) -> None:
    """Train and score one setting, and store how it ended. A setting that cannot be trained does not end the search.

    Raises:
        UserError: the disk is full, or the database does not answer. Another worker takes the trial.
    """
    optuna = import_optuna()
    with shared.beating(trial):
        try:
            shared.finish(trial, train_setting(study, search, space, shared, trial))
        except optuna.TrialPruned:
            shared.finish(trial, pruned=True)
        except optuna.exceptions.UpdateFinishedTrialError:
            pass  # this worker was silent for too long, and another one has the trial
        except (OSError, KeyboardInterrupt, SystemExit):
            shared.give_back(trial)
            raise
        except UserError as error:
            if isinstance(error, Unreachable) or isinstance(error.__cause__, OSError):  # not the setting's fault
                shared.give_back(trial)
                raise
            shared.finish(trial, note=FAILED, reason=str(error))
            shared.say(f"trial {trial.number} cannot be trained: {error}")
        except Exception as error:
            shared.finish(trial, note=FAILED, reason=f"{type(error).__name__}: {error}")
            raise


def train_setting(
    study: Study, search: Search, space: Sequence[Dimension], shared: SharedTrials, trial: Any
) -> list[float]:
    """Train and score one setting; returns the values of the objectives.

    The folder is named by the settings. So what a lost worker has trained of them is continued, and the same settings are
    trained once.

    Raises:
        UserError: the setting cannot be trained.
        optuna.TrialPruned: the training was stopped early.
    """
    values = shared.query(lambda: [dimension.suggest(trial) for dimension in space])
    changes = changes_of(space, values, search.content)
    row = row_of(search, changes)
    notes = {"changes": changes, "run": f"{row.name}-{TUNING}", "worker": f"{platform.node()}:{os.getpid()}"}
    shared.query(lambda: [trial.set_user_attr(*note) for note in notes.items()])
    run = run_of(study, row, TUNING)
    watch = Watch(trial, run.data.task.metric.name) if len(search.objectives) == 1 else None
    try:
        result = train_or_wait(study, row, watch)
    except import_optuna().TrialPruned:
        with suppress(Busy), lock_folder(run.folder):  # another worker may have begun with the same settings
            remove_checkpoints(run)
        raise
    if "failed" in result:
        raise UserError(result["failed"])
    shared.query(lambda: trial.set_user_attr("validation", result["validation"]))
    found = {name: float(value_of(run, result, name)) for name in search.objectives}
    for name, value in found.items():
        if math.isnan(value):
            raise UserError(f"the objective {name} of this setting is not a number")
    return list(found.values())


def row_of(search: Search, changes: Sequence[str]) -> Row:
    """The row of a setting."""
    recipe = make_recipe(search.content, changes)
    return Row(f"trial-{key_of(changes)[:8]}", recipe.model_dump(mode="json", exclude_none=True))


def train_or_wait(study: Study, row: Row, watch: Watch | None) -> dict[str, Any]:
    """Train a setting, or wait for a worker that trains the same settings, and read its result."""
    while True:
        try:
            return train_row(study, row, TUNING, watch=watch)
        except Busy:
            time.sleep(PAUSE)


# ------------------------------------------------------------------------------------------------ the result


def chosen_row(search: Search, shared: SharedTrials) -> Row:
    """The setting with the best validation score, as a row; of several objectives, the first decides."""
    complete = [trial for trial in shared.look().done if trial.state.name == "COMPLETE"]
    sign = 1 if shared.query(lambda: shared.study.directions)[0].name == "MAXIMIZE" else -1
    best = max(complete, key=lambda trial: sign * trial.values[0])
    recipe = make_recipe(search.content, best.user_attrs["changes"])
    about = f"the best of the search: {', '.join(best.user_attrs['changes'])}"
    facts = {"trial": best.number, "validation in the search": best.user_attrs["validation"]}
    return Row(f"chosen, trial {best.number}", recipe.model_dump(mode="json", exclude_none=True), about, facts)


def with_chosen(study: Study, row: Row) -> Study:
    """The study that trains the chosen setting and the recipe as given on fresh seeds."""
    given = study.rows[0]
    return replace(
        study, rows=(given, row), questions=(Question(row.name, given.name, "what the search gained on fresh seeds"),)
    )


def write_trials(folder: Path, search: Search, shared: SharedTrials) -> None:
    """Write `trials.json`: all trials as `describe_search` has them. A worker does not overwrite what a later one saw."""
    with lock_file(folder / LOCK):
        write_json(folder / TRIALS, describe_search(search, shared))


def describe_search(search: Search, shared: SharedTrials) -> dict[str, Any]:
    """All trials, the front of several objectives, and the importance of each setting, as plain data."""
    standing = shared.look()
    trials = [
        {
            "number": trial.number,
            "state": trial.state.name.lower(),
            "settings": dict(trial.params),
            "values": list(trial.values) if trial.values else None,
            "validation": trial.user_attrs.get("validation"),
            "run": trial.user_attrs.get("run"),
            "seconds": trial.duration.total_seconds() if trial.duration else None,
        }
        for trial in (*standing.done, *standing.running)
    ]
    complete = [trial for trial in standing.done if trial.state.name == "COMPLETE"]
    worth_it = len(complete) > 3 and len(search.space) > 1
    return {
        "objectives": list(search.objectives),
        "space": list(search.space),
        "trials": trials,
        "front": shared.query(lambda: [trial.number for trial in shared.study.best_trials]),
        "importance": shared.query(lambda: importance_of(shared.study)) if worth_it else {},
    }


def importance_of(study: Any) -> dict[str, float]:
    """The share of the first objective's variance that each setting explains; empty if all trials have the same value."""
    optuna = import_optuna()
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    try:
        return optuna.importance.get_param_importances(study, evaluator=evaluator, target=lambda trial: trial.values[0])
    except (RuntimeError, ValueError):
        return {}
