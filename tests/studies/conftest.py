"""Tiny recipes for studies: networks that count how often they are asked."""

import sys
from pathlib import Path

import pytest

NETS = """
from torch import nn

CALLS = []

class Counting(nn.Sequential):
    def forward(self, images):
        CALLS.append(len(images))
        return super().forward(images)

def layers(classes):
    return (
        nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)
    )

def teacher(classes):
    return Counting(*layers(classes))

def tiny(classes):
    return nn.Sequential(*layers(classes))

class Diverging(nn.Sequential):
    def forward(self, images):
        return super().forward(images) * (float("nan") if self.training and len(images) > 8 else 1.0)

def diverging(classes):
    return Diverging(*layers(classes))
"""

CONTENT = {
    "name": "small",
    "data": "shapes:train=48,test=40,val_fraction=0.3,size=16",
    "teacher": {"model": "python:study_nets:teacher", "answers": "stored", "train": {"epochs": 1}},
    "student": {"model": "python:study_nets:tiny", "methods": ["ce", "kd:temperature=2"]},
    "train": {"epochs": 1, "batch_size": 16, "precision": "float32"},
    "explain": {"explainers": ["gradcam"], "images": 2, "measured": 4},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with the networks."""
    folder = tmp_path_factory.mktemp("studies")
    (folder / "study_nets.py").write_text(NETS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        sys.modules.pop("study_nets", None)
        source = Path(__file__).parents[2] / "src"
        patch.setenv("PYTHONPATH", f"{source}:{folder}")
        yield folder
    sys.modules.pop("study_nets", None)


@pytest.fixture(scope="module")
def content():
    """The recipe of the tests as plain data."""
    return {key: dict(value) if isinstance(value, dict) else value for key, value in CONTENT.items()}
