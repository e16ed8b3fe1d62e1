"""What `distilens list` says of one part."""

import enum
from typing import Annotated, Literal

import pytest
from pydantic import Field

from distilens.cli.listing import kind_of_value
from distilens.data import SOURCES
from distilens.methods import METHODS
from distilens.runs.recipe_names import find_recipe


def test_a_recipe_is_printed_as_it_is(command):
    code, output, error = command("list", "recipes", "demo")
    assert (code, error) == (0, "")
    assert output == find_recipe("demo").read_text(encoding="utf-8")


def test_a_part_is_printed_with_its_options_and_its_warning(command, monkeypatch):
    monkeypatch.setattr("distilens.cli.listing.warnings", lambda: {"kd": "it did harm somewhere"})
    code, output, error = command("list", "methods", "kd")
    assert (code, error) == (0, "")
    lines = output.splitlines()
    assert lines[0].startswith("kd")
    assert lines[-1] == "WARNING: it did harm somewhere"
    options = {line.split()[0]: line.split()[1:] for line in lines if line.startswith("  ")}
    assert set(METHODS.options("kd")) <= set(options)
    assert options["temperature"][0] == "4"
    assert "WARNING" not in command("list", "methods", "ce")[1]


@pytest.mark.parametrize("name", list(SOURCES))
def test_everything_about_a_source_can_be_printed(command, name):
    code, output, error = command("list", "data", name)
    assert (code, error) == (0, "")
    assert all(f"\n  {option} " in output for option in SOURCES.options(name))


class Opaque:
    """No value that a recipe can hold."""


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int | None, "whole number or none"),
        (Literal["mean", "zero"], "one of mean, zero"),
        (Literal["mean"], "mean"),
        (enum.Enum("Two", {"a": "a", "b": "b"}), "one of a, b"),
        (Annotated[float, Field(gt=0, le=1)], "number above 0 and at most 1"),
        (list[str], "list of text"),
        (Opaque, ""),
    ],
)
def test_the_values_of_an_option_in_words(annotation, words):
    assert kind_of_value(annotation) == words
