"""Train the models of a run: teachers, base and student. Each is trained once, in its own folder, from a plan."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import torch

from distilens.core import Method, Model, Teacher
from distilens.data.augment import AUGMENTS
from distilens.data.pipeline import Batches
from distilens.data.splits import Data
from distilens.explain import check_taps
from distilens.foundation.devices import processes
from distilens.foundation.errors import UserError
from distilens.foundation.files import read_json, write_json, write_text
from distilens.foundation.fingerprints import file_key, key_of
from distilens.foundation.notation import Spec
from distilens.foundation.own_code import module_file
from distilens.foundation.settings import Kind, Part, Parts, Section, resolve_section
from distilens.measure.transfer.comparison import check_comparable
from distilens.methods import build_methods
from distilens.methods.codebook import with_content
from distilens.models import build_model, check_classes
from distilens.models.heads import heads, replace_heads
from distilens.models.named import check_answers, list_names
from distilens.models.saved import save_model
from distilens.runs.recipe import Recipe, TeacherSettings
from distilens.runs.run import Run, lock_run, stage
from distilens.teachers import ANSWERS, LiveTeacher, as_one, following, nobody
from distilens.training.defaults import in_words, kind_for, settled
from distilens.training.dry_run import check_logits, check_savable, check_trainable, rehearsed
from distilens.training.log import Log, Metrics
from distilens.training.loop import train
from distilens.training.settings import Training
from distilens.training.trackers import check_installed


class Plan(Section):
    """What a model of a run is trained from. With settings, seed and data it makes the key of the training."""

    model: Annotated[Part, Kind("models")]
    methods: Annotated[Parts, Kind("methods")]
    answers: Annotated[Part, Kind("answers")]
    follow: Annotated[Part, Kind("follow")]
    control: Annotated[Part, Kind("controls")]


def train_stage(run: Run, *, base: bool = True) -> None:
    """Train or load the teacher, then train the base student (unless `base` is False) and the student."""
    recipe = run.recipe
    check_installed(recipe.train.tracker)
    if recipe.compare is not None:
        check_comparable(run.data)
    student = build_model(recipe.student.model, run.data.task, run.data.size)
    check_classes(student, run.data.task, "student")
    check_taps(recipe.explain.explainers, student)
    check_trainable(student, recipe.train.together, "student")
    check_logits(student, run.data, "student")
    if recipe.teacher is not None:
        try_methods(run, recipe.teacher, student)
        train_teacher(run)
    if base:
        plan = {"model": recipe.student.model, "methods": recipe.base.methods}
        train_role(run, "base", plan, recipe.train, no_teacher)
    guided = {"model": recipe.student.model, "methods": recipe.student.methods, "teacher": run.weights_key("teacher")}
    if recipe.teacher and Spec.parse(recipe.teacher.answers).name != "live":  # the place of storage does not matter
        guided["answers"] = str(ANSWERS.resolve(recipe.teacher.answers).replaced(path=None))
    if recipe.teacher and recipe.teacher.others:
        guided["weights of others"] = [run.weights_key(role) for role in recipe.teacher.models][1:]
        guided["follow"] = recipe.teacher.joined
    if recipe.teacher and recipe.teacher.control:
        guided["control"] = recipe.teacher.control
    train_role(run, "student", guided, recipe.train, run.teacher)


def no_teacher() -> Teacher:
    """Used to train the teacher and the base student, which have no teacher."""
    return nobody


def train_teacher(run: Run) -> None:
    """Train or load the teachers, each in its own folder, with the same settings and different seeds."""
    part = run.recipe.teacher
    assert part is not None
    several = following(part.joined, len(part.models))
    if several is not None:
        several.check(run.data)
    for number, role in enumerate(part.models):
        train_one_teacher(run, part, role, run.recipe.seed + number)


def try_methods(run: Run, part: TeacherSettings, student: Model) -> None:
    """If the teachers are not trained yet, let the methods prepare the student on a few images with untrained teachers.

    Raises:
        UserError: any error that would otherwise stop the student's training after hours of training the teachers.
    """
    if all(run.weights_key(role) for role in part.models):
        return
    device = cast(torch.device, processes().device)
    made = []
    for role, notation in part.models.items():
        how = finetuning_of(part, notation)
        model = make_teacher(run.recipe, run.data, notation, how)
        if how != "none":
            check_trainable(model, run.recipe.teacher_training.together, role)
        check_savable(model, role)
        warning = check_logits(model.to(device), run.data, role, used=how == "none")
        for text in (*describe_model(model), *([warning] if warning else [])):
            run.say(f"{role}: {text}")
        made.append(model.cpu())
    live = [LiveTeacher(model) for model in made]
    settings = run.recipe.train
    batches = Batches(run.data.train, settings.batch_size, augment=AUGMENTS.build(settings.augment), resident=False)
    few = batches.batch(torch.arange(min(4, len(run.data.train))), None, 0, 0.0)
    answering = as_one(live, part.joined, part.control)
    rehearsed(student, run.recipe.student.methods, few, answering, balance=settings.balance)


def describe_model(model: Model) -> list[str]:
    """Notes for the user on a model that was built: random weights, and the model's own notes."""
    new = [f"these weights were not loaded and are random: {list_names(model.missing)}"]
    return [*(new if model.missing else []), *model.notes]


def finetuning_of(part: TeacherSettings, notation: str) -> str:
    """Which weights of a teacher are trained: `none`, `head` or `all`."""
    return part.finetune or ("none" if Spec.parse(notation).name in ("run", "file") else "all")


