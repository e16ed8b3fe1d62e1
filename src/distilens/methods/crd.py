"""Telling an image from all others as the teacher does, with a memory of what was last said of each."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from distilens import draws
from distilens.core import Answer, Batch, Model, Output
from distilens.gathering import mean_of_processes
from distilens.losses.relations import contrasted, likenesses
from distilens.methods.bank import Bank
from distilens.methods.paired import Paired, Shape

Count = Annotated[int, Field(ge=1)]
SLICE = 2**16
"""Rows that are filled at once."""


class CRD(Paired):
    """Contrast the student's feature of an image with the teacher's of others: contrastive representation distillation.

    Both pooled features are embedded (a linear layer each, trained along and thrown away) as `u_s` and `u_t` of length 1, and
    remembered by the image's index. With `h = exp(u . m / tau) / Z` of an embedding `u` of the one network and the remembered
    one `m` of the other, and `k` negatives drawn from `n` images, of other labels:
    `-log h / (h + k/n) - sum_negatives log (k/n) / (h + k/n)`, summed over both directions. `Z` is `n` times the mean of the
    first batch. What is remembered moves by `1 - momentum` towards what was just said.

    The negatives are drawn once for a batch, from (seed, epoch, step), which makes of the published gather of `b k` rows a
    product of two matrices; images without a label have all others as negatives.

    Args:
        negatives: `k`; all others where there are fewer.
        width: of the embeddings; the bank takes 8 bytes times `width` for each image.
        temperature: `tau`.
        momentum: the share of a row that stays.
        tap: where the features are read.
        teacher_tap: the teacher's, where it is called otherwise.

    Source: Tian et al. 2020 (arXiv 1910.10699), equations 17 and 18, and its code's constants; weight 0.8.
    """

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
        self.bank = Bank(batch, tables=2, width=self.width, name="crd")  # first: it may not fit
        student = super().prepare(student, batch, answer)
        generator = draws.generator("crd", batch.seed)
        for some in self.bank.rows.flatten(0, 1).split(SLICE):
            some.copy_(torch.rand(some.shape, generator=generator)).mul_(2).sub_(1).div_((self.width / 3) ** 0.5)
        return student

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"]:
        (pair,) = self.features(output, answer)
        with torch.autocast(output.logits.device.type, enabled=False):  # exponentials of products
            return self.contrasted(batch, pair)

    def contrasted(self, batch: Batch, pair: tuple[Tensor, Tensor]) -> Float[Tensor, " b"]:
        """The loss, and what is remembered from now on."""
        said = [normalize(embed(each.mean((2, 3))), dim=1) for embed, each in zip(self.embed, pair, strict=True)]
        places = self.bank.places(batch)
        among = self.drawn(batch)
        own, others = self.bank.labels[places], self.bank.labels[among]
        negative = ((own[:, None] != others) | (own < 0)[:, None]) & (places[:, None] != among)
        rows = self.bank.rows
        losses = [  # against what is remembered of the other network
            self.contrast(number, said[number], rows[1 - number, places], rows[1 - number, among], negative)
            for number in range(2)
        ]
        before = self.bank.rows[:, places]
        now = torch.stack([each.detach() for each in said])
        self.bank.write(places, normalize(self.momentum * before + (1 - self.momentum) * now, dim=2))
        return losses[0] + losses[1]

    def drawn(self, batch: Batch) -> Int[Tensor, " k"]:
        """The images that may be negatives in this step: all of them where there are few."""
        count, n = min(self.negatives, len(self.bank)), len(self.bank)
        if count == n:
            return torch.arange(n, device=self.bank.index.device)
        generator = draws.generator(f"crd {batch.epoch} {batch.step}", batch.seed)
        return torch.randint(n, (count,), generator=generator).to(self.bank.index.device)

    def contrast(
        self,
        number: int,
        said: Float[Tensor, "b d"],
        same: Float[Tensor, "b d"],
        others: Float[Tensor, "k d"],
        negative: Tensor,
    ) -> Float[Tensor, " b"]:
        """One direction: an embedding against what is remembered of the other network."""
        near, far = likenesses(said, same, others, self.temperature)
        n = len(self.bank)
        with torch.no_grad():
            total, count = mean_of_processes(
                torch.stack([near.sum() + (far * negative).sum(), len(near) + negative.sum()])
            )
            first = n * total / count
            partition = first.where(self.partition[number] == 0, self.partition[number])
            self.partition[number] = partition
        return contrasted(near / partition, far / partition, negative, n)
