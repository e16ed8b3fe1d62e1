"""Recipes as files: found by name, read, changed by `--set`, every part checked against the registries; all that is wrong is said
at once.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from distilens.errors import UserError
from distilens.recipe import BasePart, ComparePart, ExplainPart, Recipe, StudentPart, Training
from distilens.recipe_names import find_recipe
from distilens.recipe_problems import (
    explain_errors,
    method_problems,
    missing_places,
    model_problems,
    part_problems,
    raise_problems,
)
from distilens.specs import Spec

STORED_VARIANTS = 16
"""Augmentations of an image where a teacher's answers are stored and the recipe says nothing else: see docs/answers.md."""


def read_recipe(path: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, apply `key=value` changes, and check all of it.

    Raises:
        UserError: everything that is wrong with it.
    """
    return make_recipe(read_toml(find_recipe(path)), changes, where=str(path))


def read_outline(path: str | Path, changes: Sequence[str] = (), *, look: bool = False) -> Recipe:
    """A recipe as `read_recipe` reads it, but for what its parts say of each other: that imports torch, and this does not.

    Args:
        look: also look whether the data are there.

    Raises:
        UserError: everything that is wrong with its keys, its parts and their options.
    """
    recipe, problems = outlined(read_toml(find_recipe(path)), changes, look=look)
    raise_problems(problems, changes, str(path))
    assert recipe is not None
    return recipe


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a recipe file.

    Raises:
        UserError: it is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Notepad puts a byte order mark in front
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from None


def make_recipe(content: Mapping[str, Any], changes: Sequence[str] = (), *, where: str = "the recipe") -> Recipe:
    """A checked recipe from plain data."""
    recipe, problems = outlined(content, changes)
    if recipe is not None:
        problems += method_problems(recipe)
    raise_problems(problems, changes, where)
    assert recipe is not None
    return recipe


def check_together(recipe: Recipe, changes: Sequence[str] = (), *, where: str = "the recipe") -> None:
    """Check of a recipe what `read_outline` leaves out.

    Raises:
        UserError: methods that do not go together, or need a teacher where there is none; models that timm does not have.
    """
    raise_problems(method_problems(recipe) + model_problems(recipe), changes, where)


def outlined(
    content: Mapping[str, Any], changes: Sequence[str], *, look: bool = False
) -> tuple[Recipe | None, list[str]]:
    """A recipe from plain data, None where it has other keys or types, and what is wrong with each of its keys and parts."""
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
    problems += part_problems(changed) + (missing_places(changed) if look else [])
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
    return recipe, problems


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
