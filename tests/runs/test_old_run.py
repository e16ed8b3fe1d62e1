"""A run folder of version 0.1.0, before the code had rooms: it is read, found finished, and gone on with."""

import shutil
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file

import distilens
from distilens.runs.stages import run_all

OLD = Path(__file__).with_name("old_run")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    shutil.copytree(OLD, tmp_path / "old")
    monkeypatch.syspath_prepend(tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old" / "run"


def test_it_is_finished_and_gets_its_page(folder):
    console = Console(record=True, width=120)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.suffix in (".safetensors", ".npz", ".bin")}
    scores = (folder / "scores.json").read_bytes()
    with console.capture() as seen:
        run_all(distilens.load_run(folder, console=console))
    for stage in ("teacher", "base", "student", "measure", "explain", "compare"):
        assert f"{stage}: already done" in seen.get()
    assert (folder / "report.html").is_file()
    assert (folder / "scores.json").read_bytes() == scores
    assert all(path.read_bytes() == content for path, content in before.items())


def test_its_training_goes_on_from_its_checkpoint_and_its_stored_answers(folder):
    whole = load_file(folder / "student" / "model.safetensors")
    answers = (folder / "teacher" / "answers" / "logits.bin").read_bytes()
    for name in ("model.safetensors", "stage.json"):
        (folder / "student" / name).unlink()
    rows = (folder / "metrics.jsonl").read_text()
    run_all(distilens.load_run(folder))
    again = load_file(folder / "student" / "model.safetensors")
    assert again.keys() == whole.keys()
    assert all((again[key] == whole[key]).all() for key in whole)
    assert (folder / "metrics.jsonl").read_text() == rows  # no epoch was trained again
    assert (folder / "teacher" / "answers" / "logits.bin").read_bytes() == answers


def test_its_models_are_found_by_name(folder):
    model = distilens.build_model(f"run:{folder},part=teacher", [str(number) for number in range(8)], (16, 16))
    assert sum(parameter.numel() for parameter in model.parameters()) == 296
    assert distilens.load_model(folder / "student").classes[0] == "circle"
