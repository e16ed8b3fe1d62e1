"""Stage by stage: what is done, what is skipped, what a change redoes."""

import functools
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from sklearn import datasets

from distilens.cli.actions import check_run
from distilens.foundation.errors import UserError
from distilens.foundation.files import lock_folder
from distilens.measure.maps.gallery import gallery
from distilens.measure.transfer.settings import CompareSettings
from distilens.models.saved import fingerprint_of
from distilens.runs import stages, training
from distilens.runs.recipe_file import make_recipe
from distilens.runs.run import Run, load_run, lock_run
from distilens.runs.stages import run_all

NETS = """
from torch import nn

def tiny(classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)
    )
"""

CONTENT = {
    "name": "staged",
    "data": "digits:limit=60,size=16",
    "teacher": {"model": "python:staged_nets:tiny"},
    "student": {"model": "python:staged_nets:tiny", "methods": ["ce", "kd:temperature=2"]},
    "train": {"epochs": 2, "batch_size": 32, "precision": "float32"},
    "explain": {"explainers": ["gradcam", "ig:steps=2"], "images": 4, "measured": 8},
}
ALL = ["teacher", "base", "student", "measure", "explain"]


@pytest.fixture(scope="module", autouse=True)
def digits_are_read_once():
    """scikit-learn parses them from text at each call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_digits", functools.cache(datasets.load_digits))
        yield


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "staged_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def content(**changes):
    return {
        key: {**value, **changes.get(key, {})} if isinstance(value, dict) else value for key, value in CONTENT.items()
    }


def done(folder, recipe=None, act=run_all) -> list[str]:
    """The stages that a run did, by what it says."""
    said = io.StringIO()
    console = Console(file=said, width=200)
    act(Run(folder, recipe, console) if recipe else load_run(folder, console=console))
    lines = said.getvalue().splitlines()
    skipped = [line.partition(":")[0] for line in lines if line.endswith(": already done")]
    return [name for name in ALL if name not in skipped]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """A run of all stages, made once."""
    place = tmp_path_factory.mktemp("staged")
    (place / "staged_nets.py").write_text(NETS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.syspath_prepend(place)
        assert done(place / "runs" / "one", make_recipe(CONTENT)) == ALL
    return place / "runs" / "one"


@pytest.fixture
def ran(place, whole_run):
    """A copy of it, for the test alone."""
    return Path(shutil.copytree(whole_run, place / "runs" / "one"))


def test_the_second_time_nothing_is_done(ran):
    before = {
        path: path.stat().st_mtime_ns for path in ran.rglob("*.*") if path.suffix in (".safetensors", ".npz", ".pt")
    }
    scores = (ran / "scores.json").read_bytes()
    assert done(ran, make_recipe(CONTENT)) == []
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert (ran / "scores.json").read_bytes() == scores


def test_the_predictions_are_kept_and_are_those_of_the_models(ran):
    run = load_run(ran)
    found = run.predictions()
    assert found.classes == run.data.classes
    assert list(found.test.logits) == ["teacher", "base", "student"]
    for split, answers in ((run.data.test, found.test), (run.data.validation, found.validation)):
        np.testing.assert_array_equal(answers.labels, split.labels)
        np.testing.assert_array_equal(answers.index, split.index)
    student = run.model("student").eval()
    images, _ = run.data.test.pixels(np.arange(5))
    np.testing.assert_allclose(student.logits(images).detach().numpy(), found.test.logits["student"][:5], atol=1e-5)
    scores = run.scores["models"]["student"]
    right = found.test.predicted("student") == found.test.labels
    assert scores["test"]["accuracy"] == pytest.approx(right.mean())
    with np.load(ran / "errors.npz") as errors:
        assert errors["index"].tolist() == [one["index"] for one in run.scores["errors"]]
        shown, _ = run.data.test.pixels(np.array([one["row"] for one in run.scores["errors"]]))
        np.testing.assert_array_equal(errors["images"], (shown * 255).round().byte().permute(0, 2, 3, 1).numpy())


def test_a_model_has_one_fingerprint_wherever_it_is_spoken_of(ran):
    run = load_run(ran)
    stages.compare_stage(run, CompareSettings(samples=32, reference=16, images=2, measured=4, sets=1))
    compared = json.loads((ran / "transfer.json").read_text())["models"]
    recorded = run.about["fingerprints"]
    for role, scores in run.scores["models"].items():
        own = fingerprint_of(run.model(role))
        assert own == scores["fingerprint"] == compared[role]["weights"] == recorded[f"{role} weights"]
    shown = gallery(f"run:{ran},part=student", run.data, ["gradcam"], images=2, sanity=False)
    assert shown.fingerprint == recorded["student weights"] != recorded["base weights"]


def test_a_run_of_an_earlier_version_has_no_predictions_until_it_is_measured(ran):
    for name in ("predictions.npz", "errors.npz"):
        (ran / name).unlink()
    with pytest.raises(UserError, match="distilens measure"):
        load_run(ran).predictions()
    assert done(ran) == ["measure"]
    assert load_run(ran).predictions().test.total == len(load_run(ran).data.test)


def test_maps_are_made_for_the_answers_of_the_models_that_are_there(ran):
    run = load_run(ran)
    models, measured = run.models(), run.predictions().test.logits
    kept = stages.test_logits(run, models)
    assert all(np.array_equal(kept[role], measured[role]) for role in models)
    other = {**models, "student": models["base"]}  # not the student that was measured
    computed = stages.test_logits(run, other)
    for role, source in (("teacher", "teacher"), ("base", "base"), ("student", "base")):
        np.testing.assert_allclose(computed[role], measured[source], atol=1e-5)
    (ran / "predictions.npz").unlink()
    np.testing.assert_allclose(stages.test_logits(run, models)["student"], measured["student"], atol=1e-5)


def test_the_recipe_in_the_folder_is_the_same_run(ran):
    assert done(ran) == []
    assert done(ran, act=lambda run: run_each(run)) == []


def run_each(run: Run) -> None:
    """As the commands do."""
    for act in (stages.train_stage, stages.measure_stage, stages.explain_stage):
        with lock_run(run):
            act(run)


def test_a_moved_folder_is_the_same_run(ran, place):
    ran.rename(place / "runs" / "two")
    assert done(place / "runs" / "two") == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"student": {"methods": ["ce", "kd:temperature=3"]}}, ["student", "measure", "explain"]),
        ({"student": {"methods": ["ce:smoothing=0", "kd:temperature=2,weight=1"]}}, []),  # the defaults written out
        ({"base": {"methods": ["ce:smoothing=0.1"]}}, ["base", "measure", "explain"]),
        ({"teacher": {"train": {"epochs": 1}}}, ["teacher", "student", "measure", "explain"]),
        ({"train": {"optimizer": "sgd:lr=0.1"}}, ALL),
        ({"train": {"log_every": 1, "workers": 0, "keep_every": 1}}, []),
        ({"explain": {"explainers": ["gradcam"]}}, ["measure", "explain"]),
        ({"explain": {"images": 3}}, ["explain"]),
        ({"explain": {"measured": 5}}, ["measure"]),
    ],
)
def test_a_change_redoes_what_it_touches_and_nothing_else(ran, changes, expected):
    recipe = make_recipe({**content(**changes), **({"base": changes["base"]} if "base" in changes else {})})
    assert done(ran, recipe) == expected
    assert done(ran, recipe) == []


def test_the_maps_of_an_explainer_that_is_not_wanted_any_more_go(ran):
    assert {path.name for path in (ran / "maps").iterdir()} == {"gradcam.npz", "ig.npz"}
    done(ran, make_recipe(content(explain={"explainers": ["ig:steps=2"]})))
    assert {path.name for path in (ran / "maps").iterdir()} == {"ig.npz"}
    assert list(json.loads((ran / "scores.json").read_text())["models"]["student"]["maps"]) == ["ig"]


@pytest.mark.parametrize(
    ("lost", "expected"),
    [
        ("scores.json", ["measure"]),
        ("predictions.npz", ["measure"]),
        ("maps/ig.npz", ["explain"]),
        ("student/model.safetensors", ["student"]),
        ("teacher/stage.json", ["teacher"]),
    ],
)
def test_what_was_deleted_is_made_again_as_it_was(ran, lost, expected):
    """Weights come out of their last checkpoint, bit for bit, so that nothing behind them is done again."""
    (ran / lost).unlink()
    assert done(ran) == expected
    assert (ran / lost).exists()
    assert done(ran) == []


def test_a_file_that_is_not_whole_says_what_to_do(ran):
    (ran / "student" / "stage.json").write_text("{")
    with pytest.raises(UserError, match=r"student/stage.json is not whole JSON .*: delete it"):
        done(ran)


@pytest.mark.slow
def test_killed_between_stages_each_goes_on(place, monkeypatch):
    class Killed(BaseException):
        pass

    folder, recipe = place / "runs" / "killed", make_recipe(CONTENT)
    for place_of, name in ((training, "save_model"), (stages, "score_models"), (stages, "write_arrays")):

        def killed(*arguments, **options):
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(place_of, name, killed)
            with pytest.raises(Killed):
                run_all(Run(folder, recipe))
    done(folder, recipe)
    whole = place / "runs" / "whole"
    done(whole, recipe)
    for role in ("teacher", "base", "student"):
        ours, theirs = ((run / role / "model.safetensors").read_bytes() for run in (folder, whole))
        assert ours == theirs
    for part in ("gradcam", "ig"):
        ours, theirs = (np.load(run / "maps" / f"{part}.npz") for run in (folder, whole))
        assert all(np.array_equal(ours[key], theirs[key]) for key in theirs.files)


def test_a_second_process_is_told(ran):
    with lock_folder(ran), pytest.raises(UserError, match="another process is at work"):
        run_all(load_run(ran))


def test_what_a_run_leaves_about_itself(ran):
    about = json.loads((ran / "about.json").read_text())
    assert about["name"] == "staged"
    assert {"distilens", "torch", "accelerate", "numpy"} <= about["versions"].keys()
    assert about["seeds"] == {"data and weights": 0, "variants": 0}
    assert about["machine"]["cores"] > 0
    assert set(about["fingerprints"]) == {"data", "teacher data", "teacher weights", "base weights", "student weights"}
    assert about["fingerprints"]["student weights"] == fingerprint_of(load_run(ran).model("student"))
    assert set(about["seconds"]) == set(ALL)
    before = about["seconds"]
    done(ran)
    assert json.loads((ran / "about.json").read_text())["seconds"] == before  # of the time that it took


def test_what_went_wrong_is_said_and_not_what_went_wrong_with_about(place, monkeypatch):
    def full(run):
        raise UserError("the disk is full: about.json")

    monkeypatch.setattr("distilens.runs.run.about_run", full)
    monkeypatch.setattr(
        training, "save_model", lambda model, folder: (_ for _ in ()).throw(UserError("the model is lost"))
    )
    with pytest.raises(UserError, match="the model is lost"):
        run_all(Run(place / "runs" / "full", make_recipe(CONTENT)))


def test_a_loaded_run_has_all(ran):
    run = load_run(ran)
    assert set(run.models()) == {"teacher", "base", "student"}
    assert run.scores["models"]["student"]["test"]["n"] == len(run.data.test)
    assert {row["stage"] for row in run.metrics.rows()} == {"teacher", "base", "student"}
    said = ", ".join(f"{role} {run.scores['models'][role]['test']['accuracy']:.1%}" for role in run.scores["models"])
    assert repr(run) == f"Run({str(ran)!r}, 'staged': {said})"
    assert 'href="' in run._repr_html_()
    assert set(run.log.stages()) == {"teacher", "base", "student"}
    with pytest.raises(UserError, match=r"is not a run: it has no recipe.toml \(made by: distilens run"):
        load_run(ran.parent)


def test_a_folder_of_distill_is_said_to_be_no_run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "metrics.jsonl").touch()
    for refused in (load_run, check_run):
        with pytest.raises(
            UserError, match=r"it is the folder of distill\(folder=...\).*made by: distilens run RECIPE$"
        ):
            refused(tmp_path)


def test_weights_of_another_run_that_changed_are_noticed(ran, place):
    """`run:` names a folder: what is in it counts, not its name."""
    recipe = make_recipe({**content(), "teacher": {"model": "run:runs/one,part=teacher"}})
    other = place / "runs" / "other"
    done(other, recipe)
    assert done(other, recipe) == []
    done(ran, make_recipe({**content(), "seed": 1}))
    assert done(other, recipe) == ["teacher", "student", "measure", "explain"]


@pytest.mark.slow
def test_a_teacher_of_other_data(place):
    given = {**content(), "teacher": {"model": "python:staged_nets:tiny", "data": "digits:limit=90,size=16"}}
    folder = place / "runs" / "large"
    done(folder, make_recipe(given))
    about = json.loads((folder / "about.json").read_text())["fingerprints"]
    assert about["data"] != about["teacher data"]
    given["teacher"]["data"] = "shapes:train=64,test=40,size=16"
    with pytest.raises(UserError, match=r"teacher.data has other classes than data: circle"):
        done(folder, make_recipe(given))


def test_a_tap_that_is_not_there_is_said_before_anything_is_trained(place):
    folder = place / "runs" / "tapped"
    with pytest.raises(UserError, match="no tap 'nope'"):
        done(folder, make_recipe(content(explain={"explainers": ["gradcam:tap=nope"]})))
    assert not (folder / "teacher").exists()
    assert not (folder / "metrics.jsonl").exists()


FLAT = """
from torch import nn

def flat(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, classes))
"""


@pytest.mark.parametrize(
    ("student", "methods", "said"),
    [
        ("python:flat_nets:flat", ["ce", "map_match"], "returns a feature map"),
        ("python:staged_nets:tiny", ["ce", "map_match:explainer=[gradcam:tap=layer3]"], "no tap 'layer3'"),
        ("python:staged_nets:tiny", ["ce", "at"], "no tap 'last-"),
        ("python:flat_nets:flat", ["ce", "kd_layer:templates=4"], "returns a feature map"),
    ],
)
def test_what_methods_cannot_do_is_said_before_the_teacher_is_trained(place, student, methods, said):
    (place / "flat_nets.py").write_text(FLAT)
    folder = place / "runs" / "early"
    recipe = make_recipe(content(student={"model": student, "methods": methods}, explain={"explainers": ["random"]}))
    with pytest.raises(UserError, match=said):
        run_all(Run(folder, recipe))
    assert not (folder / "teacher" / "model.safetensors").exists()
