"""Which methods help, and how much of it is the explanation? Few images per class, several seeds, controls; resumable.

The teacher is a trained run's: its data's validation split chooses, and its test split is read by `--test` alone. Seed k draws
subset k of the training images and the student's initialisation k, so that lists are compared in pairs. A list is trained as it
stands in `STUDIES`, with the weights that `--tune` chose: each of its candidates is trained on subset 1000, at least as many
for any other as for `kd`, and the one that is best on validation is taken. What is done is not done again. Teachers' answers
are recorded once and serve all lists of a seed.

    python benchmarks/methods.py few --run runs/teacher --tune
    python benchmarks/methods.py few --run runs/teacher --seeds 3
    python benchmarks/methods.py few --run runs/teacher --seeds 3 --test
"""

from __future__ import annotations

import dataclasses
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from rows import Row
from scipy import stats
from tyro.conf import Positional
from variants import interval, stratified

from distilens.core import Model, accompany
from distilens.data.pipeline import Batches
from distilens.data.splits import Data, Split
from distilens.explain import build_explainer
from distilens.foundation.errors import UserError
from distilens.foundation.files import read_json, write_json
from distilens.foundation.fingerprints import key_of
from distilens.measure import predict
from distilens.measure.scores import compare_maps
from distilens.methods import build_methods
from distilens.methods.codebook import make_codebook
from distilens.methods.kd_layer import KDLayer
from distilens.models import build_model
from distilens.models.saved import load_model, save_model
from distilens.runs.run import load_run
from distilens.teachers import CONTROLS, FOLLOW, LiveTeacher, StoredTeacher
from distilens.training.log import Log, NotFinite
from distilens.training.loop import train
from distilens.training.settings import Training
from studies import STUDIES

TUNING = 1000
"""The seed whose subset weights are chosen on: no result is reported for it."""


