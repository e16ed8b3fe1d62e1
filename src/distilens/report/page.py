"""The page of a run: read the run folder into sections of plain data, and render them as one page.

This reads only files. It loads no model and does not import torch, so a page takes a second or two.
"""

import base64
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from distilens.foundation.errors import UserError, shortened
from distilens.foundation.files import write_text
from distilens.foundation.metric import Metric
from distilens.report import answers_section, charts, deployment_section, table, transfer_section
from distilens.report.cells import text
from distilens.report.concerns import concerns
from distilens.report.panels import PICTURE_BYTES, panel
from distilens.report.paths import shown_folder, without_places
from distilens.report.remarks import cost, duration, remarks
from distilens.report.rendering import missing, read_json, render

DETAILS = ("threads", "processes")
"""Details of the machine that are shown only under *About this run*."""
ONE_SEED = "One seed; the interval is over test images, not over seeds."


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run folder from the files found there, and return its path.

    Any of `recipe.toml`, `about.json`, `scores.json`, `metrics.jsonl` and `maps/*.npz` may be missing or damaged; their
    section then names the command that makes them. The page is replaced as a whole or not at all. Raises `UserError` if
    there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no run folder at {folder}. Make one with: distilens run recipe.toml --out {folder}")
    name = folder.resolve().name
    page = render(
        "template.html.j2",
        name=name,
        summary=summary(folder),
        answers=answers_section.section(folder, read_json(folder / "scores.json")[0]),
        training=training(folder),
        explanations=explanations(folder),
        transfer=transfer_section.section(folder),
        deployment=deployment_section.section(folder),
        compare=None if is_other_task(folder) else transfer_section.command_for(folder),
        reproduction=reproduction(folder),
    )
    path = folder / "report.html"
    write_text(path, page)
    return path


# ---------------------------------------------------------------------------------------------------- summary


def summary(folder: Path) -> dict[str, Any]:
    """The headline, the table with one column per model, and the facts behind the numbers."""
    about, _ = read_json(folder / "about.json")
    scores, problem = read_json(folder / "scores.json")
    facts = machine_facts(about or {})
    if scores is None:
        return {"missing": missing(problem, f"distilens measure {shlex.quote(shown_folder(folder))}"), "facts": facts}
    models, seconds = table.measured_models(scores), (about or {}).get("seconds")
    spent = cost(scores, seconds if isinstance(seconds, dict) else {})
    return {
        "headline": table.headline(scores),
        "roles": [(role, text(model.get("model"))) for role, model in models.items()],
        "measures": table.measures(scores),
        "compared": {"base", "student"} <= models.keys(),
        "classes": table.by_class(scores),
        "class_score": "IoU" if table.task_of(scores) == "segmentation" else "Accuracy",
        "other_task": is_other_task(folder),
        "concerns": concerns(scores, read_log(folder)),
        "remarks": [*remarks(scores), ONE_SEED],
        "facts": [*data_facts(scores.get("data") or {}), *([("cost", spent)] if spent else []), *facts],
        "has_base": "base" in models,
    }


def is_other_task(folder: Path) -> bool:
    """Whether the run's task is not a classification: it cannot be compared yet."""
    return table.task_of(read_json(folder / "scores.json")[0] or {}) != "classification"


def data_facts(data: dict) -> list[tuple[str, str]]:
    """The data set: its name, its splits, and the run's note, if any."""
    facts = []
    if data.get("name"):
        classes = f", {len(data['classes'])} classes" if data.get("classes") else f", {data['task']}" * ("task" in data)
        facts.append(("data", f"{data['name']}{classes}"))
    sizes = [f"{split} {data[split]:,}" for split in ("train", "validation", "test") if data.get(split) is not None]
    if sizes:
        facts.append(("images", ", ".join(sizes)))
    facts += source_facts(data)
    if data.get("note"):
        facts.append(("note", str(data["note"])))
    return facts


def source_facts(data: dict) -> list[tuple[str, str]]:
    """The source of each class's pictures, the pictures left out, and remarks about the data."""
    facts = []
    places = data.get("places") or {}
    if places:
        lines = [
            f"{name} ({', '.join(f'{count:,} from {place}' for place, count in entry.items())})"
            for name, entry in places.items()
        ]
        facts.append(("classes", shortened(lines, most=20)))
    for reason, entry in (data.get("left_out") or {}).items():
        facts.append(("left out", f"{entry['count']:,} {reason}: {shortened(entry['first'], most=3)}"))
    facts += [("remark", remark) for remark in data.get("remarks") or ()]
    return facts


def machine_facts(about: dict) -> list[tuple[str, str]]:
    """The machine, and the time per stage."""
    facts = []
    machine = about.get("machine")
    if machine:
        parts = machine.items() if isinstance(machine, dict) else [("", machine)]
        known = [f"{key} {value}".strip() for key, value in parts if value != "none" and key not in DETAILS]
        facts.append(("machine", ", ".join(known)))
    seconds = about.get("seconds")
    if isinstance(seconds, dict):
        times = {stage: value for stage, value in seconds.items() if isinstance(value, int | float)}
        if times:
            facts.append(("time", ", ".join(f"{stage} {duration(value)}" for stage, value in times.items())))
    return facts


# --------------------------------------------------------------------------------------------------- training


