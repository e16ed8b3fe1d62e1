"""Export a run's student: its data, its teacher's answers and its recipe verify, calibrate and fine-tune the files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distilens.core import Model
from distilens.data import SOURCES
from distilens.data.pixels import range_of
from distilens.deploy.exported import Exported
from distilens.deploy.exporting import export_model
from distilens.deploy.finetuning import finetune
from distilens.deploy.plan import Plan
from distilens.foundation.errors import UserError
from distilens.foundation.fingerprints import key_of
from distilens.report.deployment_section import FOLDER
from distilens.runs.recipe import ExportSettings
from distilens.runs.run import Run, what_is_trained

PIXELS = ("ground", "range")
"""The options of a data source that say how pictures become pixels; `predict` needs them."""


def plan_of(settings: ExportSettings) -> Plan:
    """The plan of a recipe's `[export]`."""
    return Plan(**settings.model_dump())


def export_run(run: Run, plan: Plan, folder: Path | None = None) -> Exported:
    """Export the student of a run into `RUN/export` (or another folder), verified on the run's data.

    Raises:
        UserError: there is no student, or it cannot be exported.
    """
    if not (run.folder / "student" / "model.safetensors").is_file():
        raise UserError(f"there is no trained student in {run.folder}: distilens run, or distilens train {run.folder}")
    student = run.models()["student"].cpu()
    recipe = run.recipe

    def tuned(model: Model, calibration: Tensor) -> Model:
        return finetune(
            model,
            calibration,
            run.data,
            teacher=run.teacher() if recipe.teacher else None,
            methods=recipe.student.methods,
            settings=recipe.train,
            epochs=plan.finetune,
            console=run.console,
        )

    return export_model(
        student,
        folder or run.folder / FOLDER,
        plan,
        run.data,
        about={
            "recipe": key_of(what_is_trained(recipe)),
            "run": recipe.name,
            **pixels_of(recipe.data, run.data.inventory.remarks),
        },
        teacher=teacher_logits(run),
        finetune=tuned,
        scores=run.scores,
        say=run.say,
    )


def teacher_logits(run: Run) -> dict[str, Tensor]:
    """The teacher's logits (in a segmentation its classes, uint8) by split, if the run was measured completely."""
    try:
        found = run.predictions()
    except UserError:
        return {}
    splits = {"test": found.test, "validation": found.validation}
    own = {"test": run.data.test, "validation": run.data.validation}
    return {
        name: torch.from_numpy(split.logits["teacher"] if run.data.task.dense else np.float32(split.logits["teacher"]))
        for name, split in splits.items()
        if "teacher" in split.logits and split.index.tolist() == own[name].index.tolist()
    }


def pixels_of(data: str, remarks: Sequence[str] = ()) -> dict[str, Any]:
    """How the data's pictures become pixels: what the notation says, and the range that was found for deep pictures."""
    options, found = SOURCES.resolve(data).options, range_of(remarks)
    chosen = {key: options[key] for key in PIXELS if options.get(key) is not None}
    given = {**({"range": found} if found else {}), **chosen}
    given = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}  # as JSON
    return {"pixels": given} if given else {}
