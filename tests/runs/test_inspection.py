"""A recipe looked at before it is run."""

import dataclasses
import io
import json
import re

import pytest
from rich.console import Console

from distilens.cli.inspection import duration, show_inspection, verdict
from distilens.data import load
from distilens.foundation.errors import UserError
from distilens.runs.inspection import Plan, inspect_recipe
from distilens.runs.recipe_file import make_recipe
from distilens.training.costs import Timed


def inspected(content: dict, tmp_path, monkeypatch, *, timed: bool = False, full: bool = False) -> str:
    monkeypatch.chdir(tmp_path)
    console = Console(file=io.StringIO(), width=160)
    show_inspection(inspect_recipe(make_recipe(content), timed=timed), full=full, console=console)
    return console.file.getvalue()


SMALL = {
    "data": "shapes:train=128,test=40",
    "teacher": {"model": "resnet14"},
    "student": {"model": "resnet8", "methods": ["ce:weight=0.1", "kd"]},
    "train": {"batch_size": 32, "epochs": 2},
}


TINY = {**SMALL, "data": "shapes:train=64,test=40,size=16", "train": {"batch_size": 16, "epochs": 1}}
"""The same with less to compute, for tests that count nothing."""


def test_it_shows_options_shapes_and_counts(tmp_path, monkeypatch):
    text = inspected(SMALL, tmp_path, monkeypatch, full=True)
    assert "kd:temperature=4,standardise=false,top=none,weight=1" in text  # options that were not given
    assert "gradcam:tap=last" in text
    assert "[1, 64, 8, 8]  ← last feature map" in text
    assert "77,912 parameters" in text
    assert "175,128 parameters" in text


def test_it_estimates_time_and_memory(tmp_path, monkeypatch):
    text = inspected(TINY, tmp_path, monkeypatch, timed=True)
    for role in ("teacher", "base", "student"):
        assert role in text
    assert "MiB" in text
    assert "of training on this machine" in text


@pytest.mark.slow
def test_it_says_what_each_method_adds(tmp_path, monkeypatch):
    """Counted by hand: CRD's embeddings and bank, SimKD's projector, FitNet's regressor; ResNet-8 at 32×32 ends in 64×8×8."""
    methods = ["ce", "crd:width=4", "simkd", "fitnet:tap=last-1", "opdf:factors=3", "powerprop"]
    text = inspected({**SMALL, "student": {"model": "resnet8", "methods": methods}}, tmp_path, monkeypatch, timed=True)
    table = text.partition("to training with labels")[2].splitlines()
    rows = {re.match(r"\w*", line)[0]: line for line in table}
    assert re.search(r"\+520 ", rows["crd"])  # 2 (64 · 4 + 4)
    images = len(load(SMALL["data"], tmp_path).train)
    assert f"{2 * 4 * 4 * images / 1000:.1f} kB" in rows["crd"]
    assert re.search(r"\+1,056 ", rows["fitnet"])  # 32 · 32 + 32
    projector = 64 * 32 + 9 * 32 * 32 + 32 * 64
    assert f"+{projector + 2 * (32 + 32 + 64):,}" in rows["simkd"]
    assert f"+{projector * 64:,}" in rows["simkd"]
    assert rows["powerprop"].count("+0 ") == 3
    assert re.search(r"\+8,580 ", rows["opdf"])


def test_what_reads_another_methods_part_is_not_timed_alone(tmp_path, monkeypatch):
    methods = ["kd:as=ce", "simkd", "sp:tap=projector,teacher_tap=last"]
    text = inspected({**TINY, "student": {"model": "resnet8", "methods": methods}}, tmp_path, monkeypatch, timed=True)
    rows = {re.match(r"\w*", line)[0]: line for line in text.partition("to training with labels")[2].splitlines()}
    assert "reads a part that another method inserts into the student" in rows["sp"]
    assert " ms" in rows["kd"]
    assert " ms" in rows["simkd"]


