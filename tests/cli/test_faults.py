"""What a user gets wrong on the command line: a message, exit 2, no traceback."""

import errno
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distilens.foundation.errors import UserError
from distilens.foundation.files import lock_folder, write_atomically, write_text
from distilens.models import build_model
from distilens.models.adapters import load_state
from distilens.models.named import check_answers
from distilens.models.saved import load_model, save_model
from distilens.training.log import Metrics


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["run", "nope"], "no recipe at nope"),
        (["run", "recipe.toml", "--set", "train.epoch=1"], "Did you mean 'epochs'"),
        (["run", "recipe.toml", "--set", "data=parquet:path=/nowhere"], "/nowhere does not exist"),
        (["run", "recipe.toml", "--set", "student.model=run:nowhere"], "no run at nowhere"),
        (["run", "recipe.toml", "--set", "student.model=timm:resnet19"], "Did you mean 'resnet18'"),
        (["run", "recipe.toml", "--set", "explain.explainers=gradcam:tap=layr3"], "no tap 'layr3'"),
        (["run", "recipe.toml", "--set", "student.methods=[ce,kd]"], "but have no teacher"),
        (["measure", "."], "distilens train ."),
        (["train", "nowhere"], "is not a run"),
        (["report", "nowhere"], "no run at nowhere"),
        (["validate", "recipe.toml", "--set", "train.batch_size=0"], "greater than or equal to 1"),
    ],
)
def test_mistakes_end_with_a_message_and_2(command, arguments, text):
    code, _, error = command(*arguments)
    assert code == 2
    assert text in error


def test_a_run_goes_through_and_each_stage_is_a_command(command, tmp_path):
    code, output, error = command("run", "recipe.toml", "--out", "runs/one")
    assert code == 0, error
    folder = tmp_path / "runs" / "one"
    assert "accuracy, test" in output
    assert str(Path("runs/one/report.html")) in output
    about = json.loads((folder / "about.json").read_text())
    assert about["versions"]["torch"]
    assert about["fingerprints"]["data"]
    for path in ("scores.json", "maps/gradcam.npz"):
        (folder / path).unlink()
    for stage in ("train", "measure", "explain", "report"):
        assert command(stage, "runs/one")[0] == 0
    assert (folder / "scores.json").exists()
    assert (folder / "maps" / "gradcam.npz").exists()
    code, _, error = command("run", "runs/one/recipe.toml", "--out", "runs/one")
    assert code == 0
    assert error.count("already done") == 4


def test_a_teacher_with_other_classes_is_said_with_both_numbers(command, tmp_path):
    save_model(build_model("resnet8", [str(n) for n in range(5)], (16, 16)), tmp_path / "other" / "student")
    with open("recipe.toml", "a") as recipe:
        recipe.write('[teacher]\nmodel = "run:other"\n')
    code, _, error = command("run", "recipe.toml")
    assert code == 2
    assert "knows 5 classes, the data has 8" in error
    assert "teacher.finetune=all" in error
    code, _, error = command("run", "recipe.toml", "--set", "teacher.finetune=head")
    assert code == 0, error
    assert len(load_model(tmp_path / "runs/tiny/teacher").classes) == 8


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Code:
    def __reduce__(self):
        return os.system, ("touch was-run",)


def test_weights_that_are_pickles_with_code_are_refused(place):
    with open(place / "bad.pt", "wb") as file:
        pickle.dump({"weight": Code()}, file)
    with pytest.raises(UserError, match="reading it would run code"):
        load_state(place / "bad.pt")
    assert not (place / "was-run").exists()


def test_weight_files(place):
    model = build_model("resnet8", tuple("abc"), (32, 32))
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.network.state_dict().items()}}, place / "good.pt")
    found = build_model("file:good.pt,model=resnet8", tuple("abc"), (32, 32))
    assert torch.equal(found.network.fc.weight, model.network.fc.weight)
    save_model(found, place / "kept")
    (place / "good.pt").rename(place / "moved.pt")
    assert torch.equal(load_model(place / "kept").network.fc.weight, model.network.fc.weight)
    (place / "moved.pt").rename(place / "good.pt")
    with pytest.raises(UserError, match=r"not those of resnet14: missing: layer1.1"):
        build_model("file:good.pt,model=resnet14", tuple("abc"), (32, 32))
    other = build_model("file:good.pt,model=resnet8", tuple("abcd"), (32, 32))
    assert "its head has 3 outputs, not 4: it gets a new one" in other.notes
    with pytest.raises(UserError, match=r"random weights in fc: they were not in what was loaded.*finetune=head"):
        check_answers(other, tuple("abcd"), "teacher")
    (place / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_state(place / "cut.safetensors")
    with pytest.raises(UserError, match="there is no such file"):
        load_state(place / "none.safetensors")


MINE = """
from torch import nn

def make(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, classes))

def no():
    return 3
"""


def test_your_own_module(place):
    (place / "mine.py").write_text(MINE)
    model = build_model("python:mine:make", tuple("abc"), (2, 2))
    assert model.logits(torch.rand(1, 3, 2, 2)).shape == (1, 3)
    with pytest.raises(UserError, match=r"mine has no 'mak'. Did you mean 'make'"):
        build_model("python:mine:mak", tuple("abc"), (2, 2))
    with pytest.raises(UserError, match="must return a torch"):
        build_model("python:mine:no", tuple("abc"), (2, 2))


@pytest.mark.slow
def test_transformers_models_from_a_folder(place):
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8
    )
    ViTForImageClassification(config).save_pretrained(place / "vit")
    model = build_model(f"hf:{place / 'vit'}", tuple("abc"), (24, 24))
    output = model.eval()(torch.rand(2, 3, 24, 24))
    assert output.logits.shape == (2, 3)
    assert model.size == (32, 32)


def test_a_full_disk_is_said_and_the_old_file_stays(place):
    path = place / "file.txt"
    write_text(path, "old")

    def full(temporary):
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"the disk is full: .*file.txt could not be written \([\d,]+ bytes are free\)"):
        write_atomically(path, full)
    assert path.read_text() == "old"
    assert [found.name for found in place.iterdir() if found.name.startswith(".file")] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk is mounted by root")
def test_a_run_on_a_disk_that_fills_says_so_and_goes_on_with_more_room(command, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(disk)]).returncode:
        pytest.skip("no mount here")
    try:
        changes = ("data=digits:limit=40,size=16", "train.epochs=2", "student.model=resnet8")
        arguments = ("run", "recipe.toml", "--out", "disk/run", "--set", *changes)
        code, _, error = command(*arguments)
        assert code == 2
        assert "disk is full" in error
        assert not list(disk.rglob(".last*"))
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        code, _, error = command(*arguments)
        assert code == 0, error
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_one_process_at_a_time_in_a_folder(place):
    with (
        lock_folder(place / "run"),
        pytest.raises(UserError, match="another process is at work"),
        lock_folder(place / "run"),
    ):
        pass
    with lock_folder(place / "run"):
        pass


def test_a_line_that_a_kill_cut_short_is_left_out(place):
    path = place / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [row["step"] for row in Metrics(path).rows()] == [1, 2]


@pytest.mark.parametrize("arguments", [["list", "methods"]])
def test_the_module_is_a_command_too(place, arguments):
    done = subprocess.run([sys.executable, "-m", "distilens", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
