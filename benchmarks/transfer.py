"""What the transfer scores cost, when they mean something, and what they say of distilled students.

    python benchmarks/transfer.py speed --data parquet:path=data/cifar10
    python benchmarks/transfer.py calibration [--picture docs/images/calibration.svg]
    python benchmarks/transfer.py stability runs/few-lists-seeds
    python benchmarks/transfer.py study runs/few-lists-seeds --base labels --students kd "kd + class maps"

`speed`: a comparison of three models at four levels; the memory of 4,096 samples of 65,536 features; the distances beside the
broadcast form. `calibration`: the statistics of independent features. `stability`: how much maps depend on the reference set.
`study`: RS, FSS and maps of students and base students of a finished study (`distilens seeds`), mean ± 95 % interval over seeds.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from distilens.core import Model
from distilens.data import load
from distilens.data.pipeline import batch_at
from distilens.foundation.files import read_json, write_json, write_text
from distilens.measure.maps.likeness import pearson
from distilens.measure.transfer.comparison import compare
from distilens.measure.transfer.dependence import dependence
from distilens.measure.transfer.distance_correlation import Distances, distance_correlation
from distilens.measure.transfer.levels import Pair, balanced, levels_of
from distilens.measure.transfer.pair_maps import pair_maps, reference_positions, reference_set, seen_at
from distilens.models import build_model
from distilens.report import charts
from distilens.runs.run import Run
from distilens.studies.statistics import mean_over_seeds
from distilens.studies.study import Study, read_study
from distilens.studies.trial import run_of

app = tyro.extras.SubcommandApp()
console = Console()


@app.command
def speed(data: str, samples: int = 2000, rounds: int = 3) -> None:
    """Seconds of a comparison, of its forwards, and of distances beside the broadcast form; memory of the largest case."""
    found = load(data)
    torch.manual_seed(0)
    kinds = {"teacher": "resnet20", "base": "resnet8", "student": "resnet8"}
    models = {name: build_model(kind, found.classes, found.size) for name, kind in kinds.items()}
    start = time.perf_counter()
    made = compare(models, found, {"samples": samples}, console=console)
    whole = time.perf_counter() - start
    start = time.perf_counter()
    positions = balanced(found.test.labels, samples)
    batch = batch_at(found.test, torch.from_numpy(positions))
    for model in models.values():
        for part in batch.images.split(500):
            with torch.no_grad():
                model.eval().logits(part)
    forwards = time.perf_counter() - start
    console.print(
        f"compare: {len(models)} models, {len(made.scores['levels'])} levels, {made.scores['n']} images: {whole:.1f} s; "
        f"their forwards alone {forwards:.1f} s"
    )
    x = torch.randn(512, 4096, dtype=torch.float64)
    ratios = []
    for _ in range(rounds):
        seconds = []
        for make in (lambda: Distances(x).matrix, lambda: (x[:, None] - x[None]).square().sum(-1).sqrt()):
            start = time.perf_counter()
            make()
            seconds.append(time.perf_counter() - start)
        ratios.append(seconds[1] / seconds[0])
    console.print(f"distances of 512 × 4,096: {statistics.median(ratios):.0f} times as fast as the broadcast form")
    alone = subprocess.run([sys.executable, __file__, "memory"], capture_output=True, text=True, check=True)
    console.print(alone.stdout.strip())


@app.command
def memory(samples: int = 4096, width: int = 65_536) -> None:
    """The peak memory of the process for one large correlation; the features themselves are float32."""
    x, y = torch.randn(samples, width), torch.randn(samples, 512)
    before = peak()
    start = time.perf_counter()
    found = dependence(x, y)
    print(
        f"{samples:,} samples of {width:,} features: {found.value:.4f}, {time.perf_counter() - start:.0f} s, peak {peak():,.0f} "
        f"MiB, of which {x.nbytes / 2**20:,.0f} MiB are the features and {before:,.0f} were there before"
    )


def peak() -> float:
    """Of this process since it was started, in MiB; what getrusage says is also of whoever started it."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


