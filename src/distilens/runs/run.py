"""A run folder: recipe, models, stored answers, and the lock on it.

Every stage records a key of everything that its result depends on. A stage is skipped if its result exists and the key is the
same. So a stopped run resumes, and after a change of the recipe only the affected stages run again.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import broadcast_object_list
from rich.console import Console

from distilens.core import Model, Teacher, accompany
from distilens.data import Data, load
from distilens.foundation import notebook
from distilens.foundation.devices import processes
from distilens.foundation.errors import UserError
from distilens.foundation.files import Busy, explain_missing_recipe, lock_folder, read_json, write_json, write_text
from distilens.foundation.fingerprints import file_key
from distilens.foundation.notation import Spec
from distilens.measure.predictions import FILE as PREDICTIONS
from distilens.measure.predictions import Predictions, read_predictions
from distilens.methods import build_methods
from distilens.models import MODELS
from distilens.models.adapters import model_folder
from distilens.models.saved import load_model
from distilens.report.table import metric_of
from distilens.runs.provenance import about_run, origin, origins_in
from distilens.runs.recipe import Recipe
from distilens.runs.recipe_file import read_recipe
from distilens.teachers import ANSWERS, LiveTeacher, as_one, nobody
from distilens.training.history import History
from distilens.training.log import Metrics
from distilens.training.trackers import Trackers

ROLES = ("teacher", "base", "student")


@dataclass
class Run:
    """A run folder and its recipe.

    Args:
        folder: the run's files. Decoded data are stored beside it, in `data/`, for all runs there.
        recipe: the recipe of the run.
        console: receives progress; None is silent.
    """

    folder: Path
    recipe: Recipe
    console: Console | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    origins: dict[str, dict[str, Any]] = field(default_factory=dict)
    loaded: dict[str, Data] = field(default_factory=dict)

    @cached_property
    def data(self) -> Data:
        return self.say_inventory(load(self.recipe.data, self.folder.parent / "data"))

    @cached_property
    def teacher_data(self) -> Data:
        """The data that the teacher is trained on; by default the run's."""
        return self.data_of("teacher")

    def data_of(self, role: str) -> Data:
        """The data that a model is trained on, by role.

        Raises:
            UserError: a teacher's data have other classes than the run's.
        """
        part = self.recipe.data_of(role)
        if part == self.recipe.data:
            return self.data
        if part not in self.loaded:
            data = load(part, self.folder.parent / "data")
            if data.task != self.data.task:
                key = "teacher.data" if role == "teacher" else f"the data of {role}"
                raise UserError(f"{key} has other classes than data: " + (", ".join(data.classes) or data.task.name))
            self.loaded[part] = self.say_inventory(data)
        return self.loaded[part]

    def say_inventory(self, data: Data) -> Data:
        """Print what a user must know about the data: what was left out, and remarks on the pictures. Returns the data."""
        for line in data.inventory.lines():
            self.say(f"{data.name}: {line}")
        return data

    @cached_property
    def trackers(self) -> Trackers:
        """The services that show the run's trainings; the first training starts them."""
        recipe = self.recipe
        return Trackers(recipe.train.tracker, self.folder, name=recipe.name, settings=recipe.resolved())

    @property
    def metrics(self) -> Metrics:
        return Metrics(self.folder / "metrics.jsonl")

    @property
    def scores(self) -> dict[str, Any] | None:
        return read_json(self.folder / "scores.json")

    @property
    def about(self) -> dict[str, Any] | None:
        return read_json(self.folder / "about.json")

    def predictions(self) -> Predictions:
        """The logits of all models on test and validation, with labels and files: `run.predictions().test.logits["student"]`.

        Raises:
            UserError: the run is not measured yet, or an earlier version measured it.
        """
        return read_predictions(self.folder / PREDICTIONS)

    def model(self, role: str) -> Model:
        """A trained model of the run: `teacher`, `base` or `student`."""
        return load_model(self.folder / role)

    def models(self) -> dict[str, Model]:
        """All trained models of the run, by role."""
        device = processes().device
        models = {
            role: self.model(role).to(device) for role in ROLES if (self.folder / role / "model.safetensors").is_file()
        }
        methods = build_methods(self.recipe.student.methods).values()
        if "teacher" in models and "student" in models and any(method.at_use for method in methods):
            accompany(models["student"], methods, self.teacher())
        if not models:
            raise UserError(f"no trained model in {self.folder}: distilens run, or distilens train {self.folder}")
        return models

    def teacher(self) -> Teacher:
        """The teacher: one model, or several as one, with the recipe's control if any; `nobody` if there is no teacher."""
        part = self.recipe.teacher
        return as_one([self.answers(role) for role in part.models], part.joined, part.control) if part else nobody

    def answers(self, role: str, *, recording: bool = False) -> Teacher:
        """One teacher: live, or with stored answers if the recipe says so or if the answers are to be recorded."""
        part = self.recipe.teacher
        assert part is not None
        answers = "stored" if recording and Spec.parse(part.answers).name == "live" else part.answers
        answers = ANSWERS.resolve(answers)
        if answers.options.get("path") and role != "teacher":  # a folder per teacher: the file names are the same
            answers = answers.replaced(path=str(Path(answers.options["path"]) / role))
        live = LiveTeacher(self.model(role).to(cast(torch.device, processes().device)))
        again = f"distilens record {self.folder} --again"
        return ANSWERS.build(answers, live, self.answers_folder(role), again, self.say, self.recipe.train.shown)

    def answers_folder(self, role: str = "teacher") -> Path:
        """The default folder of a teacher's answers: beside its weights, so that every run with the same teacher finds them."""
        part = self.recipe.teacher
        spec = MODELS.resolve(part.models[role]) if part else None
        if spec is not None and spec.name == "run" and part and (part.finetune or "none") == "none":
            return model_folder(spec.argument or "", spec.options["part"]) / "answers"
        return self.folder / role / "answers"

    def weights_key(self, role: str) -> str | None:
        path = self.folder / role / "model.safetensors"
        return file_key([path]) if path.is_file() else None

    def say(self, text: str) -> None:
        if self.console is not None and processes().is_main_process:
            self.console.print(text, highlight=False, markup=False)

    @property
    def log(self) -> History:
        """The log of all trainings of the run: `run.log.plot()`."""
        return History(self.metrics.rows())

    def __repr__(self) -> str:
        scored = (self.scores or {}).get("models", {})
        metric = metric_of(self.scores or {})
        accuracies = ", ".join(f"{role} {metric.written(one['test'][metric.name])}" for role, one in scored.items())
        return f"Run({str(self.folder)!r}, {self.recipe.name!r}{': ' if accuracies else ''}{accuracies})"

    def _repr_html_(self) -> str:
        metric = metric_of(self.scores or {})
        rows = [
            (
                role,
                scores["model"],
                f"{metric.written(scores['test'][metric.name])} of {scores['test']['n']:,}",
                f"{scores['parameters']:,}",
            )
            for role, scores in (self.scores or {}).get("models", {}).items()
        ]
        header = ("", "model", f"test {metric.name}", "parameters")
        table = notebook.table(rows, header) if rows else "<p>not measured yet</p>"
        page = self.folder / "report.html"
        return notebook.heading(repr(self)) + table + (notebook.link(str(page), "the page") if page.is_file() else "")


