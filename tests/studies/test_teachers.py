"""The teachers of a study: which rows share one, and what a run reads."""

import os

import torch

from distilens.runs.recipe_file import make_recipe
from distilens.studies.study import Row, Study
from distilens.studies.teachers import is_trained, teacher_name, train_teachers, with_own_training, with_trained_teacher
from distilens.studies.trial import run_of
from distilens.studies.work import failures, train_study
from distilens.teachers import ANSWERS


def make(folder, *contents) -> Study:
    return Study(folder, "seeds", tuple(Row(f"r{number}", content) for number, content in enumerate(contents)), (0,))


def test_rows_share_a_teacher_unless_its_training_differs(tmp_path, content, place):
    controlled = {**content, "teacher": {**content["teacher"], "control": "permuted"}}
    longer = {**content, "teacher": {**content["teacher"], "train": {"epochs": 2}}}
    seeded = {**content, "seed": 5}
    other = {**content, "student": {**content["student"], "methods": ["kd"]}}
    alone = {key: value for key, value in other.items() if key != "teacher"}
    alone["student"] = {**content["student"], "methods": ["ce"]}
    study = make(tmp_path, alone, content, controlled, longer, seeded, other)
    names = [teacher_name(study, make_recipe(row.recipe)) for row in study.rows[1:]]
    assert names == ["teacher", "teacher", "teacher-2", "teacher-3", "teacher"]
    assert with_trained_teacher(study, alone) == alone


def test_a_run_reads_the_trained_teacher_and_its_stored_answers(content, place):
    folder = place / "a study, with (signs)"
    study = make(folder, content)
    train_teachers(study)
    weights = folder / "runs" / "teacher" / "teacher" / "model.safetensors"
    made = weights.stat().st_mtime_ns
    assert not list(folder.rglob("*.pt"))
    train_teachers(study)
    assert weights.stat().st_mtime_ns == made
    recipe = make_recipe(with_trained_teacher(study, content))
    assert is_trained(recipe)
    assert recipe.teacher.answers == "stored"
    live = {**content, "teacher": {**content["teacher"], "answers": "live"}}
    assert make_recipe(with_trained_teacher(study, live)).teacher.answers == "live"
    again = with_trained_teacher(study, with_trained_teacher(study, content))
    assert again["teacher"]["model"] == recipe.teacher.model


def test_a_teacher_keeps_its_training_when_the_students_changes(content, place):
    plain = {**content, "teacher": {"model": "python:study_nets:teacher"}}
    pinned = with_own_training(plain)
    changed = make_recipe(pinned, ["train.epochs=7"])
    assert (changed.train.epochs, changed.teacher_training.epochs) == (7, 1)
    assert make_recipe(plain, ["train.epochs=7"]).teacher_training.epochs == 7
    alone = {"data": content["data"], "student": {"model": "python:study_nets:tiny"}}
    assert with_own_training(alone) == alone


def test_logits_on_validation_are_computed_once(content, place, monkeypatch):
    from distilens.studies import teachers

    study = make(place / "logits", content)
    train_teachers(study)
    run = run_of(study, study.rows[0], 0)
    model = teachers.Run(place / "logits" / "runs" / "teacher", make_recipe(content)).model("teacher")
    first = teachers.validation_logits(model, run.data.validation, place / "logits" / "kept")
    monkeypatch.setattr(teachers, "predict", None)
    assert torch.equal(first, teachers.validation_logits(model, run.data.validation, place / "logits" / "kept"))


def test_rows_with_other_pictures_record_their_answers_apart(content, place):
    """Mixed pictures depend on the chosen images, so each seed has its own there."""
    few = {**content, "data": content["data"] + ",shots=4", "train": {**content["train"], "variants": 2}}
    mixed = {**few, "train": {**few["train"], "augment": "crop:mix=mixup"}}
    rows = (Row("usual", few), Row("still", {**few, "train": {**few["train"], "augment": "none"}}), Row("mixed", mixed))
    study = Study(place / "apart", "seeds", rows, (0, 1))
    train_study(study)
    assert failures(study) == {}
    paths = {
        (row.name, seed): ANSWERS.resolve(run_of(study, row, seed).recipe.teacher.answers).options["path"]
        for row in rows
        for seed in (0, 1)
    }
    assert paths["usual", 0] is paths["usual", 1] is None
    assert paths["still", 0] == paths["still", 1]
    assert len({paths["still", 0], paths["mixed", 0], paths["mixed", 1]}) == 3
    assert all(
        (study.folder / "answers" / name / "logits.bin").is_file() for name in os.listdir(study.folder / "answers")
    )
