"""A run, stage by stage: teacher → base → student → measure → explain → report.

Each stage reads and writes files of the run folder alone. It records a key of all that its result depends on, and is skipped
when the result is there and the key still fits; so a run that was stopped goes on where it was, and a changed recipe redoes
what the change touches and nothing else.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import broadcast_object_list
from rich.console import Console

from distilens.about import about_run
from distilens.codebook import Codebook, check, make_codebook
from distilens.core import Method, Model, Teacher, accompany
from distilens.data import Data, load
from distilens.data.augment import AUGMENTS
from distilens.data.batches import Batches
from distilens.errors import UserError
from distilens.explain import build_explainer, check_taps, labels
from distilens.explain.side_by_side import choose, explained
from distilens.measure import predict
from distilens.measure.scores import EVALUATION_BATCH, score_models
from distilens.methods import METHODS, build_methods
from distilens.methods.kd_layer import KDLayer
from distilens.models import MODELS, build_model, check_classes, load_model, save_model
from distilens.models.adapters import head_of, model_folder, replace_head
from distilens.progress import Log
from distilens.recipe import Recipe, TeacherPart, Training, read_recipe, with_options
from distilens.rehearsal import rehearsed
from distilens.report import write_report
from distilens.runs import Busy, Metrics, file_key, key_of, locked, read_json, write_arrays, write_json, write_text
from distilens.specs import Spec
from distilens.teachers import ANSWERS, LiveTeacher, as_one, following, nobody
from distilens.teachers.stored import Recordable
from distilens.train import processes, train

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

    @cached_property
    def data(self) -> Data:
        return load(self.recipe.data, self.folder.parent / "data")

    @cached_property
    def teacher_data(self) -> Data:
        """What the teacher is trained on; by default the same."""
        if self.recipe.teacher_data == self.recipe.data:
            return self.data
        data = load(self.recipe.teacher_data, self.folder.parent / "data")
        if data.classes != self.data.classes:
            raise UserError("teacher.data has other classes than data: " + ", ".join(data.classes))
        return data

    @property
    def metrics(self) -> Metrics:
        return Metrics(self.folder / "metrics.jsonl")

    @property
    def scores(self) -> dict[str, Any] | None:
        return read_json(self.folder / "scores.json")

    @property
    def about(self) -> dict[str, Any] | None:
        return read_json(self.folder / "about.json")

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
            accompany(found["student"], methods, teacher_of(self))
        if not found:
            raise UserError(f"no trained model in {self.folder}: distilens run, or distilens train {self.folder}")
        return found

    def weights_key(self, role: str) -> str | None:
        path = self.folder / role / "model.safetensors"
        return file_key([path]) if path.is_file() else None

    def say(self, text: str) -> None:
        if self.console is not None and processes().is_main_process:
            self.console.print(text, highlight=False, markup=False)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {self.recipe.name!r})"


def load_run(path: str | Path, *, console: Console | None = None) -> Run:
    """A run folder from disk: its recipe, models, scores, metrics.

    Raises:
        UserError: not a run folder.
    """
    folder = Path(path)
    if not (folder / "recipe.toml").is_file():
        raise UserError(f"{folder} is not a run: it has no recipe.toml (made by: distilens run RECIPE --out {folder})")
    return Run(folder, read_recipe(folder / "recipe.toml"), console)


def run_all(run: Run) -> None:
    """All stages, in order."""
    with at_work(run):
        train_stage(run)
        if processes().is_main_process:
            measure_stage(run)
            explain_stage(run)
            report_stage(run)
        processes().wait_for_everyone()


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
        try:
            yield
        except BaseException:
            with suppress(UserError):  # what went wrong first is what is said
                write_json(run.folder / "about.json", about_run(run))
            raise
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
        run.say(f"{name}: what it depends on has changed; done again")
    start = time.perf_counter()
    yield True
    if processes().is_main_process:
        run.seconds[name] = round(time.perf_counter() - start, 2)
        write_json(marker, {"key": key, "seconds": run.seconds[name]})


def train_stage(run: Run) -> None:
    """Train or load the teacher, then train the base student and the student."""
    recipe = run.recipe
    student = build_model(recipe.student.model, run.data.classes, run.data.size)
    check_taps(recipe.explain.explainers, student)
    if recipe.teacher is not None:
        rehearse(run, recipe.teacher, student)
        train_teacher(run)
    base = {"model": recipe.student.model, "methods": recipe.base.methods}
    train_role(run, "base", base, recipe.train, no_teacher)
    guided = {"model": recipe.student.model, "methods": recipe.student.methods, "teacher": run.weights_key("teacher")}
    if recipe.teacher and Spec.parse(recipe.teacher.answers).name != "live":  # where they are kept makes no difference
        guided["answers"] = str(ANSWERS.resolve(recipe.teacher.answers).replaced(path=None))
    if recipe.teacher and recipe.teacher.others:
        guided["weights of others"] = [run.weights_key(role) for role in recipe.teacher.models][1:]
        guided["follow"] = recipe.teacher.joined
    if recipe.teacher and recipe.teacher.control:
        guided["control"] = recipe.teacher.control
    train_role(run, "student", guided, recipe.train, lambda: teacher_of(run))


def no_teacher() -> Teacher:
    """Of the teacher itself, and of the base student."""
    return nobody


def teacher_of(run: Run) -> Teacher:
    """The teacher of a run, or nobody: one model's answers, or those of several as one, under a control if there is one."""
    part = run.recipe.teacher
    if part is None:
        return nobody
    each: list[Teacher] = [answers_of(run, role) for role in part.models]
    return as_one(each, part.joined, part.control)


