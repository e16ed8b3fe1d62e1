"""The export of a run: made once, made again after a change, refused with a reason that the page shows."""

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import tomlkit
import torch
from rich.console import Console

from distilens.cli import commands
from distilens.cli.terminal import next_steps
from distilens.deploy import job, verification
from distilens.deploy.exported import Refused
from distilens.deploy.plan import Plan
from distilens.foundation.errors import UserError
from distilens.runs import exporting
from distilens.runs.exporting import export_run, pixels_of, teacher_logits
from distilens.runs.recipe_file import make_recipe
from distilens.runs.run import Run, load_run
from distilens.runs.stages import export_stage, run_all

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

NETS = """
from torch import nn

def tiny(classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)
    )
"""

CONTENT = {
    "name": "shipped",
    "data": "digits:limit=60,size=16",
    "teacher": {"model": "python:shipped_nets:tiny"},
    "student": {"model": "python:shipped_nets:tiny", "methods": ["ce", "kd:temperature=2"]},
    "train": {"epochs": 1, "batch_size": 32, "precision": "float32"},
    "explain": {"explainers": ["gradcam"], "images": 2, "measured": 4},
    "export": {"formats": ["onnx"]},
}


def done(folder, **export) -> str:
    """What a run says."""
    said = io.StringIO()
    recipe = make_recipe({**CONTENT, "export": {**CONTENT["export"], **export}})
    run_all(Run(folder, recipe, Console(file=said, width=200)))
    return said.getvalue()


@pytest.fixture(scope="module", autouse=True)
def few_maps():
    """One explainer and one floor: the verification has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verification, "EXPLAINERS_OF_FILES", ("occlusion",))
        patch.setattr(verification, "FLOORS", ("random",))
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with an export, made once."""
    place = tmp_path_factory.mktemp("shipped")
    (place / "shipped_nets.py").write_text(NETS)
    folder = place / "runs" / "one"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.syspath_prepend(place)
        said = done(folder)
    assert "export: student.onnx" in said
    return folder


