"""The rows of a compression curve: students near each factor, and what is refused."""

from functools import cache

import pytest

from distilens.data import load
from distilens.foundation.errors import UserError
from distilens.measure import parameters
from distilens.models import build_model
from distilens.studies import compression
from distilens.studies.compression import notations, plain_name, plan_compression

WIDTHS = "mobilenetv2"


def recipe(model="mobilenetv2") -> dict:
    return {
        "data": "digits:limit=60,size=32",
        "teacher": {"model": model},
        "student": {"model": "resnet8", "methods": ["ce", "kd"]},
    }


@pytest.fixture(scope="module", autouse=True)
def built_once():
    """The networks of a family are built once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "sizes", cache(compression.sizes))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load("digits:limit=60,size=32", tmp_path_factory.mktemp("data"))


def test_each_factor_has_a_student_with_and_without_the_teacher(data):
    rows, questions = plan_compression(recipe(), [12, 4, 4], data)
    assert [row.name for row in rows] == ["4 ×", "4 ×, labels only", "12 ×", "12 ×, labels only"]
    assert [row.facts["model"] for row in rows][::2] == [f"shrink:model=mobilenetv2,blocks={count}" for count in (5, 9)]
    assert rows[0].facts["ratio"] == pytest.approx(4.12, abs=0.01)  # as published
    assert rows[0].facts["macs ratio"] == pytest.approx(1.50, abs=0.01)
    for taught, alone in zip(rows[::2], rows[1::2], strict=True):
        assert taught.recipe["student"]["model"] == alone.recipe["student"]["model"] == taught.facts["model"]
        assert taught.recipe["student"]["methods"] == ["ce", "kd"]
        assert alone.recipe["student"]["methods"] == ["ce"]
        assert "teacher" not in alone.recipe
    assert [(question.row, question.against) for question in questions] == [
        ("4 ×", "4 ×, labels only"),
        ("12 ×", "12 ×, labels only"),
    ]


def test_a_family_is_searched_by_width(data):
    rows, _ = plan_compression(recipe(), [4], data, WIDTHS)
    assert rows[0].facts["model"].startswith("mobilenetv2:width=0.")
    wanted = parameters(build_model("mobilenetv2", data.task, data.size)) / 4
    found = parameters(build_model(rows[0].facts["model"], data.task, data.size))
    assert wanted / 1.3 < found < wanted * 1.3


@pytest.mark.parametrize(
    ("content", "factors", "family", "message"),
    [
        ({"data": "digits", "student": {"model": "resnet8", "methods": ["ce"]}}, [2], None, "this recipe has no"),
        (recipe(), [], None, "factors are numbers above 1; given none"),
        (recipe(), [1, 2], None, "factors are numbers above 1; given 1, 2"),
        (recipe(), [1e6], WIDTHS, r"no network of this family is near 1e\+06 ×"),
        (recipe(), [4, 4.01], WIDTHS, "two factors have the same nearest network"),
        (recipe(), [4], "resnet8", "has only one size"),
        (recipe("resnet14"), [4], None, "shrink needs a network of the form of mobilenetv2"),
    ],
)
def test_refusals(data, content, factors, family, message):
    with pytest.raises(UserError, match=message):
        plan_compression(content, factors, data, family)


def test_an_architecture_has_no_weights():
    assert plain_name("timm:resnet18,pretrained=true") == "timm:resnet18"
    assert plain_name("resnet14") == "resnet14"
    with pytest.raises(UserError, match="name the networks to choose students from"):
        plain_name("file:weights.safetensors,model=resnet8")


@pytest.mark.slow
def test_a_shrunk_teacher_keeps_its_pixels(data):
    """A notation inside a notation: the options of the teacher stay those of the teacher."""
    rows, _ = plan_compression(recipe("mobilenetv2:mean=[0.1,0.2,0.3],std=[0.5,0.5,0.5]"), [4], data)
    assert rows[0].facts["model"] == "shrink:model=[mobilenetv2:mean=[0.1,0.2,0.3],std=[0.5,0.5,0.5]],blocks=5"
    model = build_model(rows[0].facts["model"], data.task, data.size)
    assert model.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert model.std.flatten().tolist() == pytest.approx([0.5, 0.5, 0.5])


def test_whole_widths_are_whole():
    assert list(notations("wrn:depth=16"))[:2] == ["wrn:depth=16,width=8", "wrn:depth=16,width=7"]
