"""The notation at its edges: brackets in brackets, values that need them, and types."""

import inspect
import sys
import types
from typing import Annotated, Literal

import pytest
import torch
from pydantic import Field

from distilens.data import SOURCES
from distilens.data.augment import AUGMENTS
from distilens.explain import EXPLAINERS
from distilens.foundation.errors import UserError, nearest
from distilens.foundation.notation import Registry, Spec, convert, literal, safe, unbracket, write
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


class Thing:
    """A thing of a size.

    Source: Somebody 1999,
    equation 1.

    More.
    """

    weight = 5.0

    def __init__(self, argument: str = "", /, *context, size: int = 3, type_: str = "x", must: float, **others):
        self.given = (argument, context, size, type_, must, others)


class Plain:
    """A plain thing."""

    def __init__(self, *, path: str, shift: int | None = None):
        self.given = (path, shift)


def common(*, weight: float = 1.0, every: int = 1) -> None: ...


@pytest.fixture
def things(monkeypatch):
    module = types.ModuleType("things_of_the_test")
    module.Thing, module.Plain = Thing, Plain
    monkeypatch.setitem(sys.modules, module.__name__, module)
    entries = {
        "thing": f"{module.__name__}:Thing",
        "seven": (f"{module.__name__}:Thing", {"size": 7, "must": 1.0}),
        "plain": f"{module.__name__}:Plain",
    }
    return Registry("thing", entries, common=common, hint=lambda name: " (a hint)" if name == "thin" else "")


def test_options_are_those_of_the_constructor_then_of_the_kind_with_the_defaults_of_the_class(things):
    found = {name: parameter.default for name, parameter in things.options("thing").items()}
    empty = inspect.Parameter.empty
    assert found == {"size": 3, "type": "x", "must": empty, "weight": 5.0, "every": 1}
    assert list(things.options("seven")) == ["type", "weight", "every"]
    assert things.options("plain")["weight"].default == 1.0
    assert list(things) == ["thing", "seven", "plain"]


def test_what_is_built_gets_argument_context_own_and_other_options_but_not_those_of_its_kind(things):
    made = things.build("thing:name,must=2,type=y,weight=3,more=4", "context")
    assert made.given == ("name", ("context",), 3, "y", 2.0, {"more": 4})
    assert things.build("seven:name").given == ("name", (), 7, "x", 1.0, {})
    assert things.build("plain:some/where,shift=2").given == ("some/where", 2)
    assert things.build("plain:path=there").given == ("there", None)
    resolved = things.resolve("plain:some/where")
    assert resolved == Spec("plain", None, {"path": "some/where", "shift": None, "weight": 1.0, "every": 1})


def test_all_that_is_wrong_with_a_part_is_said(things):
    with pytest.raises(UserError) as error:
        things.resolve("plain:shift=a,qqq=3,every=b")
    assert str(error.value).splitlines() == [
        "unknown option 'qqq' of thing 'plain'. Options: path, shift, weight, every",
        "thing 'plain' needs the option path=...",
        "option 'shift' of thing 'plain': input should be a valid integer, unable to parse string as an integer; given 'a'",
        "option 'every' of thing 'plain': input should be a valid integer, unable to parse string as an integer; given 'b'",
    ]
    with pytest.raises(UserError, match=r"unknown thing 'thin'\. \(a hint\) Did you mean 'thing'\?"):
        things.entry("thin")
    with pytest.raises(UserError, match="takes key=value options only; given 'there'"):
        things.resolve("plain:there,path=here")


def test_an_argument_without_a_default_must_be_given(things, monkeypatch):
    monkeypatch.setattr(sys.modules["things_of_the_test"], "Named", lambda name, /: name, raising=False)
    registry = Registry("thing", {"named": "things_of_the_test:Named"})
    assert registry.build("named:it") == "it"
    with pytest.raises(UserError, match="'named' needs named:NAME"):
        registry.resolve("named")


def test_the_table_has_a_row_for_each_part_with_its_purpose_and_source(things):
    assert things.table() == [
        (
            "thing:ARGUMENT",
            "size=3, type=x, must, weight=5, every=1",
            "A thing of a size.",
            "Somebody 1999, equation 1.",
        ),
        ("seven:ARGUMENT", "type=x, weight=5, every=1", "A thing of a size.", "Somebody 1999, equation 1."),
        ("plain", "path, shift=none, weight=1, every=1", "A plain thing.", ""),
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (False, "false"),
        (None, "none"),
        (3, "3"),
        (4.0, "4"),
        (0.1, "0.1"),
        (1 / 3, "0.3333333333333333"),
        (1e-5, "1e-05"),
        (1234567.0, "1234567.0"),
        ((1, 2.5), "1,2.5"),
        (["a,b", ("c", "d")], "[a,b],[c,d]"),
        ({"name": "ig", "steps": 3}, "ig:steps=3"),
    ],
)
def test_values_are_written_as_they_are_read(value, text):
    assert write(value) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("false", False),
        ("none", None),
        ("3", 3),
        ("-0.5", -0.5),
        ("1e3", 1000.0),
        ("word", "word"),
        (7, 7),
    ],
)
def test_a_text_without_a_type_is_the_simplest_that_it_can_be(text, value):
    assert literal(text) == value
    assert type(literal(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("ig:steps=64,baseline=blur", "ig-steps-64-baseline-blur"),
        ("gradcam++", "gradcam++"),
        ("--.", "model"),
        ("a/b c", "a-b-c"),
    ],
)
def test_any_text_can_be_a_file_name(text, name):
    assert safe(text) == name


@pytest.mark.parametrize("text", ["part:a=[b", "part:a=b]", "part:a=]b[", "part:[[a]"])
def test_brackets_that_do_not_match_are_said(text):
    with pytest.raises(UserError, match=r"the brackets in .* do not match"):
        Spec.parse(text)


@pytest.mark.parametrize("text", ["part:a=1,b", "part:first,second"])
def test_only_the_first_item_may_be_without_a_key(text):
    with pytest.raises(UserError, match="is not key=value"):
        Spec.parse(text)


@pytest.mark.parametrize("text", ["", ":a=1"])
def test_a_part_has_a_name(text):
    with pytest.raises(UserError, match="needs a name"):
        Spec.parse(text)


@pytest.mark.parametrize(
    ("value", "annotation", "result"),
    [
        ("224", int | tuple[int, int], 224),
        ("[224,192]", int | tuple[int, int], (224, 192)),
        ("224,192", int | tuple[int, int] | None, (224, 192)),
        ("none", int | tuple[int, int] | None, None),
        ("3", tuple[int, ...], (3,)),
        ("3", tuple[int, ...] | list[int], (3,)),
        ("3", list, ["3"]),
        ("a b", str, "a b"),
    ],
)
def test_one_value_is_a_list_of_one_only_where_a_list_is_wanted(value, annotation, result):
    found = convert(unbracket(value), annotation)
    assert found == result
    assert type(found) is type(result)


def test_replaced_options_may_be_in_brackets_and_the_rest_stays():
    spec = Spec("ig", "x", {"steps": "3", "rule": "gauss"}).replaced(rule="[a,b]", more=2)
    assert spec == Spec("ig", "x", {"steps": "3", "rule": "a,b", "more": 2})
