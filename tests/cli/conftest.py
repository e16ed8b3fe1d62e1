"""A recipe of a tiny network, and the command line as a function."""

import sys

import pytest

from distilens.cli import commands

TINY = """
name = "tiny"
data = "shapes:train=64,test=40,val_fraction=0.3,size=16"
[student]
model = "python:cli_nets:tiny"
methods = ["ce"]
[train]
epochs = 2
batch_size = 16
[explain]
explainers = ["gradcam"]
images = 2
measured = 4
"""

NETS = """
from torch import nn

def tiny(classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)
    )
"""


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run a command in a folder of its own, where there is a recipe: exit code, output, error."""
    (tmp_path / "recipe.toml").write_text(TINY)
    (tmp_path / "cli_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def go(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["distilens", *arguments])
        code = 0
        try:
            commands.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    return go
