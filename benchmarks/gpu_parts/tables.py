"""`gpu.json` as tables, and as the section of docs/results.md. Imports nothing but the standard library."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "results.md"
FOLDER = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- made by benchmarks/gpu.py --section: begin -->", "<!-- end -->"
T_95 = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t for a 95 % interval, by degrees of freedom."""

Row = dict[str, Any]


def write_section() -> str:
    """Put the section into docs/results.md; returns what it says."""
    page, made = PAGE.read_text(encoding="utf-8"), section()
    before, found, rest = page.partition(BEGIN)
    _, also, after = rest.partition(END)
    if not found or not also:
        raise SystemExit(f"{PAGE} has no place for the section: it stands between {BEGIN} and {END}")
    PAGE.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}", encoding="utf-8")
    return made


def section(folder: Path = FOLDER) -> str:
    """What docs/results.md says of GPUs: the tables of each card that was measured."""
    found = sorted(folder.glob("*/gpu.json"))
    texts = [tables(json.loads(path.read_text(encoding="utf-8"))) for path in found]
    return "\n\n".join(texts) or (
        "Not measured: no GPU has been at hand. `python benchmarks/gpu.py --minutes 12` measures all of it on one, and\n"
        "`python benchmarks/gpu.py --section` writes it here."
    )


def tables(content: dict[str, Any]) -> str:
    """All parts of a file."""
    parts = [f"### {content['device'] or 'no device'}"]
    for name, table in TABLES.items():
        part = content["parts"].get(name)
        if part is None:
            parts.append(f"{TITLES[name]}: not measured.")
            continue
        rows = {key: row for key, row in part["rows"].items() if not {"cut", "failed"} & row.keys()}
        missing = [
            f"- {key}: {row.get('failed') or row['cut']}" for key, row in part["rows"].items() if key not in rows
        ]
        parts.append(f"**{TITLES[name]}**")
        if rows:
            parts.append(table(rows))
        if missing or not rows:
            parts.append("Not measured" + (":\n\n" + "\n".join(missing) if missing else "."))
    return "\n\n".join(parts)


def markdown(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(written(cell) for cell in line) + " |" for line in lines)


def written(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else str(value)


def card(rows: dict[str, Row]) -> str:
    lines = []
    for name, row in rows.items():
        for key, value in row.items():
            if key != "took":
                lines.append([(key if name == "versions" else f"{name}, {key}").replace("_", " "), value])
    return markdown(["", ""], lines)


def step(rows: dict[str, Row]) -> str:
    lines = []
    for key, row in rows.items():
        waits = row.get("waits")
        lines.append(
            [
                key, row["images_per_second"], row["floor"], row["share"], row.get("share_of_both"),
                None if waits is None else f"{sum(waits.values()):g}", row.get("peak_gib"),
            ]
        )  # fmt: skip
    head = ["", "images/s", "floor", "share of the floor", "of floor and teacher", "waits a step", "peak GiB"]
    places = sorted({place for row in rows.values() for place in row.get("waits") or {}})
    return markdown(head, lines) + (f"\n\nWaits at: {', '.join(places)}." if places else "")


def of_columns(*columns: str) -> Callable[[dict[str, Row]], str]:
    """A table of some entries of each row."""

    def table(rows: dict[str, Row]) -> str:
        there = [column for column in columns if any(column in row for row in rows.values())]
        head = ["", *(column.replace("_", " ") for column in there)]
        return markdown(head, [[key, *(row.get(column) for column in there)] for key, row in rows.items()])

    return table


def combinations(rows: dict[str, Row]) -> str:
    seeds = [row for key, row in rows.items() if key.startswith("seed")]
    lines = [
        f"{key}: " + ", ".join(f"{name} {value}" for name, value in row.items())
        for key, row in rows.items()
        if key in ("teacher", "answers")
    ]
    if not seeds:
        return "\n".join(f"- {line}" for line in lines)
    names = list(seeds[0]["test"])
    base = [row["test"]["student"] for row in seeds]
    table = [
        [
            name,
            interval([row["test"][name] for row in seeds]),
            interval([row["test"][name] - alone for row, alone in zip(seeds, base, strict=True)], signed=True),
            interval([row["validation"][name] for row in seeds]),
        ]
        for name in names
    ]
    lines.append(f"{len(seeds)} seeds of {seeds[0]['epochs']} epochs, {seeds[0]['at_once']} students at once")
    head = ["", "test %", "beside the student alone", "validation %"]
    return "\n".join(f"- {line}" for line in lines) + "\n\n" + markdown(head, table)


def interval(values: list[float], *, signed: bool = False) -> str:
    """Mean ± half of the 95 % interval by t."""
    mean = f"{statistics.mean(values):{'+' if signed else ''}.2f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {T_95[min(len(values), 10) - 1] * statistics.stdev(values) / math.sqrt(len(values)):.2f}"


TITLES = {
    "card": "The card's own limits",
    "step": "The step beside its floor",
    "data": "Data on the device",
    "accuracy": "CIFAR-10 to accuracy",
    "answers": "Stored answers",
    "explainers": "Explainers, and distance correlation",
    "combinations": "The eight combinations of the Integrated-Gradients paper at 4.12 ×",
}
TABLES: dict[str, Callable[[dict[str, Row]], str]] = {
    "card": card,
    "step": step,
    "data": of_columns("images_per_second", "seconds_an_epoch", "images"),
    "accuracy": of_columns(
        "seconds_to_90", "seconds_to_93", "seconds_to_94", "validation", "test", "test_interval", "seconds",
        "images_per_second",
    ),
    "answers": of_columns(
        "record_images_per_second", "forward_images_per_second", "record_of_forward", "read_milliseconds_a_batch",
        "batch_alone_milliseconds",
    ),
    "explainers": of_columns(
        "images_per_second", "floor_images_per_second", "share", "captum_images_per_second", "times_captum", "apart", "seconds",
        "value", "off_the_cpu", "peak_gib",
    ),
    "combinations": combinations,
}  # fmt: skip
