"""The rows of a study over seeds."""

import pytest

from distilens.foundation.errors import UserError
from distilens.studies.seeds import plan_seeds


def test_each_recipe_is_compared_with_the_first():
    recipes = {name: {"data": "digits", "note": f"note {name}"} for name in ("a", "b", "c")}
    rows, questions = plan_seeds(recipes)
    assert [(row.name, row.about) for row in rows] == [("a", "note a"), ("b", "note b"), ("c", "note c")]
    assert [(question.row, question.against) for question in questions] == [("b", "a"), ("c", "a")]
    assert plan_seeds({"a": {"data": "digits"}})[1] == ()


def test_other_data_are_refused():
    with pytest.raises(UserError, match="b has the data shapes, and a has digits"):
        plan_seeds({"a": {"data": "digits"}, "b": {"data": "shapes"}})
