"""Problems of a recipe as messages: wrong parts and keys, with the nearest name, and parts that do not fit together."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distilens.foundation.catalogue import catalogue
from distilens.foundation.errors import UserError, suggest_path
from distilens.foundation.notation import Spec
from distilens.foundation.settings import keys_of, registry_to_read
from distilens.runs.recipe import Recipe


def raise_problems(problems: Sequence[str], changes: Sequence[str], where: str) -> None:
    """Raise all problems at once, if any. A problem of a changed key names the change; any other names the recipe.

    Raises:
        UserError: there are problems.
    """
    keys = [change.partition("=")[0].strip() for change in changes if "=" in change]
    listed = list(dict.fromkeys(problems))
    changed = [is_of_change(text, keys) for text in listed]
    messages = [describe_change(text) if own else text for text, own in zip(listed, changed, strict=True)]
    own = all(changed)
    if len(messages) == 1 and own:
        raise UserError(messages[0])
    if messages:
        count = f"{len(messages)} problem{'s' * (len(messages) > 1)}"
        raise UserError("\n  ".join([count if own else f"{where}: {count}", *messages]))


def describe_change(problem: str) -> str:
    """The problem with `--set` in front, except for an unknown key, which may have been typed without `--set`."""
    return problem if problem.startswith("unknown key") else f"--set {problem.removeprefix('--set ')}"


def is_of_change(problem: str, keys: Sequence[str]) -> bool:
    """Whether a problem belongs to a changed key. A changed option also counts as a change of its part."""
    if problem.startswith("--set"):
        return True
    place = re.match(r"(?:unknown key |the key )?'?([\w.-]+)", problem)
    problem_key = place[1].split(".") if place else []
    changed = [key.split(".") for key in keys]
    return bool(problem_key) and any(
        key[: len(problem_key)] == problem_key or problem_key[: len(key)] == key for key in changed
    )


def method_problems(recipe: Recipe) -> list[str]:
    """Problems between parts: two terms or explainers with the same name, a missing teacher, needs that no teacher can answer."""
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
            problems.append(
                f"compile=true cannot be used with {', '.join(second)}: torch.compile has no second derivatives"
            )
        if all(
            type(method).loss is Method.loss or method.every > 1 or not method.weight for method in methods.values()
        ):
            listed = ", ".join(methods) or "none"
            problems.append(
                f"{stage}.methods have no loss at some step ({listed}): add one with a loss and a weight, such as ce or kd"
            )
        single = [name for name, method in methods.items() if method.one_teacher]
        if recipe.teacher and recipe.teacher.others and single:
            problems.append(
                f"{', '.join(single)} needs the codebook of one teacher, but there are teacher.others: remove one of the two"
            )
        if needs and (stage != "student" or recipe.teacher is None):
            problems.append(f"{stage}.methods need {', '.join(needs)} from a teacher, but have no teacher")
        for need in needs:
            try:
                Need.parse(need)
            except UserError as error:
                problems.append(f"{stage}.methods: {error}")
    if recipe.teacher and recipe.teacher.follow and not recipe.teacher.others:
        problems.append("teacher.follow is for several teachers, but there is only one: name others in teacher.others")
    if recipe.teacher and len(recipe.teacher.data_of_others) not in (0, len(recipe.teacher.others)):
        problems.append(
            f"teacher.data_of_others names {len(recipe.teacher.data_of_others)} data sets for {len(recipe.teacher.others)} "
            "further teachers: give one for each, in the order of teacher.others"
        )
    explainers = [Spec.parse(part).name for part in recipe.explain.explainers]
    twice = dict.fromkeys(name for name in explainers if explainers.count(name) > 1)
    problems += [
        f"explain.explainers: two are called {name!r}, so their maps would go to the same file" for name in twice
    ]
    return problems


def missing_places(content: Mapping[str, Any]) -> list[str]:
    """Files and folders that a recipe's data name but that do not exist. This check does not import torch."""
    teacher = content.get("teacher")
    named = {"data": content.get("data")}
    if isinstance(teacher, Mapping):
        others = teacher.get("data_of_others")
        parts = others if isinstance(others, list | tuple) else []
        named |= {
            "teacher.data": teacher.get("data"),
            **{f"teacher.data_of_others[{at}]": part for at, part in enumerate(parts)},
        }
    problems = []
    for key, part in named.items():
        try:
            options = catalogue("data").resolve(part).options if isinstance(part, str) else {}
        except UserError:
            continue  # `part_problems` reports it
        for option in ("path", "pictures"):
            place = options.get(option)
            if isinstance(place, str | Path) and not Path(place).expanduser().exists():
                beside = suggest_path(Path(place).expanduser())
                problems.append(f"{key}: {option}={place} does not exist (looked from {Path.cwd()}){beside}")
    return problems


def model_problems(recipe: Recipe) -> list[str]:
    """Names of models that timm and torchvision do not have."""
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


def suggest_full_key(name: str, here: Sequence[str]) -> str:
    """A hint at the full key, for a key in the wrong place: `epochs` is `train.epochs`.

    Args:
        here: the keys that are valid in this place. If one of them has a similar name, that one was probably meant.
    """
    keys = {key: key.rpartition(".")[2] for key in keys_of(Recipe)}
    candidates = [key for key, leaf in keys.items() if leaf == name]
    for place, kind in (("train.optimizer", "optimizers"), ("data", "data")):
        known = registry_to_read(kind)
        if not candidates and any(name in known.options(part) for part in known):
            candidates = [f"{place}.{name}"]
    if not candidates:
        close = difflib.get_close_matches(name, {*here, *keys.values()}, n=1, cutoff=0.8)
        candidates = [key for key, leaf in keys.items() if leaf in close and leaf not in here]
    return f" Did you mean {' or '.join(map(repr, candidates))}?" if candidates else ""
