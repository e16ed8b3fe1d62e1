"""Contrastive representation distillation, with a memory of the last embedding of each image."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from distilens.core import Answer, Batch, Model, Output
from distilens.foundation import randomness
from distilens.foundation.devices import mean_of_processes
from distilens.foundation.settings import Count
from distilens.losses.relations import contrasted, likenesses
from distilens.methods.bank import Bank
from distilens.methods.paired import Paired, Shape

SLICE = 2**16
"""Rows of the bank that are initialised at once."""


class CRD(Paired):
    """Contrast the student's feature of an image with the teacher's features: contrastive representation distillation.

    Two linear layers embed the pooled features as `u_s` and `u_t` of length 1; the layers are trained with the student and then
    dropped. A memory bank stores both embeddings of each image. Let `h = exp(u . m / tau) / Z`, where `u` is an embedding of one
    network and `m` a stored embedding of the other. With `k` negatives of other labels, drawn from `n` images, the loss is
    `-log h / (h + k/n) - sum_negatives log (k/n) / (h + k/n)`, summed over both directions. `Z` is `n` times the mean of the
    first batch. A stored embedding moves by `1 - momentum` towards the new one.

    The negatives are drawn once per batch, from (seed, epoch, step). The published code gathers `b k` rows; here this is one
    product of two matrices. For images without a label all other images are negatives; so it is in a segmentation.

    Args:
        negatives: `k`; all other images if there are fewer.
        width: the width of the embeddings; the bank takes 8 bytes times `width` per image.
        temperature: `tau`.
        momentum: the share of a stored embedding that stays.
        tap: where the features are read.
        teacher_tap: the teacher's tap, if its name differs.

    Source: Tian et al. 2020 (arXiv 1910.10699), equations 17 and 18, with the constants of its code; weight 0.8.
    """

    tasks = ("classification", "segmentation")
    weight = 0.8

    def __init__(
        self,
        *,
        negatives: Count = 16384,
        width: Count = 128,
        temperature: Annotated[float, Field(gt=0)] = 0.07,
        momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5,
        tap: str = "last",
        teacher_tap: str | None = None,
    ):
        super().__init__([tap], [teacher_tap or tap])
        self.negatives, self.width, self.temperature, self.momentum = negatives, width, temperature, momentum
        self.embed = nn.ModuleList()
        self.register_buffer("partition", torch.zeros(2))  # Z of each direction; 0 before the first batch
        self.partition: Tensor

    def fit(self, ours: list[Shape], theirs: list[Shape]) -> None:
        self.embed = nn.ModuleList(nn.Linear(shapes[0][0], self.width) for shapes in (ours, theirs))
        self.partition.zero_()

    def prepare(self, student: Model, batch: Batch, answer: Answer) -> Model:
        self.bank = Bank(batch, tables=2, width=self.width, name="crd")  # first, because it may not fit
        student = super().prepare(student, batch, answer)
        generator = randomness.generator("crd", batch.seed)
        for rows in self.bank.rows.flatten(0, 1).split(SLICE):
            rows.copy_(torch.rand(rows.shape, generator=generator)).mul_(2).sub_(1).div_((self.width / 3) ** 0.5)
        return student

    def remembered(self) -> int:
        return self.bank.rows.nbytes

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"]:
        (pair,) = self.features(output, answer)
        with torch.autocast(output.logits.device.type, enabled=False):  # it takes exponentials of products
            return self.noise_contrastive_loss(batch, pair)

    def noise_contrastive_loss(self, batch: Batch, pair: tuple[Tensor, Tensor]) -> Float[Tensor, " b"]:
        """The loss; it also updates the bank."""
        embedded = [
            normalize(embed(feature.mean((2, 3))), dim=1) for embed, feature in zip(self.embed, pair, strict=True)
        ]
        places = self.bank.places(batch)
        among = self.draw_negatives(batch)
        own, others = self.bank.labels[places], self.bank.labels[among]
        negative = ((own[:, None] != others) | (own < 0)[:, None]) & (places[:, None] != among)
        rows = self.bank.rows
        losses = [  # against the stored embeddings of the other network
            self.contrast(number, embedded[number], rows[1 - number, places], rows[1 - number, among], negative)
            for number in range(2)
        ]
        before = self.bank.rows[:, places]
        now = torch.stack([embedding.detach() for embedding in embedded])
        self.bank.write(places, normalize(self.momentum * before + (1 - self.momentum) * now, dim=2))
        return losses[0] + losses[1]

    def draw_negatives(self, batch: Batch) -> Int[Tensor, " k"]:
        """The images that may be negatives in this step: all images if there are few."""
        count, n = min(self.negatives, len(self.bank)), len(self.bank)
        if count == n:
            return torch.arange(n, device=self.bank.index.device)
        generator = randomness.generator(f"crd {batch.epoch} {batch.step}", batch.seed)
        return torch.randint(n, (count,), generator=generator).to(self.bank.index.device)

    def contrast(
        self,
        number: int,
        embedded: Float[Tensor, "b d"],
        same: Float[Tensor, "b d"],
        others: Float[Tensor, "k d"],
        negative: Tensor,
    ) -> Float[Tensor, " b"]:
        """One direction of the loss: the embeddings against the stored embeddings of the other network."""
        near, far = likenesses(embedded, same, others, self.temperature)
        n = len(self.bank)
        with torch.no_grad():
            total, count = mean_of_processes(
                torch.stack([near.sum() + (far * negative).sum(), len(near) + negative.sum()])
            )
            first = n * total / count
            partition = first.where(self.partition[number] == 0, self.partition[number])
            self.partition[number] = partition
        return contrasted(near / partition, far / partition, negative, n)
