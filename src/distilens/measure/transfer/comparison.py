"""`compare`: two or more models compared level by level, in numbers and in pictures.

models, images ──► features at each level ──► FSS, RS, differences ──┐
               └─► UniCAM per pair ─────► stable? true? where? ──────┴─► table, page, files
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from distilens.data.splits import Data
from distilens.foundation.errors import UserError
from distilens.foundation.files import write_arrays, write_json, write_text
from distilens.foundation.notation import safe
from distilens.foundation.progress import Work
from distilens.measure.maps.images import built_model, find_data, run_folder
from distilens.measure.transfer.settings import CompareSettings, compare_settings
from distilens.measure.transfer.steps import Comparing, States
from distilens.report import transfer_section
from distilens.tasks import Classification


# eq=False: comparing arrays gives no single truth value
@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """The scores and pictures of compared models.

    Attributes:
        scores: the content of `transfer.json`, as plain data.
        maps: by level, the arrays of its pictures.
    """

    scores: Mapping[str, Any]
    maps: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Comparison({', '.join(self.scores['models'])}; {len(self.scores['levels'])} levels, n = {self.scores['n']})"

    def _repr_html_(self) -> str:
        return transfer_section.notebook(self.scores, self.maps)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows for a terminal: one score per row, one level per column."""
        return transfer_section.table(self.scores)

    def findings(self) -> list[str]:
        """The main results, as sentences."""
        return transfer_section.findings(self.scores)

    def save(self, folder: str | Path, *, page: bool = True) -> Path:
        """Write `transfer.json`, `transfer/<level>.npz` and, with `page`, `index.html`, each file atomically.

        Raises:
            UserError: there is no permission to write, or the disk is full.
        """
        folder = Path(folder)
        names = set()
        for level, arrays in self.maps.items():
            names.add(f"{safe(level)}.npz")
            write_arrays(folder / "transfer" / f"{safe(level)}.npz", dict(arrays))
        for path in (folder / "transfer").glob("*.npz"):
            if path.name not in names:
                path.unlink()  # the level is no longer compared
        write_json(folder / "transfer.json", dict(self.scores))
        if page:
            write_text(folder / "index.html", transfer_section.page(folder))
        return folder / ("index.html" if page else "transfer.json")


def compare(
    models: Mapping[str, Any],
    data: Any = None,
    settings: CompareSettings | Mapping[str, Any] | None = None,
    *,
    grown: Mapping[str, States] | None = None,
    console: Console | None = None,
) -> Comparison:
    """Compare two or more models: how much their features share with each other and with the task, on the test split.

    Args:
        models: by name: models, modules, notations or folders, of any architecture. With the names `teacher`, `base` (the
            student's network, trained without the teacher) and `student`, differences are labelled distilled, residual, missed.
        data: a notation, `Data`, or what `as_data` takes; by default the data of the first model from a run.
        settings: the settings of a recipe's `[compare]`, as a dict: `{"taps": ["layer1", "last"], "samples": 500}`.
        grown: by name, states of the model by epoch, to show how the scores changed in training.
        console: the console for progress; None is silent.

    Raises:
        UserError: an argument is not valid.

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
        raise UserError(f"a comparison needs two or more models; given {', '.join(models) or 'none'}")
    how = settings if isinstance(settings, CompareSettings) else compare_settings(settings or {})
    folders = {name: run_folder(model) for name, model in models.items()}
    loaded = find_data(data, next((folder for folder in folders.values() if folder is not None), None))
    check_comparable(loaded)
    built, remarks = {}, []
    for name, model in models.items():
        built[name], own = built_model(model, folders[name], loaded)
        remarks += own
    with Work(console, "compare") as work:
        return Comparison(*Comparing(built, loaded, how, work, tuple(remarks)).all(grown or {}))


def check_comparable(data: Data) -> None:
    """Raise a `UserError` if the data have no classes: RS and the residual maps are about these."""
    if not isinstance(data.task, Classification):
        answers = ", with a class per place" if data.task.dense else ""
        raise UserError(
            f"compare is about one class per image: FSS, RS and UniCAM group the images by it. But the task of {data.name} is "
            f"{data.task.name}{answers}"
        )


def models_named(given: Sequence[str]) -> dict[str, str]:
    """`name=model` texts as a dict.

    Raises:
        UserError: a text without a name, or two with the same name.
    """
    named: dict[str, str] = {}
    for text in given:
        name, equals, model = text.partition("=")
        if not equals or not re.fullmatch(r"[\w-]+", name) or not model:
            raise UserError(f"--models takes name=model, such as student=run:runs/demo,part=student; given {text!r}")
        if name in named:
            raise UserError(f"two models are called {name!r}")
        named[name] = model
    return named
