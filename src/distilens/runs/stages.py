"""The stages of a run: train (teacher, base, student) → measure → explain → compare → export → report.

Each stage reads and writes only files of the run folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distilens.data.pipeline import batch_at
from distilens.deploy.exported import FILE as EXPORTS
from distilens.deploy.exported import Exported, Refused, read_exported
from distilens.deploy.plan import Plan
from distilens.explain import build_explainer, labels
from distilens.foundation.devices import processes
from distilens.foundation.files import read_json, write_arrays, write_json
from distilens.foundation.fingerprints import key_of
from distilens.foundation.notation import safe
from distilens.foundation.settings import resolve_section
from distilens.measure import predict
from distilens.measure.accuracies import evaluation_batches
from distilens.measure.answers import errors_of
from distilens.measure.known import Known
from distilens.measure.maps.side_by_side import as_pixels, choose, explained, named_files
from distilens.measure.predictions import FILE as PREDICTIONS
from distilens.measure.scores import predict_all, score_models
from distilens.measure.transfer.comparison import compare
from distilens.measure.transfer.settings import CompareSettings
from distilens.models.model import Model
from distilens.models.saved import fingerprint_of
from distilens.report import write_report
from distilens.runs.exporting import FOLDER, export_run, plan_of
from distilens.runs.history import KeptModels
from distilens.runs.provenance import about_run
from distilens.runs.recipe import ExplainSettings, ExportSettings, MeasureSettings
from distilens.runs.run import ROLES, Run, lock_run, stage
from distilens.runs.training import source_key, train_stage


def run_all(run: Run) -> None:
    """All stages, in order."""
    with lock_run(run):
        train_stage(run)
        if processes().is_main_process:
            measure_stage(run)
            explain_stage(run)
            if run.recipe.compare is not None:
                compare_stage(run)
            if run.recipe.export is not None:
                try:
                    export_stage(run)
                except Refused:
                    report_stage(run)  # the page says why
                    raise
            report_stage(run)
        processes().wait_for_everyone()


def measure_stage(run: Run, *, teachers: Known | None = None) -> None:
    """Score the answers, maps and costs of all models. The test split is read here.

    It writes the answers (`predictions.npz`), the scores, and the student's most confident errors (`errors.npz`).

    Args:
        teachers: the results of teachers from earlier runs; a teacher that is in it is not asked again.
    """
    explain, more = run.recipe.explain, run.recipe.measure or MeasureSettings()
    weights = [run.weights_key(role) for role in ROLES]
    key = key_of(
        "measure",
        weights,
        run.data.fingerprint,
        resolve_section(ExplainSettings, explain.model_dump(exclude={"images"})),
        *([resolve_section(MeasureSettings, more.model_dump())] if more.corruptions else []),
    )
    scores_file, answers_file, errors_file = (run.folder / name for name in ("scores.json", PREDICTIONS, "errors.npz"))
    with stage(run, "measure", key, scores_file, answers_file, errors_file) as due:
        if not due:
            return

        def say(text: str) -> None:
            run.say(f"measure: {text}")

        models = run.models()
        answers = predict_all(models, run.data, teachers=teachers, say=say)
        answers.save(answers_file)
        scores = score_models(
            models,
            run.data,
            explain.explainers,
            measured=explain.measured,
            predictions=answers,
            corruptions=more.corruptions,
            teachers=teachers,
            say=say,
        )
        scores["errors"] = errors_of(answers)
        rows = np.array([error["row"] for error in scores["errors"]], dtype=np.int64)
        images, _ = run.data.test.pixels(rows)
        write_arrays(errors_file, {"index": answers.test.index[rows], "images": as_pixels(images)})
        scores["data"]["note"] = run.recipe.note
        write_json(scores_file, scores)


def explain_stage(run: Run) -> None:
    """Explain the same test images for all models: one file per explainer in `maps/`."""
    settings = run.recipe.explain
    files = {part: run.folder / "maps" / f"{label}.npz" for part, label in labels(settings.explainers).items()}
    weights = [run.weights_key(role) for role in ROLES]
    key = key_of(
        "explain",
        weights,
        run.data.fingerprint,
        resolve_section(ExplainSettings, settings.model_dump(exclude={"measured"})),
    )
    with stage(run, "explain", key, *files.values()) as due:
        if not due:
            return
        models, test = run.models(), run.data.test
        logits = test_logits(run, models)
        positions = choose(logits, min(settings.images, len(test)), test)
        batch = batch_at(test, positions)
        shown = {role: values[positions] for role, values in logits.items()}
        for part, path in files.items():
            run.say(f"explain: {part}")
            maps = explained(models, batch, shown, build_explainer(part, run.data))
            write_arrays(path, {**maps, **named_files(test, positions)})
        for path in set((run.folder / "maps").glob("*.npz")) - set(files.values()):
            path.unlink()  # from an explainer that is no longer in the recipe


def test_logits(run: Run, models: Mapping[str, Model]) -> dict[str, Tensor]:
    """The logits of all models on the test split: those that were measured, if they are of these models and exact."""
    test, known = run.data.test, (run.scores or {}).get("models", {})
    same = all(known.get(role, {}).get("fingerprint") == fingerprint_of(model) for role, model in models.items())
    if same and (run.folder / PREDICTIONS).is_file():
        measured = run.predictions().test
        if np.array_equal(measured.index, test.index) and all(
            values.dtype in (np.float32, np.uint8) for values in measured.logits.values()
        ):
            return {role: torch.from_numpy(measured.logits[role]) for role in models}
    return {role: predict(model, evaluation_batches(test, model.device)) for role, model in models.items()}


def compare_stage(run: Run, how: CompareSettings | None = None) -> None:
    """Compare the run's models: what was distilled, in numbers and in maps. The recipe's settings are the default."""
    part = how or run.recipe.compare or CompareSettings()
    weights = [run.weights_key(role) for role in ROLES]
    checkpoints = {role: KeptModels(run, role) for role in ("base", "student")}
    key = key_of(
        "compare",
        weights,
        run.data.fingerprint,
        resolve_section(CompareSettings, part.model_dump()),
        source_key(part.embeddings),
        {role: models.epochs for role, models in checkpoints.items()},
    )
    made = (read_json(run.folder / "transfer.json") or {}).get("maps", {}).get("levels", {})
    maps = [run.folder / "transfer" / f"{safe(level)}.npz" for level in made]
    with stage(run, "compare", key, run.folder / "transfer.json", *maps) as due:
        if due:
            compare(run.models(), run.data, part, grown=checkpoints, console=run.console).save(run.folder, page=False)


def export_stage(run: Run, plan: Plan | None = None, folder: Path | None = None) -> Exported:
    """Write the student's files and verify them; the recipe's settings are the default.

    Raises:
        Refused: a file does not answer as the student does. The others are there.
    """
    plan = plan or plan_of(run.recipe.export or ExportSettings())
    place = folder or run.folder / FOLDER
    key = key_of("export", run.weights_key("student"), run.data.fingerprint, asdict(plan))
    before = read_exported(place)
    files = before.paths() if before else []
    with stage(run, "export", key, place / EXPORTS, *files) as due:
        made = export_run(run, plan, place) if due else before
    assert made is not None
    if made.refused:
        raise Refused(made)
    return made


def report_stage(run: Run) -> Path:
    """Write the page."""
    write_json(run.folder / "about.json", about_run(run))
    return write_report(run.folder)