@app.command
def calibration(draws: int = 2000, widths: tuple[int, ...] = (16, 256, 2048), picture: Path | None = None) -> None:
    """Independent features: mean and deviation of both statistics by n and width, and how often the p-value is below 5 %."""
    header = ("n", *(f"{kind}, {width:,} wide" for width in widths for kind in ("unbiased", "biased")))
    table = Table(*header, "p < 0.05", "by the formula", box=None, pad_edge=False)
    counts = (5, 8, 16, 32, 64, 128, 256, 512)
    lines: dict[str, list[float]] = defaultdict(list)
    for n in counts:
        generator, cells, small = torch.Generator().manual_seed(n), [], ""
        for width in widths:
            many = draws if n in (64, 256) and width == 256 else max(40, min(draws, 4000 // n))
            found, biased = [], []
            for number in range(many):
                x, y = (Distances(torch.randn(n, width, generator=generator)) for _ in range(2))
                found.append(dependence(x, y))
                if number < 40:
                    biased.append(float(distance_correlation(x, y, biased=True)))
            values = [one.value for one in found]
            cells += [f"{np.mean(values):+.4f} ± {np.std(values):.4f}", f"{np.mean(biased):.3f}"]
            if many == draws:
                small = f"{100 * np.mean([one.p < 0.05 for one in found]):.1f} % of {many:,}"
            if width == max(widths):
                lines["unbiased"].append(float(np.mean(values)))
                lines["unbiased, 95 of 100 below"].append(float(np.quantile(values, 0.95)))
            lines[f"biased, {width:,} wide"].append(float(np.mean(biased)))
        table.add_row(str(n), *cells, small, f"{(2 / (n * (n - 3))) ** 0.5:.4f}")
    Console(width=200).print(table)
    if picture is not None:
        series = [
            charts.Series(name, [float(np.log2(n)) for n in counts], values, at)
            for at, (name, values) in enumerate(lines.items())
        ]
        title = "Distance correlation of independent features"
        chart = charts.line_chart(
            "calibration", title, series, x_label="log2 of the number of images", y_label="score", linear=True
        )
        write_text(picture, charts.standalone(chart))


def runs_of(study: Study, rows: Sequence[str], seed: int) -> dict[str, Run]:
    """The runs of some rows with a seed, by row."""
    return {name: run_of(study, study.row(name), seed) for name in rows}


def models_of(base: Run, student: Run) -> dict[str, Model]:
    """Two students and their teacher, by role."""
    taught = student.models()
    return {"teacher": taught["teacher"], "base": base.models()["student"], "student": taught["student"]}


@app.command
def stability(folder: Positional[Path], /, seed: int = 0, images: int = 100) -> None:
    """The correlation of an image's maps over reference sets of several sizes, for a base and a distilled student."""
    base, student = runs_of(read_study(folder), ("labels", "kd + class maps"), seed).values()
    models = models_of(base, student)
    test, eye = base.data.test, torch.eye(len(base.data.classes))
    levels = levels_of(models, ["last"])
    positions = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:images]
    batch = batch_at(test, positions)
    seen, task = seen_at(models, levels[0], batch.images), eye[batch.labels]
    pairs = (Pair("student", "base"), Pair("base", "student"), Pair("teacher", "student"))
    table = Table("images", *(pair.called for pair in pairs), box=None, pad_edge=False)
    for n in (8, 32, 128, 30, 130, 510, 2000):
        fair = n % 10 == 0
        sets = []
        for number in range(6):
            drawn = torch.randperm(len(test), generator=torch.Generator().manual_seed(1 + number))[:n].sort().values
            chosen = reference_positions(test, n, number) if fair else drawn.numpy()
            sets.append(reference_set(models, levels, test, lambda labels: eye[labels], chosen))
        cells = []
        for pair in pairs:
            maps = [pair_maps(pair, levels[0], each, seen, task, each.among(positions)) for each in sets]
            alike = torch.stack([pearson(a, b) for at, a in enumerate(maps) for b in maps[:at]]).nanmean(0)
            cells.append(f"{alike.nanmean():.2f}")
        table.add_row(f"{n}{', as many of each class' if fair else ', drawn'}", *cells)
    console.print(table)


@app.command
def study(
    folder: Positional[Path],
    /,
    base: str,
    students: tuple[str, ...],
    seeds: int = 5,
    samples: int = 2000,
) -> None:
    """RS and FSS of students and base students, seed by seed; what is done is not done again."""
    trained = read_study(folder)
    place = folder / "transfer.json"
    kept = read_json(place) or {}
    for seed in range(seeds):
        runs = runs_of(trained, (base, *students), seed)
        for row in students:
            key = f"{base} | {row} | {seed} | {samples}"
            if key not in kept:
                models = models_of(runs[base], runs[row])
                kept[key] = dict(compare(models, runs[row].data, {"samples": samples, "images": 2}).scores)
                write_json(place, kept)
                console.print(f"{row}, seed {seed}", highlight=False)
    for row in students:
        values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for seed in range(seeds):
            gathered(kept[f"{base} | {row} | {seed} | {samples}"], values)
        levels = list(dict.fromkeys(level for each in values.values() for level in each))
        table = Table(row, *levels, box=None, pad_edge=False, header_style="bold")
        for title, found in values.items():
            cells = (
                mean_over_seeds(found[level]).with_half("{:.2f}".format) if found.get(level) else "" for level in levels
            )
            table.add_row(title, *cells)
        console.print(table)


def gathered(scores: dict[str, Any], values: dict[str, dict[str, list[float]]]) -> None:
    """One comparison's numbers, to those of the other seeds; percent."""
    for level in scores["levels"]:
        at = level["name"]
        for one in level["rs"]:
            values[f"RS of {one['of']}"][at].append(100 * one["value"])
        for one in level["given"]:
            if " without " not in one["called"]:
                values[f"RS, {one['called']}"][at].append(100 * one["value"])
        for one in level["fss"]:
            values[f"FSS, {one['of']} and {one['to']}"][at].append(100 * one["value"])
        for one in level["apart"]:
            values[f"{one['what']}: {one['of']} − {one['than']}"][at].append(100 * one["value"])
    for at, entries in scores["maps"]["levels"].items():
        for called, entry in entries.items():
            for key in ("stability", "above_floor", "energy_in_mask", "energy_above_residual"):
                if (entry.get(key) or {}).get("mean") is not None:
                    values[f"{called}: {key}"][at].append(100 * entry[key]["mean"])


if __name__ == "__main__":
    app.cli()
