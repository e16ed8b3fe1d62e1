"""Catalogues: the registries read from source files without running them. Wrong names and lists need no import of torch.

A `Catalogue` is a registry whose constructors are stand-ins: functions with the signature and the docstring of the real ones,
made from their source. It resolves notation exactly as the registry does, but it cannot build parts.
"""

from __future__ import annotations
import __future__

import ast
import contextlib
import copy
import importlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from distilens.foundation.kinds import REGISTRIES
from distilens.foundation.notation import Entry, Registry

ROOT = Path(__file__).parents[1]
PACKAGE = "distilens"
QUICK = {"typing", "collections", "pathlib", "math", "re", "functools", "pydantic", "__future__"}
"""Packages that are imported normally, because their import is fast."""
OWN_QUICK = {f"{PACKAGE}.{name}" for name in ("foundation.notation", "foundation.errors", "methods", "models")}


class Written(Entry):
    """An entry whose constructor is read from source instead of imported."""

    @property
    def constructor(self) -> Callable[..., Any]:  # type: ignore[override]
        module, _, attribute = self.target.partition(":")
        return make_stand_in(module, attribute)


class Catalogue(Registry):
    """A registry that reads its parts from their source files."""

    def __init__(self, kind: str, entries: Mapping[str, Any], *others: Any, **options: Any):
        super().__init__(kind, entries, *others, **options)
        self.entries = {name: Written(entry.target, entry.fixed) for name, entry in self.entries.items()}

    @classmethod
    def of(cls, registry: Registry) -> Catalogue:
        """The catalogue of an imported registry, with stand-ins for its constructors."""
        entries = {name: (entry.target, entry.fixed) for name, entry in registry.entries.items()}
        return cls(registry.kind, entries, common=registry.common, hint=registry.hint)

    def build(self, part: Any, *context: Any) -> Any:
        raise TypeError("a catalogue cannot build parts: use the registry")


def registry(kind: str) -> Registry:
    """The registry of a kind, which builds its parts."""
    module, _, name = REGISTRIES[kind].partition(":")
    return getattr(importlib.import_module(f"{PACKAGE}.{module}"), name)


def catalogue(kind: str) -> Catalogue:
    """The catalogue of a kind in `REGISTRIES`."""
    module, _, name = REGISTRIES[kind].partition(":")
    return namespace(f"{PACKAGE}.{module}")[name]


@cache
def parse_module(module: str) -> ast.Module:
    """The syntax of a module of this package."""
    path = ROOT.joinpath(*module.split(".")[1:])
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(source.read_text(encoding="utf-8"))


@cache
def namespace(module: str) -> dict[str, Any]:
    """The names of a module that signatures need: types, constants, registries; without those that need torch."""
    if module in OWN_QUICK:
        return {name: as_catalogue(value) for name, value in vars(importlib.import_module(module)).items()}
    names: dict[str, Any] = {}
    used = used_names(parse_module(module).body)
    for statement in parse_module(module).body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            names.update(resolve_import(statement, used))
        elif is_constant(statement) or (isinstance(statement, ast.FunctionDef) and statement.name in used):
            # a statement that needs a name that was left out is skipped: nobody uses it, or an error names it
            with contextlib.suppress(Exception):
                exec(compile(ast.Module([statement], []), module, "exec", __future__.annotations.compiler_flag), names)
    return names


