"""The rows of an ablation: the whole list of methods, shorter ones, and the controls. One study says what each method adds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from distilens.core import Method
from distilens.foundation.errors import UserError
from distilens.foundation.notation import Spec
from distilens.methods import build_methods
from distilens.runs.recipe_file import make_recipe
from distilens.studies.study import Question, Row, without_teacher
from distilens.teachers.needs import Need

ALL, BASE, KD = "all", "base", "kd"
MOST_SUBSETS = 64
CONTROLS = {"maps permuted": "permuted:only=maps", "random maps": "random_maps:kind=blobs"}
"""Maps that say nothing about their image: what is left of a gain with them is not due to the explanation."""


def plan_ablation(
    content: Mapping[str, Any], *, subsets: bool = False, controls: bool = False
) -> tuple[tuple[Row, ...], tuple[Question, ...]]:
    """The rows and questions of an ablation.

    Args:
        content: the recipe, as plain data.
        subsets: every subset of the methods, not only the lists with one method left out.
        controls: also train the whole list with maps that say nothing.

    Raises:
        UserError: the recipe has no teacher, too many methods for all subsets, or nothing that the controls could replace.
    """
    recipe = make_recipe(content)
    if recipe.teacher is None:
        raise UserError("an ablation is about what a teacher adds, but this recipe has no [teacher]")
    methods = build_methods(recipe.student.methods)
    names, specs = list(methods), list(recipe.student.methods)
    if subsets and 2 ** len(names) > MOST_SUBSETS:
        raise UserError(
            f"{len(names)} methods have {2 ** len(names) - 1:,} subsets; at most {MOST_SUBSETS} are trained"
        )
    rows = [Row(BASE, without_teacher(content, recipe.base.methods), "labels only, without the teacher")]
    asked = {BASE: "what the whole list adds to labels only"}
    known = {tuple(recipe.base.methods): BASE, tuple(specs): ALL}
    if not is_plain_kd(names):
        known[tuple(plain_kd(specs))] = KD
        rows.append(Row(KD, with_methods(content, plain_kd(specs)), "plain knowledge distillation"))
        asked[KD] = "what the whole list adds to plain kd"
    rows.append(Row(ALL, with_methods(content, specs), "the whole list of methods"))
    for left_out, shorter in shorter_lists(names, subsets=subsets):
        kept = tuple(spec for name, spec in zip(names, specs, strict=True) if name in shorter)
        name = known.get(kept, f"without {', '.join(left_out)}")
        if kept not in known:
            try:
                rows.append(Row(name, checked(with_methods(content, kept)), f"the list without {', '.join(left_out)}"))
            except UserError:  # such as a method that reads what another one inserts
                continue
        if len(left_out) == 1:
            asked[name] = f"what {left_out[0]} adds"
    if controls:
        guided = [name for name, method in methods.items() if needs_maps(method)]
        if not guided:
            raise UserError("--controls replace the teacher's maps, but no method of this recipe reads any")
        if recipe.teacher.control:
            raise UserError("--controls need a recipe without a control, but this one has teacher.control")
        for name, control in CONTROLS.items():
            rows.append(Row(name, with_control(content, control), f"the whole list, but {name}"))
            asked[name] = f"what the maps say ({', '.join(guided)}), against {name}"
    return tuple(rows), tuple(Question(ALL, against, about) for against, about in asked.items())


def shorter_lists(names: Sequence[str], *, subsets: bool) -> Iterator[tuple[list[str], list[str]]]:
    """What is left out, and what is kept: one method at a time, or every subset that keeps one."""
    for count in range(1, len(names) if subsets else 2):
        for left_out in combinations(names, count):
            kept = [name for name in names if name not in left_out]
            if kept:
                yield list(left_out), kept


def is_plain_kd(names: Sequence[str]) -> bool:
    """Whether a list is plain distillation: `kd`, with or without labels."""
    return set(names) in ({"kd"}, {"ce", "kd"})


def plain_kd(specs: Sequence[str]) -> list[str]:
    """Plain distillation with the options of the list, where it has them."""
    kept = [spec for spec in specs if Spec.parse(spec).name in ("ce", "kd")]
    return kept if any(Spec.parse(spec).name == "kd" for spec in kept) else [*kept, "kd"]


def needs_maps(method: Method) -> bool:
    """Whether a method reads the teacher's maps."""
    return any(Need.parse(need).kind == "maps" for need in method.needs)


def with_methods(content: Mapping[str, Any], methods: Sequence[str]) -> dict[str, Any]:
    """The content of a recipe with another list of methods."""
    return {**content, "student": {**content["student"], "methods": list(methods)}}


def with_control(content: Mapping[str, Any], control: str) -> dict[str, Any]:
    """The content of a recipe whose teacher is under a control."""
    return {**content, "teacher": {**content["teacher"], "control": control}}


def checked(content: dict[str, Any]) -> dict[str, Any]:
    """The content, if it is a recipe.

    Raises:
        UserError: it is not.
    """
    make_recipe(content)
    return content
