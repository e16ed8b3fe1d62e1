"""The section about the exported files: size, answers, accuracy and maps against the student, and latency where measured."""

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distilens.foundation.estimate import NOTHING, Estimate, minus
from distilens.report.cells import in_percent, signed
from distilens.report.paths import shown_folder
from distilens.report.rendering import missing, read_json

FOLDER = "export"
"""The folder of a run's exported files."""

Table = tuple[list[str], list[list[str]]]


def table(exported: Mapping[str, Any]) -> Table:
    """The verification of the files, one row per file."""
    same = ("same mask", "largest difference of logits") if is_dense(exported) else ("same top-1", "largest difference")
    header = ["file", "size", *same, metric_of(exported), "to the student", "maps (occlusion)"]
    return header, [row(entry) for entry in exported["files"]]


def is_dense(exported: Mapping[str, Any]) -> bool:
    """Whether the student gives a class for each place of an image."""
    return (exported.get("student") or {}).get("task") == "segmentation"


def metric_of(exported: Mapping[str, Any]) -> str:
    """The name of the metric that the files were verified by."""
    names = [found.get("metric") for entry in exported["files"] for found in entry["answers"].values()]
    return next(filter(None, names), "mIoU" if is_dense(exported) else "accuracy")


def row(entry: Mapping[str, Any]) -> list[str]:
    """A file's cells; of the test split, else of the split that there is."""
    answers = entry["answers"]
    found = answers.get("test") or answers.get("validation") or answers.get("examples") or {}
    same = found.get("same mask") or found.get("same top-1")
    metric = found.get("metric") or "accuracy"
    score, apart = Estimate.read(found.get("file"), metric), Estimate.read(found.get("apart"))
    alike = Estimate.read(((entry.get("maps") or {}).get("explainers") or {}).get("occlusion", {}).get("cosine"))
    shares = metric == "accuracy" or found.get("unit") == "%"
    return [
        entry["file"] + (" (not kept)" if entry.get("refused") else ""),
        readable(entry["bytes"]),
        share_of_same(same, places="same mask" in found) if same else NOTHING,
        f"{found['largest']:.1e}" if "largest" in found else NOTHING,
        (f"{score.number(in_percent)} %" if shares else score.number()) if score else NOTHING,
        difference(apart, shares) if apart else NOTHING,
        alike.number() if alike else NOTHING,
    ]


def share_of_same(entry: Mapping[str, Any], *, places: bool) -> str:
    """The share of equal answers: of images `99.1 %`, of places with its interval `99.12 [98.90 to 99.31] %`."""
    found = Estimate.read(entry, "share")
    if found is None:
        return NOTHING
    return f"{found.with_interval('{:.2%}'.format).replace('%', '')} %" if places else f"{found.number(in_percent)} %"


def difference(apart: Estimate, shares: bool) -> str:
    """A paired difference with its interval: in points for shares."""
    factor, digits = (100, 2) if shares else (1, 3)
    assert apart.value is not None
    ends = apart.ends
    interval = "" if ends is None else minus(f" [{factor * ends[0]:.{digits}f} to {factor * ends[1]:.{digits}f}]")
    return signed(factor * apart.value, digits) + interval + (" points" if shares else "")


def readable(count: float) -> str:
    """A number of bytes in kB or MB."""
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def refusals(exported: Mapping[str, Any]) -> list[str]:
    """Why files were not kept, one sentence each."""
    return [f"{entry['file']} is not kept: {entry['refused']}." for entry in exported["files"] if entry.get("refused")]


def conclusions(exported: Mapping[str, Any]) -> list[str]:
    """What a user must know about the files that were kept, one sentence each."""
    lines = []
    for entry in exported["files"]:
        if entry.get("refused"):
            continue
        if entry.get("finetuned"):
            lines.append(
                f"{entry['file']}: INT8 without training lost too much, so the student was fine-tuned with INT8 rounding for "
                f"{entry['finetuned']} epochs."
            )
        if entry["precision"] == "int8":
            lines += maps_of(entry)
        if entry.get("batch") == 1:
            lines.append(f"{entry['file']} takes one image per call.")
    if exported.get("data") is None:
        lines.append(
            f"The files were compared with the student on example images only: name the data to verify {metric_of(exported)}."
        )
    return lines


def maps_of(entry: Mapping[str, Any]) -> list[str]:
    """Whether the explanation survived: the likeness of each explainer's maps before and after INT8."""
    explainers = (entry.get("maps") or {}).get("explainers") or {}
    shown = [
        f"{name.partition(':')[0]} {alike}"
        for name, found in explainers.items()
        if (alike := Estimate.read(found.get("cosine")))
    ]
    if not shown:
        return []
    return [f"{entry['file']}: cosine of its maps to the student's: " + "; ".join(shown) + "."]


