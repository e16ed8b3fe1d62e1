"""The space of a search, in one notation: `kd.temperature=1..8`, `kd.weight=0.1..10:log`, `ig_overlay.p=0.05|0.1|0.2`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distilens.foundation.errors import UserError, nearest
from distilens.foundation.notation import Spec
from distilens.foundation.settings import as_list, toml_value
from distilens.runs.recipe import Recipe
from distilens.runs.recipe_file import make_outline, make_recipe
from distilens.runs.recipe_problems import suggest_full_key

METHODS = "student.methods"
FORMS = "NAME=LOW..HIGH, NAME=LOW..HIGH:log, NAME=LOW..HIGH:int, or NAME=ONE|ANOTHER"


@dataclass(frozen=True)
class Dimension:
    """A setting that is searched.

    Attributes:
        key: the key in the recipe: `student.methods.kd.temperature`, `train.epochs`.
        low, high: the ends of a range; None for choices.
        log: whether the range is searched by ratio.
        whole: whether only whole numbers are tried.
        choices: the values to choose from, as a recipe writes them.
    """

    key: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    whole: bool = False
    choices: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The short name: `kd.temperature`."""
        return self.key.removeprefix("student.methods.").removeprefix("student.")

    @property
    def method(self) -> str:
        """The name of the method whose option this is; empty for other settings."""
        return self.key.removeprefix(f"{METHODS}.").split(".")[0] if self.key.startswith(f"{METHODS}.") else ""

    @property
    def examples(self) -> list[Any]:
        """All choices; or the ends of a range, and a number between them that is not whole."""
        if self.choices:
            return [self.read(choice) for choice in self.choices]
        assert self.low is not None and self.high is not None
        if self.whole:
            return [int(self.low), int(self.high)]
        return [self.low, self.low + 0.382 * (self.high - self.low), self.high]

    def read(self, choice: str) -> Any:
        """The value of a choice: a TOML value, or a list of methods in the notation."""
        value = toml_value(choice)
        return as_list(choice) if self.key == METHODS and not isinstance(value, list) else value

    def suggest(self, trial: Any) -> Any:
        """The value that an Optuna trial tries."""
        if self.choices:
            return self.read(trial.suggest_categorical(self.name, list(self.choices)))
        assert self.low is not None and self.high is not None
        if self.whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)


def read_space(texts: Sequence[str], content: Mapping[str, Any]) -> tuple[Dimension, ...]:
    """The dimensions of a space, checked against a recipe.

    Args:
        texts: one per setting. A method's option is `METHOD.OPTION`; the list of methods is `methods`.
        content: the recipe, as plain data.

    Raises:
        UserError: nothing is searched, a range is the wrong way round, a setting is unknown or named twice, or it takes no such
            value; the message names the nearest setting.
    """
    if not texts:
        raise UserError(f"name what is searched: --space {FORMS}")
    space = tuple(read_dimension(text) for text in texts)
    keys = [dimension.key for dimension in space]
    if twice := {key for key in keys if keys.count(key) > 1}:
        raise UserError(f"--space names {min(twice)} twice")
    for dimension in space:
        if dimension.key.split(".")[0] not in ("student", "train"):
            raise UserError(
                f"a search changes the student and its training; {dimension.key} is the same for all trials"
            )
        first = list_with(dimension, space, content)
        for value in dimension.examples:
            check_setting(content, dimension, value, first)
    return space


def list_with(dimension: Dimension, space: Sequence[Dimension], content: Mapping[str, Any]) -> list[str]:
    """The change that gives the recipe a searched list of methods with the dimension's method; nothing if it has the method."""
    for other in space:
        if dimension.method and other.key == METHODS and not has_method(content, dimension):
            changes = [change_of(other, value) for value in other.examples]
            return next(([change] for change in changes if has_method(content, dimension, change)), [])
    return []


