"""Sections: the tables of settings in a recipe. A field for parts in the notation names their kind.

    class Training(Section):
        epochs: Count = 10
        optimizer: Annotated[Part, Kind("optimizers")] = "auto"

The annotations let a section check its parts (`part_problems`) and write out all their options (`resolve_section`).
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from distilens.foundation.catalogue import catalogue, registry
from distilens.foundation.errors import UserError, nearest
from distilens.foundation.notation import Registry, Spec, split, unbracket

Count = Annotated[int, Field(ge=1)]


def as_notation(part: Any) -> Any:
    return str(Spec.parse(part)) if isinstance(part, Mapping) else part


def as_list(parts: Any) -> Any:
    return [unbracket(part) for part in split(unbracket(parts), whole=parts)] if isinstance(parts, str) else parts


Part = Annotated[str, BeforeValidator(as_notation)]
"""A part in the notation, or as a table: `{name = "kd", temperature = 4}`."""

Parts = Annotated[tuple[Part, ...], BeforeValidator(as_list)]
"""Several parts: a list, or one text separated by commas."""


@dataclass(frozen=True)
class Kind:
    """Annotation of a field for parts: their kind, a key of `foundation.kinds.REGISTRIES`."""

    name: str


@dataclass(frozen=True)
class Overrides:
    """Annotation of a table that overrides some settings of another section."""

    section: type[Section]


class Section(BaseModel):
    """A table of settings: unknown keys are errors, and values cannot change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def resolve_section(section: type[Section], content: Mapping[str, Any]) -> dict[str, Any]:
    """A section's plain data, with every option of every part written out.

    Raises:
        UserError: an unknown part or option.
    """
    return change_parts(section, content, lambda place, kind, part: str(registry(kind).resolve(part)))


def part_problems(section: type[Section], content: Mapping[str, Any], place: str = "") -> list[str]:
    """The errors in the parts of a section's plain data, independent of its other errors."""
    problems: list[str] = []

    def check(place: str, kind: str, part: Any) -> Any:
        if isinstance(part, str) or (isinstance(part, Mapping) and "name" in part):
            try:
                registry_to_read(kind).resolve(part)
            except UserError as error:
                problems.extend(f"{place}: {line}" for line in str(error).split("\n"))
        return part

    change_parts(section, content, check, place)
    return list(dict.fromkeys(problems))


def registry_to_read(kind: str) -> Registry:
    """The registry of a kind; before torch is imported its catalogue, which is fast."""
    return registry(kind) if "torch" in sys.modules else catalogue(kind)


def change_parts(
    section: type[Section], content: Mapping[str, Any], change: Callable[[str, str, Any], Any], place: str = ""
) -> dict[str, Any]:
    """A section's plain data, with each part replaced by `change(place, kind, part)`."""
    changed = {}
    for key, value in content.items():
        field = section.model_fields.get(key)
        where = f"{place}{key}"
        kind, inner = (None, None) if field is None else (kind_in(field), section_in(field))
        if value is None:
            changed[key] = None
        elif kind is not None:
            changed[key] = change_each(where, kind, value, change, several=takes_several(field))
        elif inner is not None and isinstance(value, Mapping):
            changed[key] = change_parts(inner, value, change, f"{where}.")
        else:
            changed[key] = list(value) if isinstance(value, tuple) else value
    return changed


def change_each(place: str, kind: str, value: Any, change: Callable[[str, str, Any], Any], *, several: bool) -> Any:
    """One part changed, or each of several parts; if their text is not a list, the section's own check reports it."""
    if several:
        try:
            value = as_list(value)
        except UserError:
            return value
    return (
        [change(place, kind, part) for part in value] if isinstance(value, list | tuple) else change(place, kind, value)
    )


def annotations_in(annotation: Any) -> Iterator[Any]:
    """An annotation and all annotations inside it: members of unions and lists, and the metadata of `Annotated`."""
    yield annotation
    for inner in get_args(annotation):
        yield from annotations_in(inner)


def field_annotations(field: Any) -> Iterator[Any]:
    """The metadata and annotations of a field."""
    yield from field.metadata
    yield from annotations_in(field.annotation)


def kind_in(field: Any) -> str | None:
    """The kind of the parts in a field, if it holds parts."""
    return next((note.name for note in field_annotations(field) if isinstance(note, Kind)), None)


def takes_several(field: Any) -> bool:
    return any(get_origin(note) is tuple for note in field_annotations(field))


def section_in(field: Any) -> type[Section] | None:
    """The section that a field holds or overrides, if any."""
    for note in field_annotations(field):
        if isinstance(note, Overrides):
            return note.section
        if isinstance(note, type) and issubclass(note, Section):
            return note
    return None


def explain_errors(
    error: ValidationError,
    section: type[Section],
    place: str = "",
    *,
    elsewhere: Callable[[str, Sequence[str]], str] = lambda name, known: "",
) -> list[str]:
    """Pydantic's errors for a section as messages of this library; an unknown key comes with the nearest known key.

    Args:
        place: prefix of the keys, such as `teacher.train.`.
        elsewhere: a hint where an unknown key belongs, from its name and the known keys of this section.
    """
    problems = []
    for problem in error.errors():
        where = place + ".".join(str(step) for step in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = list(fields_at(section, problem["loc"][:-1]))
            name = str(problem["loc"][-1])
            meant = elsewhere(name, known) or nearest(name, known)
            problems.append(f"unknown key {where!r}.{meant} Known: {', '.join(known)}")
        elif problem["type"] == "missing":
            problems.append(f"the key {where!r} is missing")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            problems.append(f"{where}: {message[0].lower()}{message[1:]}; given {problem['input']!r}")
    return problems


def fields_at(section: type[Section], steps: Sequence[str | int]) -> Mapping[str, Any]:
    """The fields of the section at the path `steps` below another section."""
    for step in steps:
        section = section_in(section.model_fields[str(step)]) or section
    return section.model_fields


def keys_of(section: type[Section], place: str = "") -> Iterator[str]:
    """All keys of a section and its inner sections, joined by dots."""
    for name, field in section.model_fields.items():
        inner = section_in(field)
        if inner is None or any(isinstance(note, Overrides) for note in field_annotations(field)):
            yield place + name
        else:
            yield from keys_of(inner, f"{place}{name}.")


def toml_value(text: str) -> Any:
    """A text parsed as a TOML value; if it is not TOML, the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