def load_run(path: str | Path, *, console: Console | None = None) -> Run:
    """A run folder from disk: its recipe, models, scores, metrics.

    Raises:
        UserError: it is not a run folder.
    """
    folder = Path(path)
    if not (folder / "recipe.toml").is_file():
        raise UserError(explain_missing_recipe(folder))
    return Run(folder, read_recipe(folder / "recipe.toml"), console)


def folder_for(folder: Path, recipe: Recipe) -> Path:
    """The folder for a recipe: `folder`, or the first of `folder-2`, `folder-3`, ... without a finished run of other models.

    A stopped run is resumed. A finished run of the same models is reused, even if maps, comparison or note differ.
    """
    places = itertools.chain([folder], (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2)))
    return next(place for place in places if not is_finished(place) or trains_the_same(place, recipe))


def is_finished(folder: Path) -> bool:
    return (folder / "student" / "stage.json").is_file() and (folder / "student" / "model.safetensors").is_file()


def trains_the_same(folder: Path, recipe: Recipe) -> bool:
    """Whether the run in a folder trains the same models as a recipe."""
    try:
        before = read_recipe(folder / "recipe.toml")
    except UserError:  # missing, or from another version
        return False
    return what_is_trained(before) == what_is_trained(recipe)


def what_is_trained(recipe: Recipe) -> dict[str, Any]:
    """The parts of a recipe that models depend on."""
    content = {
        key: value
        for key, value in recipe.resolved().items()
        if key not in ("name", "note", "explain", "measure", "compare", "export")
    }
    content["train"] = recipe.train.decisive()
    if recipe.teacher:
        content["teacher"] = {**content["teacher"], "train": recipe.teacher_training.decisive()}
    return content


@contextmanager
def wait_and_lock(run: Run) -> Iterator[None]:
    """`lock_run`, but wait if another process works in the folder. All processes of a launch enter together."""
    waited = False
    with ExitStack() as stack:
        while True:
            free = [True]
            if processes().is_main_process:
                try:
                    stack.enter_context(lock_run(run))
                except Busy:
                    free = [False]
            broadcast_object_list(free)
            if free[0]:
                break
            if not waited:
                run.say(f"waiting for another process in {run.folder}")
            waited = True
            time.sleep(1)
        yield


@contextmanager
def lock_run(run: Run) -> Iterator[None]:
    """Lock the folder: one process (or one launch of several) works in it at a time. Update `about.json` at the end."""
    if not processes().is_main_process:
        yield
        return
    with lock_folder(run.folder):
        write_text(run.folder / "recipe.toml", run.recipe.to_toml())
        previous = run.about or {}
        run.seconds = dict(previous.get("seconds", {}))
        run.origins = origins_in(previous)
        try:
            yield
        except BaseException:
            with suppress(UserError):  # the first error is the one to report
                write_json(run.folder / "about.json", about_run(run))
            raise
        finally:
            run.trackers.close()
        write_json(run.folder / "about.json", about_run(run))


@contextmanager
def stage(run: Run, name: str, key: str, *results: Path) -> Iterator[bool]:
    """Yield True if the stage must run; record its key and duration afterwards."""
    roles = {*ROLES, *(run.recipe.teacher.models if run.recipe.teacher else ())}
    marker = run.folder / (f"{name}/stage.json" if name in roles else f".{name}.json")
    before = read_json(marker) or {}
    if before.get("key") == key and all(path.exists() for path in results):
        run.say(f"{name}: already done")
        yield False
        return
    if before:
        why = "what it depends on has changed" if before.get("key") != key else "some of its files are missing"
        run.say(f"{name}: {why}; running it again")
    start = time.perf_counter()
    yield True
    if processes().is_main_process:
        run.seconds[name] = round(time.perf_counter() - start, 2)
        run.origins[name] = origin()
        write_json(marker, {"key": key, "seconds": run.seconds[name]})