def test_a_loaded_teacher_is_planned_as_it_will_be_trained(tmp_path, monkeypatch):
    """One of other classes with a new head; one that is only loaded, not at all."""
    from distilens.runs.run import Run
    from distilens.runs.stages import train_stage

    monkeypatch.chdir(tmp_path)
    other = {
        "data": "shapes:train=64,test=40,size=16,classes=[circle,cross]",
        "student": {"model": "resnet8", "methods": ["ce"]},
        "train": {"epochs": 1},
    }
    train_stage(Run(tmp_path / "other", make_recipe(other)))
    loaded = {"model": f"run:{tmp_path}/other,part=student", "finetune": "head"}
    text = inspected({**TINY, "teacher": loaded}, tmp_path, monkeypatch, timed=True)
    assert re.search(r"^teacher +\d", text.partition("from to")[2], re.MULTILINE)
    with pytest.raises(UserError, match="knows 2 classes, the data has 8"):
        inspected({**TINY, "teacher": {**loaded, "finetune": "none"}}, tmp_path, monkeypatch, timed=True)


def test_terms_that_cannot_be_balanced_so_are_said_before(tmp_path, monkeypatch):
    changes = {
        "student": {"model": "resnet8", "methods": ["ce", "vid"]},
        "train": {**TINY["train"], "balance": "gradnorm"},
    }
    with pytest.raises(UserError, match="balance=gradnorm compares the size of losses"):
        inspected({**TINY, **changes}, tmp_path, monkeypatch, timed=True)


@pytest.mark.parametrize(
    "parts",
    [
        ["cam_fusion:deploy=self", "at:taps=[last]", "kd_layer"],
        pytest.param(
            ["map_match", "ig_overlay:p=1,mode=channel,anneal=true,explainer=[ig:steps=2]", "kd_layer:stage=2"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_methods_with_parts_and_taps_are_timed_as_they_are_trained(parts, tmp_path, monkeypatch):
    content = {**TINY, "student": {"model": "resnet8", "methods": ["ce", *parts]}}
    text = inspected(content, tmp_path, monkeypatch, timed=True)
    lines = text.partition("to training with labels")[2].splitlines()
    for part in parts:
        row = next(line for line in lines if line.startswith(part.split(":")[0]))
        assert re.search(r"[+-]\d[\d,]* ms", row), row


def test_a_tap_that_does_not_exist_is_said_before_anything_is_trained(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no tap 'layer9'.*Did you mean 'layer"):
        inspected({**SMALL, "explain": {"explainers": ["gradcam:tap=layer9"]}}, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (2.26, "2.3 s"), (7, "7 s"), (61, "1 min 1 s"), (7300, "2 h 1 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_the_estimate_has_its_spread_and_says_when_the_machine_was_busy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = inspect_recipe(make_recipe(SMALL), timed=False)
    calm = Plan("base", 100, 32, Timed((0.1, 0.2, 0.2, 0.2, 0.3), 2**20))
    assert calm.seconds == (20, 10, pytest.approx(30))
    idle = dataclasses.replace(found, plans=(calm, calm))
    assert verdict(idle).startswith("about 40 s of training on this machine, 20 s to 1 min 0 s (")
    assert verdict(idle).endswith("1 MiB in the largest step")
    assert idle.busy == ""
    slow = Plan("student", 100, 32, Timed((0.1, 0.2, 0.2, 0.2, 0.9), 2**20))
    busy = dataclasses.replace(found, plans=(calm, slow))
    assert "the slowest of 5 timed steps of student took 4.5 times as long as the median one" in busy.busy
    shared = dataclasses.replace(idle, others=0.9)
    assert "other processes use 90% of its processors" in shared.busy
    text = io.StringIO()
    show_inspection(shared, console=Console(file=text, width=80))
    lines = text.getvalue().splitlines()
    assert lines[0].startswith("about 40 s")
    assert lines[1] == shared.busy
    assert "[train]" not in text.getvalue()


def test_it_is_plain_data_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = inspect_recipe(make_recipe(TINY))
    found = json.loads(json.dumps(made.plain()))
    assert found["models"]["student"]["parameters"] == 77_912
    assert found["data"]["data"]["train"] == len(made.data["data"].train)
    cost = found["cost"]
    assert 0 < cost["low"] <= cost["seconds"] <= cost["high"]
    assert sum(each["seconds"] for each in found["trainings"].values()) == pytest.approx(cost["seconds"])
    assert set(found["methods"]) == {"ce:weight=0.1", "kd"}
