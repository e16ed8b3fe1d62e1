"""A run that is killed or stopped ends with the weights of one that never was."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

RECIPE = """
name = "killed"
data = "shapes:train=160,test=40,val_fraction=0.2"
[teacher]
model = "python:nets:dropping"
[teacher.train]
epochs = 3
[student]
model = "python:nets:tiny"
methods = ["ce:weight=0.5", "kd:temperature=2"]
[train]
epochs = 6
batch_size = 32
optimizer = "sgd:lr=0.05"
log_every = 1
EXTRA
[explain]
explainers = ["gradcam"]
images = 4
measured = 8
"""

NETS = """
from torch import nn

def tiny(classes, dropout=0.0):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout(dropout),
        nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes),
    )

def dropping(classes):
    return tiny(classes, dropout=0.3)
"""

ROLES = ("teacher", "base", "student")


@pytest.fixture
def place(tmp_path):
    return furnished(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of the same recipe that nothing stopped."""
    place = furnished(tmp_path_factory.mktemp("whole"))
    finish(start(place, "whole"))
    return place / "runs/whole"


def furnished(place: Path) -> Path:
    (place / "nets.py").write_text(NETS)
    (place / "recipe.toml").write_text(RECIPE.replace("EXTRA", "ema = 0.9"))
    return place


def start(place: Path, out: str, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "distilens", "run", "recipe.toml", "--out", f"runs/{out}", *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> str:
    output, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return output


def same_weights(first: Path, second: Path) -> None:
    for role in ROLES:
        ours, theirs = (load((run / role / "model.safetensors").read_bytes()) for run in (first, second))
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert torch.equal(ours[key], theirs[key]), (role, key)


def steps(run: Path) -> list[tuple[str, int]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["stage"], row["step"]) for row in rows if "terms" in row]


def wait_for_rows(place: Path, run: str, count: int, process: subprocess.Popen) -> None:
    log = place / "runs" / run / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and len(log.read_text().splitlines()) >= count):
        time.sleep(0.002)


@pytest.mark.slow
def test_killed_at_random_points_it_ends_with_the_same_weights(place, whole):
    generator = random.Random(7)
    rows = 0
    for _ in range(3):
        process = start(place, "killed")
        rows += generator.randint(3, 25)
        wait_for_rows(place, "killed", rows, process)
        time.sleep(generator.random() * 0.02)
        process.kill()
        process.communicate()
        log = place / "runs" / "killed" / "metrics.jsonl"
        rows = len(log.read_text().splitlines()) if log.exists() else 0
    assert "report.html" in finish(start(place, "killed"))
    killed = place / "runs/killed"
    same_weights(whole, killed)
    assert steps(killed) == steps(whole)
    assert len(set(steps(whole))) == len(steps(whole))
    expected, scores = (json.loads((run / "scores.json").read_text()) for run in (whole, killed))
    for role in ROLES:
        for score in ("validation", "test", "agreement"):
            assert expected["models"][role][score] == scores["models"][role][score]


@pytest.mark.slow
def test_banks_and_balance_go_on_where_they_were(place):
    """Remembered rows, the factors of terms, own modules, factorised weights: all of a checkpoint."""
    text = (place / "recipe.toml").read_text()
    text = text.replace(
        '"kd:temperature=2"', '"kd:warmup=0.5", "crd:width=8", "osakd", "fitnet:decay=0.3", "opdf", "powerprop"'
    )
    (place / "recipe.toml").write_text(text.replace("ema = 0.9", 'ema = 0.9\nbalance = "ratio:0.5,every=3"'))
    process = start(place, "stopped")
    wait_for_rows(place, "stopped", 45, process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert not (place / "runs/stopped/student/model.safetensors").exists()
    finish(start(place, "stopped"))
    finish(start(place, "whole"))
    whole, stopped = place / "runs/whole", place / "runs/stopped"
    same_weights(whole, stopped)
    assert steps(stopped) == steps(whole)
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    notes = [row["notes"] for row in rows if row["stage"] == "student" and "notes" in row]
    assert set(notes[-1]) >= {"balance/kd", "balance/crd", "balance/osakd", "balance/fitnet"}


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_stop_it_saves_says_so_and_goes_on(place, whole, number, code):
    process = start(place, "stopped")
    wait_for_rows(place, "stopped", 7, process)
    process.send_signal(number)
    _, error = process.communicate(timeout=120)
    assert process.returncode == code, error
    assert "the same command continues from here" in error
    assert "Traceback" not in error
    finish(start(place, "stopped"))
    same_weights(whole, place / "runs/stopped")
    assert steps(place / "runs/stopped") == steps(whole)


@pytest.mark.slow  # as `test_stages.py` does in one process
def test_what_is_there_is_not_done_again_and_a_change_redoes_what_it_touches(place):
    finish(start(place, "run"))
    weights = {role: place / "runs/run" / role / "model.safetensors" for role in ROLES}
    before = {role: path.stat().st_mtime_ns for role, path in weights.items()}
    process = start(place, "run")
    _, error = process.communicate(timeout=120)
    for stage in (*ROLES, "measure", "explain"):
        assert f"{stage}: already done" in error
    assert before == {role: path.stat().st_mtime_ns for role, path in weights.items()}
    text = (place / "recipe.toml").read_text()
    (place / "recipe.toml").write_text(text.replace("temperature=2", "temperature=3"))
    _, error = start(place, "run", "--again").communicate(timeout=120)
    assert "teacher: already done" in error
    assert "base: already done" in error
    assert "student: what it depends on has changed" in error
    assert "measure: what it depends on has changed" in error
    after = {role: path.stat().st_mtime_ns for role, path in weights.items()}
    assert {role for role in ROLES if after[role] != before[role]} == {"student"}