def has_method(content: Mapping[str, Any], dimension: Dimension, *changes: str) -> bool:
    """Whether the list of methods of a changed recipe has a dimension's method."""
    recipe, _ = make_outline(content, changes)
    specs = [Spec.parse(part) for part in recipe.student.methods] if recipe else []
    return any(dimension.method in (spec.name, spec.options.get("as")) for spec in specs)


def changes_of(space: Sequence[Dimension], values: Sequence[Any], content: Mapping[str, Any]) -> list[str]:
    """The values of all dimensions as changes of the recipe.

    The list of methods is first. Settings of methods that this list lacks are left out.
    """
    pairs = list(zip(space, values, strict=True))
    lists = [change_of(dimension, value) for dimension, value in pairs if dimension.key == METHODS]
    others = [
        change_of(dimension, value)
        for dimension, value in pairs
        if dimension.key != METHODS and (not (lists and dimension.method) or has_method(content, dimension, *lists))
    ]
    return [*lists, *others]


def read_dimension(text: str) -> Dimension:
    """One setting of a space.

    Raises:
        UserError: it is not in one of the forms.
    """
    name, equals, values = (part.strip() for part in text.partition("="))
    if not (name and equals and values):
        raise UserError(f"--space takes {FORMS}; given {text!r}")
    key = full_key(name)
    if ".." not in values:
        choices = tuple(part.strip() for part in values.split("|"))
        if len(choices) < 2 or len(set(choices)) < len(choices):
            raise UserError(f"--space {name} needs two different choices or a range: {FORMS}; given {values!r}")
        return Dimension(key, choices=choices)
    ends, _, kind = values.partition(":")
    first, _, last = ends.partition("..")
    try:
        low, high = float(first), float(last)
    except ValueError:
        raise UserError(f"--space {name}: the ends of a range are numbers; given {ends!r}") from None
    if kind not in ("", "log", "int") or not (math.isfinite(low) and math.isfinite(high)):
        raise UserError(f"--space takes {FORMS}; given {text!r}")
    if low >= high:
        raise UserError(f"--space {name}: the range goes from the smaller to the larger number; given {ends}")
    if kind == "log" and low <= 0:
        raise UserError(f"--space {name}: a range by ratio (:log) begins above 0; given {ends}")
    if kind == "int" and (low % 1 or high % 1):
        raise UserError(f"--space {name}: the ends of a range of whole numbers are whole; given {ends}")
    return Dimension(key, low, high, kind == "log", kind == "int")


def full_key(name: str) -> str:
    """The key in the recipe: a name that is not a section of a recipe is a method.

    Raises:
        UserError: it is not METHOD.OPTION, `methods` or a key of the recipe.
    """
    if name == "methods":
        return METHODS
    if "." not in name and name not in Recipe.model_fields:
        meant = suggest_full_key(name, list(Recipe.model_fields))
        raise UserError(f"--space {name}: a setting is METHOD.OPTION, methods, or a key such as train.epochs.{meant}")
    return name if name.split(".")[0] in Recipe.model_fields else f"{METHODS}.{name}"


def check_setting(content: Mapping[str, Any], dimension: Dimension, value: Any, first: Sequence[str] = ()) -> None:
    """Check that a recipe takes a value of a dimension.

    Args:
        first: changes before it, such as a list with the method.

    Raises:
        UserError: it does not.
    """
    try:
        make_recipe(content, [*first, change_of(dimension, value)])
    except UserError as error:
        names = [str(part).partition(":")[0] for part in content["student"].get("methods", ())]
        method = dimension.name.split(".")[0]
        meant = nearest(method, names) if f"no part {method!r}" in str(error) else ""
        raise UserError(f"--space {dimension.name}: {error}{meant}") from None


def change_of(dimension: Dimension, value: Any) -> str:
    """A value as a change of the recipe: `student.methods.kd.temperature=4.0`."""
    return f"{dimension.key}={written(value)}"


def written(value: Any) -> str:
    """A value as TOML, or as a notation."""
    if isinstance(value, list):
        return "[" + ", ".join(f"'{item}'" if isinstance(item, str) else written(item) for item in value) + "]"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).lower() if isinstance(value, bool) else str(value)
