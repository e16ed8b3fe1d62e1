"""The models of a run: teachers, base and student, each trained once, in its folder, from a plan."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch

from distilens.codebook import Codebook, check, make_codebook
from distilens.core import Method, Model, Teacher
from distilens.data.augment import AUGMENTS
from distilens.data.batches import Batches
from distilens.data.subset import Data
from distilens.errors import UserError
from distilens.explain import check_taps
from distilens.files import Metrics, file_key, key_of, read_json, write_json, write_text
from distilens.methods import METHODS, build_methods
from distilens.methods.kd_layer import KDLayer
from distilens.models import build_model, check_classes
from distilens.models.adapters import module_file
from distilens.models.heads import heads, replace_heads
from distilens.models.named import check_answers, shown
from distilens.models.saved import save_model
from distilens.progress import Log
from distilens.recipe import Recipe, TeacherPart, Training, with_options
from distilens.rehearsal import check_logits, check_savable, check_trainable, rehearsed
from distilens.run import Run, at_work, stage
from distilens.specs import Spec
from distilens.teachers import ANSWERS, LiveTeacher, as_one, following, nobody
from distilens.trackers import check_installed
from distilens.train import processes, train
from distilens.usual import in_words, kind_of, settled


def train_stage(run: Run) -> None:
    """Train or load the teacher, then train the base student and the student."""
    recipe = run.recipe
    check_installed(recipe.train.tracker)
    student = build_model(recipe.student.model, run.data.classes, run.data.size)
    check_classes(student, run.data.classes, "student")
    check_taps(recipe.explain.explainers, student)
    check_trainable(student, recipe.train.batch_size, "student")
    check_logits(student, run.data, "student")
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
    train_role(run, "student", guided, recipe.train, run.teacher)


def no_teacher() -> Teacher:
    """Of the teacher itself, and of the base student."""
    return nobody


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
    device = cast(torch.device, processes().device)
    made = []
    for role, notation in part.models.items():
        how = how_trained(part, notation)
        model = make_teacher(run.recipe, run.data, notation, how)
        if how != "none":
            check_trainable(model, run.recipe.teacher_training.batch_size, role)
        check_savable(model, role)
        warning = check_logits(model.to(device), run.data, role, used=how == "none")
        for text in (*told_of(model), *([warning] if warning else [])):
            run.say(f"{role}: {text}")
        made.append(model.cpu())
    each = [LiveTeacher(model) for model in made]
    settings = run.recipe.train
    batches = Batches(run.data.train, settings.batch_size, augment=AUGMENTS.build(settings.augment), resident=False)
    few = batches.batch(torch.arange(min(4, len(run.data.train))), None, 0, 0.0)
    answering = as_one(each, part.joined, part.control)
    rehearsed(student, run.recipe.student.methods, few, answering, balance=settings.balance)


def told_of(model: Model) -> list[str]:
    """What has to be said of a model that was built: weights that were drawn anew, and what it brought along."""
    new = [f"these weights were not among those loaded, and are drawn at random: {shown(model.missing)}"]
    return [*(new if model.missing else []), *model.notes]


def how_trained(part: TeacherPart, notation: str) -> str:
    """What of a teacher is trained: `none`, `head` or `all`."""
    return part.finetune or ("none" if Spec.parse(notation).name in ("run", "file") else "all")


def make_teacher(recipe: Recipe, data: Data, notation: str, how: str) -> Model:
    """A teacher's model before it is trained, with a head for the data's classes."""
    model = build_model(notation, data.classes, data.size)
    if how != "none" and len(model.classes) != len(data.classes):
        replace_heads(model.network, len(data.classes), heads(model))
        model.classes = data.classes
    check_classes(model, data.classes, "teacher")
    if how == "none":
        check_answers(model, data.classes, "teacher")
    check_taps(recipe.explain.explainers, model)
    if how == "head":
        model.freeze(but=heads(model))
    return model


def train_one_teacher(run: Run, part: TeacherPart, role: str, seed: int) -> None:
    notation = part.models[role]
    how = how_trained(part, notation)
    plan = {"model": notation, "methods": part.methods, "finetune": how}

    def make() -> Model:
        return make_teacher(run.recipe, run.data, notation, how)

    settings = run.recipe.teacher_training
    train_role(run, role, plan, settings, no_teacher, make=make, trained=how != "none", seed=seed)


def source_key(part: str) -> str | None:
    """The content of the files that a model comes from: weights, a saved model's folder, a module of Python."""
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
        files = [Path(found)] if (found := module_file(spec.argument or "")) else []
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
    kind = kind_of(plan["model"])
    asked, settings = settings, settled(settings, kind)
    decisive = settings.decisive() if trained else None
    said = {**plan, "methods": [without_place(part) for part in plan["methods"]]}
    key = key_of(role, with_options(said), source_key(plan["model"]), decisive, seed, data.fingerprint)
    with stage(run, role, key, folder / "model.safetensors") as due:
        if not due:
            return
        set_other_plans_aside(run, role, key)
        torch.manual_seed(seed)
        model = make() if make else build_model(plan["model"], run.data.classes, run.data.size)
        check_classes(model, run.data.classes, role)
        if trained:
            if Spec.parse(asked.optimizer).name == "auto" and kind.family != "zoo":
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


def set_other_plans_aside(run: Run, role: str, key: str) -> None:
    """Keep the progress of another plan, and take up that of this plan where it was set aside before.

    Progress is the checkpoints and the role's rows of the log. It is moved to `ROLE/aside/KEY`, and said.
    """
    folder = run.folder / role
    current, aside = folder / "checkpoints", folder / "aside"
    before = (read_json(current / "plan.json") or {}).get("key")
    if processes().is_main_process and before != key:
        if before and (current / "last.pt").is_file():
            set_aside(run, role, aside / before)
            run.say(
                f"{role}: there is progress of other settings. It is kept in {aside / before}; the same command as before goes "
                "on with it"
            )
        if (aside / key).is_dir():
            take_up(run, role, aside / key)
            run.say(f"{role}: goes on where it was with these settings")
        write_json(current / "plan.json", {"key": key})
    processes().wait_for_everyone()


def set_aside(run: Run, role: str, place: Path) -> None:
    """Move checkpoints, and what the log says of a role, to another folder."""
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_text(
        run.folder / role / "checkpoints" / "metrics.jsonl",
        "".join(json.dumps(row) + "\n" for row in run.metrics.rows() if row["stage"] == role),
    )
    (run.folder / role / "checkpoints").rename(place)
    run.metrics.keep(lambda row: row["stage"] != role)


def take_up(run: Run, role: str, place: Path) -> None:
    """The inverse of `set_aside`."""
    current = run.folder / role / "checkpoints"
    shutil.rmtree(current, ignore_errors=True)
    place.rename(current)
    run.metrics.keep(lambda row: row["stage"] != role)
    for row in Metrics(current / "metrics.jsonl").rows():
        run.metrics.append(**row)
    (current / "metrics.jsonl").unlink(missing_ok=True)
