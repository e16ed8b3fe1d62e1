"""Search settings of a recipe by validation, with Optuna. Any number of processes, on any number of machines, share one search.

The trials are trained with a seed of their own (`TUNING`). The setting that is chosen is then trained again with fresh seeds, and
only these students are read on the test split. So the gain of the search is separated from its luck.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from distilens.data.pipeline import batch_at
from distilens.explain import build_explainer
from distilens.foundation.errors import UserError, nearest
from distilens.foundation.files import read_json, write_json
from distilens.foundation.fingerprints import key_of
from distilens.foundation.metric import Metric
from distilens.foundation.progress import Work
from distilens.measure import latency
from distilens.measure.maps.likeness import cosine
from distilens.measure.scores import draw_positions
from distilens.runs.recipe_file import make_recipe
from distilens.runs.run import Run
from distilens.studies.space import Dimension, changes_of, read_space
from distilens.studies.study import Question, Row, Study, plain
from distilens.studies.teachers import train_teachers, with_own_training
from distilens.studies.trial import remove_checkpoints, run_of, train_row
from distilens.training.trackers import Trackers

FILE = "search.json"
KIND = "distilens search 1"
TUNING = 1000
"""The seed of all trials: no result is reported for it."""
HEARTBEAT = 30
"""Seconds between two signs of life of a worker. A trial whose worker is silent four times as long is taken by another one."""
MAPS = 64
"""The number of validation images whose maps are compared, if likeness is an objective."""
LOST = "the database of the search went away"
PAUSE = 0.5
"""Seconds between two looks at what other workers have finished."""
RETRIES = 8
"""How often a query is tried again if the database does not answer; the pauses double from half a second."""
Sampler = Literal["tpe", "cmaes", "random"]
OBJECTIVES = {"score": None, "latency": "minimize", "size": "minimize", "maps": "maximize"}
"""What can be searched for: the task's metric on validation (in its own direction), milliseconds per image, parameters, and the
cosine of the student's Grad-CAM maps to the teacher's on validation images."""


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


def open_search(folder: Path, search: Search, storage: str | None) -> Any:
    """The Optuna study of a folder, made if it is not there.

    Args:
        storage: the address of a database (`postgresql://...`); by default SQLite in the folder.

    Raises:
        UserError: the folder holds another search, Optuna is missing, or the database cannot be reached.
    """
    optuna = import_optuna()
    before = read_json(folder / FILE)
    if before is not None and before != search.plain():
        raise UserError(f"{folder} holds a search of another recipe or space. Choose another folder with --out")
    write_json(folder / FILE, search.plain())
    address = storage or f"sqlite:///{(folder / 'search.db').resolve()}"

    def connect() -> Any:
        database = optuna.storages.RDBStorage(
            address,
            heartbeat_interval=HEARTBEAT,
            grace_period=4 * HEARTBEAT,
            heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=3),
        )
        metric = make_recipe(search.content)
        directions = [OBJECTIVES[name] or direction_of(metric) for name in search.objectives]
        return optuna.create_study(
            study_name=f"distilens {folder.name} {key_of(search.plain())[:12]}",  # a database may hold several searches
            storage=database,
            directions=directions,
            sampler=make_sampler(optuna, search.sampler),
            pruner=optuna.pruners.SuccessiveHalvingPruner() if len(directions) == 1 else optuna.pruners.NopPruner(),
            load_if_exists=True,
        )

    return retried(connect, "the database of the search cannot be reached")


def import_optuna() -> Any:
    """Optuna, without its log and its warnings that heartbeats are experimental.

    Raises:
        UserError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise UserError("a search needs Optuna: pip install 'distilens[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    return optuna


def direction_of(recipe: Any) -> str:
    """The direction of the task's metric."""
    from distilens.data import load

    return "maximize" if load(recipe.data).task.metric.higher_is_better else "minimize"


def make_sampler(optuna: Any, name: Sampler) -> Any:
    """The sampler with a name; each worker draws its own numbers."""
    if name == "cmaes":
        return optuna.samplers.CmaEsSampler(warn_independent_sampling=False)
    return {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}[name]()


def retried(call: Callable[[], Any], problem: str) -> Any:
    """The result of a call to the database, tried again while it does not answer.

    Raises:
        UserError: it does not answer.
    """
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

    for attempt in range(RETRIES):
        try:
            return call()
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise UserError(f"{problem}: {first_line(error)}") from None
        except Exception as error:
            cause = error if isinstance(error, SQLAlchemyError) else error.__cause__
            if not isinstance(cause, SQLAlchemyError):
                raise
            if attempt == RETRIES - 1:
                raise UserError(
                    f"{problem}: {first_line(cause)}. Finished trials are kept; the same command goes on with the search"
                ) from None
            time.sleep(0.5 * 2**attempt)


def first_line(error: BaseException) -> str:
    """The first line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# ------------------------------------------------------------------------------------------------ trials


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
        if value is None:
            return
        optuna = import_optuna()
        self.trial.report(value, row["epoch"])
        if self.trial.should_prune():
            raise optuna.TrialPruned


def run_search(study: Study, search: Search, *, storage: str | None = None, console: Console | None = None) -> Any:
    """Try settings until all trials of the search are done, together with any other workers; returns Optuna's study.

    Raises:
        UserError: a teacher cannot be trained, every trial fails, or the database cannot be reached.
    """
    optuna = import_optuna()
    found = open_search(study.folder, search, storage)
    train_teachers(study, console)
    space, start = search.dimensions, time.monotonic()
    with Work(console, "search", search.trials, done=len(tried(found)), unit="trials") as work:

        def attempt(trial: Any) -> Any:
            if is_surplus(found, search, trial):
                raise Surplus(f"{search.trials} trials are enough")
            work.say(f"search: trial {trial.number}")
            return try_setting(study, search, space, trial)

        def look() -> bool:
            """Whether all trials are done; a trial whose worker was killed is given to another one."""
            optuna.storages.fail_stale_trials(found)
            work.advance(len(tried(found)) - work.done)
            return len(tried(found)) >= search.trials

        while not retried(look, LOST):
            if search.timeout is not None and time.monotonic() - start > search.timeout:
                break
            if len(tried(found)) + len(running(found)) >= search.trials:
                time.sleep(PAUSE)  # other workers train the last ones
                continue
            retried(lambda: found.optimize(attempt, n_trials=1, catch=(UserError,)), LOST)
    if not any(trial.state == optuna.trial.TrialState.COMPLETE for trial in tried(found)):
        reasons = [trial.user_attrs["failed"] for trial in tried(found) if "failed" in trial.user_attrs]
        raise UserError(f"no trial of the search was finished{': ' + reasons[0] if reasons else ''}")
    return found


class Surplus(UserError):  # noqa: N818  # one trial too many
    """Another worker began the last trial at the same moment."""


def tried(found: Any) -> list[Any]:
    """The trials that are done: finished, pruned, or impossible to train. Those of killed workers do not count."""
    states = import_optuna().trial.TrialState
    return [
        trial
        for trial in found.get_trials(deepcopy=False)
        if trial.state in (states.COMPLETE, states.PRUNED)
        or (trial.state == states.FAIL and "failed" in trial.user_attrs)
    ]


def running(found: Any) -> list[Any]:
    """The trials that some worker trains now."""
    return found.get_trials(deepcopy=False, states=(import_optuna().trial.TrialState.RUNNING,))


def is_surplus(found: Any, search: Search, trial: Any) -> bool:
    """Whether enough trials were begun before this one."""
    others = [each for each in (*tried(found), *running(found)) if each.number < trial.number]
    return len(others) >= search.trials


def try_setting(study: Study, search: Search, space: Sequence[Dimension], trial: Any) -> Any:
    """Train and score one setting; returns the values of the objectives.

    Raises:
        UserError: the setting cannot be trained. The search goes on.
    """
    try:
        return train_setting(study, search, space, trial)
    except UserError as error:
        trial.set_user_attr("failed", str(error))
        raise


def train_setting(study: Study, search: Search, space: Sequence[Dimension], trial: Any) -> Any:
    """`try_setting`, without the note why it cannot be trained."""
    changes = changes_of(space, [dimension.suggest(trial) for dimension in space], search.content)
    trial.set_user_attr("changes", changes)
    recipe = make_recipe(search.content, changes)
    row = Row(f"trial-{trial.number}", recipe.model_dump(mode="json", exclude_none=True))
    metric = make_metric(study, row)
    watch = Watch(trial, metric.name) if len(search.objectives) == 1 else None
    try:
        result = train_row(study, row, TUNING, watch=watch)
    except import_optuna().TrialPruned:
        remove_checkpoints(run_of(study, row, TUNING))
        raise
    if "failed" in result:
        raise UserError(result["failed"])
    trial.set_user_attr("validation", result["validation"])
    trial.set_user_attr("worker", f"{os.uname().nodename if hasattr(os, 'uname') else ''}:{os.getpid()}")
    values = [value_of(study, row, result, name) for name in search.objectives]
    return values if len(values) > 1 else values[0]


def make_metric(study: Study, row: Row) -> Metric:
    """The metric of the row's task."""
    return run_of(study, row, TUNING).data.task.metric


def value_of(study: Study, row: Row, result: Mapping[str, Any], objective: str) -> float:
    """The value of an objective for a trained student."""
    if objective == "score":
        return result["validation"][result["metric"]["name"]]
    if objective == "size":
        return result["parameters"]
    run = run_of(study, row, TUNING)
    if objective == "latency":
        return float(latency(run.models()["student"])["median"])
    return map_likeness(run)


def map_likeness(run: Run) -> float:
    """The mean cosine of the student's Grad-CAM maps to the teacher's, on validation images."""
    models, split = run.models(), run.data.validation
    if "teacher" not in models:
        raise UserError("the objective maps compares with the teacher's maps, but this recipe has no [teacher]")
    images = batch_at(split, draw_positions(split, MAPS)).images.to(models["student"].device)
    with torch.no_grad():
        target = run.data.task.explained(models["teacher"].logits(images))
    explainer = build_explainer("gradcam", run.data)
    ours, theirs = (explainer(models[role], images, target).maps for role in ("student", "teacher"))
    return float(cosine(ours, theirs).nanmean())


# ------------------------------------------------------------------------------------------------ the result


def chosen_row(search: Search, found: Any) -> Row:
    """The setting with the best validation score, as a row; of several objectives, the first decides."""
    optuna = import_optuna()
    complete = found.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    sign = 1 if found.directions[0] == optuna.study.StudyDirection.MAXIMIZE else -1
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


def describe_search(search: Search, found: Any) -> dict[str, Any]:
    """All trials, the front of several objectives, and the importance of each setting, as plain data."""
    optuna = import_optuna()
    trials = [
        {
            "number": trial.number,
            "state": trial.state.name.lower(),
            "settings": dict(trial.params),
            "values": list(trial.values) if trial.values else None,
            "validation": trial.user_attrs.get("validation"),
            "seconds": trial.duration.total_seconds() if trial.duration else None,
        }
        for trial in (*tried(found), *running(found))
    ]
    complete = [trial for trial in found.get_trials(deepcopy=False) if trial.state == optuna.trial.TrialState.COMPLETE]
    importance: dict[str, float] = {}
    if len(complete) > 3 and len(search.space) > 1:
        try:
            importance = optuna.importance.get_param_importances(
                found,
                evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0),
                target=lambda trial: trial.values[0],
            )
        except (RuntimeError, ValueError):  # all trials have the same value
            importance = {}
    return {
        "objectives": list(search.objectives),
        "space": list(search.space),
        "trials": trials,
        "front": [trial.number for trial in found.best_trials],
        "importance": importance,
    }
