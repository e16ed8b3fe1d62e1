"""Which methods help, and how much of it is the explanation? Few images a class, several seeds, controls; resumable.

The teacher is a trained run's (its data's validation split chooses, its test split is read by `--test` alone). Seed k draws subset
k of the training images and the student's initialisation k, so that lists are compared in pairs. A list is trained as it stands in
`STUDIES`, with the weights that `--tune` chose: each list with so many candidates is trained on subset 1000, as many for `kd` as for
any other, and the one with the best validation accuracy is taken. What is done is not done again. Teachers' answers are recorded
once and serve all lists of a seed.

    python benchmarks/methods.py few --run runs/teacher --tune
    python benchmarks/methods.py few --run runs/teacher --seeds 3
    python benchmarks/methods.py few --run runs/teacher --seeds 3 --test
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from scipy import stats
from tyro.conf import Positional

from distilens.core import Model
from distilens.data.batches import Batches
from distilens.data.subset import Data, Split
from distilens.measure import predict
from distilens.methods import build_methods
from distilens.models import build_model, load_model, save_model
from distilens.recipe import Training
from distilens.runs import key_of, read_json, write_json
from distilens.stages import load_run
from distilens.teachers import CONTROLS, FOLLOW, LiveTeacher, StoredTeacher
from distilens.train import train

TUNING = 1000
"""The seed whose subset weights are chosen on: no result is reported for it."""


@dataclass(frozen=True)
class Row:
    """A list of methods as it is compared.

    Attributes:
        methods: the candidates of `--tune`; the first where nothing has been tuned.
        control: a wrapper around the teacher, in the notation of CONTROLS.
        follow: how several teachers are made one; None asks the first alone.
        like: the row whose choice of candidate this one takes, as controls do.
    """

    methods: tuple[tuple[str, ...], ...]
    control: str | None = None
    follow: str | None = None
    like: str | None = None


@dataclass(frozen=True)
class Study:
    """Rows, and how they are trained."""

    rows: dict[str, Row]
    student: str = "resnet8"
    shots: int = 50
    settings: dict[str, Any] = field(default_factory=dict)
    watch: int = 64  # validation images seen after each epoch, which choose nothing


def each(*options: str, before: tuple[str, ...] = ()) -> tuple[tuple[str, ...], ...]:
    """Candidates that differ in one method."""
    return tuple((*before, option) for option in options)


CE, KD = "ce:weight=0.1", "kd:temperature=4,weight=0.9"
GUIDED = (CE, KD)
CAT = "map_match:explainer=cam,classes=all,pool=2,distance=at"
FEW = {"epochs": 150, "batch_size": 64, "optimizer": "sgd:lr=0.1,weight_decay=5e-4", "schedule": "one_cycle", "select": "last"}

STUDIES = {
    "few": Study(
        {
            "labels": Row(each("ce", "ce:smoothing=0.1", "ce:smoothing=0.2", "ce:smoothing=0.05")),
            "kd": Row(each(KD, "kd:temperature=2,weight=0.9", "kd:temperature=8,weight=0.9", "kd:temperature=4,weight=3", before=(CE,))),
            "kd standardised": Row(
                each(*(f"kd:temperature={t},weight={w},standardise=true" for t, w in ((2, 9), (2, 3), (4, 3), (4, 9))), before=(CE,))
            ),
            "kd + gradcam": Row(each(*(f"map_match:weight={w}" for w in (5, 1, 2, 20)), before=GUIDED)),
            "kd + gradcam++": Row(each(*(f"map_match:explainer=gradcam++,weight={w}" for w in (5, 1, 2, 20)), before=GUIDED)),
            "kd + attention": Row(each(*(f"at:weight={w}" for w in (1000, 300, 3000, 10000)), before=GUIDED)),
            "kd + class maps": Row(each(*(f"{CAT},weight={w}" for w in (200, 50, 100, 400)), before=GUIDED)),
        },
        settings=FEW,
    ),
}  # fmt: skip


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
        self.teachers = [
            StoredTeacher(out / "answers" / str(number), LiveTeacher(model)) for number, model in enumerate(self.models)
        ]
        self.scores: dict[str, dict[str, Any]] = read_json(self.out / "scores.json") or {}
        self.chosen: dict[str, int] = read_json(self.out / "chosen.json") or {}
        self.console = Console()

    def methods(self, name: str) -> tuple[str, ...]:
        """The list of a row, with the weights that were chosen for it."""
        row = self.study.rows[name]
        return row.methods[self.chosen.get(row.like or name, 0)]

    def teacher(self, row: Row):
        several = row.follow is not None
        teacher = FOLLOW.build(row.follow, self.teachers) if several else self.teachers[0]
        return CONTROLS.build(row.control, teacher) if row.control else teacher

    def tune(self, name: str) -> None:
        """Choose among a row's candidates by validation."""
        row = self.study.rows[name]
        if row.like or len(row.methods) < 2:
            return
        found = [self.result(name, methods, TUNING)["validation"] for methods in row.methods]
        self.chosen[name] = int(np.argmax(found))
        write_json(self.out / "chosen.json", self.chosen)
        tried = ", ".join(f"{methods[-1]} {score:.2f}" for methods, score in zip(row.methods, found, strict=True))
        self.console.print(f"{name}: {tried}: taken {row.methods[self.chosen[name]][-1]}", highlight=False, soft_wrap=True)

    def result(self, name: str, methods: tuple[str, ...], seed: int) -> dict[str, Any]:
        """Train a student and score it on validation, unless that is done."""
        row, study = self.study.rows[name], self.study
        key = key_of(methods, row.control, row.follow, study.student, study.shots, study.settings, seed, self.data.fingerprint)
        if key in self.scores:
            return self.scores[key]
        positions = stratified(self.data.train.labels, study.shots, seed)
        few = dataclasses.replace(self.data.train, index=self.data.train.index[positions])
        watched = dataclasses.replace(self.data.validation, index=self.data.validation.index[: study.watch])
        seen = dataclasses.replace(self.data, train=few, validation=watched)
        settings = Training(**study.settings)
        torch.manual_seed(seed)
        student = build_model(study.student, self.data.classes, self.data.size)
        start = time.perf_counter()
        student = train(student, build_methods(methods), seen, settings, teacher=self.teacher(row), seed=seed)
        seconds = time.perf_counter() - start
        save_model(student, self.out / "students" / key)
        found = {"row": name, "methods": methods, "seed": seed, "seconds": seconds, **self.scored(student, self.data.validation)}
        found["validation"] = found.pop("accuracy")
        self.scores[key] = found
        write_json(self.out / "scores.json", self.scores)
        said = f"{name}, seed {seed}: {found['validation']:.2f} %, agreement {found['agreement']:.2f} %, {seconds:.0f} s"
        self.console.print(said, highlight=False)
        return found

    def scored(self, student: Model, split: Split) -> dict[str, float]:
        """Accuracy and agreement with the first teacher, in percent."""
        ours, theirs = (predict(model, Batches(split, 500)).argmax(1) for model in (student, self.models[0]))
        labels = torch.from_numpy(split.labels)
        return {"accuracy": 100 * (ours == labels).float().mean().item(), "agreement": 100 * (ours == theirs).float().mean().item()}

    def test(self, name: str, seed: int) -> dict[str, float]:
        """A trained student's scores on the test split."""
        found = self.result(name, self.methods(name), seed)
        if "test" not in found:
            key = next(key for key, value in self.scores.items() if value is found)
            found["test"] = self.scored(load_model(self.out / "students" / key), self.data.test)
            write_json(self.out / "scores.json", self.scores)
        return found["test"]

    def table(self, names: list[str], seeds: int, *, test: bool, against: str) -> None:
        """A row each: mean ± half of the 95 % interval over seeds, and the paired difference to one of them."""
        columns = ("validation", *(("test", "agreement (test)") if test else ("agreement",)), f"against {against}", "s a training")
        table = Table("methods", *columns, box=None, pad_edge=False, header_style="bold")
        score = {
            name: [self.test(name, seed) | {"validation": self.result(name, self.methods(name), seed)["validation"]} if test
                   else {**self.result(name, self.methods(name), seed), "accuracy": self.result(name, self.methods(name), seed)["validation"]}
                   for seed in range(seeds)]
            for name in names
        }  # fmt: skip
        for name in names:
            cells = [interval([one["validation"] for one in score[name]])]
            if test:
                cells.append(interval([one["accuracy"] for one in score[name]]))
            cells.append(interval([one["agreement"] for one in score[name]]))
            base = [one["accuracy"] for one in score.get(against, score[name])]
            cells.append("" if name == against else interval(np.subtract([one["accuracy"] for one in score[name]], base)))
            seconds = [self.result(name, self.methods(name), seed)["seconds"] for seed in range(seeds)]
            table.add_row(name, *cells, f"{np.median(seconds):.0f}")
        self.console.print(table)


def main(
    study: Positional[str],
    run: tuple[Path, ...],
    only: tuple[str, ...] = (),
    tune: bool = False,
    seeds: int = 3,
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
        test: read the test split, of the chosen candidates.
        against: the row that others are compared with.
    """
    experiment = Experiment(study, run, out)
    names = list(only) or list(experiment.study.rows)
    if tune:
        for name in names:
            experiment.tune(name)
        return
    for seed in range(seeds):
        for name in names:
            experiment.result(name, experiment.methods(name), seed)
    experiment.table(names, seeds, test=test, against=against)


def stratified(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """So many positions of every class."""
    chance = np.random.default_rng(seed)
    picked = [chance.permutation(np.flatnonzero(labels == label))[:shots] for label in np.unique(labels[labels >= 0])]
    return np.sort(np.concatenate(picked))


def interval(values: Any) -> str:
    """Mean ± half of the 95 % interval by t."""
    values = np.asarray(values)
    if len(values) < 2 or not values.std():
        return f"{values.mean():.2f}"
    return f"{values.mean():.2f} ± {stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5:.2f}"


if __name__ == "__main__":
    tyro.cli(main)
