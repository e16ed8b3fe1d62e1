"""What a finished study found, as evidence for `recommend`: its conditions, and how much each list gained over `kd`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distilens.foundation.errors import UserError
from distilens.foundation.estimate import Estimate
from distilens.foundation.metric import ACCURACY
from distilens.foundation.notation import Spec
from distilens.studies.recommend import images_a_class, kind_of
from distilens.studies.study import Row, Study
from distilens.studies.trial import run_of
from distilens.studies.verdict import judge_study
from distilens.training.settings import Training

KD = "kd"
"""The row that all others are compared with."""
FEWEST = 3
"""A row that shares fewer seeds with `kd` is no evidence."""


def gather_evidence(study: Study) -> dict[str, Any]:
    """An entry of `evidence.json`: the conditions of a study, and its rows without those under a control.

    `accuracy` is in percent and `gain` in points over the row `kd`, paired by seed: each a mean and half of its 95 % interval, on
    the test split if it was read, else on validation. The `note` of the recipe says what the pictures are. Rows are left out if
    they have a control, or if the study has no question what they gain over `kd`, or too few seeds to answer it.

    Raises:
        UserError: the study has no row `kd` with at least `FEWEST` seeds, or its metric is not the accuracy.
    """
    content = judge_study(study)
    alone = next((row["value"]["n"] for row in content["rows"] if row["name"] == KD), 0)
    if alone < FEWEST:
        raise UserError(
            f"{study.folder}: evidence is a gain over the row {KD}, which needs at least {FEWEST} seeds; finished: {alone}"
        )
    if content["metric"] != ACCURACY.plain():
        raise UserError(f"{study.folder}: the evidence is about accuracy, but this is {content['metric']['name']}")
    gains = {each["row"]: each for each in content["questions"] if each["against"] == KD and each["seeds"][0] >= FEWEST}
    listed = [row for row in content["rows"] if row["control"] is None and (row["name"] == KD or row["name"] in gains)]
    usual = training_of(study.row(KD))
    return {
        "study": content["name"],
        **describe_conditions(study),
        "split": content["split"],
        "settings": {key: value for key, value in usual.items() if value != training_defaults()[key]},
        "rows": [
            {
                "row": row["name"],
                "methods": row["methods"],
                **own_settings(study.row(row["name"]), usual),
                "seeds": row["value"]["n"],
                "accuracy": in_points(Estimate.read(row["value"])),
                "gain": None if row["name"] == KD else in_points(Estimate.read(gains[row["name"]])),
            }
            for row in listed
        ],
    }


def describe_conditions(study: Study) -> dict[str, Any]:
    """What a study's data and models are, by the first finished run of `kd`."""
    row = study.row(KD)
    run = run_of(study, row, min(study.results(row)))
    teacher, student, shots = run.model("teacher"), run.recipe.student.model, round(images_a_class(run.data))
    pictures, epochs = run.recipe.note.rstrip(".") or run.data.name, run.recipe.train.epochs
    by_default = list(run.recipe.student.methods) == [KD]  # each method is beside kd without any option
    return {
        "about": f"{pictures}, {shots} images per class, {teacher.name} teaches {student}, {epochs} epochs",
        "teacher": teacher.name,
        "student": student,
        "kind": kind_of(teacher, run.model("student")),
        "shots": shots,
        "shortcut": bool(Spec.parse(run.recipe.data).options.get("shortcut")),
        "defaults": by_default,
        "ranks": not by_default,
    }


def training_of(row: Row) -> dict[str, Any]:
    """The settings of a row's training, as plain data."""
    return Training(**row.recipe.get("train", {})).model_dump(mode="json")


def training_defaults() -> dict[str, Any]:
    """The settings of a training where nothing is set."""
    return Training().model_dump(mode="json")


def own_settings(row: Row, usual: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a row's training that differ from the study's, under `settings`; empty without any."""
    own = {key: value for key, value in training_of(row).items() if value != usual[key]}
    return {"settings": own} if own else {}


def in_points(found: Estimate | None) -> list[float]:
    """A share as its mean and half of its interval, in percent."""
    assert found is not None and found.value is not None
    return [round(100 * found.value, 3), round(100 * (found.half or 0.0), 3)]
