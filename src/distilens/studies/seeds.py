"""The rows of a study over seeds: several recipes, each compared with the first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distilens.foundation.errors import UserError
from distilens.studies.study import Question, Row


def plan_seeds(recipes: Mapping[str, Mapping[str, Any]]) -> tuple[tuple[Row, ...], tuple[Question, ...]]:
    """A row for each recipe, and the question what each gains over the first.

    Args:
        recipes: the contents of the recipes, by name.

    Raises:
        UserError: their data differ, so that their scores cannot be compared.
    """
    first, *others = recipes
    for name in others:
        if recipes[name]["data"] != recipes[first]["data"]:
            raise UserError(
                f"scores are compared on the same images, but {name} has the data {recipes[name]['data']}, and {first} has "
                f"{recipes[first]['data']}"
            )
    rows = tuple(Row(name, content, str(content.get("note", ""))) for name, content in recipes.items())
    return rows, tuple(Question(name, first, f"what {name} gains over {first}") for name in others)