class Experiment:
    """A study, the teachers that it learns from, and a folder for what was found.

    Args:
        runs: folders of runs with a trained teacher, of the same data.
    """

    def __init__(self, name: str, runs: tuple[Path, ...], out: Path):
        self.study, self.out = STUDIES[name], out / name
        found = [load_run(run) for run in runs]
        self.data = found[0].data
        self.models = [run.model("teacher") for run in found]
        self.live = [LiveTeacher(model) for model in self.models]
        self.teachers = [StoredTeacher(out / "answers" / str(n), teacher) for n, teacher in enumerate(self.live)]
        self.scores: dict[str, dict[str, Any]] = read_json(self.out / "scores.json") or {}
        self.chosen: dict[str, int] = read_json(out / (self.study.tuned or name) / "chosen.json") or {}
        self.said = cache(self.asked)
        self.console = Console()

    def methods(self, name: str) -> tuple[str, ...]:
        """The list of a row, with the weights that were chosen for it."""
        row = self.study.rows[name]
        chosen = self.chosen.get(row.like or name)
        if chosen is None and len(row.methods) > 1:
            raise SystemExit(f"{name}: none of its {len(row.methods)} candidates was chosen: --tune first")
        return row.methods[chosen or 0]

    def teacher(self, row: Row):
        several = row.follow is not None
        alone = self.live[0] if row.live else self.teachers[0]
        teacher = FOLLOW.build(row.follow, self.teachers) if several else alone
        return CONTROLS.build(row.control, teacher) if row.control else teacher

    def tune(self, name: str) -> None:
        """Choose among a row's candidates by validation."""
        row = self.study.rows[name]
        if row.like or self.study.tuned or len(row.methods) < 2:
            return
        found = [self.result(name, methods, TUNING)["validation"] for methods in row.methods]
        self.chosen[name] = int(np.argmax(found))
        self.chosen = (read_json(self.out / "chosen.json") or {}) | self.chosen
        write_json(self.out / "chosen.json", self.chosen)
        tried = ", ".join(f"{methods[-1]} {score:.2f}" for methods, score in zip(row.methods, found, strict=True))
        self.console.print(
            f"{name}: {tried}: taken {row.methods[self.chosen[name]][-1]}",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )

    def key(self, name: str, methods: tuple[str, ...], seed: int) -> str:
        """What a result is found by: all that it depends on."""
        row, study = self.study.rows[name], self.study
        weights = [teacher.identity["weights"] for teacher in self.live[: None if row.follow else 1]]
        how = (study.student, study.shots, self.settings(row))
        return key_of(methods, row.control, row.follow, *how, seed, self.data.fingerprint, weights)

    def settings(self, row: Row) -> dict[str, Any]:
        """How a row is trained."""
        return self.study.settings | row.settings

    def result(self, name: str, methods: tuple[str, ...], seed: int) -> dict[str, Any]:
        """Train a student and score it on validation, unless that is done."""
        row, study, key = self.study.rows[name], self.study, self.key(name, methods, seed)
        if key in self.scores:
            return self.scores[key]
        positions = stratified(self.data.train.labels, study.shots, seed)
        few = dataclasses.replace(self.data.train, index=self.data.train.index[positions])
        watched = dataclasses.replace(self.data.validation, index=self.data.validation.index[: study.watch])
        seen = dataclasses.replace(self.data, train=few, validation=watched)
        settings = Training(**self.settings(row))
        start = time.perf_counter()
        log = Log()
        listed = build_methods(methods)
        for method in listed.values():
            if isinstance(method, KDLayer):
                method.codebook = str(self.codebook(method, seen, seed))
        try:
            student = train(self.begun(seed), listed, seen, settings, teacher=self.teacher(row), log=log, seed=seed)
        except NotFinite as error:  # which counts, as what it leaves
            self.console.print(f"{name}: {error}", style="yellow", highlight=False, markup=False)
            student, listed = self.begun(seed), {}
        seconds = time.perf_counter() - start
        save_model(student, self.out / "students" / key)
        accompany(student, listed.values(), self.live[0])
        found = {
            "row": name,
            "methods": methods,
            "seed": seed,
            "seconds": seconds,
            **self.scored(student, self.data.validation),
        }
        found["validation"] = found.pop("accuracy")
        found["curve"] = [round(100 * row["validation"]["accuracy"], 2) for row in log.rows if "validation" in row]
        found["notes"] = next((row["notes"] for row in reversed(log.rows) if "notes" in row), {})
        self.keep(key, found)
        said = (
            f"{name}, seed {seed}: {found['validation']:.2f} %, agreement {found['agreement']:.2f} %, {seconds:.0f} s"
        )
        self.console.print(said, highlight=False)
        return found

    def begun(self, seed: int) -> Model:
        """A student before it is trained."""
        torch.manual_seed(seed)
        return build_model(self.study.student, self.data.classes, self.data.size)

    def keep(self, key: str, found: dict[str, Any]) -> None:
        """Write a result beside those that another process may have found meanwhile."""
        self.scores = (read_json(self.out / "scores.json") or {}) | {key: found}
        write_json(self.out / "scores.json", self.scores)

    def codebook(self, layer: KDLayer, data: Data, seed: int) -> Path:
        """The codebook of a KD layer, made from the images that the student sees."""
        made_of = (self.live[0].identity["weights"], data.train.index.tolist())
        path = self.out / "codebooks" / f"{key_of(layer.asked, seed, *made_of)}.safetensors"
        if not path.is_file():
            make_codebook(self.live[0], data, **layer.asked).save(path)
        return path

    def scored(self, student: Model, split: Split) -> dict[str, float]:
        """Accuracy, agreement with the first teacher and, where the evidence is known, Grad-CAM's share on it, in percent."""
        ours, theirs = predict(student, Batches(split, 500)).argmax(1), self.said(split is self.data.test)
        labels = torch.from_numpy(split.labels)
        if split.rows.masks is not None:
            some = dataclasses.replace(split, index=split.index[:500])
            maps = compare_maps(
                {"student": student}, some, torch.arange(len(some)), build_explainer("gradcam"), ours[:500]
            )
            inside = {"energy": 100 * maps["student"]["energy_in_mask"]}
        else:
            inside = {}
        return inside | {
            "accuracy": 100 * (ours == labels).float().mean().item(),
            "agreement": 100 * (ours == theirs).float().mean().item(),
        }

    def asked(self, test: bool) -> torch.Tensor:
        """The first teacher's classes for validation or test."""
        return predict(self.models[0], Batches(self.data.test if test else self.data.validation, 500)).argmax(1)

    def student(self, name: str, seed: int) -> Model:
        """The student that a row has trained."""
        found = self.result(name, self.methods(name), seed)
        key = next(key for key, value in self.scores.items() if value is found)
        student = load_model(self.out / "students" / key)
        accompany(student, build_methods(found["methods"]).values(), self.live[0])
        return student

    def test(self, name: str, seed: int) -> dict[str, float]:
        """A trained student's scores on the test split."""
        found = self.result(name, self.methods(name), seed)
        if "test" not in found:
            found["test"] = self.scored(self.student(name, seed), self.data.test)
            self.keep(next(key for key, value in self.scores.items() if value is found), found)
        return found["test"]

    def table(self, names: list[str], seeds: range, *, test: bool, against: str) -> None:
        """A row each: mean ± half of the 95 % interval over seeds, the paired difference to one of them, and its p by Holm."""
        split = "test" if test else "validation"
        columns = (
            split,
            f"against {against}",
            "p",
            "agreement",
            "area under the curve",
            "s a training",
            "on the evidence",
        )
        table = Table("methods", *columns, box=None, pad_edge=False, header_style="bold")
        found = {name: [self.result(name, self.methods(name), seed) for seed in seeds] for name in names}
        read = {name: [self.test(name, seed) for seed in seeds] if test else found[name] for name in names}
        scores = {name: np.array([one["accuracy" if test else "validation"] for one in read[name]]) for name in names}
        chances = holm({name: chance(values, scores.get(against)) for name, values in scores.items()})
        for name, results in found.items():
            apart = scores[name] - scores.get(against, scores[name])
            alike, area = [one["agreement"] for one in read[name]], [float(np.mean(one["curve"])) for one in results]
            seconds = f"{np.median([one['seconds'] for one in results]):.0f}"
            energy = interval([one["energy"] for one in read[name]]) if "energy" in read[name][0] else ""
            mean, difference, *others = (interval(values) for values in (scores[name], apart, alike, area))
            difference = difference if against in scores else ""
            known = "" if np.isnan(chances[name]) else f"{chances[name]:.4f}"
            table.add_row(name, mean, difference, known, *others, seconds, energy)
        self.console.print(table)


