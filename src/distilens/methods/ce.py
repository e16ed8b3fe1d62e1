"""Learning from labels."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from distilens.core import Answer, Batch, Method, Output


class CE(Method):
    """Learn the labels: cross-entropy, with optional label smoothing.

    `-sum_c q_c log softmax(z)_c`, where `q` is `1 - smoothing` at the label plus `smoothing / classes` everywhere. Images
    without a label (-1) give 0. Mixed images (`augment=...,mix=`) weight the terms of both labels by their shares.

    Source: Szegedy et al. 2016 (arXiv 1512.00567), section 7, for the smoothing.
    """

    def __init__(self, *, smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0):
        super().__init__()
        self.smoothing = smoothing

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Tensor:
        loss = self.against(output, batch.labels)
        if batch.mixed is None:
            return loss
        return batch.mixed.share * loss + (1 - batch.mixed.share) * self.against(output, batch.mixed.labels)

    def against(self, output: Output, labels: Tensor) -> Tensor:
        return functional.cross_entropy(
            output.logits.float(), labels, ignore_index=-1, label_smoothing=self.smoothing, reduction="none"
        )
