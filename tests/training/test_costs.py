"""The cost of a training step."""

import numpy as np
import pytest
import torch
from torch import nn

from distilens.core import Model
from distilens.data import from_arrays
from distilens.data.pipeline import Batches
from distilens.teachers import nobody
from distilens.training.costs import time_step
from distilens.training.settings import Training


class Watched(nn.Module):
    """A network that notes how its weights lie in memory."""

    seen: list[bool] = []

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, images):
        self.seen.append(self.body.weight.is_contiguous(memory_format=torch.channels_last))
        return self.head(self.body(images).mean((2, 3)))


@pytest.mark.parametrize("last", [True, False])
def test_a_step_is_timed_with_the_channels_where_the_training_has_them(last):
    data = from_arrays(np.zeros((20, 8, 8, 3), dtype=np.uint8), np.arange(20) % 2)
    model = Model(Watched(), data.classes, size=data.size)
    Watched.seen.clear()
    settings = Training(channels_last=last, precision="float32")
    timed = time_step(model, ("ce",), Batches(data.train, 4), settings, nobody, steps=2)
    assert Watched.seen[-3:] == [last] * 3, "a first step that does not count, and two"
    assert len(timed.seconds) == 2
    assert model.network.body.weight.is_contiguous(), "the given model stays as it is"


def test_parts_of_a_batch_need_less_memory():
    data = from_arrays(np.zeros((80, 32, 32, 3), dtype=np.uint8), np.arange(80) % 2)
    model = Model(
        nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)), data.classes, size=data.size
    )
    model.logits(model.example())
    whole, parts = (
        time_step(
            model, ("ce",), Batches(data.train, 32), Training(precision="float32", micro_batch=most), nobody, steps=1
        )
        for most in (None, 8)
    )
    weights = 16 * sum(parameter.numel() for parameter in model.parameters())
    assert parts.memory - weights == pytest.approx((whole.memory - weights) / 4, rel=0.2)
