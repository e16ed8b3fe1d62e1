"""One notation for every part: `name:key=value,key=value`.

The same text names a part on the command line, in a recipe, in a sweep, in the log and in the report:
`kd:temperature=4,weight=0.9`, `timm:mobilenetv2_100,pretrained=true`, `parquet:path=data/cifar10`. Put a part inside a part, a
list, or a value with a comma in brackets: `map_match:explainer=[ig:steps=32]`, `milestones=[30,60]`.

A `Registry` maps names to constructors, which are imported at their first use. It reads a constructor's signature as follows,
and checks options against the annotations:

* positional-only: the *argument* of an adapter, the text after the first colon (`timm:NAME`);
* positional: arguments that the library itself passes (for example, the number of classes of a model);
* keyword-only: the part's *options*; with `**options` the constructor takes more, and checks them itself.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import accumulate
from typing import Any

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from distilens.foundation.errors import UserError, nearest

OPTION = re.compile(r"^\s*([A-Za-z_]\w*)\s*=(.*)$", re.DOTALL)


@dataclass(frozen=True)
class Spec:
    """A part by name, before it is built: `Spec.parse("kd:temperature=4")`."""

    name: str
    argument: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, part: str | Mapping[str, Any] | Spec) -> Spec:
        """Read the notation, or the TOML table `{name = "kd", temperature = 4}`.

        Raises:
            UserError: brackets that do not match, an option without a name, a table without `name`.
        """
        if isinstance(part, Spec):
            return part
        if isinstance(part, Mapping):
            options = dict(part)
            if not isinstance(options.get("name"), str):
                raise UserError(f'a part as a table needs a name: {{name = "...", ...}}; given {dict(part)}')
            named = cls.parse(options.pop("name"))
            return named.replaced(**options)
        name, colon, rest = unbracket(part).partition(":")
        if not name:
            raise UserError(f"a part needs a name before its colon; given {part!r}")
        argument, options = None, {}
        for position, item in enumerate(split(rest, whole=part) if colon else []):
            option = OPTION.match(item)
            if option:
                options[option[1]] = unbracket(option[2])
            elif position == 0:
                argument = unbracket(item)
            else:
                raise UserError(f"{item!r} in {part!r} is not key=value. Put a value with commas in [brackets]")
        return cls(name, argument, options)

    def __str__(self) -> str:
        items = [bracket(self.argument)] if self.argument is not None else []
        items += [f"{key}={bracket(write(value))}" for key, value in self.options.items()]
        return f"{self.name}:{','.join(items)}" if items else self.name

    def replaced(self, **options: Any) -> Spec:
        """The same part with some options replaced; text values may be in brackets, as in the notation."""
        given = {key: unbracket(value) if isinstance(value, str) else value for key, value in options.items()}
        return Spec(self.name, self.argument, {**self.options, **given})


def split(text: str, *, whole: str) -> list[str]:
    """Split at the commas outside brackets."""
    items, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character == "[") - (character == "]")
        if depth < 0:
            break
        if character == "," and depth == 0:
            items.append(text[start:position].strip())
            start = position + 1
    if depth:
        raise UserError(f"the brackets in {whole!r} do not match")
    return [item for item in [*items, text[start:].strip()] if item]


def unbracket(text: str) -> str:
    """Remove one pair of brackets around the whole text; `[a],[b]` has no such pair."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return text
    depths = list(accumulate((character == "[") - (character == "]") for character in text))
    return text[1:-1] if 0 not in depths[:-1] else text


def bracket(text: str) -> str:
    return f"[{text}]" if re.search(r"[,=\[\]]", text) else text


