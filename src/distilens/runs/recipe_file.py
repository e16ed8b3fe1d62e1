"""Recipe files: find by name, read, change with `--set`, and check every part against the registries. All errors come at once."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from distilens.foundation.errors import UserError
from distilens.foundation.notation import Spec
from distilens.foundation.settings import explain_errors, part_problems, toml_value
from distilens.measure.transfer.settings import CompareSettings
from distilens.runs.recipe import BaseSettings, ExplainSettings, Recipe, StudentSettings
from distilens.runs.recipe_names import find_recipe
from distilens.runs.recipe_problems import (
    method_problems,
    missing_places,
    model_problems,
    raise_problems,
    suggest_full_key,
)
from distilens.training.settings import Training

STORED_VARIANTS = 16
"""The default number of augmented variants per image if the teacher's answers are stored: see docs/answers.md."""


def read_recipe(path: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, apply `key=value` changes, and check all of it.

    Raises:
        UserError: the recipe has errors; the message lists all of them.
    """
    return make_recipe(read_toml(find_recipe(path)), changes, where=str(path))


def read_outline(path: str | Path, changes: Sequence[str] = (), *, look: bool = False) -> Recipe:
    """A recipe as `read_recipe` reads it, without the checks between its parts. Those checks import torch; this does not.

    Args:
        look: also check that the data exist.

    Raises:
        UserError: keys, parts or their options are wrong; the message lists all errors.
    """
    recipe, problems = make_outline(read_toml(find_recipe(path)), changes, look=look)
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
    recipe, problems = make_outline(content, changes)
    if recipe is not None:
        problems += method_problems(recipe)
    raise_problems(problems, changes, where)
    assert recipe is not None
    return recipe


def check_together(recipe: Recipe, changes: Sequence[str] = (), *, where: str = "the recipe") -> None:
    """The checks that `read_outline` leaves out.

    Raises:
        UserError: methods do not fit together or need a missing teacher, or a model is unknown to timm or torchvision.
    """
    raise_problems(method_problems(recipe) + model_problems(recipe), changes, where)


def make_outline(
    content: Mapping[str, Any], changes: Sequence[str], *, look: bool = False
) -> tuple[Recipe | None, list[str]]:
    """A recipe from plain data (None if keys or types are wrong), and all problems with its keys and parts."""
    problems: list[str] = []
    recipe = None
    changed = plain(content)
    if "study" in changed:
        problems.append("[study] makes it the recipe of a study: distilens seeds trains its rows")
        del changed["study"]
    for change in changes:
        key, equals, value = change.partition("=")
        try:
            if not equals:
                raise UserError(f"--set takes key=value; given {change!r}")
            change_key(changed, key.strip().split("."), toml_value(value), defaults())
        except UserError as error:
            problems.append(str(error))
    changed = add_default_variants(add_default_methods(changed))
    problems += part_problems(Recipe, changed) + (missing_places(changed) if look else [])
    teacher = changed.get("teacher")
    overrides = teacher.get("train") if isinstance(teacher, Mapping) else None
    try:
        Training.model_validate(overrides if isinstance(overrides, Mapping) else {})
    except ValidationError as error:
        problems += explain_errors(error, Training, "teacher.train.")
    try:
        recipe = Recipe.model_validate(changed)
    except ValidationError as error:
        problems += explain_errors(error, Recipe, elsewhere=suggest_full_key)
    return recipe, problems


def add_default_methods(content: dict[str, Any]) -> dict[str, Any]:
    """Without a teacher and without methods for the student, set its methods to labels alone."""
    student = content.get("student")
    if content.get("teacher") is not None or not isinstance(student, Mapping) or "methods" in student:
        return content
    return {**content, "student": {**student, "methods": ["ce"]}}


def add_default_variants(content: dict[str, Any]) -> dict[str, Any]:
    """If the teacher's answers are stored and `train.variants` is missing, set it to the default.

    The teacher's own training does not change: where its answers are stored must not change the teacher.
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


def defaults() -> dict[str, Any]:
    """The default content of a recipe, so that options of default parts can be set."""
    train = Training().model_dump()
    return {
        "train": train,
        "teacher": {"methods": ["ce"], "train": train},
        "student": {"methods": StudentSettings(model="").model_dump()["methods"]},
        "base": BaseSettings().model_dump(),
        "explain": ExplainSettings().model_dump(),
        "compare": CompareSettings().model_dump(),
    }


def change_key(content: dict[str, Any], keys: list[str], value: Any, default: Mapping[str, Any]) -> None:
    """Set a dotted key. Inside a part's notation or a list of parts, the last key is an option of the part."""
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
