"""What was distilled: two models or more compared, level by level, in numbers and in pictures.

models, images ──► features at each level ──► FSS, RS, differences ──┐
               └─► UniCAM of each pair ──► stable? true? where? ─────┴─► table, page, files
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from pydantic import ValidationError
from rich.console import Console
from torch import Tensor

from distilens import __version__, draws
from distilens.core import Model
from distilens.data import Data, Split
from distilens.data.batches import Batches
from distilens.embeddings import class_embeddings
from distilens.errors import UserError
from distilens.explain.side_by_side import choose
from distilens.files import write_arrays, write_json, write_text
from distilens.measure import predict
from distilens.measure.distance_correlation import FEWEST, Distances
from distilens.measure.levels import (
    Level,
    chosen,
    features_at,
    level_scores,
    levels_of,
    pairs_of,
    pictured,
)
from distilens.measure.likeness import mean_interval
from distilens.measure.pair_maps import (
    Reference,
    pair_maps,
    pixels_of,
    put_to_test,
    reference_positions,
    reference_set,
    sanity,
    seen_at,
    stability,
)
from distilens.measure.scores import EVALUATION_BATCH
from distilens.progress import Work
from distilens.recipe import ComparePart
from distilens.recipe_file import explain_errors, part_problems, toml_value
from distilens.report import transfer_section
from distilens.specs import safe
from distilens.subject import built_model, fingerprint_of, found_data, run_folder

KIND = "distilens transfer 1"
GROWN = 512
"""Images that each kept state of a model is scored on."""
TESTS = 40
"""Forwards of an image that is put to the test: two insertions of 20 steps."""
FIRST_FORWARD = 16
"""Images that the time of a forward is measured on."""


@runtime_checkable
class States(Sized, Iterable[tuple[int, Model]], Protocol):
    """States of a model in the course of training, by epoch: a list of pairs, or what reads them one by one."""


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
    models: Mapping[str, Model | str],
    data: Data | str | None = None,
    settings: ComparePart | Mapping[str, Any] | None = None,
    *,
    grown: Mapping[str, States] | None = None,
    console: Console | None = None,
) -> Comparison:
    """Compare two models or more by what their features say of each other and of the task, on the test split.

    Args:
        models: by name; those called `teacher`, `base` (the student's network, trained without the teacher) and `student` are
            a run's, and what they do not share has a name. Models, notations or folders, of any architectures.
        data: a notation or `Data`; by default that of the first model that is a run's.
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
        >>> [level["name"] for level in found.scores["levels"]]
        ['layer1', 'layer2', 'layer3', 'logits']
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
        return Comparing(built, found, how, work, tuple(remarks)).all(grown or {})


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


class Comparing:
    """The steps of one comparison."""

    def __init__(
        self, models: Mapping[str, Model], data: Data, how: ComparePart, work: Work, remarks: tuple[str, ...] = ()
    ):
        self.models, self.data, self.how, self.work, self.remarks = models, data, how, work, remarks
        self.levels = levels_of(models, how.taps)
        self.embeddings = class_embeddings(how.embeddings, data)
        self.some = chosen(data.test, how.samples)
        self.index = torch.from_numpy(self.some.index)
        if len(self.some) < FEWEST:
            raise UserError(f"{len(self.some)} images of {data.name} can be compared on: it takes {FEWEST} at least")
        self.task = Distances(self.task_of(torch.from_numpy(self.some.labels)), self.index)
        self.pairs = pictured(models)
        self.pace = {name: self.seconds(model) for name, model in models.items()}

    def task_of(self, labels: Tensor) -> Tensor:
        return self.embeddings[labels]

    def seconds(self, model: Model) -> float:
        """Of a forward, an image."""
        batch = Batches(self.some, FIRST_FORWARD, device=model.device)
        self.work.say("first images")
        predict(model, [next(iter(batch))])
        start = time.perf_counter()
        predict(model, [next(iter(batch))])
        return (time.perf_counter() - start) / batch.size

    def all(self, grown: Mapping[str, States]) -> Comparison:
        how, grids = self.how, [level for level in self.levels if level.has_grid]
        self.plan(grids, sum(map(len, grown.values())))
        rows = {}
        for name, model in self.models.items():
            self.work.begin(f"features of {name}")
            rows[name] = self.features(name, model, self.some)
        scores = [
            {"name": level.name, "taps": dict(level.taps), **self.scores(level, rows, self.task)}
            for level in self.levels
        ]
        pictures, arrays = self.pictures(grids) if grids else ({}, {})
        about = {
            "kind": KIND,
            "distilens": __version__,
            "models": {
                name: {"model": model.name, "weights": fingerprint_of(model)} for name, model in self.models.items()
            },
            "data": self.data.name,
            "classes": list(self.data.classes),
            "split": "test",
            "n": len(self.some),
            "settings": how.model_dump(mode="json"),
            "remarks": list(self.remarks),
            "levels": scores,
            "maps": pictures,
            "growth": self.growth(grown),
        }
        return Comparison(about, arrays)

    def plan(self, grids: Sequence[Level], states: int) -> None:
        """What there is to be done, by an estimate of the seconds it takes."""
        m, how = len(self.models), self.how
        self.each = 2.5e-7 * len(self.some) ** 2  # of a statistic
        costs = {f"features of {name}": pace * len(self.some) for name, pace in self.pace.items()}
        count = 2 * m + len(pairs_of(self.models)) * 3 // 2 + 1
        costs |= {f"scores {level.name}": self.each * count for level in self.levels}
        explained = len(grids) * (how.images + how.measured)
        costs["maps"] = bool(grids) * ((1 + how.sets) * how.reference + explained) * sum(self.pace.values())
        costs["tests"] = bool(grids) * sum(TESTS * how.measured * self.pace[pair.of] for pair in self.pairs)
        costs["growth"] = states * min(GROWN, len(self.some)) * max(self.pace.values())
        self.work.plan(costs)

    def features(self, name: str, model: Model, split: Split) -> dict[str, Tensor]:
        """The features of some images at all levels, by tap."""
        batches = Batches(split, EVALUATION_BATCH if not self.how.explained else 64, device=model.device)
        taps = list(dict.fromkeys(level.taps[name] for level in self.levels))
        return features_at(
            model,
            batches,
            taps,
            self.how.features,
            explained=self.how.explained,
            done=self.work.heard(f"features of {name}", self.pace[name]),
        )

    def scores(self, level: Level, rows: Mapping[str, Mapping[str, Tensor]], task: Distances) -> dict[str, Any]:
        self.work.begin(f"scores at {level.name}")
        return level_scores(
            {name: rows[name][level.taps[name]] for name in self.models},
            task,
            index=self.index,
            full=self.how.full,
            biased=self.how.biased,
            permutations=self.how.permutations,
            done=self.work.heard(f"scores at {level.name}", self.each),
        )

    def pictures(self, grids: Sequence[Level]) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
        """The maps of all pairs at all levels with a grid: for the page, and measured."""
        test, how = self.data.test, self.how
        self.work.begin("reference sets")
        drawn = [reference_positions(test, how.reference, seed) for seed in range(1 + how.sets)]
        sets = [
            reference_set(
                self.models,
                grids,
                test,
                self.task_of,
                positions,
                features=how.features,
                done=self.heard("reference sets"),
            )
            for positions in drawn
        ]
        labelled = torch.from_numpy(np.flatnonzero(test.labels >= 0))
        order = torch.randperm(len(labelled), generator=draws.generator("compared", 0))
        measured = labelled[order[: how.measured]]
        logits = self.answers(labelled)
        shown = labelled[choose(logits, how.images)]
        arrays, found = {}, {}
        for level in grids:
            self.work.begin(f"maps at {level.name}")
            arrays[level.name] = self.drawn(level, sets[0], shown)
            found[level.name] = self.measured(level, sets, measured, last=level is grids[-1])
        reference = {
            "n": len(drawn[0]),
            "index": test.index[drawn[0]].tolist(),
            "sets": how.sets,
            "measured": len(measured),
        }
        return {"reference": reference, "levels": found}, arrays

    def answers(self, positions: Tensor) -> dict[str, Tensor]:
        """The logits of the models that answer for the data's classes, of all images; of all models where none does."""
        test = dataclasses.replace(self.data.test, index=self.data.test.index[positions.numpy()])
        found = {
            name: predict(model, Batches(test, EVALUATION_BATCH, device=model.device))
            for name, model in self.models.items()
        }
        return {name: values for name, values in found.items() if self.answers_for_data(name)} or found

    def answers_for_data(self, name: str) -> bool:
        return len(self.models[name].classes) == len(self.data.classes)

    def heard(self, label: str) -> Callable[[str, int], object]:
        """Counts a forward of so many images by a model."""
        each = {name: self.work.heard(label, pace) for name, pace in self.pace.items()}
        return lambda name, count: each[name](count)

    def drawn(self, level: Level, reference: Reference, positions: Tensor) -> dict[str, np.ndarray]:
        """The arrays of the pictures at one level: images, labels, masks, and a map for each pair."""
        batch = pixels_of(self.data.test, positions)
        seen = seen_at(self.models, level, batch.images, done=self.heard(f"maps at {level.name}"))
        task, among = self.task_of(batch.labels), reference.among(positions)
        arrays = {
            "index": batch.index.numpy(),
            "images": (batch.images * 255).round().byte().permute(0, 2, 3, 1).numpy(),
            "labels": batch.labels.numpy(),
            "signed": np.array(False),
            "roles": np.array([pair.called for pair in self.pairs]),
        }
        if batch.mask is not None:
            arrays["masks"] = (batch.mask * 255).round().byte().numpy()
        for pair in self.pairs:
            maps = pair_maps(pair, level, reference, seen, task, among, features=self.how.features)
            arrays[f"maps_{pair.called}"] = maps.numpy()
            if self.answers_for_data(pair.of):
                model = self.models[pair.of]
                with torch.no_grad():
                    confidence, prediction = model.logits(batch.images.to(model.device)).float().softmax(1).max(1)
                arrays[f"prediction_{pair.called}"] = prediction.cpu().numpy()
                arrays[f"confidence_{pair.called}"] = confidence.cpu().numpy()
        return arrays

    def measured(self, level: Level, sets: Sequence[Reference], positions: Tensor, *, last: bool) -> dict[str, Any]:
        """Of the maps of each pair: how stable they are and, at the last level, whether they are true and where they lie."""
        batch = pixels_of(self.data.test, positions)
        seen = seen_at(self.models, level, batch.images, done=self.heard(f"maps at {level.name}"))
        task, features = self.task_of(batch.labels), self.how.features
        found: dict[str, Any] = {}
        energies: dict[str, Tensor] = {}
        for pair in self.pairs:
            maps, *others = (
                pair_maps(pair, level, each, seen, task, each.among(positions), features=features) for each in sets
            )
            entry = {"of": pair.of, "given": pair.given, "stability": stability(maps, others)}
            if last:
                model, among = self.models[pair.of], sets[0].among(positions)
                heard = self.work.heard(f"tests at {level.name}: {pair.called}", TESTS * self.pace[pair.of])
                means, values = put_to_test(model, batch, maps, done=heard)
                nothing = (sets[0], self.data.test, batch.images, seen, task, among, maps)
                entry |= means | sanity(pair, model, level, *nothing, features=features)
                if "energy_in_mask" in values:
                    energies[pair.called] = values["energy_in_mask"]
            found[pair.called] = entry
        if {"distilled", "residual"} <= set(energies):
            found["distilled"]["energy_above_residual"] = mean_interval(energies["distilled"] - energies["residual"])
        return found

    def growth(self, grown: Mapping[str, States]) -> dict[str, Any]:
        """RS of each kept state, and FSS to the teacher, at the last level that has a grid, on a few of the images."""
        level = next((level for level in reversed(self.levels) if level.has_grid), self.levels[-1])
        some = chosen(self.data.test, min(GROWN, self.how.samples))
        index = torch.from_numpy(some.index)
        task = Distances(self.task_of(torch.from_numpy(some.labels)), index)
        found: dict[str, list[dict[str, Any]]] = {}
        teacher: dict[str, Tensor] = {}
        for name, states in grown.items():
            if len(states):
                self.work.begin(f"growth of {name}")
                if "teacher" in self.models and name != "teacher" and not teacher:
                    rows = self.features("teacher", self.models["teacher"], some)
                    teacher = {"teacher": rows[level.taps["teacher"]]}
            for epoch, model in states:
                rows = self.features(name, model.to(self.models[name].device), some)[level.taps[name]]
                scores = level_scores({**teacher, name: rows}, task, index=index, biased=self.how.biased)
                row = {"epoch": epoch, "rs": next(one for one in scores["rs"] if one["of"] == name)}
                found.setdefault(name, []).append(row | ({"fss": scores["fss"][0]} if scores["fss"] else {}))
        return {"level": level.name, "n": len(some), "models": found} if found else {}


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
