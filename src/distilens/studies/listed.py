"""Studies whose rows a recipe lists: `[study]` gives each row a name and its changes of the recipe.

[study]
seeds = 5
against = "kd"
[study.rows]
kd = []
"kd + maps" = ['student.methods=["ce:weight=0.1", "kd:weight=3", "map_match"]']
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, ValidationError

from distilens.foundation.errors import UserError, nearest
from distilens.foundation.settings import Section, explain_errors
from distilens.runs.recipe_file import make_recipe
from distilens.studies.study import Question, Row

TABLE = "study"


class StudySettings(Section):
    """The table `[study]` of a recipe.

    `rows` are changes of the recipe, as on the command line, by the row's name. `against` is the row that all others are compared
    with, by default the first; `pairs` are further comparisons.
    """

    rows: Annotated[dict[str, tuple[str, ...]], Field(min_length=1)]
    against: str | None = None
    pairs: tuple[tuple[str, str], ...] = ()
    seeds: Annotated[int, Field(ge=1)] = 5


def plan_listed(
    content: Mapping[str, Any], changes: Sequence[str] = (), *, where: str = "the recipe"
) -> tuple[tuple[Row, ...], tuple[Question, ...], int]:
    """The rows, the questions and the number of seeds of a recipe with a table `[study]`.

    Raises:
        UserError: the table is wrong, or a row is no recipe; the message names the row.
    """
    settings = read_settings(content[TABLE], where)
    recipe = {key: value for key, value in content.items() if key != TABLE}
    against = settings.against or next(iter(settings.rows))
    pairs = [*((name, against) for name in settings.rows if name != against), *settings.pairs]
    for name in {name for pair in pairs for name in pair}:
        if name not in settings.rows:
            raise UserError(
                f"{where}: [study] compares with {name!r}, but has no such row.{nearest(name, list(settings.rows))}"
            )
    rows = tuple(
        Row(name, recipe_of_row(recipe, [*changes, *own], f"{where}, row {name!r}"), "; ".join(own))
        for name, own in settings.rows.items()
    )
    questions = tuple(Question(row, other, f"what {row} gains over {other}") for row, other in dict.fromkeys(pairs))
    return rows, questions, settings.seeds


def recipe_of_row(content: Mapping[str, Any], changes: Sequence[str], where: str) -> dict[str, Any]:
    """The content of a row's recipe. The teacher's answers are stored unless the recipe says otherwise.

    Raises:
        UserError: it is no recipe.
    """
    teacher = content.get("teacher")
    if isinstance(teacher, Mapping):
        content = {**content, "teacher": {"answers": "stored", **teacher}}
    return make_recipe(content, changes, where=where).model_dump(mode="json", exclude_none=True)


def read_settings(content: Any, where: str) -> StudySettings:
    """The table as settings.

    Raises:
        UserError: keys or types are wrong; the message lists all errors.
    """
    try:
        return StudySettings.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{where}: " + "; ".join(explain_errors(error, StudySettings, "study."))) from None
