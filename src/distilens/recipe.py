"""The recipe: a TOML file that says everything about a run.

It is read into frozen data classes, every part in it is checked against the registries, and all that is wrong is said at once.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tomlkit
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from distilens.errors import UserError, nearest
from distilens.specs import Registry, Spec, split, unbracket

STORED_VARIANTS = 16
"""Augmentations of an image where a teacher's answers are stored and the recipe says nothing else: see docs/answers.md."""

Count = Annotated[int, Field(ge=1)]


def as_notation(part: Any) -> Any:
    return str(Spec.parse(part)) if isinstance(part, Mapping) else part


def as_list(parts: Any) -> Any:
    return [unbracket(part) for part in split(unbracket(parts), whole=parts)] if isinstance(parts, str) else parts


Part = Annotated[str, BeforeValidator(as_notation)]
Parts = Annotated[tuple[Part, ...], BeforeValidator(as_list)]


class Section(BaseModel):
    """A table of a recipe: unknown keys are errors, nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Training(Section):
    """How a model is trained: `[train]`, and overrides in `[teacher.train]`.

    `precision` and `channels_last` are chosen for the processor when `auto`. `variants` is the number of augmentations of an
    image (0: a new one each epoch; 16 by default where the teacher's answers are stored). They are drawn from `variant_seed`,
    which is not the run's seed: so all seeds of an experiment see the same pictures, and a teacher's stored answers serve them
    all. `select` says which weights are kept: the `best` epoch on validation, or the `last`. Images are `resident` in the
    device's memory where they fit, or are read by `workers` processes.
    """

    epochs: Count = 10
    batch_size: Count = 128
    optimizer: Part = "sgd:lr=0.2"
    schedule: Part = "one_cycle"
    augment: Part = "crop"
    variants: Annotated[int, Field(ge=0)] = 0
    variant_seed: Annotated[int, Field(ge=0)] = 0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip: Annotated[float, Field(gt=0)] | None = None
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    channels_last: bool | Literal["auto"] = "auto"
    compile: bool = False
    select: Literal["best", "last"] = "best"
    log_every: Count = 20
    keep_every: Annotated[int, Field(ge=0)] = 0
    workers: Annotated[int, Field(ge=0)] = 2
    resident: bool | Literal["auto"] = "auto"
    tensorboard: bool = False

    @property
    def shown(self) -> int:
        """How many variants of an image all epochs together show."""
        return min(self.variants or self.epochs, self.epochs)

    @property
    def reading(self) -> dict[str, Any]:
        """How images are read, which changes nothing of what is read: for `Batches`."""
        return {"workers": self.workers, "resident": None if self.resident == "auto" else self.resident}

    def decisive(self) -> dict[str, Any]:
        """What the weights depend on, with every option written out: nothing of the log, nor who reads the images."""
        return with_options(self.model_dump(exclude={"log_every", "keep_every", "workers", "resident", "tensorboard"}))


class TeacherPart(Section):
    """The large model. Trained unless it is loaded with the data's classes; `finetune` trains a loaded one.

    `answers` says whether it answers each step (`live`) or its answers are recorded once (`stored`).

    `others` are further teachers, with the same settings; `follow` says how all of them answer as one (`mean` by default), and
    `control` takes something from the answers.
    """

    model: Part
    others: Parts = ()
    follow: Part | None = None
    control: Part | None = None
    data: Part | None = None
    methods: Parts = ("ce",)
    finetune: Literal["none", "head", "all"] | None = None
    answers: Part = "live"
    train: dict[str, Any] = {}

    @property
    def models(self) -> dict[str, str]:
        """All teachers, by the folder of the run that they are in: `teacher`, `teacher-2`, `teacher-3`, ..."""
        return {"teacher": self.model, **{f"teacher-{number}": part for number, part in enumerate(self.others, 2)}}

    @property
    def joined(self) -> str | None:
        """How several teachers answer as one; None where there is one."""
        return self.follow or "mean" if self.others else None


class StudentPart(Section):
    """The small model and what guides it."""

    model: Part
    methods: Parts = ("ce:weight=0.1", "kd:temperature=4,weight=0.9")


class BasePart(Section):
    """The control: the same student, seed and schedule, without a teacher."""

    methods: Parts = ("ce",)


class ExplainPart(Section):
    """Which maps are made, of how many test images for the pictures and for the likeness of maps."""

    explainers: Parts = ("gradcam", "ig:steps=32")
    images: Count = 32
    measured: Count = 200


class Recipe(Section):
    """All about a run."""

    name: str = "run"
    seed: int = 0
    note: str = ""
    data: Part
    teacher: TeacherPart | None = None
    student: StudentPart
    base: BasePart = BasePart()
    train: Training = Training()
    explain: ExplainPart = ExplainPart()

    @property
    def teacher_training(self) -> Training:
        """`[train]` with the overrides of `[teacher.train]`."""
        return Training(**{**self.train.model_dump(), **(self.teacher.train if self.teacher else {})})

    @property
    def teacher_data(self) -> str:
        return (self.teacher and self.teacher.data) or self.data

    def resolved(self) -> dict[str, Any]:
        """Plain data with every option of every part written out, for the run folder."""
        content = self.model_dump(exclude_none=True)
        if self.teacher:
            content["teacher"]["train"] = self.teacher_training.model_dump(exclude_none=True)
            content["teacher"] |= {"follow": self.teacher.joined} if self.teacher.joined else {}
        return with_options(content)

    def to_toml(self) -> str:
        """The resolved recipe as TOML; reading it gives the same run."""
        return tomlkit.dumps(self.resolved())


def find_recipe(name: str | Path) -> Path:
    """A recipe file by path, or one that comes with distilens by name.

    Raises:
        UserError: neither; the nearest name is given.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = {recipe.stem: recipe for recipe in shipped()}
    if path.name.removesuffix(".toml") in known and len(path.parts) == 1:
        return known[path.name.removesuffix(".toml")]
    raise UserError(f"no recipe at {name}.{nearest(path.stem, list(known))} Shipped with distilens: {', '.join(known)}")


def shipped() -> list[Path]:
    """The recipes that come with distilens: in the wheel, or beside the source tree."""
    here = Path(__file__).parent
    places = [here / "recipes", here.parents[1] / "recipes"]
    return sorted(path for place in places if place.is_dir() for path in place.glob("*.toml"))


def read_recipe(path: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, apply `key=value` changes, and check all of it.

    Raises:
        UserError: everything that is wrong with it.
    """
    found = find_recipe(path)
    try:
        content = tomllib.loads(found.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{found} is not TOML: {error}") from None
    return make_recipe(content, changes, where=str(found))


def make_recipe(content: Mapping[str, Any], changes: Sequence[str] = (), *, where: str = "the recipe") -> Recipe:
    """A checked recipe from plain data."""
    problems: list[str] = []
    recipe = None
    changed = plain(content)
    for change in changes:
        key, equals, value = change.partition("=")
        try:
            if not equals:
                raise UserError(f"--set takes key=value; given {change!r}")
            change_key(changed, key.strip().split("."), toml_value(value), defaults())
        except UserError as error:
            problems.append(str(error))
    changed = with_variants(changed)
    problems += part_problems(changed)
    teacher = changed.get("teacher")
    overrides = teacher.get("train") if isinstance(teacher, Mapping) else None
    try:
        Training.model_validate(overrides if isinstance(overrides, Mapping) else {})
    except ValidationError as error:
        problems += explain_errors(error, Training, "teacher.train.")
    try:
        recipe = Recipe.model_validate(changed)
    except ValidationError as error:
        problems += explain_errors(error, Recipe)
    else:
        problems += method_problems(recipe)
    problems = list(dict.fromkeys(problems))
    if problems or recipe is None:
        raise UserError(f"{where}: {len(problems)} problem{'s' * (len(problems) > 1)}\n  " + "\n  ".join(problems))
    return recipe


def with_variants(content: dict[str, Any]) -> dict[str, Any]:
    """A recipe's plain data with `train.variants` said, where the teacher's answers are stored and nobody has said it.

    The teacher itself is trained as it would be without: where its answers are kept is no reason for another teacher.
    """
    teacher, train = content.get("teacher"), content.get("train", {})
    if not isinstance(teacher, Mapping) or not isinstance(train, Mapping) or "variants" in train:
        return content
    own = teacher.get("train", {})
    answers = teacher.get("answers", "live")
    if not isinstance(own, Mapping) or not isinstance(answers, str | Mapping) or Spec.parse(answers).name != "stored":
        return content
    teacher = {**teacher, "train": {"variants": 0, **own}}
    return {**content, "teacher": teacher, "train": {**train, "variants": STORED_VARIANTS}}


def registries() -> dict[str, Registry]:
    """Which kind of part stands under which key of a recipe."""
    from distilens.data import SOURCES
    from distilens.data.augment import AUGMENTS
    from distilens.explain import EXPLAINERS
    from distilens.methods import METHODS
    from distilens.models import MODELS
    from distilens.optimizers import OPTIMIZERS, SCHEDULES
    from distilens.teachers import ANSWERS, CONTROLS, FOLLOW

    return {
        "data": SOURCES,
        "model": MODELS,
        "others": MODELS,
        "follow": FOLLOW,
        "control": CONTROLS,
        "methods": METHODS,
        "optimizer": OPTIMIZERS,
        "schedule": SCHEDULES,
        "augment": AUGMENTS,
        "explainers": EXPLAINERS,
        "answers": ANSWERS,
    }


def with_options(content: Any) -> Any:
    """A recipe's plain data, or some of it, with every option of every part written out."""
    known = registries()

    def written(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: written(name, item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [written(key, item) for item in value]
        return str(known[key].resolve(value)) if key in known and isinstance(value, str) else value

    return written("", content)


def part_problems(content: Mapping[str, Any]) -> list[str]:
    """What is wrong with the parts in a recipe's plain data, whatever else is wrong with it."""
    known, problems = registries(), []

    def check_part(where: str, registry: Registry, part: Any) -> None:
        try:
            registry.resolve(part)
        except UserError as error:
            problems.extend(f"{where}: {line}" for line in str(error).split("\n"))

    def check(where: str, key: str, value: Any) -> None:
        if key in ("methods", "explainers", "others"):
            try:
                value = as_list(value)
            except UserError:
                return  # brackets that do not match: the section's own check says so
        if key in known and (isinstance(value, str) or (isinstance(value, Mapping) and "name" in value)):
            check_part(where, known[key], value)
        elif key in known and isinstance(value, list):
            for part in value:
                check_part(where, known[key], part)
        elif isinstance(value, Mapping):
            for name, item in value.items():
                check(f"{where}.{name}" if where else name, name, item)

    check("", "", content)
    return list(dict.fromkeys(problems))


def method_problems(recipe: Recipe) -> list[str]:
    """Two terms or explainers of one name, methods that need a teacher where there is none, or what no teacher gives."""
    from distilens.core import Method, needs_of
    from distilens.methods import build_methods
    from distilens.teachers.needs import Need

    problems = []
    lists = {"student": recipe.student.methods, "base": recipe.base.methods}
    if recipe.teacher:
        lists["teacher"] = recipe.teacher.methods
    for stage, parts in lists.items():
        try:
            methods = build_methods(parts)
            needs = needs_of(methods.values())
        except UserError as error:
            problems += [f"{stage}.methods: {line}" for line in str(error).split("\n")]
            continue
        second = [name for name, method in methods.items() if method.second_order]
        if second and recipe.train.compile:
            problems.append(f"compile=true cannot go with {', '.join(second)}: torch.compile has no second derivative")
        if all(type(method).loss is Method.loss or method.every > 1 for method in methods.values()):
            listed = ", ".join(methods) or "none"
            problems.append(f"{stage}.methods have no loss at some step ({listed}): add one that has, such as ce or kd")
        if recipe.teacher and recipe.teacher.others and any(Spec.parse(part).name == "kd_layer" for part in parts):
            problems.append(
                "kd_layer has the codebook of one teacher, and there are teacher.others: take one of the two away"
            )
        if needs and (stage != "student" or recipe.teacher is None):
            problems.append(f"{stage}.methods ask a teacher for {', '.join(needs)}, and there is none")
        for need in needs:
            try:
                Need.parse(need)
            except UserError as error:
                problems.append(f"{stage}.methods: {error}")
    if recipe.teacher and recipe.teacher.follow and not recipe.teacher.others:
        problems.append("teacher.follow is for several teachers, and there is one: name others in teacher.others")
    explainers = [Spec.parse(part).name for part in recipe.explain.explainers]
    twice = dict.fromkeys(name for name in explainers if explainers.count(name) > 1)
    problems += [f"explain.explainers: two are called {name!r}, and their maps would go to one file" for name in twice]
    return problems


def plain(content: Any) -> Any:
    """A deep copy as plain dicts and lists."""
    if isinstance(content, Mapping):
        return {key: plain(value) for key, value in content.items()}
    return [plain(item) for item in content] if isinstance(content, list | tuple) else content


def toml_value(text: str) -> Any:
    """A value as TOML writes it; what is not TOML is text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def defaults() -> dict[str, Any]:
    """What stands in a recipe that says nothing, so that an option of a default part can be set."""
    train = Training().model_dump()
    return {
        "train": train,
        "teacher": {"methods": ["ce"], "train": train},
        "student": {"methods": StudentPart(model="").model_dump()["methods"]},
        "base": BasePart().model_dump(),
        "explain": ExplainPart().model_dump(),
    }


def change_key(content: dict[str, Any], keys: list[str], value: Any, default: Mapping[str, Any]) -> None:
    """Set a dotted key; inside a part's notation or a list of parts, the last key is the option of a part."""
    key, rest = keys[0], keys[1:]
    if not rest:
        content[key] = value
        return
    usual = default.get(key, {})
    inside = content.setdefault(key, {} if isinstance(usual, Mapping) else plain(usual))
    if isinstance(inside, dict) and "name" not in inside:
        change_key(inside, rest, value, usual if isinstance(usual, Mapping) else {})
    elif isinstance(inside, str | dict) and len(rest) == 1:
        content[key] = str(Spec.parse(inside).replaced(**{rest[0]: value}))
    elif isinstance(inside, list) and len(rest) == 2:
        specs = [Spec.parse(part) for part in inside]
        if not any(rest[0] in (spec.name, spec.options.get("as")) for spec in specs):
            raise UserError(f"no part {rest[0]!r} in {key}: {', '.join(map(str, specs))}")
        content[key] = [
            str(spec.replaced(**{rest[1]: value}) if rest[0] in (spec.name, spec.options.get("as")) else spec)
            for spec in specs
        ]
    else:
        raise UserError(f"{'.'.join(keys)} cannot be set: {key} is {inside!r}")


def explain_errors(error: ValidationError, section: type[Section], place: str = "") -> list[str]:
    """Pydantic's findings in a section at some place, in our words, each with the nearest known key."""
    problems = []
    for found in error.errors():
        where = place + ".".join(str(step) for step in found["loc"])
        if found["type"] == "extra_forbidden":
            known = list(fields_at(section, found["loc"][:-1]))
            name = str(found["loc"][-1])
            problems.append(f"unknown key {where!r}.{nearest(name, known)} Known: {', '.join(known)}")
        elif found["type"] == "missing":
            problems.append(f"the key {where!r} is missing")
        else:
            message = found["msg"].removeprefix("Value error, ")
            problems.append(f"{where}: {message[0].lower()}{message[1:]}; given {found['input']!r}")
    return problems


def fields_at(section: type[BaseModel], steps: Sequence[str | int]) -> Mapping[str, Any]:
    """The fields of the section that an error is in, some steps below another one."""
    for step in steps:
        annotation = section.model_fields[str(step)].annotation
        candidates = [annotation, *get_args(annotation)]
        section = next(kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel))
    return section.model_fields
