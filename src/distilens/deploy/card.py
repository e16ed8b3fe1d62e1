"""The model card: `README.md` beside exported files, with the metadata block of the Hugging Face hub. Plain data in, text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from distilens.deploy.markdown import environment, one_line
from distilens.foundation.errors import UserError, shortened
from distilens.foundation.files import read_json, write_text
from distilens.foundation.notation import Spec
from distilens.report import deployment_section, table
from distilens.report.cells import in_percent
from distilens.report.page import data_facts
from distilens.report.remarks import remarks

CARD = "README.md"
HUB = "hub"
MOST_CLASSES = 20
"""The number of class names that the card lists."""

ON_HUB = {
    "classification": ("image-classification", "accuracy", "accuracy"),
    "segmentation": ("image-segmentation", "mean_iou", "mIoU"),
}
"""By task: the hub's name of the task, the hub's name of the metric, and our name of it."""

Plain = Mapping[str, Any]


def write_cards(folder: Path, exported: Plain, scores: Plain | None = None) -> None:
    """Write the card into an export folder, and another one into its `hub/` folder if that was exported.

    Args:
        folder: the export folder; its `bench.json` is read if it is there.
        exported: the content of `export.json`.
        scores: the content of the run's `scores.json`; scores of another student are left out.
    """
    timm = (read_json(folder / HUB / "config.json") or {}).get("library_name") == "timm"
    bench, _ = deployment_section.read_bench(folder, exported["student"]["fingerprint"])
    write_text(folder / CARD, card(exported, scores, bench, timm=timm))
    if any(entry["file"] == HUB for entry in kept(exported)):
        only = {**exported, "files": [entry for entry in exported["files"] if entry["file"] == HUB]}
        write_text(folder / HUB / CARD, card(only, scores, timm=timm, place="."))


def card(
    exported: Plain, scores: Plain | None = None, bench: Plain | None = None, *, timm: bool = False, place: str = HUB
) -> str:
    """The text of a card.

    Args:
        exported: the content of `export.json`.
        scores: the content of the run's `scores.json`.
        bench: the content of `bench.json`.
        timm: whether timm can load the folder of weights.
        place: the folder of weights, seen from the card.
    """
    student = exported["student"]
    found = dict(scores) if scores and fingerprint_in(scores) == student["fingerprint"] else {}
    block = yaml.safe_dump(metadata(exported, found, timm=timm), sort_keys=False, allow_unicode=True)
    return (
        environment()
        .get_template("card.md.j2")
        .render(
            metadata=Markup(block),
            name=name_of(student),
            student=student,
            dense=deployment_section.is_dense(exported),
            classes=shortened(student.get("classes") or [], most=MOST_CLASSES),
            data=exported["data"],
            headline=table.headline(found) if found else None,
            scores=score_table(found) if found else None,
            remarks=remarks(found) if found else [],
            facts=data_facts(found.get("data") or {}),
            verified=deployment_section.table(exported),
            conclusions=[*deployment_section.refusals(exported), *deployment_section.conclusions(exported)],
            maps=deployment_section.map_table(exported),
            latency=deployment_section.latency_table(bench) if bench else None,
            files={entry["format"]: entry["file"] for entry in reversed(kept(exported))},  # float before INT8
            place=place,
            timm=timm,
            limits=limits(exported, found),
        )
    )


def kept(exported: Plain) -> list[Plain]:
    """The entries of the files that passed their verification."""
    return [entry for entry in exported["files"] if not entry.get("refused")]


def score_table(scores: dict[str, Any]) -> deployment_section.Table:
    """The scores of teacher, base and student, one column per model."""
    header, rows = table.rows(scores)
    columns = [list(cells) for cells in zip(header, *rows, strict=True)]
    return columns[0], columns[1:]


def student_in(scores: Plain) -> Plain:
    """The student's scores; empty if it was not measured."""
    return (scores.get("models") or {}).get("student") or {}


def fingerprint_in(scores: Plain) -> str | None:
    """The fingerprint of the student that was scored."""
    return student_in(scores).get("fingerprint")


def name_of(student: Plain) -> str:
    """The name of the model: that of the run, else the network's."""
    return one_line(str(student.get("run") or student["network"]))


# ---------------------------------------------------------------------------------------------------- metadata and limits


def metadata(exported: Plain, scores: Plain, *, timm: bool) -> dict[str, Any]:
    """The metadata that the hub reads. Source: https://huggingface.co/docs/hub/model-cards."""
    formats = [entry["format"] for entry in kept(exported)]
    block: dict[str, Any] = {
        "library_name": "timm" if timm else "distilens",
        "tags": list(dict.fromkeys(["distilens", "knowledge-distillation", *formats])),
    }
    task = exported["student"].get("task")
    if not isinstance(task, str) or task not in ON_HUB:
        return block
    tag, metric, key = ON_HUB[task]
    block["pipeline_tag"] = tag
    if dataset := dataset_on_hub(exported["data"]):
        block["datasets"] = [dataset]
    score = test_score(exported, scores, key)
    if score is not None:
        name = one_line(str(exported["data"]))
        result = {
            "task": {"type": tag},
            "dataset": {"type": dataset or name, "name": name, "split": "test"},
            "metrics": [{"type": metric, "value": round(score, 5), "name": f"test {key}"}],
        }
        block["metrics"] = [metric]
        block["model-index"] = [{"name": name_of(exported["student"]), "results": [result]}]
    return block


def dataset_on_hub(data: str | None) -> str | None:
    """The name of the data set on the hub, if the data are from there."""
    try:
        spec = Spec.parse(data or "")
    except UserError:  # the name of your own arrays
        return None
    name = spec.argument or ""
    is_path = name.startswith((".", "~", "/")) or name.count("/") > 1
    return name if spec.name == "hf" and name and not is_path else None


def test_score(exported: Plain, scores: Plain, metric: str) -> float | None:
    """The student's accuracy, or its mIoU, on the test split, as the run or the export measured it."""
    measured = [student_in(scores).get("test")]
    measured += [(entry["answers"].get("test") or {}).get("student") for entry in exported["files"]]
    return next((found[metric] for found in measured if found and found.get(metric) is not None), None)


def limits(exported: Plain, scores: Plain) -> list[str]:
    """What a user of the model must not expect."""
    classes: Sequence[str] = exported["student"].get("classes") or ()
    by_class = student_in(scores).get("by class") or {}
    absent = [name for name in by_class if not by_class[name]]
    known = {name: entry["accuracy"] for name, entry in by_class.items() if entry}
    guess = (scores.get("data") or {}).get("commonest")
    dense = deployment_section.is_dense(exported)
    score = "IoU" if dense else "accuracy"
    lines = []
    if classes and dense:
        lines.append(f"It gives every pixel one of its {len(classes):,} classes, also a pixel of something else.")
    elif classes:
        lines.append(
            f"It answers every image with one of its {len(classes):,} classes, also an image of something else."
        )
    if exported["data"] is not None:
        measured = "The mIoU" if dense else "Accuracy"
        lines.append(f"The numbers are for images of one data set. {measured} on other images can be lower.")
    if absent:
        lines.append(f"There is no test image of {shortened(absent)}: the {score} on them is unknown.")
    if len(known) > 1:
        worst = min(known, key=lambda name: known[name])
        lines.append(f"Its lowest test {score} is {in_percent(known[worst])} %, on the class {worst}.")
    if guess:
        lines.append(
            f"The answer {guess['class']} for every image would be right for {in_percent(guess['share'])} % of the test images."
        )
    return lines
