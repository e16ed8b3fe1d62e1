"""What commands make of their words: recipes, runs, folders."""

from pathlib import Path

import pytest

from distilens.cli import actions
from distilens.cli.options import Manner
from distilens.runs import stages
from distilens.runs.recipe_file import read_recipe

QUIET = Manner(quiet=True)


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    lines = ['name = "mine"', 'data = "shapes"', "[teacher]", 'model = "resnet14"', "[student]", 'model = "resnet8"']
    Path("mine.toml").write_text("\n".join(lines))
    return "mine.toml"


@pytest.mark.parametrize("again", [True, False])
def test_a_finished_run_of_other_settings_is_kept_unless_it_is_to_be_overwritten(recipe, monkeypatch, capsys, again):
    folder, ran = Path("runs/mine"), []
    (folder / "student").mkdir(parents=True)
    for name in ("stage.json", "model.safetensors"):
        (folder / "student" / name).touch()
    (folder / "recipe.toml").write_text(read_recipe(recipe, ["train.epochs=3"]).to_toml())
    monkeypatch.setattr(stages, "run_all", lambda run: ran.append(run.folder))
    monkeypatch.setattr("distilens.cli.terminal.conclude", lambda run, *, as_json: None)
    actions.run_recipe(recipe, [], None, again, as_json=False, how=Manner())
    assert ran == [folder if again else Path("runs/mine-2")]
    said = "".join(capsys.readouterr().err.split())
    text = "runs/mine is a finished run with other settings: this run goes to runs/mine-2".replace(" ", "")
    assert (text in said) is not again


def test_answers_that_are_recorded_ahead_are_read_by_the_run(recipe):
    assert actions.recipe_or_run(recipe, [], None, QUIET).recipe.teacher.answers.startswith("live")
    stored = actions.recipe_or_run(recipe, ["seed=3"], None, QUIET, stored=True)
    assert stored.recipe.teacher.answers.startswith("stored")
    assert (stored.recipe.seed, stored.folder) == (3, Path("runs/mine"))
    own = ["teacher.answers=stored:path=there"]
    assert "path=there" in actions.recipe_or_run(recipe, own, None, QUIET, stored=True).recipe.teacher.answers
