"""Which methods help, and how much of it is the explanation? Few images a class, several seeds, controls; resumable.

The teacher is a trained run's: its data's validation split chooses, and its test split is read by `--test` alone. Seed k draws
subset k of the training images and the student's initialisation k, so that lists are compared in pairs. A list is trained as it
stands in `STUDIES`, with the weights that `--tune` chose: each of its candidates is trained on subset 1000, as many for `kd` as
for any other, and the one that is best on validation is taken. What is done is not done again. Teachers' answers are recorded
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
from tyro.conf import Positional
from variants import interval, stratified

from distilens.codebook import make_codebook
from distilens.core import Model, accompany
from distilens.data.batches import Batches
from distilens.data.subset import Data, Split
from distilens.explain import build_explainer
from distilens.files import key_of, read_json, write_json
from distilens.measure import predict
from distilens.measure.scores import compare_maps
from distilens.methods import build_methods
from distilens.methods.kd_layer import KDLayer
from distilens.models import build_model, load_model, save_model
from distilens.progress import Log
from distilens.recipe import Training
from distilens.run import load_run
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
    """Rows, and how they are trained.

    Attributes:
        tuned: the study whose choice of candidates this one takes; None has its own.
        watch: how many validation images are seen after each epoch, which choose nothing.
    """

    rows: dict[str, Row]
    tuned: str | None = None
    student: str = "resnet8"
    shots: int = 50
    settings: dict[str, Any] = field(default_factory=dict)
    watch: int = 64


def each(*options: str, before: tuple[str, ...] = ()) -> tuple[tuple[str, ...], ...]:
    """Candidates that differ in one method."""
    return tuple((*before, option) for option in options)


CE, KD = "ce:weight=0.1", "kd:temperature=4,weight=3"
GUIDED = (CE, KD)
STANDARD = "kd:temperature=2,standardise=true"
CLASS_MAPS = "map_match:explainer=cam,classes=all,distance=cosine"
IG = "ig_overlay:explainer=[ig:steps=32,channels=size]"
MUON = "muon:lr=0.08,momentum=0.6,rest_lr=0.1,weight_decay=5e-4"
FEW = {"epochs": 100, "batch_size": 32, "optimizer": MUON, "schedule": "one_cycle:warmup=0.15", "select": "last"}

BEST = "kd + class maps"
CONTROLLED = {
    "maps permuted": "permuted:only=maps",
    "maps mirrored": "misregistered",
    "blobs with the maps' values": "random_maps:kind=blobs",
    "centred maps": "random_maps:kind=centre",
    "constant maps": "random_maps:kind=constant",
    "a random network's maps": "random_maps:kind=network",
}


def controls(row: str, named: str, which: tuple[str, ...] = tuple(CONTROLLED)) -> dict[str, Row]:
    """The same list with maps that say less: what is left of its gain is not the explanation."""
    return {f"{named}, {name}": dataclasses.replace(ROWS[row], control=CONTROLLED[name], like=row) for name in which}


ROWS = {
    "labels": Row(each("ce", "ce:smoothing=0.1", "ce:smoothing=0.2")),
    "kd": Row(each("kd:temperature=4,weight=1", KD, "kd:temperature=4,weight=10", before=(CE,))),
    "kd standardised": Row(each(*(f"{STANDARD},weight={w}" for w in (3, 9, 27)), before=(CE,))),
    "kd + gradcam": Row(each(*(f"map_match:weight={w}" for w in (1, 5, 20)), before=GUIDED)),
    "kd + gradcam++": Row(each(*(f"map_match:explainer=gradcam++,weight={w}" for w in (1, 5, 20)), before=GUIDED)),
    "kd + attention": Row(each(*(f"at:weight={w}" for w in (300, 1000, 3000)), before=GUIDED)),
    BEST: Row(each(*(f"{CLASS_MAPS},pool=4,weight={w}" for w in (10, 25, 60)), before=GUIDED)),
    "kd + class maps + attention": Row(
        each(*(f"at:weight={w}" for w in (300, 1000, 3000)), before=(*GUIDED, f"{CLASS_MAPS},pool=4,weight=25"))
    ),
    "kd + overlay": Row(each(*(f"{IG},p={p}" for p in (0.1, 0.3, 0.6)), before=GUIDED)),
    "labels + overlay": Row(each(*(f"{IG},p={p}" for p in (0.1, 0.3, 0.6)), before=("ce",))),
}

EXPLAINED = (*GUIDED, "map_match:weight=20")

STUDIES = {
    "few": Study(
        ROWS
        | controls(BEST, "class maps")
        | controls("kd + gradcam", "gradcam", ("maps permuted",))
        | controls("kd + attention", "attention", ("maps permuted",))
        | controls(
            "kd + overlay", "overlay", ("maps permuted", "maps mirrored", "blobs with the maps' values", "centred maps")
        ),
        settings=FEW,
    ),
    # paper 0: the map as an input; what is compared is the area under the curve of validation, and the end
    "fusion": Study(
        {
            "kd": ROWS["kd"],
            "null": Row(((*GUIDED, "cam_fusion"),)),
            "null, constant maps": Row(((*GUIDED, "cam_fusion"),), control="random_maps:kind=constant"),
            "null, maps permuted": Row(((*GUIDED, "cam_fusion"),), control="permuted:only=maps"),
            "null, a random network's maps": Row(((*GUIDED, "cam_fusion"),), control="random_maps:kind=network"),
            "null, gate": Row(((*GUIDED, "cam_fusion:fuse=gate"),)),
            "null, film": Row(((*GUIDED, "cam_fusion:fuse=film"),)),
            "self": Row(((*GUIDED, "cam_fusion:deploy=self"),)),
            "teacher, as published": Row(((*GUIDED, "cam_fusion:deploy=teacher"),)),
        },
        tuned="few",
        settings=FEW,
        watch=1000,
    ),
    # paper 1: whom to follow
    "teachers": Study(
        {
            "the first alone": Row((EXPLAINED,)),
            "mean": Row((EXPLAINED,), follow="mean"),
            "random": Row((EXPLAINED,), follow="random"),
            **{
                judge: Row((EXPLAINED,), follow=f"best_explained:judge={judge}")
                for judge in ("confidence", "average_drop", "insertion", "focus", "consensus")
            },
            "insertion, drawn": Row((EXPLAINED,), follow="best_explained:judge=insertion,tau=0.05"),
            "insertion, no gate": Row((EXPLAINED,), follow="best_explained:judge=insertion,gate=false"),
            "insertion, without maps": Row((GUIDED,), follow="best_explained:judge=insertion"),
            "mean, without maps": Row((GUIDED,), follow="mean"),
        },
        settings=FEW,
    ),
    # paper 3: a layer of templates; without supervision (weight=0) it has the same parameters
    "layer": Study(
        {
            "ce": Row((("ce",),)),
            **{f"{k} templates": Row((("ce", f"kd_layer:templates={k}"),)) for k in (64, 256, 1024)},
            **{f"{k} templates, untaught": Row((("ce", f"kd_layer:templates={k},weight=0"),)) for k in (64, 256, 1024)},
            "256 templates, released": Row((("ce", "kd_layer:templates=256,release=true"),)),
            "256 templates and stage 2": Row((("ce", "kd_layer:templates=256", "kd_layer:stage=2,as=second"),)),
            "kd": ROWS["kd"],
            "kd and 256 templates": Row(((*GUIDED, "kd_layer:templates=256"),)),
        },
        tuned="few",
        settings=FEW,
    ),
    # what the background gives away: the test set's does not; recipes/shapes-shortcut.toml
    "shortcut": Study(
        {
            "labels": Row((("ce",),)),
            "kd": ROWS["kd"],
            "kd + gradcam": ROWS["kd + gradcam"],
            "kd + attention": ROWS["kd + attention"],
            BEST: ROWS[BEST],
            **controls(BEST, "class maps", ("maps permuted", "a random network's maps")),
        },
        shots=150,
        settings={**FEW, "epochs": 50},
    ),
    # the settings of recipes/shapes-shortcut.toml, with the weights that CIFAR-10's validation chose
    "shortcut, shorter": Study(
        {
            "ce": Row((("ce",),)),
            **{name: ROWS[name] for name in ("kd", "kd + gradcam", "kd + attention", BEST)},
            **controls(BEST, "class maps", ("maps permuted", "a random network's maps")),
        },
        tuned="few",
        shots=150,
        settings={**FEW, "epochs": 30},
    ),
    # the settings of recipes/few-shot-class-maps.toml
    "longer": Study(
        {name: ROWS[name] for name in ("kd", BEST)} | controls(BEST, "class maps", ("maps permuted",)),
        tuned="few",
        settings={**FEW, "epochs": 150},
    ),
    "two hundred": Study(
        {name: ROWS[name] for name in ("labels", "kd", "kd standardised", "kd + gradcam", "kd + attention", BEST)},
        tuned="few",
        shots=200,
        settings={**FEW, "epochs": 30},
    ),
}


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
        if row.like or self.study.tuned or len(row.methods) < 2:
            return
        found = [self.result(name, methods, TUNING)["validation"] for methods in row.methods]
        self.chosen[name] = int(np.argmax(found))
        write_json(self.out / "chosen.json", self.chosen)
        tried = ", ".join(f"{methods[-1]} {score:.2f}" for methods, score in zip(row.methods, found, strict=True))
        self.console.print(
            f"{name}: {tried}: taken {row.methods[self.chosen[name]][-1]}",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )

    def result(self, name: str, methods: tuple[str, ...], seed: int) -> dict[str, Any]:
        """Train a student and score it on validation, unless that is done."""
        row, study = self.study.rows[name], self.study
        weights = [teacher.identity["weights"] for teacher in self.live[: None if row.follow else 1]]
        how = (study.student, study.shots, study.settings)
        key = key_of(methods, row.control, row.follow, *how, seed, self.data.fingerprint, weights)
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
        log = Log()
        listed = build_methods(methods)
        for method in listed.values():
            if isinstance(method, KDLayer):
                method.codebook = str(self.codebook(method, seen, seed))
        student = train(student, listed, seen, settings, teacher=self.teacher(row), log=log, seed=seed)
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
        self.scores[key] = found
        write_json(self.out / "scores.json", self.scores)
        said = (
            f"{name}, seed {seed}: {found['validation']:.2f} %, agreement {found['agreement']:.2f} %, {seconds:.0f} s"
        )
        self.console.print(said, highlight=False)
        return found

    def codebook(self, layer: KDLayer, data: Data, seed: int) -> Path:
        """The codebook of a KD layer, made from the images that the student sees."""
        path = self.out / "codebooks" / f"{key_of(layer.asked, seed)}.safetensors"
        if not path.is_file():
            make_codebook(self.live[0], data, **layer.asked).save(path)
        return path

    def scored(self, student: Model, split: Split) -> dict[str, float]:
        """Accuracy, agreement with the first teacher and, where the evidence is known, Grad-CAM's share on it, in percent."""
        ours, theirs = (predict(model, Batches(split, 500)).argmax(1) for model in (student, self.models[0]))
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
            write_json(self.out / "scores.json", self.scores)
        return found["test"]

    def table(self, names: list[str], seeds: int, *, test: bool, against: str) -> None:
        """A row each: mean ± half of the 95 % interval over seeds, and the paired difference to one of them."""
        split = "test" if test else "validation"
        columns = (split, f"against {against}", "agreement", "area under the curve", "s a training", "on the evidence")
        table = Table("methods", *columns, box=None, pad_edge=False, header_style="bold")
        found = {name: [self.result(name, self.methods(name), seed) for seed in range(seeds)] for name in names}
        scores = {
            name: [self.test(name, seed)["accuracy"] if test else one["validation"] for seed, one in enumerate(results)]
            for name, results in found.items()
        }
        for name, results in found.items():
            alike = [
                self.test(name, seed)["agreement"] if test else one["agreement"] for seed, one in enumerate(results)
            ]
            apart = np.subtract(scores[name], scores.get(against, scores[name]))
            area = [float(np.mean(one["curve"])) for one in results]
            seconds = f"{np.median([one['seconds'] for one in results]):.0f}"
            inside = [self.test(name, seed) if test else one for seed, one in enumerate(results)]
            energy = interval([one["energy"] for one in inside]) if "energy" in inside[0] else ""
            cells = [interval(values) for values in (scores[name], apart, alike, area)]
            table.add_row(name, *cells, seconds, energy)
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


if __name__ == "__main__":
    tyro.cli(main)
