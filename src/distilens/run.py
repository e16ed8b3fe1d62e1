"""A run: its folder and recipe, the models and the answers in it, and who may work in it.

Every stage records a key of all that its result depends on, and is skipped when the result is there and the key still fits; so a
run that was stopped goes on where it was, and a changed recipe redoes what the change touches and nothing else.
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

from distilens import notebook
from distilens.about import about_run, origin, origins_in
from distilens.core import Model, Teacher, accompany
from distilens.data import Data, load
from distilens.errors import UserError
from distilens.files import Busy, Metrics, file_key, locked, read_json, without_recipe, write_json, write_text
from distilens.history import History
from distilens.measure.predictions import FILE as PREDICTIONS
from distilens.measure.predictions import Predictions, read_predictions
from distilens.methods import build_methods
from distilens.models import MODELS
from distilens.models.adapters import model_folder
from distilens.models.saved import load_model
from distilens.recipe import Recipe
from distilens.recipe_file import read_recipe
from distilens.specs import Spec
from distilens.teachers import ANSWERS, LiveTeacher, as_one, nobody
from distilens.teachers.stored import Recordable
from distilens.trackers import Trackers
from distilens.train import processes

ROLES = ("teacher", "base", "student")


@dataclass
class Run:
    """A run folder and its recipe.

    Args:
        folder: where everything is; the decoded data are beside it, in `data/`, for all runs there.
        recipe: what is run.
        console: where progress goes; None is silent.
    """

    folder: Path
    recipe: Recipe
    console: Console | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    origins: dict[str, dict[str, Any]] = field(default_factory=dict)

    @cached_property
    def data(self) -> Data:
        return self.told(load(self.recipe.data, self.folder.parent / "data"))

    @cached_property
    def teacher_data(self) -> Data:
        """What the teacher is trained on; by default the same."""
        if self.recipe.teacher_data == self.recipe.data:
            return self.data
        data = load(self.recipe.teacher_data, self.folder.parent / "data")
        if data.classes != self.data.classes:
            raise UserError("teacher.data has other classes than data: " + ", ".join(data.classes))
        return self.told(data)

    def told(self, data: Data) -> Data:
        """Say what a user has to know of the data: what was left out, and what their pictures look like."""
        for line in data.inventory.lines():
            self.say(f"{data.name}: {line}")
        return data

    @cached_property
    def trackers(self) -> Trackers:
        """The services that show the run's trainings; started by the first of them."""
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
            UserError: an earlier version measured the run, or nobody has yet.
        """
        return read_predictions(self.folder / PREDICTIONS)

    def model(self, role: str) -> Model:
        """A trained model of the run: `teacher`, `base` or `student`."""
        return load_model(self.folder / role)

    def models(self) -> dict[str, Model]:
        """All trained models of the run, by role."""
        device = processes().device
        found = {
            role: self.model(role).to(device) for role in ROLES if (self.folder / role / "model.safetensors").is_file()
        }
        methods = build_methods(self.recipe.student.methods).values()
        if "teacher" in found and "student" in found and any(method.at_use for method in methods):
            accompany(found["student"], methods, self.teacher())
        if not found:
            raise UserError(f"no trained model in {self.folder}: distilens run, or distilens train {self.folder}")
        return found

    def teacher(self) -> Teacher:
        """Who answers: one model, or several as one, under a control if there is one; nobody where the recipe has no teacher."""
        part = self.recipe.teacher
        return as_one([self.answers(role) for role in part.models], part.joined, part.control) if part else nobody

    def answers(self, role: str, *, recording: bool = False) -> Recordable:
        """The answers of one teacher. They are stored where the recipe says so, and where they are to be recorded."""
        part = self.recipe.teacher
        assert part is not None
        answers = "stored" if recording and Spec.parse(part.answers).name == "live" else part.answers
        answers = ANSWERS.resolve(answers)
        if answers.options.get("path") and role != "teacher":  # a folder each: their answers have the same names
            answers = answers.replaced(path=str(Path(answers.options["path"]) / role))
        live = LiveTeacher(self.model(role).to(cast(torch.device, processes().device)))
        again = f"distilens record {self.folder} --again"
        return ANSWERS.build(answers, live, self.answers_folder(role), again, self.say, self.recipe.train.shown)

    def answers_folder(self, role: str = "teacher") -> Path:
        """Where a teacher's answers are kept by default: beside its weights, so that every run of the same teacher finds them."""
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
        said = ", ".join(f"{role} {scores['test']['accuracy']:.1%}" for role, scores in scored.items())
        return f"Run({str(self.folder)!r}, {self.recipe.name!r}{': ' if said else ''}{said})"

    def _repr_html_(self) -> str:
        rows = [
            (
                role,
                scores["model"],
                f"{scores['test']['accuracy']:.1%} of {scores['test']['n']:,}",
                f"{scores['parameters']:,}",
            )
            for role, scores in (self.scores or {}).get("models", {}).items()
        ]
        header = ("", "model", "test accuracy", "parameters")
        told = notebook.table(rows, header) if rows else "<p>not measured yet</p>"
        page = self.folder / "report.html"
        return notebook.heading(repr(self)) + told + (notebook.link(str(page), "the page") if page.is_file() else "")


