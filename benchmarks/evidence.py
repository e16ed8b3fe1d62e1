"""Write what finished studies found to `src/distilens/studies/evidence.json`, and print the tables of docs/which.md.

Each study is a folder that `distilens seeds few-lists` or another recipe of recipes/studies made. Steps are read from the printed
table of `benchmarks/step.py`.

    python benchmarks/evidence.py runs/few-lists-seeds runs/few-200 --steps steps.txt
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import Positional

from distilens.foundation.estimate import Estimate
from distilens.foundation.files import write_json, write_text
from distilens.report.cells import signed
from distilens.report.charts import standalone
from distilens.report.study_page import forest
from distilens.studies.evidence import EVIDENCE
from distilens.studies.findings import KD, gather_evidence, in_points
from distilens.studies.study import read_study
from distilens.studies.verdict import judge_study

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


def main(
    studies: Positional[tuple[Path, ...]],
    /,
    steps: Path | None = None,
    out: Path = EVIDENCE,
    picture: Path | None = None,
) -> None:
    """Gather studies.

    Args:
        studies: their folders.
        steps: what `benchmarks/step.py` printed.
        picture: where the gains of the first study are drawn.
    """
    judged = [judge_study(read_study(folder)) for folder in studies]
    found = [gather_evidence(read_study(folder)) for folder in studies]
    write_json(out, {"studies": found, "steps": costs(steps) if steps else {}})
    for entry, content in zip(found, judged, strict=True):
        if not entry["defaults"]:
            print(f"\n{entry['about']}:\n\n{markdown(content)}")
    if picture:
        best_first = sorted(gains_of(judged[0]).values(), key=lambda gain: -gain["mean"])
        write_text(picture, standalone(forest({**judged[0], "questions": best_first})))
    if defaults := [entry for entry in found if entry["defaults"]]:
        print(f"\nEach method by its defaults:\n\n{side_by_side(defaults)}")


def gains_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """The answered questions what a row gains over `kd`, by row."""
    questions = (each for each in content["questions"] if each["against"] == KD and each["mean"] is not None)
    return {each["row"]: each for each in questions}


def markdown(content: Mapping[str, Any]) -> str:
    """The table of a study's verdict, the best gain first."""
    lines = [
        f"| methods | {content['split']} % | beside `kd` | p by Holm | seeds | list |",
        "|---|---|---|---|---|---|",
    ]
    gains = gains_of(content)
    rows = [row for row in content["rows"] if row["value"]["mean"] is not None]
    for row in sorted(rows, key=lambda row: -gains.get(row["name"], {"mean": 0.0})["mean"]):
        mean, half = in_points(Estimate.read(row["value"]))
        gain = gains.get(row["name"])
        more = difference(*in_points(Estimate.read(gain))) if gain else ""
        sure = "" if gain is None or gain["p by Holm"] is None else f"{gain['p by Holm']:.2g}"
        parts = ", ".join(f"`{part}`" for part in (*row["methods"], *filter(None, [row["control"]])))
        lines.append(f"| {row['name']} | {mean:.1f} ± {half:.1f} | {more} | {sure} | {row['value']['n']} | {parts} |")
    return "\n".join(lines)


def side_by_side(studies: Sequence[Mapping[str, Any]]) -> str:
    """The gains of several studies of the same rows, a column each, and first what `kd` has by itself."""
    columns = [{row["row"]: row for row in study["rows"]} for study in studies]
    alone = [f"{column[KD]['accuracy'][0]:.1f} ± {column[KD]['accuracy'][1]:.1f}" for column in columns]
    names = [name for name in dict.fromkeys(name for column in columns for name in column) if name != KD]
    lines = [
        f"| | {' | '.join(study['teacher'] + ' → ' + study['student'] for study in studies)} |",
        f"|---|{'---|' * len(studies)}",
        f"| `kd` % | {' | '.join(alone)} |",
    ]
    gains = {name: [difference(*c[name]["gain"]) if name in c else "" for c in columns] for name in names}
    first = {name: columns[0][name]["gain"][0] if name in columns[0] else 0.0 for name in names}
    lines += [f"| `{name}` | {' | '.join(gains[name])} |" for name in sorted(names, key=lambda name: -first[name])]
    return "\n".join(lines)


def difference(mean: float, half: float) -> str:
    """A difference, bold where its interval leaves 0 out."""
    text = f"{signed(mean, 1)} ± {half:.1f}"
    return f"**{text}**" if abs(mean) > half else text


def costs(printed: Path) -> dict[str, float]:
    """A step's time to the floor's, by the row's name."""
    from step import OURS  # needs the peers

    lines = re.findall(r"^\s*(.+?)\s+[\d,]+ images/s\s+([\d.]+) of the floor's time", printed.read_text(), re.M)
    called = {"student alone": "labels", "kd stored": "kd"}
    found = {called.get(name, name): float(ratio) for name, ratio in lines if name in OURS}
    return found | {name: found[like] for name, like in ALIKE.items() if like in found}


if __name__ == "__main__":
    tyro.cli(main)
