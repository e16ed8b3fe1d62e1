"""The notation, the registries and the recipe: what is read, what is written, and all that can be wrong."""

import tomllib
from typing import Annotated

import pytest
from pydantic import Field

from distilens.data import SOURCES
from distilens.data.augment import AUGMENTS
from distilens.explain import EXPLAINERS
from distilens.foundation.errors import UserError
from distilens.foundation.notation import Registry, Spec
from distilens.methods import METHODS
from distilens.models import MODELS
from distilens.runs.recipe_file import make_recipe, read_recipe
from distilens.runs.recipe_names import shipped_recipes
from distilens.training.optimizers import OPTIMIZERS, SCHEDULES

REGISTRIES = {"data": SOURCES, "augment": AUGMENTS, "explain": EXPLAINERS, "methods": METHODS, "models": MODELS}
REGISTRIES |= {"optimizers": OPTIMIZERS, "schedules": SCHEDULES}
SMALL = {"data": "shapes", "student": {"model": "resnet8", "methods": ["ce"]}}


def part(
    name: str,
    /,
    count: int,
    *,
    rate: Annotated[float, Field(gt=0)] = 0.5,
    sizes: tuple[int, ...] = (1,),
    as_: str | None = None,
):
    """A part."""
    return name, count, rate, sizes, as_


PARTS = Registry("part", {"part": f"{__name__}:part"})
PARTS.entries["part"].__dict__["constructor"] = part  # this module may have another name under pytest


@pytest.mark.parametrize(
    "text",
    [
        "kd",
        "kd:temperature=4",
        "timm:resnet18,pretrained=true",
        "map_match:explainer=[ig:steps=32,rule=gauss],distance=cosine",
        "multi_step:milestones=[0.5,0.75]",
        "python:my.module:make",
        "outer:inner=[middle:inner=[deep:x=1,y=2]],z=3",
    ],
)
def test_the_notation_is_written_as_it_is_read(text):
    assert str(Spec.parse(text)) == text
    assert Spec.parse(str(Spec.parse(text))) == Spec.parse(text)


def test_a_table_is_the_same_part():
    assert str(Spec.parse({"name": "kd", "temperature": 4.0, "weight": 0.9})) == "kd:temperature=4,weight=0.9"
    assert Spec.parse("python:my.module:make").argument == "my.module:make"


@pytest.mark.parametrize("text", ["kd:x=[1", "kd:x=1]", ":x=1", "kd:a=1,b"])
def test_broken_notation_is_said(text):
    with pytest.raises(UserError):
        Spec.parse(text)


def test_options_are_converted_and_checked_all_at_once():
    assert PARTS.build("part:NAME,rate=2,sizes=[3,4],as=x", 7) == ("NAME", 7, 2.0, (3, 4), "x")
    assert PARTS.build("part:NAME,as=none", 7) == ("NAME", 7, 0.5, (1,), None)
    with pytest.raises(UserError) as error:
        PARTS.resolve("part:rat=1,rate=-1,sizes=[a]")
    for text in (
        "needs part:NAME",
        "unknown option 'rat'",
        "Did you mean 'rate'",
        "greater than 0; given '-1'",
        "sizes",
    ):
        assert text in str(error.value)
    with pytest.raises(UserError, match=r"unknown part 'prt'. Did you mean 'part'\? Known: part"):
        PARTS.resolve("prt")


@pytest.mark.parametrize("kind", REGISTRIES)
def test_every_part_is_documented_and_its_options_are_typed(kind):
    for (title, options, purpose, _), name in zip(REGISTRIES[kind].table(), REGISTRIES[kind], strict=True):
        assert title.startswith(name)
        assert len(purpose) > 20, name
        assert "<class" not in options
        for parameter in REGISTRIES[kind].options(name).values():
            assert parameter.annotation is not parameter.empty, name


@pytest.mark.parametrize("path", shipped_recipes(), ids=lambda path: path.stem)
def test_shipped_recipes_are_whole_and_written_as_they_are_read(path):
    recipe = read_recipe(path)
    again = make_recipe(tomllib.loads(recipe.to_toml()))
    assert again.resolved() == recipe.resolved()
    assert recipe.note


def test_changes_reach_sections_parts_and_lists():
    content = {
        **SMALL,
        "teacher": {"model": "resnet14"},
        "student": {"model": "resnet8", "methods": ["ce", "kd:weight=0.5"]},
    }
    changes = [
        "train.epochs=3",
        "data.limit=50",
        "student.methods.kd.temperature=2",
        "train.optimizer.lr=0.3",
        "seed=4",
    ]
    recipe = make_recipe(content, [*changes, "explain.explainers=[gradcam,ig:steps=4]", "teacher.train.epochs=2"])
    assert recipe.train.epochs == 3
    assert recipe.data == "shapes:limit=50"
    assert recipe.student.methods == ("ce", "kd:weight=0.5,temperature=2")
    assert recipe.train.optimizer == "auto:lr=0.3"
    assert recipe.explain.explainers == ("gradcam", "ig:steps=4")
    assert (recipe.seed, recipe.teacher_training.epochs, recipe.teacher_training.optimizer) == (4, 2, "auto:lr=0.3")


def test_all_problems_of_a_recipe_come_at_once():
    content = {
        "data": "shapez",
        "nam": "x",
        "student": {"model": "resnet21", "methods": ["kdd", {"name": "ce", "smoothing": 3}]},
        "train": {"epochs": "many", "optimizr": "sgd", "schedule": "one_cycl"},
        "explain": {"explainers": ["gradcamm"]},
    }
    with pytest.raises(UserError) as error:
        make_recipe(content, ["noequals"])
    for text in (
        "shapez",
        "'nam'",
        "resnet21",
        "kdd",
        "smoothing",
        "train.epochs",
        "optimizr",
        "one_cycl",
        "gradcamm",
        "noequals",
    ):
        assert text in str(error.value)
    assert "10 problems" in str(error.value)


def test_wrong_types_missing_keys_and_bad_overrides_are_said():
    with pytest.raises(UserError, match="the key 'student' is missing"):
        make_recipe({"data": "shapes"})
    with pytest.raises(UserError, match=r"unknown key 'teacher.train.epoch'.*Did you mean 'epochs'"):
        make_recipe({**SMALL, "teacher": {"model": "resnet8", "train": {"epoch": 3}}})
    with pytest.raises(UserError, match=r"student.methods need logits from a teacher, but have no teacher"):
        make_recipe({**SMALL, "student": {"model": "resnet8", "methods": ["ce", "kd"]}})
    with pytest.raises(UserError, match="two terms are called 'ce'"):
        make_recipe({**SMALL, "student": {"model": "resnet8", "methods": ["ce", "ce:smoothing=0.1"]}})
    with pytest.raises(UserError, match="no part 'kd' in methods"):
        make_recipe(SMALL, ["student.methods.kd.weight=1"])


def test_files_that_are_no_recipes_are_said(tmp_path):
    (tmp_path / "bad.toml").write_text("data = ")
    with pytest.raises(UserError, match="is not TOML"):
        read_recipe(tmp_path / "bad.toml")
    with pytest.raises(UserError, match=r"no recipe at demoo. Did you mean 'demo'"):
        read_recipe("demoo")
