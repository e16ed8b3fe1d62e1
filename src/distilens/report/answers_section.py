"""The section about the models' predictions: confused classes, calibration, and the most confident errors."""

import shlex
from pathlib import Path
from typing import Any

import numpy as np

from distilens.foundation.estimate import NOTHING
from distilens.report import pictures
from distilens.report.cells import amount, percent
from distilens.report.confusion import confusions
from distilens.report.paths import shown_folder
from distilens.report.reliability import reliability_chart
from distilens.report.rendering import missing
from distilens.report.table import measured_models

MOST_PAIRS = 10


def section(folder: Path, scores: dict | None) -> dict[str, Any]:
    """The content of the section; if an earlier version measured the run, the command that measures it again."""
    if scores is None:
        return {}
    models, command = measured_models(scores), f"distilens measure {shlex.quote(shown_folder(folder))}"
    if not any("calibration" in model for model in models.values()):
        return {"missing": missing(None, command)} if models and "task" not in (scores.get("data") or {}) else {}
    classes = [str(name) for name in (scores.get("data") or {}).get("classes") or ()]
    return {
        "roles": list(models),
        "classes": classes,
        "confusions": confusions(scores, list(models), classes),
        "pairs": pairs(models),
        "calibration": calibration_rows(models),
        "diagrams": diagrams(models),
        "command": command,
        "errors": errors(folder, scores, list(models)),
        "judge": "student" if "student" in models else list(models)[-1],
    }


def pairs(models: dict[str, dict[str, Any]]) -> list[tuple[str, str, list[str]]]:
    """The pairs of classes that the student (or the last model) confuses most, and how often each model does."""
    judged = list(models)[-1]
    confused = {
        role: {(one["true"], one["given"]): one for one in (model.get("confusion") or {}).get("pairs") or ()}
        for role, model in models.items()
    }
    rows = []
    for pair, one in list(confused[judged].items())[:MOST_PAIRS]:
        cells = [
            cell_of(model.get("confusion") or {}, confused[role].get(pair), pair) for role, model in models.items()
        ]
        rows.append((one["true"], one["given"], cells))
    return rows


def cell_of(confusion: dict[str, Any], one: dict[str, Any] | None, pair: tuple[str, str]) -> str:
    """How often a model confuses a pair; an upper bound if the pair is not among its most frequent ones."""
    if one:
        return f"{one['count']:,} of {one['of']:,}"
    listed = confusion.get("pairs") or []
    most = listed[-1]["count"] if confusion.get("matrix") is None and len(listed) >= 20 else 0
    return f"at most {most:,}" if most else "0"


def calibration_rows(models: dict[str, dict[str, Any]]) -> list[tuple[str, list[tuple[str, str]]]]:
    """One row per measure, one cell per model."""
    calibrations = {role: model.get("calibration") or {} for role, model in models.items()}
    scaled = {role: model.get("temperature") or {} for role, model in models.items()}

    def floor(entry: dict[str, Any]) -> tuple[str, str]:
        error = entry.get("ece") or {}
        return (
            (NOTHING, "")
            if error.get("floor") is None
            else (f"{error['floor']:.3f}", f"up to {error['floor high']:.3f}")
        )

    def temperature(entry: dict[str, Any]) -> tuple[str, str]:
        if entry.get("value") is None:
            return NOTHING, "no labelled image to fit it"
        limit = "at the limit of the search: no best value found" if entry.get("at limit") else ""
        return f"{entry['value']:.2f}", limit or f"fitted on {entry['n']:,} validation images"

    return [
        ("calibration error", [amount(calibrations[role].get("ece")) for role in models]),
        ("the same for a calibrated model", [floor(calibrations[role]) for role in models]),
        ("negative log-likelihood", [amount(calibrations[role].get("nll")) for role in models]),
        ("best temperature", [temperature(scaled[role]) for role in models]),
        ("calibration error at this temperature", [amount(scaled[role].get("ece")) for role in models]),
        ("negative log-likelihood at this temperature", [amount(scaled[role].get("nll")) for role in models]),
    ]


def diagrams(models: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One reliability diagram per model, with its n."""
    charts = []
    for colour, (role, model) in enumerate(models.items()):
        entry = model.get("calibration") or {}
        title = f"Reliability of the {role}, {entry.get('n', 0):,} test images"
        svg = reliability_chart(f"chart-reliability-{role}", title, entry.get("bins") or (), colour)
        if svg:
            charts.append({"title": title, "svg": svg})
    return charts


def errors(folder: Path, scores: dict, roles: list[str]) -> list[dict[str, Any]] | None:
    """The most confident errors, each with its picture if it was stored; None if the errors were not recorded."""
    listed = scores.get("errors")
    if listed is None:
        return None
    images = read_images(folder / "errors.npz", [one["index"] for one in listed])
    return [
        {
            "name": one["name"],
            "label": one["label"],
            "given": one["given"],
            "confidence": percent(one["confidence"]),
            "others": [(role, one["right"].get(role)) for role in roles if role in one["right"]][:-1],
            "picture": None if image is None else pictures.image_uri(image),
        }
        for one, image in zip(listed, images, strict=True)
    ]


def read_images(path: Path, index: list[int]) -> list[np.ndarray | None]:
    """The images of the given rows; None for missing ones."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            stored_images = dict(zip(stored["index"].tolist(), stored["images"], strict=True))
    except (OSError, ValueError, KeyError, EOFError):
        stored_images = {}
    return [stored_images.get(row) for row in index]
