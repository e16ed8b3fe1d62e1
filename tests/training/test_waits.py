"""No step makes the host wait for a GPU: counted on a second device that a machine without one has too."""

from __future__ import annotations

import pytest
import torch

from distilens.core import Objective
from distilens.data import load
from distilens.data.augment import AUGMENTS
from distilens.data.pipeline import Batches
from distilens.methods import build_methods
from distilens.models import build_model
from distilens.teachers import LiveTeacher, PermutedTeacher, RandomMapTeacher, StoredTeacher, nobody
from distilens.training.log import Log
from second_device import DEVICE, second_device

GUIDED = [
    "ce",
    "kd",
    "dkd",
    "dist",
    "mlkd",
    "r2kd",
    "at",
    "map_match",
    "map_match:explainer=cam,classes=all,pool=4,as=cams",
]
FEATURES = ["ce", "fitnet", "vid", "nst", "reviewkd", "rtk", "sp", "rkd", "pkt", "crd", "osakd", "opdf", "powerprop"]
SHOWN = ["ce", "ig_overlay:explainer=[ig:steps=2]", "cam_fusion"]
TEACHERS = {
    "live": lambda teacher, folder: teacher,
    "stored": lambda teacher, folder: StoredTeacher(folder, teacher),
    "permuted": lambda teacher, folder: PermutedTeacher(StoredTeacher(folder, teacher)),
    "blobs": lambda teacher, folder: RandomMapTeacher(StoredTeacher(folder, teacher), kind="blobs"),
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return load("shapes:train=48,test=40,size=16", tmp_path_factory.mktemp("shapes"))


def waits(shapes, parts, folder, *, teacher="live", augment="crop", resident=True):
    """Where an epoch of steps waits, after one epoch that prepares and records."""
    with second_device() as mode:
        batches = Batches(
            shapes.train, 16, augment=AUGMENTS.build(augment), device=DEVICE, resident=resident, workers=0
        )
        large = LiveTeacher(build_model("resnet8", shapes.classes, shapes.size).to(DEVICE))
        answers = TEACHERS[teacher](large, folder) if teacher else nobody
        methods = build_methods(parts)
        objective = Objective(build_model("resnet8", shapes.classes, shapes.size).to(DEVICE), methods).to(DEVICE)
        first = next(batches.epoch(0))
        objective.prepare(first, answers(first, objective.needs))
        objective.to(DEVICE).train()
        optimizer = torch.optim.SGD(objective.parameters(), lr=0.01)
        log = Log()
        log.start(epochs=2, steps=len(batches), images=16, at=0, epoch=0)
        for _ in ("records", "reads"):
            mode.waits.clear()
            for batch in batches.epoch(0, epochs=2):
                terms = objective(batch, answers(batch, objective.needs))
                torch.stack(list(terms.values())).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
                log.step(batch, terms, 0.01, every=1000)
        counted = dict(mode.waits)
        mode.waits.clear()
        log.flush()
        assert sum(mode.waits.values()) == 1, "reading the losses back is the one wait, every so many steps"
    return counted


@pytest.mark.parametrize(
    "parts",
    [pytest.param(GUIDED, marks=pytest.mark.slow), pytest.param(FEATURES, marks=pytest.mark.slow), SHOWN, ["simkd"]],
    ids=["guided", "features", "shown", "simkd"],
)
def test_a_step_under_a_live_teacher_does_not_wait(shapes, parts, tmp_path):
    assert waits(shapes, parts, tmp_path) == {}


@pytest.mark.slow
def test_a_step_that_reads_recorded_answers_does_not_wait(shapes, tmp_path):
    assert waits(shapes, [*GUIDED, *SHOWN[1:]], tmp_path, teacher="stored") == {}


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["permuted", "blobs"])
def test_a_step_under_a_control_does_not_wait(shapes, teacher, tmp_path):
    assert waits(shapes, ["ce", "kd", "map_match:of=canonical", SHOWN[1]], tmp_path, teacher=teacher) == {}


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("augment", ["crop:mix=cutmix,erase=0.5,jitter=0.2", "resized_crop:mix=mixup"])
def test_augmentation_does_not_wait(shapes, augment, resident, tmp_path):
    assert waits(shapes, ["ce"], tmp_path, teacher=None, augment=augment, resident=resident) == {}


def test_the_second_device_counts_what_a_gpu_would_be_waited_for():
    with second_device() as mode:
        there = torch.arange(4.0).to(DEVICE)
        assert sum(mode.waits.values()) == 1, "a copy to the device"
        assert there.sum().item() == 6.0
        assert there[there > 1].tolist() == [2.0, 3.0]
        torch.tensor([1.0], device=DEVICE)
        kinds = [what.partition(" in ")[0] for what in mode.waits.elements()]
        assert sorted(kinds) == [
            "_local_scalar_dense",
            "boolean index",
            *["copy to the device"] * 2,
            "copy to the host",
        ]
        with pytest.raises(RuntimeError, match="both devices"):
            there + torch.ones(4)
