"""What is wrong with a recipe, in words: its parts, its keys, what goes together, each with the nearest name that there is."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from distilens.catalogue import catalogue
from distilens.errors import UserError, nearest
from distilens.recipe import KINDS, Recipe, Section, as_list, registries
from distilens.specs import Registry, Spec


def raise_problems(problems: Sequence[str], changes: Sequence[str], where: str) -> None:
    """Say all that is wrong at once, if anything is. What a change did is said of the change, all else of the recipe.

    Raises:
        UserError: it names the key that was changed, or the recipe.
    """
    keys = [change.partition("=")[0].strip() for change in changes if "=" in change]
    listed = list(dict.fromkeys(problems))
    changed = [is_of_change(text, keys) for text in listed]
    said = [said_of_change(text) if own else text for text, own in zip(listed, changed, strict=True)]
    own = all(changed)
    if len(said) == 1 and own:
        raise UserError(said[0])
    if said:
        count = f"{len(said)} problem{'s' * (len(said) > 1)}"
        raise UserError("\n  ".join([count if own else f"{where}: {count}", *said]))


def said_of_change(problem: str) -> str:
    """An unknown key speaks for itself: it may have been typed without `--set`."""
    return problem if problem.startswith("unknown key") else f"--set {problem.removeprefix('--set ')}"


def is_of_change(problem: str, keys: Sequence[str]) -> bool:
    """Whether a problem is where one of the changed keys is; a change of an option is one of its part."""
    if problem.startswith("--set"):
        return True
    place = re.match(r"(?:unknown key |the key )?'?([\w.-]+)", problem)
    found = place[1].split(".") if place else []
    steps = [key.split(".") for key in keys]
    return bool(found) and any(key[: len(found)] == found or found[: len(key)] == key for key in steps)


def registries_to_read() -> Mapping[str, Registry]:
    """By key of a recipe, the registries; before torch is imported, what their sources say: that takes no time."""
    return registries() if "torch" in sys.modules else Catalogues()


class Catalogues(Mapping[str, Registry]):
    """The catalogues by key of a recipe, each read when it is asked for."""

    def __getitem__(self, key: str) -> Registry:
        return catalogue(KINDS[key])

    def __contains__(self, key: object) -> bool:
        return key in KINDS

    def __iter__(self) -> Iterator[str]:
        return iter(KINDS)

    def __len__(self) -> int:
        return len(KINDS)


def part_problems(content: Mapping[str, Any]) -> list[str]:
    """What is wrong with the parts in a recipe's plain data, whatever else is wrong with it."""
    known, problems = registries_to_read(), []

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


def missing_places(content: Mapping[str, Any]) -> list[str]:
    """The files and folders that a recipe's data name and that are not there: found before torch is imported."""
    teacher = content.get("teacher")
    named = {"data": content.get("data"), "teacher.data": teacher.get("data") if isinstance(teacher, Mapping) else None}
    problems = []
    for key, part in named.items():
        try:
            options = catalogue("data").resolve(part).options if isinstance(part, str) else {}
        except UserError:
            continue  # it is told with the other parts
        for option in ("path", "pictures"):
            place = options.get(option)
            if isinstance(place, str | Path) and not Path(place).expanduser().exists():
                problems.append(f"{key}: {option}={place} does not exist (looked from {Path.cwd()}).{sibling(place)}")
    return problems


def sibling(place: str | Path) -> str:
    """`" Did you mean 'photos'?"` for what lies beside a path that is not there."""
    path = Path(place).expanduser()
    beside = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, beside, n=1)
    return f" Did you mean {str(Path(place).with_name(close[0]))!r}?" if close else ""


def model_problems(recipe: Recipe) -> list[str]:
    """The names of models that timm and torchvision do not have."""
    from distilens.models.adapters import check_name

    models = {"student.model": recipe.student.model}
    models |= {f"{role}.model": part for role, part in (recipe.teacher.models if recipe.teacher else {}).items()}
    problems = []
    for key, part in models.items():
        try:
            check_name(part)
        except UserError as error:
            problems.append(f"{key}: {error}")
    return problems


def explain_errors(error: ValidationError, section: type[Section], place: str = "") -> list[str]:
    """Pydantic's findings in a section at some place, in our words, each with the nearest known key."""
    problems = []
    for found in error.errors():
        where = place + ".".join(str(step) for step in found["loc"])
        if found["type"] == "extra_forbidden":
            known = list(fields_at(section, found["loc"][:-1]))
            name = str(found["loc"][-1])
            meant = elsewhere(name, known) if section is Recipe else ""
            problems.append(f"unknown key {where!r}.{meant or nearest(name, known)} Known: {', '.join(known)}")
        elif found["type"] == "missing":
            problems.append(f"the key {where!r} is missing")
        else:
            message = found["msg"].removeprefix("Value error, ")
            problems.append(f"{where}: {message[0].lower()}{message[1:]}; given {found['input']!r}")
    return problems


def fields_at(section: type[BaseModel], steps: Sequence[str | int]) -> Mapping[str, Any]:
    """The fields of the section that an error is in, some steps below another one."""
    for step in steps:
        section = section_in(section.model_fields[str(step)].annotation) or section
    return section.model_fields


def section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, if it holds one."""
    candidates = [annotation, *get_args(annotation)]
    return next((kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def keys_of(section: type[BaseModel], place: str = "") -> Iterator[str]:
    """All keys of a section and of those in it, with dots."""
    for name, field in section.model_fields.items():
        inner = section_in(field.annotation)
        if inner is None:
            yield place + name
        else:
            yield from keys_of(inner, f"{place}{name}.")


def elsewhere(name: str, here: Sequence[str]) -> str:
    """Where a key stands that was looked for in the wrong place, by its last part: `epochs` is `train.epochs`.

    Args:
        here: the keys where it was looked for: one of them that is called alike was meant before all others.
    """
    keys = {key: key.rpartition(".")[2] for key in keys_of(Recipe)}
    found = [key for key, leaf in keys.items() if leaf == name]
    known = registries_to_read()
    for place, kind in (("train.optimizer", "optimizer"), ("data", "data")):
        if not found and any(name in known[kind].options(part) for part in known[kind]):
            found = [f"{place}.{name}"]
    if not found:
        close = difflib.get_close_matches(name, {*here, *keys.values()}, n=1, cutoff=0.8)
        found = [key for key, leaf in keys.items() if leaf in close and leaf not in here]
    return f" Did you mean {' or '.join(map(repr, found))}?" if found else ""