def write(value: Any) -> str:
    """A value as the notation writes it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, Mapping):
        return str(Spec.parse(value))
    if isinstance(value, list | tuple):
        return ",".join(bracket(write(item)) for item in value)
    return str(value)


def safe(text: str) -> str:
    """A text as a file name: `ig:steps=64,baseline=blur` becomes `ig-steps-64-baseline-blur`."""
    return re.sub(r"[^\w+.]+", "-", text).strip("-.") or "model"


@dataclass(frozen=True)
class Entry:
    """The source of a part: `module:attribute`, and the options that its name fixes."""

    target: str
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def constructor(self) -> Callable[..., Any]:
        module, _, attribute = self.target.partition(":")
        return getattr(importlib.import_module(module), attribute)


class Registry:
    """The parts of one kind, by name, and the one place where notation becomes an object.

    Args:
        kind: what the parts are called in messages, such as `method`.
        entries: `name -> "module:attribute"` or `(target, fixed options)`.
        hint: extra text of the error for an unknown name, before the nearest known name; may be empty.
        common: a function whose keyword-only parameters are options of every part of this kind. A class attribute of the same
            name gives that part's default.
    """

    def __init__(
        self,
        kind: str,
        entries: Mapping[str, str | tuple[str, Mapping[str, Any]]],
        common: Callable[..., Any] | None = None,
        hint: Callable[[str], str] = lambda name: "",
    ):
        self.kind, self.hint = kind, hint
        self.entries = {
            name: Entry(entry) if isinstance(entry, str) else Entry(*entry) for name, entry in entries.items()
        }
        self.common = common

    def __iter__(self):
        return iter(self.entries)

    def __repr__(self) -> str:
        return f"Registry({self.kind}: {', '.join(self.entries)})"

    def _repr_html_(self) -> str:
        from distilens.foundation.notebook import table

        return table([(name, purpose) for name, _, purpose, _ in self.table()], (self.kind, "what it is for"))

    def entry(self, name: str) -> Entry:
        if name not in self.entries:
            known = sorted(self.entries)
            hint = f"{self.hint(name)}{nearest(name, known)}"
            raise UserError(f"unknown {self.kind} {name!r}.{hint} Known: {', '.join(known)}")
        return self.entries[name]

    def options(self, name: str) -> dict[str, inspect.Parameter]:
        """The options of a part: its constructor's keyword-only parameters, then the common options of its kind."""
        entry = self.entry(name)
        common = {
            key: parameter.replace(default=getattr(entry.constructor, key, parameter.default))
            for key, parameter in (keywords(self.common) if self.common else {}).items()
        }
        parameters = {**keywords(entry.constructor), **common}
        return {key.rstrip("_"): value for key, value in parameters.items() if key not in entry.fixed}

    def resolve(self, part: str | Mapping[str, Any] | Spec) -> Spec:
        """The part with every option written out, of the right type; runs record this form.

        Raises:
            UserError: all problems of the part in one message.
        """
        spec = Spec.parse(part)
        known = self.options(spec.name)
        if spec.argument is not None and "path" in known and "path" not in spec.options:  # folder:PATH
            spec = Spec(spec.name, None, {"path": spec.argument, **spec.options})
        takes_any = takes_others(self.entry(spec.name).constructor)
        wants_argument = argument_of(self.entry(spec.name).constructor)
        problems, resolved = [], {}
        if spec.argument is not None and wants_argument is None:
            names = ", ".join(known) or "none"
            problems.append(f"{spec.name!r} takes key=value options only; given {spec.argument!r}. Options: {names}")
        if spec.argument is None and wants_argument is not None and wants_argument.default is inspect.Parameter.empty:
            problems.append(f"{spec.name!r} needs {spec.name}:{wants_argument.name.upper()}")
        for key, value in spec.options.items():
            if key not in known and takes_any:
                resolved[key] = literal(value)
            elif key not in known:
                names = ", ".join(known) or "none"
                problems.append(
                    f"unknown option {key!r} of {self.kind} {spec.name!r}.{nearest(key, list(known))} Options: {names}"
                )
        for key, parameter in known.items():
            if key in spec.options:
                try:
                    resolved[key] = convert(spec.options[key], parameter.annotation)
                except ValueError as error:
                    problems.append(f"option {key!r} of {self.kind} {spec.name!r}: {error}")
            elif parameter.default is inspect.Parameter.empty:
                problems.append(f"{self.kind} {spec.name!r} needs the option {key}=...")
            else:
                resolved[key] = parameter.default
        if problems:
            raise UserError("\n".join(problems))
        return Spec(spec.name, spec.argument, resolved)

    def build(self, part: str | Mapping[str, Any] | Spec, *context: Any) -> Any:
        """The object that the notation names; `context` is passed by position.

        The constructor gets the kind's common options only if its signature has them; otherwise the caller handles them.
        """
        spec = self.resolve(part)
        entry = self.entry(spec.name)
        own = keywords(entry.constructor)
        options = {**entry.fixed}
        for key, value in spec.options.items():
            parameter = key if key in own else f"{key}_"
            if parameter in own:
                options[parameter] = value
            elif key not in self.options(spec.name):
                options[key] = value
        positional = [] if argument_of(entry.constructor) is None else [spec.argument]
        return entry.constructor(*positional, *context, **options)

    def table(self) -> list[tuple[str, str, str, str]]:
        """One row per part: name (with its argument), options with defaults, purpose, source."""
        rows = []
        for name, entry in self.entries.items():
            argument = argument_of(entry.constructor)
            title = f"{name}:{argument.name.upper()}" if argument else name
            options = ", ".join(
                key if parameter.default is inspect.Parameter.empty else f"{key}={write(parameter.default)}"
                for key, parameter in self.options(name).items()
            )
            text = inspect.getdoc(entry.constructor) or ""
            source = re.search(r"^Source: (.*?)(?=\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
            rows.append((title, options, text.split("\n")[0], " ".join(source[1].split()) if source else ""))
        return rows


@cache
def keywords(constructor: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The keyword-only parameters of a callable, with their annotations evaluated."""
    function = constructor.__init__ if inspect.isclass(constructor) else constructor
    hints = typing.get_type_hints(function, include_extras=True)
    return {
        name: parameter.replace(annotation=hints.get(name, Any))
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


@cache
def takes_others(constructor: Callable[..., Any]) -> bool:
    """Whether a constructor takes options that its signature does not name."""
    parameters = inspect.signature(constructor).parameters.values()
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


@cache
def argument_of(constructor: Callable[..., Any]) -> inspect.Parameter | None:
    """The positional-only parameter of an adapter, if any."""
    parameters = inspect.signature(constructor).parameters.values()
    return next((parameter for parameter in parameters if parameter.kind is parameter.POSITIONAL_ONLY), None)


def convert(value: Any, annotation: Any) -> Any:
    """A value from text or TOML, converted to its annotated type; `none` becomes None if None is allowed.

    Raises:
        ValueError: the value does not fit; the message says what was given.
    """
    arguments = typing.get_args(annotation)
    if value in ("none", "None") and types.NoneType in arguments:
        return None
    if isinstance(value, str) and wants_list(annotation):
        items = [unbracket(item) for item in split(value, whole=value)]
        value = items[0] if len(items) == 1 and takes_one(annotation) else items
    if isinstance(value, Mapping):
        value = str(Spec.parse(value))
    if isinstance(value, list | tuple):
        value = [str(Spec.parse(item)) if isinstance(item, Mapping) else item for item in value]
    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False))
    except PydanticSchemaGenerationError:  # a class of this library, given as an object from Python
        return value
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        message = "; ".join(dict.fromkeys(problem["msg"] for problem in error.errors()))
        raise ValueError(f"{message[0].lower()}{message[1:]}; given {value!r}") from None


def literal(value: Any) -> Any:
    """A value from text without an annotation: true, false, none, an integer, a float, or the text itself."""
    if not isinstance(value, str):
        return value
    if value in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[value]
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(value)
    return value


def takes_one(annotation: Any) -> bool:
    """Whether the annotation is a union of a list and another type, such as `size=224` or `size=[224,192]`."""
    members = [member for member in typing.get_args(annotation) if member is not types.NoneType]
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return union and not all(wants_list(member) for member in members)


def wants_list(annotation: Any) -> bool:
    members = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(wants_list(member) for member in members)
    if origin is typing.Annotated:
        return wants_list(members[0])
    return origin in (list, tuple) or annotation in (list, tuple)
