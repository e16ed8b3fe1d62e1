"""What every task has by default: targets that are there, sums that add, differences."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from brightness import Brightness
from distilens.foundation.estimate import mean_of
from distilens.tasks import Task

TASK = Brightness()
OUTPUTS, OTHERS = torch.randn(2, 50, 1, generator=torch.Generator().manual_seed(0))
TARGETS = torch.randn(50, generator=torch.Generator().manual_seed(1)).index_fill(0, torch.tensor([3, 7]), torch.nan)


@dataclass(frozen=True)
class Bare(Task):
    outputs: int = 2


def test_images_without_a_target():
    assert (~TASK.known(TARGETS)).nonzero()[:, 0].tolist() == [3, 7]
    assert TASK.strata(TARGETS.numpy()).tolist() == [-1 if at in (3, 7) else 0 for at in range(50)]
    assert TASK.known(torch.tensor([2, -1])).tolist() == [True, False]
    dense = torch.full((2, 3, 3), -1).index_fill(0, torch.tensor([1]), 0)
    assert TASK.known(dense).tolist() == [False, True]
    outputs = OUTPUTS.clone().requires_grad_()
    losses = TASK.masked_loss(outputs, TARGETS)
    losses.sum().backward()
    assert not losses[[3, 7]].any() and outputs.grad is not None and outputs.grad.isfinite().all()
    assert not outputs.grad[[3, 7]].any() and outputs.grad[0] != 0


def test_sums_of_parts_give_the_mean_of_all():
    errors = (OUTPUTS[:, 0] - TARGETS).abs()
    sums = sum(TASK.tally(*part) for part in zip(OUTPUTS.split(9), TARGETS.split(9), strict=True))
    estimate, expected = TASK.score(sums)["mean absolute error"], mean_of(errors)
    for name in ("value", "low", "high"):
        assert getattr(estimate, name) == pytest.approx(getattr(expected, name), rel=1e-4)
    assert estimate.n == 48 and TASK.value(sums) == pytest.approx(expected.value, rel=1e-4)
    assert TASK.value(torch.zeros(3)) is None
    assert TASK.score(torch.zeros(3))["mean absolute error"].value is None


def test_a_difference_is_on_the_same_images():
    errors, others = ((outputs[:, 0] - TARGETS).abs().double() for outputs in (OUTPUTS, OTHERS))
    apart = TASK.apart(OUTPUTS, OTHERS, TARGETS)
    assert apart is not None and apart.value == pytest.approx(float((errors - others).nanmean()), rel=1e-5)
    assert TASK.apart(OUTPUTS, OTHERS, torch.full((50,), torch.nan)) is None


def test_answers_in_words():
    assert TASK.describe(np.float32(3.25)) == "3.25 lux"
    assert TASK.predict(OUTPUTS).shape == (50,)
    assert "2 outputs, but the task brightness has 1" in TASK.check_outputs(torch.zeros(1, 2))
    assert "expected one answer per image" in TASK.check_outputs(torch.zeros(1, 1, 4, 4))


def test_a_task_without_a_loss_is_named():
    with pytest.raises(NotImplementedError, match="Bare has no loss"):
        Bare().loss(OUTPUTS, TARGETS)
    assert Bare() != Bare(outputs=3)


def test_by_default_the_metric_is_the_loss_and_the_confidence_the_output():
    @dataclass(frozen=True)
    class Squared(Bare):
        def loss(self, outputs, targets):
            return (outputs[:, 0] - targets).square()

    outputs, targets = torch.tensor([[1.0, 5.0], [2.0, 7.0]]), torch.tensor([0.0, 4.0])
    assert Squared().values(outputs, targets).tolist() == [1, 4]
    assert Squared().confidence(outputs, torch.tensor([1, 0])).tolist() == [5, 2]