def load_run(path: str | Path, *, console: Console | None = None) -> Run:
    """A run folder from disk: its recipe, models, scores, metrics.

    Raises:
        UserError: not a run folder.
    """
    folder = Path(path)
    if not (folder / "recipe.toml").is_file():
        raise UserError(without_recipe(folder))
    return Run(folder, read_recipe(folder / "recipe.toml"), console)


def folder_for(folder: Path, recipe: Recipe) -> Path:
    """Where a recipe is run: in `folder`, or in `folder-2`, `folder-3`, ... where runs with other models are finished.

    A run that was stopped, or the same one, is gone on with; so is one whose maps, comparison or note alone are others.
    """
    places = itertools.chain([folder], (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2)))
    return next(place for place in places if not is_finished(place) or trains_the_same(place, recipe))


def is_finished(folder: Path) -> bool:
    return (folder / "student" / "stage.json").is_file() and (folder / "student" / "model.safetensors").is_file()


def trains_the_same(folder: Path, recipe: Recipe) -> bool:
    """Whether the run in a folder makes the models that a recipe makes."""
    try:
        before = read_recipe(folder / "recipe.toml")
    except UserError:  # gone, or of another version
        return False
    return what_is_trained(before) == what_is_trained(recipe)


def what_is_trained(recipe: Recipe) -> dict[str, Any]:
    """A recipe without what no model depends on."""
    content = {
        key: value for key, value in recipe.resolved().items() if key not in ("name", "note", "explain", "compare")
    }
    content["train"] = recipe.train.decisive()
    if recipe.teacher:
        content["teacher"] = {**content["teacher"], "train": recipe.teacher_training.decisive()}
    return content


@contextmanager
def in_turn(run: Run) -> Iterator[None]:
    """`at_work`, once whoever is at work in the folder is done: all processes of a launch enter together."""
    waited = False
    with ExitStack() as stack:
        while True:
            free = [True]
            if processes().is_main_process:
                try:
                    stack.enter_context(at_work(run))
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
def at_work(run: Run) -> Iterator[None]:
    """One process (or one launch of several) in the folder at a time, and `about.json` up to date afterwards."""
    if not processes().is_main_process:
        yield
        return
    with locked(run.folder):
        write_text(run.folder / "recipe.toml", run.recipe.to_toml())
        previous = run.about or {}
        run.seconds = dict(previous.get("seconds", {}))
        run.origins = origins_in(previous)
        try:
            yield
        except BaseException:
            with suppress(UserError):  # what went wrong first is what is said
                write_json(run.folder / "about.json", about_run(run))
            raise
        finally:
            run.trackers.close()
        write_json(run.folder / "about.json", about_run(run))


@contextmanager
def stage(run: Run, name: str, key: str, *results: Path) -> Iterator[bool]:
    """Yields whether the stage is to be done; records its key and time once it is."""
    roles = {*ROLES, *(run.recipe.teacher.models if run.recipe.teacher else ())}
    marker = run.folder / (f"{name}/stage.json" if name in roles else f".{name}.json")
    before = read_json(marker) or {}
    if before.get("key") == key and all(path.exists() for path in results):
        run.say(f"{name}: there already")
        yield False
        return
    if before:
        why = "what it depends on has changed" if before.get("key") != key else "some of its files are not there"
        run.say(f"{name}: {why}; done again")
    start = time.perf_counter()
    yield True
    if processes().is_main_process:
        run.seconds[name] = round(time.perf_counter() - start, 2)
        run.origins[name] = origin()
        write_json(marker, {"key": key, "seconds": run.seconds[name]})
