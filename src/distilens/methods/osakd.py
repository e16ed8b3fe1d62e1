"""Online self-acquired distillation: soft targets from the labels of the nearest images, without a teacher."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import log_softmax, one_hot

from distilens.core import Answer, Batch, Method, Model, Output
from distilens.explain.activation import full, tapped
from distilens.foundation.errors import UserError
from distilens.methods.bank import Bank
from distilens.methods.paired import shapes
from distilens.models.taps import grid


class OSAKD(Method):
    """Learn from the labels of the nearest images, in the student's own features: online self-acquired distillation.

    `KL(q || softmax(z))` in nats, where `q_c = k_c / k` is the share of class c among the `k` nearest training images. This is
    the posterior of a nearest-neighbour density estimate, `p(x | c) = k_c / (N_c V)`. Features are pooled and compared by
    Euclidean distance. The feature of each image is stored when the image is seen. An image is not its own neighbour, and images
    without a label are never neighbours. The loss is 0 as long as no other image has been seen.

    Args:
        neighbours: `k`.
        tap: where the student's features are read.

    Source: based on the abstract only of Tzelepi et al. 2021 (arXiv 2108.11798). It gives the estimate; the loss is the usual.
    """

    tasks = ("classification",)
    because = "its targets are the labels of similar images"

    def __init__(self, *, neighbours: Annotated[int, Field(ge=1)] = 8, tap: str = "last"):
        super().__init__()
        self.neighbours, self.tap = neighbours, tap

    def prepare(self, student: Model, batch: Batch, answer: Answer) -> Model:
        student.tap(self.tap)
        ((width, *_),) = shapes(student, [self.tap])
        self.bank = Bank(batch, tables=1, width=width, name="osakd")
        if int((self.bank.labels >= 0).sum()) < 2:
            raise UserError(
                "osakd learns from the labels of other images, but this training set has fewer than two labelled images"
            )
        self.classes = len(student.classes)
        self.bank.rows.fill_(torch.nan)  # not seen yet
        return student

    def remembered(self) -> int:
        return self.bank.rows.nbytes

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"]:
        feature = full(grid(tapped(output, self.tap), output.size)).mean((2, 3))
        places = self.bank.places(batch)
        with torch.autocast(feature.device.type, enabled=False):
            target, known = self.neighbourhood(feature.detach(), places)
        self.bank.write(places, feature.detach()[None])
        logits = log_softmax(output.logits.float(), 1)
        return (torch.xlogy(target, target) - target * logits).sum(1).where(known, 0)

    @torch.no_grad()
    def neighbourhood(self, feature: Tensor, places: Tensor) -> tuple[Float[Tensor, "b c"], Tensor]:
        """The shares of the classes among the nearest images, and whether there are such images."""
        rows, labels = self.bank.rows[0], self.bank.labels
        distances = torch.cdist(feature, rows.to(feature.dtype)).masked_fill((labels < 0)[None], torch.inf)
        distances = distances.scatter(1, places[:, None], torch.inf)
        distances = distances.nan_to_num(torch.inf, posinf=torch.inf)
        nearest, which = distances.topk(min(self.neighbours, len(rows)), dim=1, largest=False)
        neighbours = one_hot(labels[which].clamp_min(0), self.classes) * nearest.isfinite()[:, :, None]
        counts = neighbours.sum(1).float()
        known = counts.sum(1) > 0
        return counts / counts.sum(1, keepdim=True).clamp_min(1), known