def is_constant(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None


def used_names(body: list[ast.stmt]) -> set[str]:
    """The names that a module's constants and the options of its functions and classes use."""
    seen: list[ast.AST] = [statement.value for statement in body if is_constant(statement)]  # type: ignore[attr-defined]
    functions = {statement.name: statement for statement in body if isinstance(statement, ast.FunctionDef)}
    methods = [method for statement in body if isinstance(statement, ast.ClassDef) for method in statement.body]
    for function in (*functions.values(), *methods):
        if isinstance(function, ast.FunctionDef):
            seen += [option.annotation for option in function.args.kwonlyargs if option.annotation]
            seen += [default for default in function.args.kw_defaults if default]
    names = {inner.id for node in seen for inner in ast.walk(node) if isinstance(inner, ast.Name)}
    for name in names & set(functions):  # a function that a constant calls or holds
        names |= {inner.id for inner in ast.walk(functions[name]) if isinstance(inner, ast.Name)}
    return names


def as_catalogue(value: Any) -> Any:
    if value is Registry:
        return Catalogue
    return Catalogue.of(value) if isinstance(value, Registry) and not isinstance(value, Catalogue) else value


def resolve_import(statement: ast.Import | ast.ImportFrom, used: set[str]) -> Iterator[tuple[str, Any]]:
    """The used names of an import statement: from quick packages the real objects, from this package its `namespace`."""
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            if alias.name.partition(".")[0] in QUICK:
                yield alias.asname or alias.name.partition(".")[0], importlib.import_module(alias.name)
        return
    module = statement.module or ""
    for alias in statement.names:
        if (alias.asname or alias.name) not in used:
            continue
        if module.partition(".")[0] in QUICK:
            yield alias.asname or alias.name, getattr(importlib.import_module(module), alias.name)
        elif module.startswith(f"{PACKAGE}.") and alias.name in namespace(module):
            yield alias.asname or alias.name, namespace(module)[alias.name]


@cache
def make_stand_in(module: str, attribute: str) -> Callable[..., Any]:
    """A function with the signature and docstring of a function or class, made from its source."""
    if not module.startswith(f"{PACKAGE}."):  # a part from another package
        return getattr(importlib.import_module(module), attribute)
    line = list(lineage(module, attribute))
    home, node = line[0]
    if isinstance(node, ast.ClassDef):
        home, header = next(
            ((place, each) for place, kind in line for each in kind.body if is_constructor(each)),
            (home, ast.parse("def __init__(self): pass").body[0]),
        )
    else:
        header = node
    assert isinstance(header, ast.FunctionDef)
    made = make_function(header, home, method=isinstance(node, ast.ClassDef))
    made.__name__, made.__module__ = attribute, module
    made.__doc__ = next((text for _, each in line if (text := ast.get_docstring(each))), None)
    for _, each in reversed(line):  # a class may set its own defaults for the common options of its kind
        for statement in each.body if isinstance(each, ast.ClassDef) else ():
            if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(statement.value, ast.Constant):
                for target in statement.targets if isinstance(statement, ast.Assign) else [statement.target]:
                    setattr(made, ast.unparse(target), statement.value.value)
    return made


def is_constructor(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.FunctionDef) and statement.name == "__init__"


def lineage(module: str, name: str) -> Iterator[tuple[str, Any]]:
    """A function, or a class and then its bases in this package, each with its module."""
    for statement in parse_module(module).body:
        if isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith(f"{PACKAGE}."):
            for alias in statement.names:
                if (alias.asname or alias.name) == name:
                    yield from lineage(statement.module or "", alias.name)
        elif isinstance(statement, ast.FunctionDef | ast.ClassDef) and statement.name == name:
            yield module, statement
            for base in statement.bases if isinstance(statement, ast.ClassDef) else ():
                if isinstance(base, ast.Name):
                    yield from lineage(module, base.id)


def make_function(node: ast.FunctionDef, module: str, *, method: bool) -> Callable[..., Any]:
    """A function without a body. Options keep their annotations; the arguments that the library passes itself lose them."""
    given = copy.deepcopy(node.args)
    for argument in (*given.posonlyargs, *given.args, given.vararg, given.kwarg):
        if argument is not None:
            argument.annotation = None
    if method:  # self
        (given.posonlyargs or given.args).pop(0)
    header = ast.FunctionDef(name=node.name, args=given, body=[ast.Pass()], decorator_list=[], returns=None)
    tree = ast.fix_missing_locations(ast.Module([header], []))
    names = dict(namespace(module))
    exec(compile(tree, module, "exec", __future__.annotations.compiler_flag), names)
    return names[node.name]