def answers_of(run: Run, role: str, *, recording: bool = False) -> Recordable:
    """The answers of one teacher. They are stored where the recipe says so, and where they are to be recorded."""
    part = run.recipe.teacher
    assert part is not None
    answers = "stored" if recording and Spec.parse(part.answers).name == "live" else part.answers
    answers = ANSWERS.resolve(answers)
    if answers.options.get("path") and role != "teacher":  # a folder each: their answers have the same names
        answers = answers.replaced(path=str(Path(answers.options["path"]) / role))
    model = run.model(role).to(cast(torch.device, processes().device))
    again = f"distilens record {run.folder} --again"
    return ANSWERS.build(answers, LiveTeacher(model), answers_folder(run, role), again, run.say, run.recipe.train.shown)


def answers_folder(run: Run, role: str = "teacher") -> Path:
    """Where a teacher's answers are kept by default: beside its weights, so that every run of the same teacher finds them."""
    part = run.recipe.teacher
    spec = MODELS.resolve(part.models[role]) if part else None
    if spec is not None and spec.name == "run" and part and (part.finetune or "none") == "none":
        return model_folder(spec.argument or "", spec.options["part"]) / "answers"
    return run.folder / role / "answers"


def train_teacher(run: Run) -> None:
    """Train or load the teacher; of several each in its folder, with the same settings and a seed of its own."""
    part = run.recipe.teacher
    assert part is not None
    several = following(part.joined, len(part.models))
    if several is not None:
        several.check(run.data)
    for number, role in enumerate(part.models):
        train_one_teacher(run, part, role, run.recipe.seed + number)


def rehearse(run: Run, part: TeacherPart, student: Model) -> None:
    """Let the methods prepare the student on a few images, under teachers that know nothing yet, where there are none yet.

    Raises:
        UserError: whatever would stop the student's training, hours of the teachers' training before.
    """
    if all(run.weights_key(role) for role in part.models):
        return
    each = [LiveTeacher(make_teacher(run, notation, how_trained(part, notation))) for notation in part.models.values()]
    settings = run.recipe.train
    batches = Batches(run.data.train, settings.batch_size, augment=AUGMENTS.build(settings.augment), resident=False)
    few = batches.batch(torch.arange(min(4, len(run.data.train))), None, 0, 0.0)
    rehearsed(student, run.recipe.student.methods, few, as_one(each, part.joined, part.control))


def how_trained(part: TeacherPart, notation: str) -> str:
    """What of a teacher is trained: `none`, `head` or `all`."""
    return part.finetune or ("none" if Spec.parse(notation).name in ("run", "file") else "all")


def make_teacher(run: Run, notation: str, how: str) -> Model:
    """A teacher's model before it is trained, with a head for the data's classes."""
    model = build_model(notation, run.data.classes, run.data.size)
    if how != "none" and len(model.classes) != len(run.data.classes):
        replace_head(model.network, len(run.data.classes))
        model.classes = run.data.classes
    check_classes(model, run.data.classes, "teacher")
    check_taps(run.recipe.explain.explainers, model)
    return model


def train_one_teacher(run: Run, part: TeacherPart, role: str, seed: int) -> None:
    notation = part.models[role]
    how = how_trained(part, notation)
    plan = {"model": notation, "methods": part.methods, "finetune": how}

    def make() -> Model:
        model = make_teacher(run, notation, how)
        if how == "head":
            model.freeze(but=head_of(model.network))
        return model

    settings = run.recipe.teacher_training
    train_role(run, role, plan, settings, no_teacher, make=make, trained=how != "none", seed=seed)


def source_key(part: str) -> str | None:
    """The content of the weights that a `run:` or `file:` model is loaded from."""
    spec = Spec.parse(part)
    path = Path(spec.argument or "")
    files = sorted(path.glob("*/model.safetensors")) if spec.name == "run" else [path] if spec.name == "file" else []
    return file_key(files) if files and all(file.is_file() for file in files) else None


