"""A task of a user's own, outside the package: how bright the square in a picture is, a number per image."""

from dataclasses import dataclass

import torch

import distilens
from distilens.tasks import Metric, Task


@dataclass(frozen=True)
class Brightness(Task):
    """A regression: the loss is the squared error, the metric the mean absolute error."""

    outputs: int = 1

    name = "brightness"
    metric = Metric("mean absolute error", "lux", higher_is_better=False)

    def loss(self, outputs, targets):
        return (outputs[:, 0] - targets).square()

    def values(self, outputs, targets):
        return (outputs[:, 0] - targets).abs()


class Follow(distilens.Method):
    """Learn the teacher's numbers."""

    needs = ("logits",)

    def loss(self, batch, output, answer):
        return (output.logits - answer.logits).square().mean(1)


def pictures() -> distilens.Data:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(240, 3, 16, 16, generator=generator) * 0.2
    targets = torch.rand(240, generator=generator)
    images[:, :, 4:12, 4:12] += 0.7 * targets[:, None, None, None]
    return distilens.as_data((images, targets), task=Brightness())
