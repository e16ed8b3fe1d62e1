"""Write what finished studies found to `src/distilens/evidence.json`, which `distilens recommend` and `list methods` read.

Each study is a folder that `benchmarks/methods.py` filled, with the runs of its teachers; scores are of the test split where the
study has been read there, else of validation. Steps are read from the printed table of `benchmarks/step.py`.

    python benchmarks/evidence.py --study few:runs/methods:runs/teacher --steps steps.txt
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from scipy import stats
from step import OURS

from distilens.foundation.files import write_json, write_text
from distilens.models import build_model
from distilens.report.charts import standalone
from distilens.report.intervals import Estimate, interval_chart
from distilens.studies.evidence import EVIDENCE
from distilens.studies.recommend import kind_of
from methods import Experiment, holm
from studies import STUDIES

SEEDS = range(20)
ALIKE = {
    "kd standardised": "kd",
    "osakd": "kd + osakd",
    "labels + overlay": "kd + overlay",
    "kd + gradcam++": "kd + gradcam",
    "kd, half of its weights": "kd + powerprop",
    "kd, balanced": "kd",
    "kd + at, balanced": "kd + attention",
    **{f"{name}, balanced": name for name in ("kd + class maps", "kd + fitnet", "kd + vid", "kd + nst")},
}
"""Lists whose step is that of another one, as far as it was measured: balance adds two hundredths."""
FEWEST = 3
"""Rows with fewer seeds are no evidence."""


def main(study: tuple[str, ...], steps: Path | None = None, out: Path = EVIDENCE, picture: Path | None = None) -> None:
    """Gather studies.

    Args:
        study: NAME:OUT:RUN, as in `benchmarks/methods.py NAME --run RUN --out OUT`.
        steps: what `benchmarks/step.py` printed.
        picture: where the gains of the first study are drawn.
    """
    found = [read(*each.split(":")) for each in study]
    write_json(out, {"studies": found, "steps": costs(steps) if steps else {}})
    for each in found:
        if not each["defaults"]:
            print(f"\n{each['about']}, {each['split']}:\n\n{markdown(each)}")
    if picture:
        write_text(picture, drawn(found[0]))
    defaults = [each for each in found if each["defaults"]]
    if defaults:
        print(f"\nEach method by its defaults:\n\n{side_by_side(defaults)}")


def read(name: str, out: str, run: str) -> dict[str, Any]:
    """A study as plain data: conditions, and a row for each list that was trained."""
    experiment = Experiment(name, (Path(run),), Path(out))
    made, how = STUDIES[name], experiment.study
    data, teacher = experiment.data, experiment.models[0]
    listed = [row for row, it in made.rows.items() if it.control is None and not it.aside]
    scores = {row: by_seed(experiment, row) for row in listed}
    scores = {row: values for row, values in scores.items() if len(values) >= FEWEST}
    read = {row: all("test" in value for value in values.values()) for row, values in scores.items()}
    tested = any(read.values())
    if tested and not all(read.values()):
        raise SystemExit(f"{name} in {out}: read on test, but for {', '.join(row for row in read if not read[row])}")
    accuracy = {
        row: {seed: value["test"]["accuracy"] if tested else value["validation"] for seed, value in values.items()}
        for row, values in scores.items()
    }
    student = build_model(how.student, data.classes, data.size)
    shortcut = data.name.startswith("shapes")
    pictures = "shapes on backgrounds that give the class away" if shortcut else "CIFAR-10 (JPEG)"
    epochs = how.settings["epochs"]
    return {
        "study": name,
        "about": f"{pictures}, {how.shots} images per class, {teacher.name} teaches {how.student}, {epochs} epochs",
        "teacher": teacher.name,
        "student": how.student,
        "kind": kind_of(teacher, student),
        "shots": how.shots,
        "shortcut": shortcut,
        "defaults": name.startswith("defaults"),
        "ranks": not name.startswith("defaults"),
        "split": "test" if tested else "validation",
        "settings": how.settings,
        "rows": [
            {
                "row": row,
                "methods": list(experiment.methods(row)),
                **({"settings": made.rows[row].settings} if made.rows[row].settings else {}),
                "seeds": len(values),
                "accuracy": interval(list(values.values())),
                "gain": gain(values, accuracy["kd"]) if row != "kd" else None,
            }
            for row, values in accuracy.items()
        ],
    }


def markdown(study: dict[str, Any]) -> str:
    """A study's table, the best gain first."""
    lines = [f"| methods | {study['split']} % | beside `kd` | p by Holm | seeds | list |", "|---|---|---|---|---|---|"]
    chances = holm({row["row"]: chance(*row["gain"], row["seeds"]) for row in study["rows"] if row["gain"]})
    for row in sorted(study["rows"], key=lambda row: -(row["gain"] or [0])[0]):
        mean, half = row["accuracy"]
        more = signed(*row["gain"]) if row["gain"] else ""
        sure = f"{chances[row['row']]:.2g}" if row["gain"] else ""
        parts = ", ".join(f"`{part}`" for part in row["methods"])
        lines.append(f"| {row['row']} | {mean:.1f} ± {half:.1f} | {more} | {sure} | {row['seeds']} | {parts} |")
    return "\n".join(lines)