def make_teacher(recipe: Recipe, data: Data, notation: str, how: str) -> Model:
    """A teacher's model before it is trained, with a head for the data's classes."""
    model = build_model(notation, data.task, data.size)
    if how != "none" and model.task.outputs != data.task.outputs:
        replace_heads(model.network, data.task.outputs, heads(model))
        model.task = data.task
    check_classes(model, data.task, "teacher")
    if how == "none":
        check_answers(model, data.classes, "teacher")
    check_taps(recipe.explain.explainers, model)
    if how == "head":
        model.freeze(but=heads(model))
    return model


def train_one_teacher(run: Run, part: TeacherSettings, role: str, seed: int) -> None:
    notation = part.models[role]
    how = finetuning_of(part, notation)
    plan = {"model": notation, "methods": part.methods, "finetune": how}

    def make() -> Model:
        return make_teacher(run.recipe, run.data, notation, how)

    settings = run.recipe.teacher_training
    train_role(run, role, plan, settings, no_teacher, make=make, trained=how != "none", seed=seed)


def source_key(part: str) -> str | None:
    """A key of the files that a model is made from: weights, a saved model's folder, a Python module; None without such files."""
    spec = Spec.parse(part)
    path = Path(spec.argument or "")
    files = []
    if spec.name == "run":
        files = sorted(path.glob("*/model.safetensors"))
    elif spec.name == "file":
        files = [path]
    elif spec.name == "hf" and path.is_dir():
        files = sorted(file for kind in ("*.safetensors", "*.bin", "*.json") for file in path.glob(kind))
    elif spec.name == "python":
        files = [Path(module)] if (module := module_file(spec.argument or "")) else []
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
    """Train one model of a run in its folder. A checkpoint of the same plan is resumed."""
    data = run.data_of(role)
    folder, seed = run.folder / role, run.recipe.seed if seed is None else seed
    kind = kind_for(plan["model"], data.task)
    given, settings = settings, settled(settings, kind)
    decisive = settings.decisive() if trained else None
    content = {**plan, "methods": [with_content(part) for part in plan["methods"]]}
    key = key_of(role, resolve_section(Plan, content), source_key(plan["model"]), decisive, seed, data.fingerprint)
    with stage(run, role, key, folder / "model.safetensors") as due:
        if not due:
            return
        set_other_plans_aside(run, role, key)
        torch.manual_seed(seed)
        model = make() if make else build_model(plan["model"], run.data.task, run.data.size)
        check_classes(model, run.data.task, role)
        if trained:
            if Spec.parse(given.optimizer).name == "auto" and kind.family != "zoo":
                run.say(f"{role}: trained with {in_words(settings)} ({kind})")
            log = Log(
                run.metrics,
                role,
                console=run.console,
                main=processes().is_main_process,
                trackers=run.trackers,
            )
            methods = build_methods(plan["methods"])
            if role == "student":
                collect(run, methods)
            model = train(
                model, methods, data, settings, teacher=answering(), folder=folder / "checkpoints", log=log, seed=seed
            )
        if processes().is_main_process:
            save_model(model, folder)
    processes().wait_for_everyone()


def collect(run: Run, methods: Mapping[str, Method]) -> list[Path]:
    """Let each method collect what it needs from the teacher and all training images. Returns the files with the results.

    Raises:
        UserError: a method cannot collect.
    """
    collecting = [method for method in methods.values() if type(method).collect is not Method.collect]
    if not collecting:
        return []
    teacher = LiveTeacher(run.model("teacher").to(cast(torch.device, processes().device)))
    files = []
    for method in collecting:
        with processes().main_process_first():  # the others read its result
            files += method.collect(teacher, run.data, run.folder / "teacher", run.say)
    return list(dict.fromkeys(files))


def collect_alone(run: Run) -> list[Path]:
    """Train or load the teacher if needed, and let the student's methods collect what they need from it.

    Raises:
        UserError: no method collects anything; and see `collect`.
    """
    methods = build_methods(run.recipe.student.methods)
    if all(type(method).collect is Method.collect for method in methods.values()):
        raise UserError("no method of this student collects anything from the teacher, such as a codebook")
    with lock_run(run):
        train_teacher(run)
        return collect(run, methods)


def set_other_plans_aside(run: Run, role: str, key: str) -> None:
    """Move the progress of another plan aside, and take up progress of this plan that was set aside before.

    Progress means the checkpoints and the role's rows of the log. It is moved to `ROLE/aside/KEY`, with a message.
    """
    folder = run.folder / role
    current, aside = folder / "checkpoints", folder / "aside"
    before = (read_json(current / "plan.json") or {}).get("key")
    if processes().is_main_process and before != key:
        if before and (current / "last.pt").is_file():
            set_aside(run, role, aside / before)
            run.say(
                f"{role}: moved the checkpoints of other settings to {aside / before}. The same command as before resumes from "
                "them"
            )
        if (aside / key).is_dir():
            resume_set_aside(run, role, aside / key)
            run.say(f"{role}: resumes from the checkpoints of these settings")
        write_json(current / "plan.json", {"key": key})
    processes().wait_for_everyone()


def set_aside(run: Run, role: str, place: Path) -> None:
    """Move the checkpoints and the log rows of a role to another folder."""
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_text(
        run.folder / role / "checkpoints" / "metrics.jsonl",
        "".join(json.dumps(row) + "\n" for row in run.metrics.rows() if row["stage"] == role),
    )
    (run.folder / role / "checkpoints").rename(place)
    run.metrics.keep(lambda row: row["stage"] != role)


def resume_set_aside(run: Run, role: str, place: Path) -> None:
    """The inverse of `set_aside`."""
    current = run.folder / role / "checkpoints"
    shutil.rmtree(current, ignore_errors=True)
    place.rename(current)
    run.metrics.keep(lambda row: row["stage"] != role)
    for row in Metrics(current / "metrics.jsonl").rows():
        run.metrics.append(**row)
    (current / "metrics.jsonl").unlink(missing_ok=True)
