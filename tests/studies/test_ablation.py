"""The rows of an ablation: for one, two and three methods, all subsets, controls, and what is refused."""

import pytest

from distilens.foundation.errors import UserError
from distilens.studies.ablation import plan_ablation


def recipe(*methods: str, **teacher) -> dict:
    return {
        "data": "digits:size=16",
        "teacher": {"model": "resnet8", **teacher},
        "student": {"model": "resnet8", "methods": list(methods)},
    }


def lists(rows) -> dict:
    return {row.name: row.recipe["student"]["methods"] for row in rows}


def asked(questions) -> dict:
    assert {question.row for question in questions} == {"all"}
    return {question.against: question.about for question in questions}


def test_one_method():
    rows, questions = plan_ablation(recipe("kd"))
    assert lists(rows) == {"base": ["ce"], "all": ["kd"]}
    assert "teacher" not in rows[0].recipe
    assert asked(questions) == {"base": "what the whole list adds to labels only"}


def test_two_methods_are_not_trained_twice():
    """Without kd, only labels are left: that is the base."""
    rows, questions = plan_ablation(recipe("ce", "kd:temperature=2"))
    assert lists(rows) == {"base": ["ce"], "all": ["ce", "kd:temperature=2"], "without ce": ["kd:temperature=2"]}
    assert asked(questions) == {"base": "what kd adds", "without ce": "what ce adds"}


def test_another_base_is_a_row_of_its_own():
    rows, _ = plan_ablation({**recipe("ce", "kd"), "base": {"methods": ["ce:weight=2"]}})
    assert lists(rows)["base"] == ["ce:weight=2"]
    assert lists(rows)["without kd"] == ["ce"]


def test_three_methods_and_all_subsets():
    rows, questions = plan_ablation(recipe("ce", "kd", "at"))
    assert lists(rows) == {
        "base": ["ce"],
        "kd": ["ce", "kd"],
        "all": ["ce", "kd", "at"],
        "without ce": ["kd", "at"],
        "without kd": ["ce", "at"],
    }
    assert asked(questions) == {
        "base": "what the whole list adds to labels only",
        "kd": "what at adds",
        "without ce": "what ce adds",
        "without kd": "what kd adds",
    }
    more, same = plan_ablation(recipe("ce", "kd", "at"), subsets=True)
    assert {name: methods for name, methods in lists(more).items() if name not in lists(rows)} == {
        "without ce, kd": ["at"],
        "without ce, at": ["kd"],
    }
    assert same == questions


def test_a_list_without_kd_is_also_compared_with_plain_kd():
    rows, questions = plan_ablation(recipe("ce", "at"))
    assert lists(rows)["kd"] == ["ce", "kd"]
    assert asked(questions)["kd"] == "what the whole list adds to plain kd"


def test_plain_kd_has_the_options_of_the_list():
    rows, _ = plan_ablation(recipe("ce:weight=0.5", "kd:temperature=7", "at"))
    assert lists(rows)["kd"] == ["ce:weight=0.5", "kd:temperature=7"]


def test_a_list_that_cannot_stand_alone_is_left_out():
    """An overlay has no loss of its own."""
    rows, questions = plan_ablation(recipe("ce", "ig_overlay"))
    assert "without ce" not in lists(rows)
    assert "without ce" not in asked(questions)
    assert lists(rows)["all"] == ["ce", "ig_overlay"]


def test_controls_replace_the_maps():
    rows, questions = plan_ablation(recipe("ce", "kd", "ig_overlay"), controls=True)
    controls = {
        row.name: row.recipe["teacher"]["control"] for row in rows if "control" in row.recipe.get("teacher", {})
    }
    assert controls == {"maps permuted": "permuted:only=maps", "random maps": "random_maps:kind=blobs"}
    assert asked(questions)["maps permuted"] == "what the maps say (ig_overlay), against maps permuted"


@pytest.mark.parametrize(
    ("content", "how", "message"),
    [
        ({"data": "digits:size=16", "student": {"model": "resnet8"}}, {}, "this recipe has no"),
        (recipe("ce", "kd"), {"controls": True}, "no method of this recipe reads any"),
        (recipe("ce", "ig_overlay", control="permuted"), {"controls": True}, "already has|has teacher.control"),
        (recipe("ce", "kd", "at", "sp", "pkt", "nst", "rkd"), {"subsets": True}, "7 methods have 127 subsets"),
    ],
)
def test_refusals(content, how, message):
    with pytest.raises(UserError, match=message):
        plan_ablation(content, **how)