def section(folder: Path) -> dict[str, Any]:
    """The content of the page's section for a run folder."""
    command = f"distilens export {shlex.quote(shown_folder(folder))}"
    exported, problem = read_json(folder / FOLDER / "export.json")
    if exported is None:
        return {"missing": missing(problem, command)}
    try:
        content = {
            "table": table(exported),
            "refused": refusals(exported),
            "conclusions": conclusions(exported),
            "maps": map_table(exported),
            "data": exported["data"],
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {"missing": missing("export.json does not hold an export of this version", command)}
    bench, problem = read_bench(folder / FOLDER, exported["student"].get("fingerprint"))
    measure = missing(problem, f"distilens bench {shlex.quote(shown_folder(folder))}")
    remarks = list(bench.get("remarks", ())) if bench else []
    latency = latency_table(bench) if bench else None
    return {**content, "latency": latency, "latency_remarks": remarks, "bench": measure}


def read_bench(folder: Path, fingerprint: str | None) -> tuple[dict[str, Any] | None, str | None]:
    """The content of `bench.json` in an export folder, or None; if it cannot be read or is out of date, also the reason.

    Args:
        folder: the export folder.
        fingerprint: that of the exported student. Measurements of another student are not shown.
    """
    bench, problem = read_json(folder / "bench.json")
    try:
        if bench is not None:
            latency_table(bench)
            if fingerprint not in (row.get("fingerprint") for row in bench["rows"]):
                return None, "bench.json was measured with another student"
    except (KeyError, TypeError, ValueError, AttributeError):
        return None, "bench.json does not hold measurements of this version"
    return bench, problem


def map_table(exported: Mapping[str, Any]) -> Table | None:
    """The maps before and after, one row per file and explainer."""
    rows: list[list[str]] = []
    for entry in exported["files"]:
        maps = entry.get("maps") or {}
        for name, found in (maps.get("explainers") or {}).items():
            values = [
                Estimate.read(found.get(key))
                for key in ("cosine", "rank correlation", "student's insertion", "insertion")
            ]
            rows.append(
                [entry["file"], name.partition(":")[0], *(str(value) if value else NOTHING for value in values)]
            )
        for name, floor in (maps.get("floors") or {}).items():
            value = Estimate.read(floor)
            rows.append([entry["file"], f"{name} (floor)", NOTHING, NOTHING, NOTHING, str(value) if value else NOTHING])
    header = ["file", "maps by", "cosine", "rank correlation", "insertion, student", "insertion, file"]
    return (header, rows) if rows else None


def latency_table(bench: Mapping[str, Any]) -> Table:
    """What `distilens bench` measured, one row per model, runtime, threads and batch, with the columns that have a value."""
    columns = {name: [write(row) for row in bench["rows"]] for name, write in COST.items()}
    shown = {name: cells for name, cells in columns.items() if name in ALWAYS or any(cell != NOTHING for cell in cells)}
    return list(shown), [list(cells) for cells in zip(*shown.values(), strict=True)]


def optional(key: str, write: Callable[[Any], str]) -> Callable[[Mapping[str, Any]], str]:
    """How a value is written that a row may lack."""
    return lambda row: NOTHING if row.get(key) is None else write(row[key])


def times(entry: Mapping[str, Any]) -> str:
    """A ratio with its interval: `2.31 [2.25 to 2.40]`."""
    found = Estimate.read(entry)
    return found.with_interval("{:.2f}".format) if found else NOTHING


COST: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "model": lambda row: row["name"],
    "runtime": lambda row: row["runtime"],
    "parameters": optional("parameters", "{:,}".format),
    "million MACs": optional("macs", lambda count: f"{count / 1e6:,.1f}"),
    "size": optional("bytes", readable),
    "threads": lambda row: str(row["threads"]),
    "batch": lambda row: str(row["batch"]),
    "median, ms": lambda row: f"{row['median']:.2f}",
    "95th percentile, ms": lambda row: f"{row['p95']:.2f}",
    "images/s": lambda row: f"{row['images_per_second']:,.0f}",
    "× PyTorch eager": optional("faster", times),
    "× first model": optional("to_first", times),
    "memory": optional("memory", readable),
    "mJ per image": optional("joules", lambda joules: f"{1000 * joules:.1f}"),
}
"""The columns of the latency table: how each is written."""
ALWAYS = ("model", "runtime", "threads", "batch", "median, ms", "95th percentile, ms", "images/s")