def train_role(
    run: Run,
    role: str,
    plan: dict[str, Any],
    settings: Training,
    answering: Callable[[], Teacher],
    *,
    make: Callable[[], Model] | None = None,
    trained: bool = True,
    seed: int | None = None,
) -> None:
    """Train one model of a run in its folder, from its last checkpoint where there is one of the same plan."""
    data = run.data if role in ("base", "student") else run.teacher_data
    folder, seed = run.folder / role, run.recipe.seed if seed is None else seed
    how = settings.decisive() if trained else None
    said = {**plan, "methods": [without_place(part) for part in plan["methods"]]}
    key = key_of(role, with_options(said), source_key(plan["model"]), how, seed, data.fingerprint)
    with stage(run, role, key, folder / "model.safetensors") as due:
        if not due:
            return
        discard_other_plans(folder, key)
        torch.manual_seed(seed)
        model = make() if make else build_model(plan["model"], run.data.classes, run.data.size)
        check_classes(model, run.data.classes, role)
        if trained:
            log = Log(
                run.metrics,
                role,
                console=run.console,
                main=processes().is_main_process,
                tensorboard=run.folder / "tensorboard" if settings.tensorboard else None,
            )
            methods = build_methods(plan["methods"])
            if role == "student":
                with_codebooks(run, methods)
            model = train(
                model, methods, data, settings, teacher=answering(), folder=folder / "checkpoints", log=log, seed=seed
            )
        if processes().is_main_process:
            save_model(model, folder)
    processes().wait_for_everyone()


def without_place(part: str) -> str:
    """A method with the content of its codebook instead of the path: where it lies makes no difference."""
    spec = METHODS.resolve(part)
    path = spec.options.get("codebook")
    return part if path is None else str(spec.replaced(codebook=Codebook.load(path).content))


def with_codebooks(run: Run, methods: Mapping[str, Method]) -> list[Path]:
    """Give each KD layer its codebook: the file that it names, or that of the run, which is made where it is not there yet.

    Raises:
        UserError: a codebook of another teacher or tap, or one that cannot be made.
    """
    layers = [method for method in methods.values() if isinstance(method, KDLayer)]
    if not layers:
        return []
    teacher = LiveTeacher(run.model("teacher").to(cast(torch.device, processes().device)))
    for layer in layers:
        if layer.codebook is not None:
            check(Codebook.load(str(layer.codebook)), teacher, layer.teacher_tap)
            continue
        asked = {**layer.asked, "tap": teacher.model.path_of(layer.teacher_tap)}
        key = key_of(teacher.identity, run.data.fingerprint, asked)
        path = run.folder / "teacher" / "codebooks" / f"{key}.safetensors"
        if processes().is_main_process and not path.is_file():
            make_codebook(teacher, run.data, **asked, say=run.say).save(path)
        layer.codebook = str(path)
    processes().wait_for_everyone()
    return list(dict.fromkeys(Path(str(layer.codebook)) for layer in layers))


def codebooks(run: Run) -> list[Path]:
    """Where the codebooks are that the student's methods ask for; teacher and codebooks are made where they are not there.

    Raises:
        UserError: no method asks for one, and see `with_codebooks`.
    """
    methods = build_methods(run.recipe.student.methods)
    if not any(isinstance(method, KDLayer) for method in methods.values()):
        raise UserError("the student's methods ask for no codebook: kd_layer does")
    with at_work(run):
        train_teacher(run)
        return with_codebooks(run, methods)


def discard_other_plans(folder: Path, key: str) -> None:
    """Checkpoints of another plan are no place to go on from."""
    marker = folder / "checkpoints" / "plan.json"
    if processes().is_main_process and (read_json(marker) or {}).get("key") != key:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        write_json(marker, {"key": key})
    processes().wait_for_everyone()


def measure_stage(run: Run) -> None:
    """Score all models: accuracy, agreement, likeness of maps, cost. The test split is read here."""
    explain = run.recipe.explain
    weights = [run.weights_key(role) for role in ROLES]
    key = key_of("measure", weights, run.data.fingerprint, with_options(explain.model_dump(exclude={"images"})))
    with stage(run, "measure", key, run.folder / "scores.json") as due:
        if due:
            models = run.models()
            scores = score_models(
                models,
                run.data,
                explain.explainers,
                measured=explain.measured,
                say=lambda text: run.say(f"measure: {text}"),
            )
            scores["data"]["note"] = run.recipe.note
            write_json(run.folder / "scores.json", scores)


def explain_stage(run: Run) -> None:
    """Explain the same test images for all models: one file an explainer in `maps/`."""
    wanted = run.recipe.explain
    files = {part: run.folder / "maps" / f"{label}.npz" for part, label in labels(wanted.explainers).items()}
    weights = [run.weights_key(role) for role in ROLES]
    key = key_of("explain", weights, run.data.fingerprint, with_options(wanted.model_dump(exclude={"measured"})))
    with stage(run, "explain", key, *files.values()) as due:
        if not due:
            return
        models, test = run.models(), run.data.test
        logits = {
            role: predict(model, Batches(test, EVALUATION_BATCH, device=model.device)) for role, model in models.items()
        }
        positions = choose(logits, min(wanted.images, len(test)))
        batch = Batches(test, len(test)).batch(positions, None, 0, 0.0)
        shown = {role: values[positions] for role, values in logits.items()}
        for part, path in files.items():
            run.say(f"explain: {part}")
            write_arrays(path, explained(models, batch, shown, build_explainer(part, run.data)))
        for path in set((run.folder / "maps").glob("*.npz")) - set(files.values()):
            path.unlink()  # of an explainer that is no longer wanted


def report_stage(run: Run) -> Path:
    """Write the page."""
    write_json(run.folder / "about.json", about_run(run))
    return write_report(run.folder)
