"""What a search is for: each objective is measured on a trained student, in its own direction."""

import pytest

from distilens.foundation.errors import UserError
from distilens.runs.recipe_file import make_recipe
from distilens.studies.objectives import OBJECTIVES, direction_of, value_of
from distilens.studies.study import Row, Study, without_teacher
from distilens.studies.teachers import train_teachers
from distilens.studies.trial import run_of, train_row


@pytest.fixture(scope="module")
def study(place, content):
    rows = (Row("taught", content), Row("alone", without_teacher(content, ["ce"])))
    study = Study(place / "objectives", "search", rows, (0,))
    train_teachers(study)
    return study


def test_objectives_are_measured(study):
    row = study.row("taught")
    result = train_row(study, row, 0)
    found = {name: value_of(run_of(study, row, 0), result, name) for name in OBJECTIVES}
    assert found["score"] == result["validation"]["accuracy"]
    assert found["latency"] > 0
    assert found["size"] == 8 * 3 * 9 + 8 + 2 * 8 + 8 * 8 + 8  # convolution, normalisation, classifier
    assert -1 <= found["maps"] <= 1


def test_maps_need_a_teacher(study):
    row = study.row("alone")
    result = train_row(study, row, 0)
    with pytest.raises(UserError, match=r"compares with the teacher's maps, but this recipe has no \[teacher\]"):
        value_of(run_of(study, row, 0), result, "maps")


def test_directions(content):
    recipe = make_recipe(content)
    assert [direction_of(name, recipe) for name in OBJECTIVES] == ["maximize", "minimize", "minimize", "maximize"]