def chance(mean: float, half: float, seeds: int) -> float:
    """The two-sided p of a paired t test, from the mean of its differences and half of their 95 % interval."""
    if not half:
        return float("nan")
    return float(2 * stats.t.sf(abs(mean) / half * stats.t.ppf(0.975, seeds - 1), seeds - 1))


def drawn(study: dict[str, Any]) -> str:
    """The gains of a study beside `kd`, the best first, as a file of SVG."""
    rows = sorted((row for row in study["rows"] if row["gain"]), key=lambda row: -row["gain"][0])
    bounds = [(row["row"], mean, mean - half, mean + half) for row in rows for mean, half in [row["gain"]]]
    shown = [Estimate(*one, colour=0 if one[2] > 0 else 1 if one[3] < 0 else 5) for one in bounds]
    title = f"Points beside kd alone: {study['about']}"
    return standalone(interval_chart("gains", title, [("", shown)], x_label="points beside kd, with 95 % intervals"))


def side_by_side(studies: list[dict[str, Any]]) -> str:
    """The gains of several studies of the same rows, a column each, and first what `kd` has by itself."""
    columns = [{row["row"]: row for row in study["rows"]} for study in studies]
    alone = [f"{column['kd']['accuracy'][0]:.1f} ± {column['kd']['accuracy'][1]:.1f}" for column in columns]
    names = [name for name in dict.fromkeys(name for column in columns for name in column) if name != "kd"]
    lines = [
        f"| | {' | '.join(study['teacher'] + ' → ' + study['student'] for study in studies)} |",
        f"|---|{'---|' * len(studies)}",
        f"| `kd` % | {' | '.join(alone)} |",
    ]
    gains = {name: [signed(*c[name]["gain"]) if name in c else "" for c in columns] for name in names}
    first = {name: columns[0][name]["gain"][0] if name in columns[0] else 0.0 for name in names}
    lines += [f"| `{name}` | {' | '.join(gains[name])} |" for name in sorted(names, key=lambda name: -first[name])]
    return "\n".join(lines)


def signed(mean: float, half: float) -> str:
    """A difference, bold where its interval leaves 0 out."""
    text = f"{'+' if mean >= 0 else '−'}{abs(mean):.1f} ± {half:.1f}"
    return f"**{text}**" if abs(mean) > half else text


def by_seed(experiment: Experiment, row: str) -> dict[int, dict[str, Any]]:
    """What is there of a row with the candidate that was chosen."""
    keys = {seed: experiment.key(row, experiment.methods(row), seed) for seed in SEEDS}
    return {seed: experiment.scores[key] for seed, key in keys.items() if key in experiment.scores}


def interval(values: list[float]) -> list[float]:
    """Mean and half of the 95 % interval by t."""
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return [round(float(np.mean(values)), 3), round(float(half), 3)]


def gain(values: dict[int, float], against: dict[int, float]) -> list[float]:
    """Paired: the same seed is the same images and the same first weights."""
    return interval([value - against[seed] for seed, value in values.items() if seed in against])


def costs(printed: Path) -> dict[str, float]:
    """A step's time to the floor's, by the row's name."""
    lines = re.findall(r"^\s*(.+?)\s+[\d,]+ images/s\s+([\d.]+) of the floor's time", printed.read_text(), re.M)
    called = {"student alone": "labels", "kd stored": "kd"}
    found = {called.get(name, name): float(ratio) for name, ratio in lines if name in OURS}
    return found | {name: found[like] for name, like in ALIKE.items() if like in found}


if __name__ == "__main__":
    tyro.cli(main)
