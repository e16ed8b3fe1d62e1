"""What was distilled: two models or more compared, level by level, in numbers and in pictures.

models, images ──► features at each level ──► FSS, RS, differences ──┐
               └─► UniCAM of each pair ──► stable? true? where? ─────┴─► table, page, files
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from rich.console import Console

from distilens.comparing import Comparing, States
from distilens.errors import UserError
from distilens.files import write_arrays, write_json, write_text
from distilens.progress import Work
from distilens.recipe import ComparePart
from distilens.recipe_file import toml_value
from distilens.recipe_problems import explain_errors, part_problems
from distilens.report import transfer_section
from distilens.specs import safe
from distilens.subject import built_model, found_data, run_folder


# eq=False: arrays have no one truth value
@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Scores and pictures of what some models know.

    Attributes:
        scores: plain data: what `transfer.json` holds.
        maps: by level, the arrays of its pictures.
    """

    scores: Mapping[str, Any]
    maps: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Comparison({', '.join(self.scores['models'])}; {len(self.scores['levels'])} levels, n = {self.scores['n']})"

    def _repr_html_(self) -> str:
        return transfer_section.notebook(self.scores, self.maps)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows for a terminal: a score a row, a level a column."""
        return transfer_section.table(self.scores)

    def findings(self) -> list[str]:
        """What it comes to, in words."""
        return transfer_section.findings(self.scores)

    def save(self, folder: str | Path, *, page: bool = True) -> Path:
        """Write `transfer.json`, `transfer/<level>.npz` and, with `page`, `index.html`; each whole or not at all.

        Raises:
            UserError: the folder may not be written, or the disk is full.
        """
        folder = Path(folder)
        names = set()
        for level, arrays in self.maps.items():
            names.add(f"{safe(level)}.npz")
            write_arrays(folder / "transfer" / f"{safe(level)}.npz", dict(arrays))
        for path in (folder / "transfer").glob("*.npz"):
            if path.name not in names:
                path.unlink()  # of a level that is no longer compared
        write_json(folder / "transfer.json", dict(self.scores))
        if page:
            write_text(folder / "index.html", transfer_section.page(folder))
        return folder / ("index.html" if page else "transfer.json")


def compare(
    models: Mapping[str, Any],
    data: Any = None,
    settings: ComparePart | Mapping[str, Any] | None = None,
    *,
    grown: Mapping[str, States] | None = None,
    console: Console | None = None,
) -> Comparison:
    """Compare two models or more by what their features say of each other and of the task, on the test split.

    Args:
        models: by name; those called `teacher`, `base` (the student's network, trained without the teacher) and `student` are
            a run's, and what they do not share has a name. Models, modules, notations or folders, of any architectures.
        data: a notation, `Data`, or what `as_data` takes; by default that of the first model that is a run's.
        settings: what a recipe's `[compare]` says, as a dict: `{"taps": ["layer1", "last"], "samples": 500}`.
        grown: by name, states of the model by epoch, to show how the scores grew.
        console: where progress goes; None is silent.

    Raises:
        UserError: whatever is wrong with what was given.

    Example:
        >>> import distilens
        >>> data = distilens.load("shapes:limit=64")
        >>> models = {name: distilens.build_model("resnet8", data.classes, data.size) for name in ("base", "student")}
        >>> how = {"samples": 32, "reference": 16, "images": 2, "measured": 4, "sets": 1}
        >>> found = distilens.compare(models, data, how)
        >>> print(*(level["name"] for level in found.scores["levels"]))
        layer1 layer2 layer3 logits
    """
    if len(models) < 2:
        raise UserError(f"two models or more are compared; given {', '.join(models) or 'none'}")
    how = settings if isinstance(settings, ComparePart) else compare_part(settings or {})
    folders = {name: run_folder(model) for name, model in models.items()}
    found = found_data(data, next((folder for folder in folders.values() if folder is not None), None))
    built, remarks = {}, []
    for name, model in models.items():
        built[name], said = built_model(model, folders[name], found)
        remarks += said
    with Work(console, "compare") as work:
        return Comparison(*Comparing(built, found, how, work, tuple(remarks)).all(grown or {}))


def compare_part(given: Mapping[str, Any]) -> ComparePart:
    """Settings from a dict.

    Raises:
        UserError: all that is wrong with them.
    """
    problems = part_problems({"compare": given})
    try:
        part = ComparePart(**given)
        if not problems:
            return part
    except ValidationError as error:
        problems += explain_errors(error, ComparePart, "compare.")
    raise UserError("; ".join(problems))


def settings_of(changes: Sequence[str]) -> dict[str, Any]:
    """`key=value` texts as a dict.

    Raises:
        UserError: one that is none.
    """
    found = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise UserError(f"--set takes key=value; given {change!r}")
        found[key.strip().removeprefix("compare.")] = toml_value(value)
    return found


def models_named(given: Sequence[str]) -> dict[str, str]:
    """`name=model` texts as a dict.

    Raises:
        UserError: one without a name, or two of one name.
    """
    found: dict[str, str] = {}
    for text in given:
        name, equals, model = text.partition("=")
        if not equals or not re.fullmatch(r"[\w-]+", name) or not model:
            raise UserError(f"--models takes name=model, such as student=run:runs/demo,part=student; given {text!r}")
        if name in found:
            raise UserError(f"two models are called {name!r}")
        found[name] = model
    return found
