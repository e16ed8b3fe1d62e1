"""A run folder: no finished run is trained over by another recipe, and one process at a time works in a folder."""

import io
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from brightness import pictures
from distilens.data.source import Inventory
from distilens.foundation.files import lock_folder
from distilens.methods import build_methods
from distilens.models import build_model
from distilens.models.saved import save_model
from distilens.runs import run as module
from distilens.runs.recipe_file import make_recipe
from distilens.runs.run import Run, folder_for, lock_run, wait_and_lock

CONTENT = {"data": "shapes:limit=64", "teacher": {"model": "resnet8"}, "student": {"model": "resnet8"}}


def recipe(*changes: str):
    return make_recipe(CONTENT, changes)


def finish(folder, made):
    (folder / "student").mkdir(parents=True)
    (folder / "student" / "stage.json").write_text("{}")
    (folder / "student" / "model.safetensors").write_bytes(b"")
    (folder / "recipe.toml").write_text(made.to_toml())


def test_a_new_or_stopped_run_is_gone_on_with(tmp_path):
    assert folder_for(tmp_path / "a", recipe()) == tmp_path / "a"
    (tmp_path / "a" / "student").mkdir(parents=True)
    (tmp_path / "a" / "recipe.toml").write_text(recipe().to_toml())
    assert folder_for(tmp_path / "a", recipe("train.epochs=3")) == tmp_path / "a"


@pytest.mark.parametrize(
    "change",
    [
        "name=other",
        "note=text",
        "explain.images=3",
        "explain.explainers=[gradcam]",
        "compare.samples=40",
        "train.log_every=3",
    ],
)
def test_what_no_model_depends_on_stays_in_the_folder(tmp_path, change):
    finish(tmp_path / "a", recipe())
    assert folder_for(tmp_path / "a", recipe(change)) == tmp_path / "a"


@pytest.mark.parametrize(
    "change",
    [
        "seed=1",
        "train.epochs=3",
        "student.methods=kd",
        "data.limit=65",
        "teacher.train.epochs=2",
        "teacher.model=resnet14",
    ],
)
def test_other_models_go_beside_a_finished_run(tmp_path, change):
    finish(tmp_path / "a", recipe())
    other = recipe(change)
    assert folder_for(tmp_path / "a", other) == tmp_path / "a-2"
    finish(tmp_path / "a-2", recipe("train.epochs=77"))
    assert folder_for(tmp_path / "a", other) == tmp_path / "a-3"
    finish(tmp_path / "a-3", other)
    assert folder_for(tmp_path / "a", other) == tmp_path / "a-3"
    assert folder_for(tmp_path / "a", recipe()) == tmp_path / "a"


def test_a_recipe_that_cannot_be_read_is_another_one(tmp_path):
    finish(tmp_path / "a", recipe())
    (tmp_path / "a" / "recipe.toml").write_text("nonsense")
    assert folder_for(tmp_path / "a", recipe()) == tmp_path / "a-2"


@pytest.mark.slow
def test_a_process_waits_until_the_folder_is_free(tmp_path, monkeypatch):
    said, waits = io.StringIO(), []
    run = Run(tmp_path / "a", recipe(), Console(file=said, width=200))
    other = lock_folder(run.folder)
    other.__enter__()

    def sleep(seconds):
        assert not (run.folder / "recipe.toml").exists()
        waits.append(seconds)
        if len(waits) == 3:
            other.__exit__(None, None, None)

    monkeypatch.setattr(module.time, "sleep", sleep)
    with wait_and_lock(run):
        assert (run.folder / "recipe.toml").is_file()
        with pytest.raises(module.Busy), lock_folder(run.folder):
            pass
    assert len(waits) == 3
    assert said.getvalue() == f"waiting for another process in {run.folder}\n"
    with lock_folder(run.folder):
        pass  # it is free again


def test_only_the_main_process_locks_the_folder_and_writes_into_it(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "processes", lambda: SimpleNamespace(is_main_process=False))
    run = Run(tmp_path / "a", recipe())
    with lock_folder(run.folder), lock_run(run):
        pass
    assert [path.name for path in run.folder.iterdir()] == [".lock"]


def test_what_was_left_out_of_the_data_is_said(tmp_path):
    said = io.StringIO()
    run = Run(tmp_path / "a", recipe(), Console(file=said, width=200))
    data = replace(pictures(), name="mine", inventory=Inventory(left_out={"damaged": ("x.png",)}, remarks=("Grey.",)))
    assert run.say_inventory(data) is data
    assert said.getvalue() == "mine: Grey.\nmine: left out: damaged: x.png\n"


def test_a_student_that_is_used_with_its_teacher_gets_it(tmp_path, monkeypatch):
    fused = "cam_fusion:deploy=teacher"
    (method,) = build_methods([fused]).values()
    assert method.at_use, "so that this test is about something"
    for role in ("teacher", "student"):
        save_model(build_model("resnet8", ("a", "b"), (16, 16)), tmp_path / "a" / role)
    given = []
    monkeypatch.setattr(module, "accompany", lambda student, methods, teacher: given.append((student, teacher)))
    run = Run(tmp_path / "a", recipe(f"student.methods=[ce,[{fused}]]"))
    models = run.models()
    ((student, teacher),) = given
    assert student is models["student"]
    assert teacher.identity == run.teacher().identity
    Run(tmp_path / "a", recipe()).models()
    assert len(given) == 1, "no method of this list needs the teacher at inference"
