"""The notation at its edges: brackets in brackets, values that need them, and types."""

from typing import Annotated, Literal

import pytest
import torch
from pydantic import Field

from distilens.data import SOURCES
from distilens.data.augment import AUGMENTS
from distilens.explain import EXPLAINERS
from distilens.foundation.errors import UserError, nearest
from distilens.foundation.notation import Registry, Spec, convert
from distilens.methods import METHODS
from distilens.models import MODELS
from distilens.training.optimizers import OPTIMIZERS, SCHEDULES

VALUES = [
    "text",
    "a,b",
    "ig:steps=3,rule=gauss",
    "[ig:steps=3],[gradcam]",
    "[a],[b]",
    "[a]",
    "[[a,b]]",
    "x=1",
    "",
]


@pytest.mark.parametrize("value", VALUES)
def test_any_text_survives_being_an_option_and_an_argument(value):
    spec = Spec("outer", None, {"first": value, "last": 1})
    assert Spec.parse(str(spec)).options == {"first": value, "last": "1"}
    if value:
        assert Spec.parse(str(Spec("outer", value, {"last": "2"}))) == Spec("outer", value, {"last": "2"})
    for _ in range(3):  # any depth
        spec = Spec("outer", None, {"inner": str(spec)})
        assert Spec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("items", "annotation"),
    [
        (("a",), tuple[str, ...]),
        (("a,b",), tuple[str, ...]),
        (("ig:steps=3,rule=gauss",), tuple[str, ...]),
        (("ig:steps=3,rule=gauss", "gradcam"), tuple[str, ...]),
        ((0.625, 0.75, 0.875), tuple[float, ...]),
        ((0.5,), tuple[float, ...]),
        ((), tuple[float, ...]),
    ],
)
def test_lists_are_read_as_they_are_written(items, annotation):
    text = str(Spec("part", None, {"items": items}))
    assert convert(Spec.parse(text).options["items"], annotation) == items


def test_a_table_may_use_the_notation_or_hold_parts():
    table = {"name": "map_match:distance=cosine", "explainers": [{"name": "ig", "steps": 3}, "gradcam"]}
    spec = Spec.parse(table)
    assert spec.name == "map_match"
    assert convert(spec.options["explainers"], tuple[str, ...]) == ("ig:steps=3", "gradcam")
    assert Spec.parse({"name": "part", "milestones": "[1,2]"}) == Spec.parse("part:milestones=[1,2]")
    listed = Spec.parse({"name": "part", "items": "[ig:steps=3,rule=gauss],[gradcam]"}).options["items"]
    assert convert(listed, tuple[str, ...]) == ("ig:steps=3,rule=gauss", "gradcam")
    assert convert({"name": "ig", "steps": 3}, str) == "ig:steps=3"
    with pytest.raises(UserError, match="a part as a table needs a name"):
        Spec.parse({"steps": 3})


@pytest.mark.parametrize(
    ("value", "annotation", "result"),
    [
        ("4", float, 4.0),
        ("true", bool, True),
        ("none", int | None, None),
        ("none", str, "none"),  # where None is not allowed it is a word
        ("3", int | None, 3),
        ("0.5", Literal["zero", "mean"] | Annotated[float, Field(ge=0, le=1)], 0.5),
        ("zero", Literal["zero", "mean"] | Annotated[float, Field(ge=0, le=1)], "zero"),
        ("1,2", Annotated[tuple[int, int], Field()], (1, 2)),
        ("1,2", list[int] | None, [1, 2]),
        (4, float, 4.0),
    ],
)
def test_values_get_their_annotated_type(value, annotation, result):
    found = convert(value, annotation)
    assert found == result
    assert type(found) is type(result)


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        ("many", int),
        ("1.5", int),
        ("perhaps", bool),
        ("nan", float),
        ("inf", float),
        ("1,x", tuple[int, ...]),
        ("none", int),
        ("blue", Literal["red"]),
    ],
)
def test_values_of_a_wrong_type_are_said_with_what_was_given(value, annotation):
    with pytest.raises(ValueError, match=r"; given .*"):
        convert(value, annotation)


def test_the_nearest_name_is_near():
    assert nearest("kdd", ["kd", "ce"]) == " Did you mean 'kd'?"
    assert nearest("zzzzzz", ["kd", "ce"]) == ""


def test_objects_of_ours_go_through_as_they_are():
    class Thing:
        pass

    thing = Thing()
    assert convert(thing, Thing) is thing


BUILDS = [
    *((METHODS, name, ()) for name in METHODS),
    *((EXPLAINERS, "captum:Saliency" if name == "captum" else name, ()) for name in EXPLAINERS),
    *((AUGMENTS, name, ()) for name in AUGMENTS),
    *((SCHEDULES, name, ()) for name in SCHEDULES),
    *((OPTIMIZERS, name, (torch.nn.Conv2d(3, 4, 3),)) for name in OPTIMIZERS if name != "auto"),
    *((MODELS, name, (7,)) for name in ("resnet", "resnet8x4", "wrn", "wrn-16-1", "vgg8", "mobilenetv2")),
]


@pytest.mark.parametrize(
    ("registry", "name", "context"), BUILDS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_part_is_built_from_its_name_and_from_what_a_run_records(registry, name, context):
    resolved = registry.resolve(name)
    assert set(resolved.options) == set(registry.options(resolved.name))
    assert registry.resolve(str(resolved)) == resolved  # what is written in a run folder is what ran
    assert type(registry.build(str(resolved), *context)) is type(registry.build(name, *context))


@pytest.mark.parametrize(
    "registry", [SOURCES, AUGMENTS, EXPLAINERS, METHODS, MODELS, OPTIMIZERS, SCHEDULES], ids=lambda r: r.kind
)
def test_every_option_of_every_part_has_a_type(registry):
    for name in registry:
        for key, parameter in registry.options(name).items():
            assert str(parameter.annotation) != "typing.Any", f"{name}:{key}="
            if parameter.default is not parameter.empty and parameter.default is not None:
                assert convert(parameter.default, parameter.annotation) == parameter.default, f"{name}:{key}="


def test_what_a_name_fixes_is_no_option():
    assert set(MODELS.options("resnet20")) == {"size", "mean", "std"}
    with pytest.raises(UserError, match=r"unknown option 'depth' of model 'resnet20'"):
        MODELS.resolve("resnet20:depth=14")
    with pytest.raises(UserError, match="takes key=value options only; given 'x'"):
        MODELS.resolve("resnet20:x")


def test_an_unknown_registry_entry_lists_what_there_is():
    registry = Registry(
        "shape", {"circle": "distilens.foundation.errors:UserError", "square": "distilens.foundation.errors:UserError"}
    )
    with pytest.raises(UserError, match=r"unknown shape 'circl'\. Did you mean 'circle'\? Known: circle, square"):
        registry.build("circl")


def test_a_part_may_stand_in_brackets_of_its_own():
    """As in `--set teacher.model=[run:runs/large,part=teacher]`."""
    assert Spec.parse("[run:runs/large,part=teacher]") == Spec.parse("run:runs/large,part=teacher")
    assert Spec.parse(" [kd] ") == Spec("kd")
