"""The rows of a compression curve: students of several sizes, each with the methods and with labels only."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from distilens.core import Model
from distilens.data.splits import Data
from distilens.foundation.errors import UserError
from distilens.foundation.notation import Spec
from distilens.measure import macs, parameters
from distilens.models import MODELS, build_model
from distilens.runs.recipe_file import make_recipe
from distilens.studies.study import Question, Row, without_teacher

FAR = 1.6
"""A student is taken for a factor if its size is at most this many times larger or smaller than the factor asks for."""
WIDTHS = (1.0, 0.75, 0.6, 0.5, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05)


def plan_compression(
    content: Mapping[str, Any], factors: Sequence[float], data: Data, family: str | None = None
) -> tuple[tuple[Row, ...], tuple[Question, ...]]:
    """Two rows for each factor: the student under the teacher, and the same student with labels only.

    Args:
        content: the recipe, as plain data. Its student's methods train every student.
        factors: how many times fewer parameters than the teacher.
        data: for the number of classes and the size.
        family: networks to choose from, in notation, such as `shrink` or `mobilenetv2`; by default the teacher is shrunk.

    Raises:
        UserError: there is no teacher, or no network of the family is near a factor.
    """
    recipe = make_recipe(content)
    if recipe.teacher is None:
        raise UserError("compression is relative to a teacher, but this recipe has no [teacher]")
    if not factors or min(factors) <= 1:
        raise UserError(
            f"factors are numbers above 1; given {', '.join(f'{factor:g}' for factor in factors) or 'none'}"
        )
    teacher = build_model(recipe.teacher.model, data.task, data.size)
    students = sizes(family or str(Spec("shrink", None, {"model": plain_name(recipe.teacher.model)})), data)
    rows: list[Row] = []
    questions: list[Question] = []
    for factor in sorted(set(factors)):
        notation, model = nearest(students, parameters(teacher) / factor, factor)
        ratio = parameters(teacher) / parameters(model)
        facts = {"factor": factor, "model": notation, "ratio": ratio, "macs ratio": macs(teacher) / macs(model)}
        taught = {**content, "student": {**content["student"], "model": notation}}
        name, alone = f"{factor:g} ×", f"{factor:g} ×, labels only"
        if any(row.facts["model"] == notation for row in rows):
            raise UserError(f"two factors have the same nearest network, {notation}: name factors that differ more")
        rows.append(Row(name, taught, f"{notation}, {ratio:.2f} × fewer parameters", {**facts, "taught": True}))
        rows.append(
            Row(
                alone,
                without_teacher(taught, recipe.base.methods),
                f"{notation} without the teacher",
                {**facts, "taught": False},
            )
        )
        questions.append(Question(name, alone, f"what the teacher adds at {ratio:.2f} × fewer parameters"))
    return tuple(rows), tuple(questions)


def plain_name(model: str) -> str:
    """The notation of an architecture, from the teacher's: without weights.

    Raises:
        UserError: the teacher is a saved model, whose architecture `--family` must name.
    """
    spec = Spec.parse(model)
    if spec.name in ("run", "file", "python"):
        raise UserError(
            f"the teacher is {model}: name the networks to choose students from (--family mobilenetv2, for example)"
        )
    kept = {key: value for key, value in spec.options.items() if key not in ("pretrained", "weights")}
    return str(Spec(spec.name, spec.argument, kept))


def sizes(family: str, data: Data) -> list[tuple[str, Model]]:
    """The networks of a family, of all sizes.

    Raises:
        UserError: the family has only one size.
    """
    found = []
    for notation in notations(family):
        try:
            found.append((notation, build_model(notation, data.task, data.size)))
        except UserError:
            if not found:
                raise
            break
    return found


def notations(family: str) -> Iterator[str]:
    """The notations of a family, one size after the other: blocks removed, or widths."""
    spec = Spec.parse(family)
    known = MODELS.options(spec.name)
    if spec.name == "shrink":
        yield from (str(spec.replaced(blocks=blocks)) for blocks in itertools.count(1))
    if "width" not in known:
        raise UserError(f"{family} has only one size: name shrink, or a network with the option width")
    widths = range(8, 0, -1) if isinstance(known["width"].default, int) else WIDTHS
    yield from (str(spec.replaced(width=width)) for width in widths)


def nearest(students: Sequence[tuple[str, Model]], wanted: float, factor: float) -> tuple[str, Model]:
    """The network whose number of parameters is nearest to a number, by ratio.

    Raises:
        UserError: the nearest one is far from it.
    """
    apart = {notation: abs(math.log(parameters(model) / wanted)) for notation, model in students}
    notation, model = min(students, key=lambda each: apart[each[0]])
    if apart[notation] > math.log(FAR):
        counts = [parameters(each) for _, each in students]
        raise UserError(
            f"no network of this family is near {factor:g} × ({wanted:,.0f} parameters): they have {min(counts):,} to "
            f"{max(counts):,} parameters"
        )
    return notation, model
