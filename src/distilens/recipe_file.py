"""Recipes as files: found by name, read, changed by `--set`, every part checked against the registries; all that is wrong is said
at once.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from distilens.errors import UserError, nearest
from distilens.recipe import (
    BasePart,
    ComparePart,
    ExplainPart,
    Recipe,
    Section,
    StudentPart,
    Training,
    as_list,
    registries,
)
from distilens.specs import Registry, Spec

STORED_VARIANTS = 16
"""Augmentations of an image where a teacher's answers are stored and the recipe says nothing else: see docs/answers.md."""


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
        content = tomllib.loads(found.read_text(encoding="utf-8-sig"))  # Notepad puts a byte order mark in front
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
    changed = with_variants(with_methods(changed))
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


def with_methods(content: dict[str, Any]) -> dict[str, Any]:
    """A recipe's plain data with the labels alone as the student's methods, where there is no teacher and nobody says them."""
    student = content.get("student")
    if content.get("teacher") is not None or not isinstance(student, Mapping) or "methods" in student:
        return content
    return {**content, "student": {**student, "methods": ["ce"]}}


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
        if all(type(each).loss is Method.loss or each.every > 1 or not each.weight for each in methods.values()):
            listed = ", ".join(methods) or "none"
            problems.append(
                f"{stage}.methods have no loss at some step ({listed}): add one that has, with a weight, as ce or kd"
            )
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
        "compare": ComparePart().model_dump(),
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