@pytest.fixture
def ran(whole, tmp_path, monkeypatch):
    """A copy of it; data that were decoded before are beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "shipped_nets.py").write_text(NETS)
    shutil.copytree(whole.parent, tmp_path / "runs")
    return Path("runs") / "one"


@pytest.fixture
def harmful(monkeypatch):
    """Every file answers otherwise than the student on three images."""

    def verify(student, file):
        found = whole_verification(student, file)
        found["answers"]["test"]["different"] = 3
        return found

    whole_verification = job.verify
    monkeypatch.setattr(job, "verify", verify)


def command(monkeypatch, *words) -> int:
    """The exit code of a command."""
    monkeypatch.setattr(sys, "argv", ["distilens", *map(str, words)])
    try:
        commands.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def files(folder) -> list[str]:
    return [entry["file"] for entry in json.loads((folder / "export" / "export.json").read_text())["files"]]


def test_a_run_exports_its_student_with_a_card_and_a_section(whole):
    assert {path.name for path in (whole / "export").iterdir()} == {
        "README.md",
        "export.json",
        "predict.py",
        "student.onnx",
    }
    exported = json.loads((whole / "export" / "export.json").read_text())
    (entry,) = exported["files"]
    assert entry["answers"]["test"]["different"] == entry["answers"]["validation"]["different"] == 0
    assert entry["answers"]["test"]["agreement"] == entry["answers"]["test"]["student's agreement"]
    card = (whole / "export" / "README.md").read_text()
    assert "# shipped" in card
    assert "| accuracy, test ↑ |" in card
    assert "The base is the control" in card
    page = (whole / "report.html").read_text()
    assert 'id="deployment"' in page
    assert '<th scope="row">student.onnx</th>' in page


@pytest.mark.slow
def test_the_second_time_nothing_is_done_and_a_changed_setting_runs_it_again(ran):
    said = done(ran)
    assert "export: already done" in said
    said = done(ran, pixels="uint8")
    assert "export: what it depends on has changed; running it again" in said
    assert "student: already done" in said
    assert json.loads((ran / "export" / "export.json").read_text())["student"]["input"]["type"] == "uint8"
    (ran / "export" / "student.onnx").unlink()
    assert "export: some of its files are missing; running it again" in done(ran, pixels="uint8")


def test_a_refused_file_leaves_the_run_and_the_page_says_why(ran, harmful, monkeypatch, capsys):
    before = (ran / "scores.json").read_bytes()
    (ran / ".export.json").unlink()
    assert command(monkeypatch, "run", ran / "recipe.toml", "--out", ran) == 2
    reason = "student.onnx is not kept: its top class differs from the student&#39;s on 3 of"
    assert reason.replace("&#39;", "'") in capsys.readouterr().err.replace("\n", " ")
    assert (ran / "scores.json").read_bytes() == before
    assert (ran / "student" / "model.safetensors").is_file()
    assert not (ran / "export" / "student.onnx").exists()
    assert reason in (ran / "report.html").read_text()
    with pytest.raises(Refused):  # nor is it forgotten the next time
        done(ran)


def test_the_command_exports_a_run_and_renews_its_page(ran, monkeypatch, capsys):
    (ran / "report.html").write_text("old")
    assert command(monkeypatch, "export", ran, "--format", "pt2", "safetensors") == 0
    assert "student.pt2" in capsys.readouterr().out
    assert files(ran)[-2:] == ["student.pt2", "hub"], "those of the run stay in the list"
    assert (ran / "export" / "hub" / "README.md").is_file()
    assert '<th scope="row">student.pt2</th>' in (ran / "report.html").read_text()
    assert command(monkeypatch, "export", ran, "--data", "digits") == 2
    assert "a run is exported with its own data" in capsys.readouterr().err


def test_the_command_is_a_next_step_until_there_is_an_export(ran):
    run = load_run(ran)
    assert "distilens export" not in "\n".join(next_steps(run))
    shutil.rmtree(ran / "export")
    assert f"distilens export {ran}" in "\n".join(next_steps(run))


def test_without_measured_answers_the_teacher_is_not_compared(ran):
    run = load_run(ran)
    assert set(teacher_logits(run)) == {"test", "validation"}
    (ran / "predictions.npz").unlink()
    assert teacher_logits(run) == {}


def test_a_student_is_finetuned_as_the_recipe_trained_it(ran, monkeypatch):
    def finetuned(model, calibration, data, **options):
        asked.append((calibration, options))
        return model

    def exported(student, folder, plan, data, *, finetune, **about):
        finetune(student, images)
        raise UserError("enough")

    images, asked = torch.rand(2, 3, 16, 16), []
    monkeypatch.setattr(exporting, "finetune", finetuned)
    monkeypatch.setattr(exporting, "export_model", exported)
    run = load_run(ran)
    with pytest.raises(UserError, match="enough"):
        export_run(run, Plan(finetune=3))
    ((calibration, options),) = asked
    assert calibration is images
    assert (options["methods"], options["settings"], options["epochs"]) == (
        run.recipe.student.methods,
        run.recipe.train,
        3,
    )
    assert options["teacher"].identity == run.teacher().identity


def test_a_run_without_a_student_says_what_to_do(ran):
    shutil.rmtree(ran / "student")
    with pytest.raises(UserError, match=r"there is no trained student in runs/one: distilens run"):
        export_stage(load_run(ran))


def test_how_pictures_become_pixels_travels_with_the_file():
    assert pixels_of("folder:path=x,ground=white,size=32") == {"pixels": {"ground": "white"}}
    assert pixels_of("digits") == {}
    assert pixels_of("folder:path=x,ground=black,range=none,size=32") == {
        "pixels": {"ground": "black"}
    }  # as a run writes it
    assert pixels_of("folder:path=x,range=[0,4095]") == {"pixels": {"ground": "white", "range": [0, 4095]}}


def test_the_docs_list_every_setting_with_its_default():
    section = (
        (Path(__file__).parents[2] / "docs" / "recipes.md").read_text().partition("[export]")[2].partition("```")[0]
    )
    listed = tomlkit.parse(section.partition("\n")[2]).unwrap()
    assert listed == make_recipe({**CONTENT, "export": {}}).export.model_dump(mode="json")
