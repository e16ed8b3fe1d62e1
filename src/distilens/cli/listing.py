"""The output of `distilens list`: one line per part, or everything about one; read from the sources, so it is fast."""

from __future__ import annotations

import inspect
import json
import shutil
import sys
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import PydanticSchemaGenerationError, TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema

from distilens.foundation.catalogue import catalogue
from distilens.foundation.notation import Registry, keywords, write
from distilens.runs.recipe_names import find_recipe, shipped_recipes
from distilens.studies.evidence import warnings

OPTIONS_SHARE = 3
"""The options of a part take at most the terminal's width divided by this; the rest is cut off."""
BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


def show_list(kind: str, *, as_json: bool = False) -> None:
    """Print the parts of a kind, one line each, cut at the terminal's width; complete if the output is piped."""
    rows = recipe_rows() if kind == "recipes" else part_rows(kind)
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    wide = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    lines = [[row["notation"], options_in_words(row, wide), "! " * ("warning" in row) + row["purpose"]] for row in rows]
    for line in align_columns(lines, wide):
        print(line)
    common = ", ".join(f"{key}={value}" for key, value in rows[0].get("common", {}).items())
    print(f"\nEach also takes {common}." if common else "")
    if any("warning" in row for row in rows):
        print("! WARNING: with its defaults it was less accurate than kd in some measurement")
    print(f"All about one: distilens list {kind} {rows[-1]['name']}")


def show_part(kind: str, name: str, *, as_json: bool = False) -> None:
    """Print everything about one part.

    Raises:
        UserError: there is no part of that name.
    """
    if kind == "recipes":
        print(find_recipe(name).read_text(encoding="utf-8"), end="")
        return
    registry = catalogue(kind)
    registry.entry(name)
    row = next(row for row in part_rows(kind) if row["name"] == name)
    options = [
        {"option": key, "default": default_of(parameter), "is": kind_of_value(parameter.annotation)}
        for key, parameter in registry.options(name).items()
    ]
    text = inspect.getdoc(registry.entry(name).constructor) or ""
    if as_json:
        print(json.dumps({**row, "options": options, "text": text}, indent=1, ensure_ascii=False))
        return
    print(f"{row['notation']}\n\n{text}\n")
    for line in align_columns([[option["option"], option["default"], option["is"]] for option in options], None):
        print(f"  {line}")
    if "warning" in row:
        print(f"\nWARNING: {row['warning']}")


def recipe_rows() -> list[dict[str, Any]]:
    notes = {path.stem: tomllib.loads(path.read_text(encoding="utf-8")).get("note", "") for path in shipped_recipes()}
    return [{"name": name, "notation": name, "options": {}, "purpose": note} for name, note in notes.items()]


def part_rows(kind: str) -> list[dict[str, Any]]:
    """Plain data about each part: name, notation, options with defaults, purpose and source."""
    registry: Registry = catalogue(kind)
    harm = warnings() if kind == "methods" else {}
    rows = []
    for (notation, _, purpose, source), name in zip(registry.table(), registry, strict=True):
        options = {key: default_of(parameter) for key, parameter in registry.options(name).items()}
        shared = {key.rstrip("_") for key in keywords(registry.common)} if registry.common else set()
        common = {key: value for key, value in options.items() if key in shared}
        own = {key: value for key, value in options.items() if key not in shared}
        row = {
            "name": name,
            "notation": notation,
            "options": own,
            "common": common,
            "purpose": purpose,
            "source": source,
        }
        rows.append({**row, "warning": harm[name]} if name in harm else row)
    return rows


def default_of(parameter: inspect.Parameter) -> str:
    return "needed" if parameter.default is inspect.Parameter.empty else write(parameter.default)


def kind_of_value(annotation: Any) -> str:
    """The values of an option in words: `number above 0`, `one of mean, zero`."""
    try:
        schema = TypeAdapter(annotation).json_schema()
    except (PydanticSchemaGenerationError, PydanticInvalidForJsonSchema):
        return ""
    return in_words(schema)


def in_words(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(in_words(option) for option in schema["anyOf"])
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    if "const" in schema:
        return str(schema["const"])
    kind: str = schema.get("type", "anything")
    words = {"null": "none", "integer": "whole number", "string": "text", "array": "list", "boolean": "true or false"}
    inside = f" of {in_words(schema['items'])}" if schema.get("items") else ""
    bounds = " and ".join(f"{text} {schema[key]:g}" for key, text in BOUNDS.items() if key in schema)
    return f"{words.get(kind, kind)}{inside} {bounds}".strip()


def options_in_words(row: Mapping[str, Any], wide: int | None) -> str:
    text = ", ".join(f"{key}={value}" if value != "needed" else f"{key}=..." for key, value in row["options"].items())
    return shorten(text, wide // OPTIONS_SHARE) if wide else text


def shorten(text: str, wide: int) -> str:
    return text if len(text) <= wide else f"{text[: wide - 1].rstrip(', ')}…"


def align_columns(rows: Sequence[Sequence[str]], wide: int | None) -> list[str]:
    """Format rows as aligned columns, cut at the width of the terminal."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]) - 1)] if rows else []
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]
    return [shorten(line, wide).rstrip() if wide else line.rstrip() for line in lines]
