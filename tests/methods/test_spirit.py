"""Spirit distillation: a first phase without labels, then the other methods; weights of the back are copied."""

import sys
from pathlib import Path

import pytest
import torch

import distilens
from distilens.core import Objective
from distilens.data.pipeline import Batches
from distilens.foundation.errors import UserError
from distilens.methods import build_methods
from distilens.teachers import LiveTeacher

sys.path.insert(0, str(Path(__file__).parents[1]))

from segments import model, pictures

FRONT = "spirit:tap=encoder.4"


@pytest.fixture(scope="module")
def data():
    return pictures()


def objective_of(data, *methods, width=8, seed=1):
    """A student of the teacher's width, and the teacher."""
    teacher = LiveTeacher(model(8))
    objective = Objective(model(width, seed), build_methods(methods))
    batch = next(Batches(data.train, 8).epoch(0))
    objective.prepare(batch, teacher(batch, objective.needs))
    return objective, teacher, batch


def test_the_phases_follow_each_other(data):
    objective, teacher, batch = objective_of(data, f"{FRONT},until=0.3", "ce", "kd")
    for progress, names in ((0.0, ["spirit"]), (0.29, ["spirit"]), (0.3, ["ce", "kd"]), (0.99, ["ce", "kd"])):
        at = batch.replaced(progress=progress)
        needs = distilens.core.needs_of(objective.at_work(progress).values())
        assert list(objective(at, teacher(at, needs))) == names


def test_without_such_a_method_all_work_from_the_start(data):
    objective, _, _ = objective_of(data, "ce", "kd")
    assert list(objective.at_work(0.0)) == ["ce", "kd"]
    objective, _, _ = objective_of(data, f"{FRONT},until=0", "ce")
    assert list(objective.at_work(0.0)) == ["spirit", "ce"]


def test_the_loss_is_the_squared_error_of_the_front(data):
    objective, teacher, batch = objective_of(data, FRONT)
    objective.eval()
    answer = teacher(batch, objective.needs)
    term = objective(batch, answer)["spirit"]
    ours = objective.student(batch.images).features["encoder.4"]
    assert term.item() == pytest.approx((ours - answer.features["encoder.4"]).square().mean().item(), rel=1e-5)


def test_targets_play_no_part_in_the_first_phase(data):
    objective, teacher, batch = objective_of(data, FRONT, "ce")
    objective.eval()
    unlabelled = batch.replaced(targets=torch.full_like(batch.targets, 255))
    one, other = (objective(each, teacher(each, objective.needs)) for each in (batch, unlabelled))
    assert torch.equal(one["spirit"], other["spirit"])
    one["spirit"].backward()
    assert objective.student.network.head.weight.grad is None
    assert objective.student.network.encoder[0].weight.grad.abs().sum() > 0


def test_the_back_starts_with_the_teachers_weights(data):
    objective, teacher, _ = objective_of(data, f"{FRONT},copy=[head]")
    assert torch.equal(objective.student.network.head.weight, teacher.model.network.head.weight)
    assert not torch.equal(objective.student.network.encoder[0].weight, teacher.model.network.encoder[0].weight)


def test_a_whole_training_mimics_then_learns(data):
    teacher = model(8, seed=3)
    student, log = distilens.distill(
        model(8, seed=4), teacher, data, [f"{FRONT},until=0.5", "ce"], epochs=4, batch_size=16
    )
    terms = {name for row in log for name in row.get("terms", {})}
    assert terms == {"spirit", "ce"}
    assert student.logits(torch.rand(2, 3, 24, 32)).shape == (2, 3, 12, 16)


@pytest.mark.parametrize(
    ("method", "width", "words"),
    [
        (FRONT, 4, "they must be equal"),
        (f"{FRONT},copy=[encoder.0]", 4, "differ between teacher and student"),
        ("spirit:tap=nowhere", 8, "nowhere"),
    ],
)
def test_what_does_not_fit_is_named(data, method, width, words):
    with pytest.raises(UserError, match=words):
        objective_of(data, method, width=width)
