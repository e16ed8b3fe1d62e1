"""Recipes of studies: rows by their changes, comparisons, and mistakes with the name of the row."""

from pathlib import Path

import pytest

from distilens.foundation.errors import UserError
from distilens.runs.recipe import Recipe
from distilens.runs.recipe_file import make_recipe, read_toml
from distilens.runs.recipe_names import find_recipe, shipped_studies
from distilens.studies.listed import plan_listed
from distilens.studies.study import Study
from distilens.studies.teachers import teacher_key

CONTENT = {
    "data": "digits:limit=60,size=16",
    "teacher": {"model": "resnet8"},
    "student": {"model": "resnet8", "methods": ["ce", "kd"]},
    "study": {"rows": {"kd": [], "hot": ["student.methods.kd.temperature=8"], "labels": ['student.methods=["ce"]']}},
}


def with_study(**changes):
    return {**CONTENT, "study": {**CONTENT["study"], **changes}}


def test_every_row_has_its_changes_and_is_compared_with_the_first():
    rows, questions, seeds = plan_listed(CONTENT, ["train.epochs=3"])
    assert [row.name for row in rows] == ["kd", "hot", "labels"]
    assert [row.recipe["student"]["methods"] for row in rows][1:] == [["ce", "kd:temperature=8"], ["ce"]]
    assert all(row.recipe["train"]["epochs"] == 3 for row in rows)
    assert all(row.recipe["teacher"]["answers"] == "stored" for row in rows)
    assert [(question.row, question.against) for question in questions] == [("hot", "kd"), ("labels", "kd")]
    assert seeds == 5


def test_further_comparisons_and_another_reference():
    _, questions, seeds = plan_listed(with_study(against="labels", pairs=[["hot", "kd"]], seeds=2))
    assert [(question.row, question.against) for question in questions] == [
        ("kd", "labels"),
        ("hot", "labels"),
        ("hot", "kd"),
    ]
    assert seeds == 2


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"against": "hott"}, "has no such row. Did you mean 'hot'?"),
        ({"pairs": [["kd", "none"]]}, "compares with 'none'"),
        ({"rows": {}}, "study.rows"),
        ({"seeds": 0}, "study.seeds"),
        ({"colour": "red"}, "colour"),
        ({"rows": {"wrong": ["student.methods.kdd.weight=1"]}}, "row 'wrong'"),
    ],
)
def test_a_mistake_is_named(changes, text):
    with pytest.raises(UserError) as caught:
        plan_listed(with_study(**changes))
    assert text in str(caught.value)


def test_a_study_is_no_recipe_of_a_run():
    with pytest.raises(UserError, match="distilens seeds trains its rows"):
        make_recipe(CONTENT)


def with_marks(path):
    return pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem == "few-candidates" else [])


@pytest.mark.parametrize("path", [with_marks(path) for path in shipped_studies()])
def test_the_shipped_studies_can_be_planned(path):
    assert find_recipe(path.stem) == path
    rows, questions, _ = plan_listed(read_toml(path), where=path.stem)
    assert len(questions) >= len(rows) - 1
    Study(Path("runs"), "seeds", rows, (0,), questions)  # all have a folder of their own
    recipes = [Recipe.model_validate(row.recipe) for row in rows]
    teachers = {teacher_key(recipe) for recipe in recipes if recipe.teacher and not recipe.teacher.others}
    assert len(teachers) <= 1  # what differs between the rows does not train another one
