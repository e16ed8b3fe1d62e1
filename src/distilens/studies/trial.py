"""One training of a study: a row with a seed. It is trained as a run is, and scored on the validation split only."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from distilens.foundation.errors import UserError
from distilens.foundation.files import Busy, write_json
from distilens.foundation.fingerprints import key_of
from distilens.measure import macs, parameters, predict
from distilens.measure.accuracies import agreement, evaluation_batches
from distilens.measure.answers import main_score
from distilens.measure.scores import labels_of
from distilens.models import build_model
from distilens.models.saved import fingerprint_of, save_model
from distilens.runs.recipe_file import make_recipe
from distilens.runs.run import Run, lock_run
from distilens.runs.training import source_key, train_stage
from distilens.studies.study import RESULT, Row, Study, seeded
from distilens.studies.teachers import validation_logits, with_own_answers, with_trained_teacher
from distilens.tasks import Classification
from distilens.training.log import NotFinite
from distilens.training.trackers import Trackers


def sources_of(run: Run) -> str:
    """A key of what a training reads beside its recipe: the data, and the files of the teachers and of the student."""
    teacher = run.recipe.teacher
    models = [run.recipe.student.model, *(teacher.models.values() if teacher else ())]
    return key_of(run.data.fingerprint, [source_key(model) for model in models])


def run_of(study: Study, row: Row, seed: int, console: Console | None = None) -> Run:
    """The run of a row and a seed."""
    content = seeded(with_trained_teacher(study, row.recipe), seed)
    return Run(study.place(row, seed), make_recipe(with_own_answers(study, content)), console)


def train_row(
    study: Study, row: Row, seed: int, console: Console | None = None, *, watch: Trackers | None = None
) -> dict[str, Any]:
    """Train a row with a seed, score it on validation, and write `result.json`.

    A finished training is read instead, unless its data or models have changed since.
    A student whose loss is no longer finite counts as it began. A recipe that cannot be trained gives `failed` with the reason.

    Args:
        watch: sees the rows of the log, and may stop the training by an exception.

    Raises:
        Busy: another process trains it.
    """
    run = run_of(study, row, seed, console)
    if watch is not None:
        run.trackers = watch
    with lock_run(run):
        found = study.result(row, seed)
        if found is not None and "failed" not in found and found.get("sources") in (None, sources_of(run)):
            return found
        start = time.perf_counter()
        about: dict[str, Any] = {"row": row.name, "seed": seed, "sources": sources_of(run)}
        try:
            train_stage(run, base=False)
        except NotFinite as error:
            about["diverged"] = str(error)
            torch.manual_seed(seed)
            save_model(build_model(run.recipe.student.model, run.data.task, run.data.size), run.folder / "student")
        except UserError as error:
            if isinstance(error, Busy) or isinstance(error.__cause__, OSError):  # not the recipe's fault: a full disk
                raise
            about["failed"] = str(error)
        if "failed" not in about:
            about |= {"seconds": round(time.perf_counter() - start, 2), **score(run)}
        write_json(run.folder / RESULT, about)
        tidy(run)
    return about


def score(run: Run) -> dict[str, Any]:
    """A trained student's metric on the validation split, its agreement with the teacher, its learning curve and its cost."""
    student, validation, task = run.models()["student"], run.data.validation, run.data.task
    logits = predict(student, evaluation_batches(validation, student.device))
    metric = task.metric
    scored = [
        row for row in run.metrics.rows() if row["stage"] == "student" and metric.name in row.get("validation", {})
    ]
    found: dict[str, Any] = {
        "metric": metric.plain(),
        "validation": main_score(task, logits, labels_of(validation)),
        "curve": [row["validation"][metric.name] for row in scored],
        "epochs": [row["epoch"] + 1 for row in scored],
        "fingerprint": fingerprint_of(student),
        "parameters": parameters(student),
        "macs": macs(student),
    }
    if run.recipe.teacher is not None and isinstance(task, Classification):
        theirs = validation_logits(run.model("teacher").to(student.device), validation, run.answers_folder().parent)
        found["agreement"] = agreement(logits, theirs)
    return found


def tidy(run: Run) -> None:
    """Keep the weights of the kept epoch only, and the teacher's once for the whole study."""
    remove_checkpoints(run)
    if run.recipe.teacher is None:
        return
    for role in run.recipe.teacher.models:
        share_file(run.answers_folder(role).parent / "model.safetensors", run.folder / role / "model.safetensors")


def remove_checkpoints(run: Run) -> None:
    """Remove the student's checkpoints: nothing resumes from them any more."""
    shutil.rmtree(run.folder / "student" / "checkpoints", ignore_errors=True)


def share_file(source: Path, copy: Path) -> None:
    """Replace a copy of a file by a link to it, where the file system can; both must have the same bytes."""
    if not (source.is_file() and copy.is_file()) or source.samefile(copy) or source.read_bytes() != copy.read_bytes():
        return
    link = copy.with_name(f".{copy.name}.link")
    try:
        link.unlink(missing_ok=True)
        os.link(source, link)
        os.replace(link, copy)
    except OSError:  # another disk, or a file system without links: the copy stays
        link.unlink(missing_ok=True)