def chance(values: np.ndarray, against: np.ndarray | None) -> float:
    """The p-value of a paired t test, two-sided; NaN where there is nothing to compare."""
    if against is None or len(values) < 2 or np.array_equal(values, against):
        return np.nan
    return float(stats.ttest_rel(values, against).pvalue)


def holm(chances: dict[str, float]) -> dict[str, float]:
    """p-values corrected for how many there are, by Holm's method."""
    known = sorted((p, name) for name, p in chances.items() if not np.isnan(p))
    corrected, largest = dict(chances), 0.0
    for rank, (p, name) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[name] = largest
    return corrected


def main(
    study: Positional[str],
    run: tuple[Path, ...],
    only: tuple[str, ...] = (),
    tune: bool = False,
    seeds: int = 3,
    first: int = 0,
    test: bool = False,
    against: str = "kd",
    out: Path = Path("runs/methods"),
) -> None:
    """Train what is missing of a study and print its table.

    Args:
        study: one of STUDIES.
        run: runs with a trained teacher; the first is the teacher where one is asked.
        only: rows; by default all.
        tune: choose each row's candidate first, and stop there.
        first: the first seed: fresh ones confirm what others chose.
        test: read the test split, of the chosen candidates.
        against: the row that others are compared with.
    """
    experiment = Experiment(study, run, out)
    names = list(only) or list(experiment.study.rows)
    if tune:
        for name in names:
            experiment.tune(name)
        return
    counted = range(first, first + seeds)
    for seed in counted:
        for name in list(names):
            try:
                experiment.result(name, experiment.methods(name), seed)
            except UserError as error:  # this pair of models cannot do it
                experiment.console.print(f"{name}: left out: {error}", style="yellow", highlight=False, markup=False)
                names.remove(name)
    experiment.table(names, counted, test=test, against=against)


if __name__ == "__main__":
    tyro.cli(main)