def training(folder: Path) -> dict[str, Any]:
    """The validation metric by epoch, one line per stage, and the loss terms by step, one chart per stage."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return {"missing": missing(None, run_command(folder))}
    records, unreadable = read_records(path)
    stages = sorted({record["stage"] for record in records}, key=stage_order)
    figures = [score_chart(records, stages)]
    figures += [loss_chart(records, stage, at) for at, stage in enumerate(stages)]
    return {
        "charts": [chart for chart in figures if chart["svg"]],
        "unreadable": unreadable,
        "speeds": [(stage, speed) for stage in stages if (speed := median_speed(records, stage))],
    }


def read_log(folder: Path) -> list[dict]:
    """The rows of a run's log, if it has one."""
    path = folder / "metrics.jsonl"
    return read_records(path)[0] if path.is_file() else []


def read_records(path: Path) -> tuple[list[dict], int]:
    """The rows of a log, and the number of unreadable lines: a killed run leaves half a line."""
    records, unreadable = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            unreadable += 1
            continue
        if isinstance(record, dict) and isinstance(record.get("stage"), str):
            records.append(record)
        else:
            unreadable += 1
    return records, unreadable


def stage_order(stage: str) -> tuple[int, str]:
    return (table.MODELS.index(stage) if stage in table.MODELS else len(table.MODELS), stage)


def score_chart(records: list[dict], stages: list[str]) -> dict[str, Any]:
    """The validation metric by epoch. Epochs count from 1: the first validation comes after one epoch."""
    metric = Metric.read(next((record["metric"] for record in records if record.get("metric")), None))
    lines = []
    for colour, stage in enumerate(stages):
        values = {
            record["epoch"] + 1: record["validation"][metric.name]
            for record in records
            if record["stage"] == stage
            and is_number(record.get("epoch"))
            and isinstance(record.get("validation"), dict)
            and is_number(record["validation"].get(metric.name))
        }
        lines.append(line(stage, values, colour))
    title, label = f"Validation {metric.name}", metric.name if metric.is_share else f"{metric.name} {metric.unit}"
    svg = charts.line_chart(
        "chart-accuracy", title, lines, x_label="epoch", y_label=label.strip(), as_percent=metric.is_share
    )
    return {"title": f"{title} by epoch", "svg": svg}


def loss_chart(records: list[dict], stage: str, at: int) -> dict[str, Any]:
    """The weighted loss terms of one stage, and their sum if there are several."""
    terms: dict[str, dict[float, float]] = {}
    total: dict[float, float] = {}
    for record in records:
        if record["stage"] != stage or not is_number(record.get("step")):
            continue
        for name, value in (record.get("terms") or {}).items():
            if is_number(value):
                terms.setdefault(name, {})[record["step"]] = value
        if is_number(record.get("loss")):
            total[record["step"]] = record["loss"]
    lines = [line(name, values, colour) for colour, (name, values) in enumerate(terms.items())]
    if len(terms) != 1 and total:
        lines.append(line("sum", total, len(terms)))
    svg = charts.line_chart(f"chart-loss-{at}", f"Loss of the {stage}", lines, x_label="step", y_label="loss")
    return {"title": f"Loss of the {stage} by step", "svg": svg}


def line(name: str, values: dict[float, float], colour: int) -> charts.Series:
    """A line in order of x. A resumed run logs some steps twice; the dictionary keeps the later value."""
    places = sorted(values)
    return charts.Series(name, places, [values[place] for place in places], colour)


def median_speed(records: list[dict], stage: str) -> str:
    speeds = [
        record["images_per_second"]
        for record in records
        if record["stage"] == stage and is_number(record.get("images_per_second"))
    ]
    return f"{float(np.median(speeds)):,.0f}" if speeds else ""


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# ----------------------------------------------------------------------------------------------- explanations


def explanations(folder: Path) -> dict[str, Any]:
    """One panel per explainer; images on which the models disagree come first."""
    command = f"distilens explain {shlex.quote(shown_folder(folder))}"
    paths = sorted((folder / "maps").glob("*.npz"))
    if not paths:
        return {"missing": missing(None, command)}
    scores, _ = read_json(folder / "scores.json")
    classes = ((scores or {}).get("data") or {}).get("classes") or []
    shared = len(paths) + len(list((folder / "transfer").glob("*.npz")))
    panels = [panel(path, classes, PICTURE_BYTES // shared, command) for path in paths]
    return {"panels": panels}


# ------------------------------------------------------------------------------------------------ reproduction


def reproduction(folder: Path) -> dict[str, Any]:
    """The recipe, the command that runs it, and everything recorded about how the run was made."""
    path = folder / "recipe.toml"
    about, problem = read_json(folder / "about.json")
    recipe = without_places(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else ""
    versions = (about or {}).get("versions")
    version = versions.get("distilens") if isinstance(versions, dict) else None
    return {
        "recipe": recipe or None,
        "download": f"data:application/toml;base64,{base64.b64encode(recipe.encode()).decode('ascii')}",
        "install": f"pip install distilens=={version}" if version else None,
        "command": run_command(folder),
        "about": about,
        "missing": missing(problem, run_command(folder)),
    }


def run_command(folder: Path) -> str:
    return f"distilens run recipe.toml --out {shlex.quote(folder.resolve().name)}"
