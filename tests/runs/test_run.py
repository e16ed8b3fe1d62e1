"""A finished run is never trained over by another recipe: the new one goes beside it."""

import pytest

from distilens.runs.recipe_file import make_recipe
from distilens.runs.run import folder_for

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
