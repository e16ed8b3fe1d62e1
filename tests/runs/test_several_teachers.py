"""A run with several teachers and a control: each is trained once, answers from its own folder, and what is changed is redone."""

import io
import json
import tomllib
from pathlib import Path

import pytest
import torch
from rich.console import Console

from distilens.cli.inspection import show_inspection
from distilens.foundation.errors import UserError
from distilens.models.saved import load_model
from distilens.runs.inspection import inspect_recipe
from distilens.runs.recipe_file import make_recipe
from distilens.runs.recording import record, verify
from distilens.runs.run import Run, load_run
from distilens.runs.stages import run_all
from distilens.runs.training import train_stage
from distilens.teachers import BestExplainedTeacher, LiveTeacher, MeanTeacher, PermutedTeacher, StoredTeacher

NETS = """
from torch import nn

def tiny(classes, stride=4):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=stride), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, classes),
    )

def finer(classes):
    return tiny(classes, 2)

def other(classes):
    return tiny(classes, 3)
"""
TINY, FINER, OTHER = (f"python:several_nets:{name}" for name in ("tiny", "finer", "other"))
CONTENT = {
    "name": "several",
    "data": "shapes:train=80,test=40,size=16",
    "teacher": {"model": TINY, "others": [TINY, FINER], "follow": "best_explained:judge=energy_in_mask"},
    "student": {"model": TINY, "methods": ["ce", "kd", "map_match:of=canonical"]},
    "train": {"epochs": 1, "batch_size": 24, "precision": "float32", "workers": 0},
    "explain": {"explainers": ["gradcam"], "images": 4, "measured": 8},
}
STAGES = ["teacher", "teacher-2", "teacher-3", "base", "student"]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    (tmp_path / "several_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def done(folder, changes=(), act=train_stage) -> list[str]:
    """The stages that a run did, by what it says."""
    said = io.StringIO()
    act(Run(Path(folder), make_recipe(CONTENT, changes), Console(file=said, width=200)))
    skipped = [line.partition(":")[0] for line in said.getvalue().splitlines() if line.endswith(": already done")]
    return [name for name in STAGES if name not in skipped]


def test_a_run_from_recipe_to_page():
    folder = Path("runs/one")
    assert done(folder, act=run_all) == STAGES
    assert done(folder, act=run_all) == []
    run = load_run(folder)
    first, second, third = (run.model(role) for role in STAGES[:3])
    assert not torch.equal(first.network[0].weight, second.network[0].weight), "two copies of one teacher"
    assert third.network[0].stride == (2, 2)
    rows = run.metrics.rows()
    assert {row["stage"] for row in rows} == set(STAGES)
    notes = next(row["notes"] for row in rows if row["stage"] == "student" and "notes" in row)
    assert {"follow/1", "follow/2", "follow/3", "follow/none", "follow/switched"} <= set(notes)
    about = json.loads((folder / "about.json").read_text())
    assert {"teacher weights", "teacher-2 weights", "teacher-3 weights"} <= set(about["fingerprints"])
    assert (folder / "report.html").exists()
    again = make_recipe(tomllib.loads((folder / "recipe.toml").read_text()))
    assert again.to_toml() == run.recipe.to_toml()
    assert isinstance(run.teacher(), BestExplainedTeacher)


@pytest.mark.slow
def test_a_change_redoes_what_it_touches_and_nothing_else():
    assert done("runs/one") == STAGES
    for changes, expected in (
        ([f"teacher.others=[{TINY},{OTHER}]"], ["teacher-3", "student"]),
        ([], ["teacher-3", "student"]),
        (["teacher.follow=mean"], ["student"]),
        (["teacher.follow=mean", "teacher.control=permuted"], ["student"]),
        (["teacher.follow=mean", "teacher.control=permuted:only=all,seed=0"], []),
        (["teacher.follow=mean", "teacher.control=permuted:seed=1"], ["student"]),
        (["teacher.methods=ce:smoothing=0.1"], [*STAGES[:3], "student"]),
    ):
        assert done("runs/one", changes) == expected, changes
        assert done("runs/one", changes) == []
    before = (Path("runs/one/student/stage.json")).read_text()
    Path("runs/one/teacher-2/stage.json").unlink()
    assert done("runs/one", changes) == ["teacher-2"]
    assert Path("runs/one/student/stage.json").read_text() == before


def test_by_default_it_is_the_mean_and_the_control_is_outside(monkeypatch):
    content = {**CONTENT, "teacher": {"model": TINY, "others": f"{TINY},{FINER}", "control": "permuted"}}
    recipe = make_recipe(content)
    assert recipe.teacher.others == (TINY, FINER)
    assert recipe.resolved()["teacher"]["follow"] == "mean"
    run = Run(Path("runs/mean"), make_recipe(content, ["teacher.answers=stored"]))
    train_stage(run)
    teacher = run.teacher()
    assert isinstance(teacher, PermutedTeacher) and isinstance(teacher.inner, MeanTeacher)
    assert [type(each) for each in teacher.inner.teachers] == [StoredTeacher] * 3
    assert [each.folder for each in teacher.inner.teachers] == [run.folder / role / "answers" for role in STAGES[:3]]
    assert all((run.folder / role / "answers" / "logits.bin").stat().st_size for role in STAGES[:3])


def test_loaded_teachers_are_not_trained_and_keep_their_answers_where_they_are():
    done("runs/one")
    changes = [
        "teacher.model=run:runs/one,part=teacher",
        "teacher.others=[[run:runs/one,part=teacher-3]]",
        "teacher.answers=stored",
    ]
    run = Run(Path("runs/two"), make_recipe(CONTENT, changes))
    train_stage(run)
    assert torch.equal(
        run.model("teacher-2").network[0].weight, load_model(Path("runs/one/teacher-3")).network[0].weight
    )
    assert Path("runs/one/teacher-3/answers/logits.bin").exists()
    assert done("runs/two", changes) == ["teacher-3"]  # which that run does not have
    elsewhere = Run(Path("runs/two"), make_recipe(CONTENT, [*changes[:2], "teacher.answers=stored:path=kept"]))
    assert [each.folder for each in elsewhere.teacher().teachers] == [Path("kept"), Path("kept/teacher-2")]


@pytest.mark.parametrize(
    "follow",
    [
        "best_explained:judge=consensus",
        pytest.param("best_explained:judge=[insertion:steps=2]", marks=pytest.mark.slow),
        pytest.param("mean", marks=pytest.mark.slow),
    ],
)
def test_what_was_recorded_is_all_that_a_training_asks(monkeypatch, follow):
    said = io.StringIO()
    changes = [f"teacher.follow={follow}", "teacher.answers=stored", "train.variants=1", "teacher.control=random_maps"]
    changes += ["student.methods=[ce,kd,[map_match:of=canonical],[map_match:as=crop]]"]
    run = Run(Path("runs/recorded"), make_recipe(CONTENT, changes), Console(file=said, width=200))
    record(run)
    for line in ("teacher-2: ", "teacher-3: ", "recorded in runs/recorded/teacher-3/answers"):
        assert line in said.getvalue()
    assert verify(run, 5)
    monkeypatch.setattr(LiveTeacher, "__call__", lambda *given: pytest.fail("a teacher was asked"))
    train_stage(run)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"model": "resnet8", "follow": "mean"}, "teacher.follow is for several teachers"),
        ({"model": "resnet8", "others": ["resnet9"]}, "teacher.others: unknown model 'resnet9'"),
        (
            {"model": "resnet8", "others": "vgg8", "follow": "best"},
            "teacher.follow: unknown way to follow several teachers 'best'",
        ),
        (
            {"model": "resnet8", "control": "permute"},
            "teacher.control: unknown control 'permute'. Did you mean 'permuted'",
        ),
        ({"model": "resnet8", "others": ["vgg8"], "follow": "best_explained:tau=0"}, "greater than 0"),
        ({"model": "resnet8", "control": "random_maps:kind=noise"}, "'blobs', 'centre', 'constant' or 'network'"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_said(teacher, message):
    with pytest.raises(UserError) as error:
        make_recipe({**CONTENT, "teacher": teacher})
    assert message in str(error.value)


def test_data_without_masks_are_refused_before_any_teacher_is_trained():
    with pytest.raises(UserError, match="these data have no masks"):
        done("runs/one", ["data=digits:limit=60,size=16"])
    assert not Path("runs/one/teacher/model.safetensors").exists()


def test_a_codebook_is_of_one_teacher():
    with pytest.raises(UserError, match="kd_layer needs the codebook of one teacher"):
        done("runs/one", ["student.methods=[ce,[kd_layer:templates=4]]"])


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.slow
def test_validate_shows_all_teachers(timed):
    said = io.StringIO()
    found = inspect_recipe(make_recipe(CONTENT, ["teacher.control=permuted"]), timed=timed)
    show_inspection(found, console=Console(file=said, width=200), full=True)
    for line in ("teacher: python", "teacher-2: python", "teacher-3: python", "control = "):
        assert line in said.getvalue()
    assert said.getvalue().count("teacher-3") == 1 + timed
