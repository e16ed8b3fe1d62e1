"""The loss of the task: in classification, the cross-entropy with the labels."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from distilens.core import Answer, Batch, Method, Model, Output
from distilens.foundation.errors import UserError
from distilens.methods.labels import of_labels
from distilens.tasks import Classification


class CE(Method):
    """Learn the labels: cross-entropy, with optional label smoothing. For another task, its own loss.

    `-sum_c q_c log softmax(z)_c`, where `q` is `1 - smoothing` at the label plus `smoothing / classes` everywhere. Images
    without a label (-1) give 0. With `balanced` an image has the weight `n / (classes * n_c)`, where `n_c` is the number of
    training images of its class. Rare classes then count as much as common ones, and the mean weight stays 1. For mixed images
    (`augment=...,mix=`) the losses of both labels are weighted by their shares.

    Source: Szegedy et al. 2016 (arXiv 1512.00567), section 7, for the smoothing.
    """

    def __init__(self, *, smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0, balanced: bool = False):
        super().__init__()
        self.smoothing, self.balanced = smoothing, balanced
        self.weights: Tensor | None  # per class
        self.register_buffer("weights", None, persistent=False)

    def prepare(self, student: Model, batch: Batch, answer: Answer) -> Model:
        if (self.balanced or self.smoothing) and not isinstance(student.task, Classification):
            raise UserError(f"ce: smoothing= and balanced= are for classification, but the task is {student.task.name}")
        if self.balanced:
            if batch.variant is None:
                raise UserError(
                    "ce:balanced=true counts the classes of the training set, but this batch does not say which set it is from"
                )
            labels = batch.variant.split.targets
            counts = np.bincount(labels[labels >= 0], minlength=len(student.classes))
            weights = counts.sum() / ((counts > 0).sum() * counts.clip(min=1))
            self.weights = torch.from_numpy(weights).float().to(batch.targets.device)
        return student

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Tensor:
        return of_labels(batch, lambda targets: self.against(output, targets))

    def against(self, output: Output, targets: Tensor) -> Tensor:
        if isinstance(output.task, Classification):
            loss = output.task.loss(output.logits, targets, smoothing=self.smoothing)
        else:
            loss = output.task.masked_loss(output.logits, targets)
        return loss if self.weights is None else loss * self.weights[targets.clamp_min(0)]
