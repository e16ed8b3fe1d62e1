"""Two processes give the result of one, where no batch statistics stand between them."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load

NETS = """
from torch import nn

def grouped(classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.GroupNorm(2, 8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes),
    )

def places(classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, classes, 1),
    )

class Frozen(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(False)

def frozen(classes):
    network = grouped(classes)
    network[1] = Frozen(8)
    return network
"""

TEACHER = """
[teacher]
model = "python:nets:grouped"
train = {epochs = 1}
"""
GUIDED = (  # small weights: where a training is about to diverge, rounding decides
    '"ce", "kd", "map_match:weight=1", "map_match:classes=all,pool=2,distance=at,every=2,as=all,weight=1", '
    '"at:taps=[last],weight=1"'
)
DENSE = '"ce", "dice", "kd:temperature=1", "cwd", "at:taps=[0],weight=1"'
BANKS = '"ce", "kd", "crd:width=8", "osakd:neighbours=3", "fitnet"'

RECIPE = """
name = "two"
data = "shapes:train=128,test=40,val_fraction=0.25"
[student]
model = "python:nets:NET"
methods = [METHODS]
[train]
epochs = 2
batch_size = 16
optimizer = "sgd:lr=0.05"
precision = "float32"
select = "last"
[explain]
explainers = ["gradcam"]
images = 2
measured = 4
"""


def launch(place, out: str, processes: int) -> None:
    # not accelerate's own launcher, which starts one process on processors, however many are asked for
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "distilens", "run", "recipe.toml"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(place)}
    done = subprocess.run(
        [*command, "--out", f"runs/{out}"], cwd=place, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("report.html") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "methods"),
    [
        ("grouped", '"ce"'),
        ("frozen", GUIDED),
        ("frozen", '"ce"'),  # the lists above and below have it
        ("frozen", BANKS),
        ("places", DENSE),
    ],
)
def test_two_processes_train_as_one(tmp_path, net, methods):
    (tmp_path / "nets.py").write_text(NETS)
    recipe = RECIPE.replace("NET", net).replace("METHODS", methods)
    if methods == BANKS:
        recipe = recipe.replace('select = "last"', 'select = "last"\nbalance = "ratio:0.3,every=5"')
    teacher = TEACHER if methods in (GUIDED, BANKS, DENSE) else ""
    if methods == DENSE:
        recipe = recipe.replace("val_fraction=0.25", "val_fraction=0.25,target=mask,size=16")
        teacher = teacher.replace("grouped", "places")
    (tmp_path / "recipe.toml").write_text(recipe + teacher)
    launch(tmp_path, "one", 1)
    launch(tmp_path, "both", 2)
    one, both = (
        load((tmp_path / "runs" / name / "student" / "model.safetensors").read_bytes()) for name in ("one", "both")
    )
    for key in one:
        assert torch.allclose(one[key], both[key], rtol=1e-3, atol=1e-5), key
    logs = [
        [json.loads(line) for line in (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "both")
    ]
    # sums in another order: were it one process, they would be the same to the last bit
    assert any(not torch.equal(one[key], both[key]) for key in one)
    terms = [[value for row in log if "terms" in row for value in row["terms"].values()] for log in logs]
    assert torch.allclose(
        torch.tensor(terms[0]), torch.tensor(terms[1]), rtol=1e-4
    )  # of all images, not of one's share
    assert [(row["stage"], row["step"]) for row in logs[0]] == [(row["stage"], row["step"]) for row in logs[1]]
