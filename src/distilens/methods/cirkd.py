"""Cross-image relational distillation: relate places to those of other images, of the batch and of queues by class."""

from __future__ import annotations

from typing import Annotated, cast

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from distilens import losses
from distilens.core import Answer, Batch, Model, Output
from distilens.foundation import randomness
from distilens.foundation.settings import Count
from distilens.losses.dense import softmax_divergence
from distilens.losses.places import directions, nearest
from distilens.methods.labels import DENSE
from distilens.methods.paired import Paired, Shape
from distilens.methods.queues import Queues, pixels_of_classes, regions_of_classes

PUSHED = 16
"""Pixels of an image and class that are stored at each step, as published."""
FAR = -1e4
"""The similarity to an entry that is not there: its probability is 0, and finite numbers stay finite."""

Factor = Annotated[float, Field(ge=0)]


class CIRKD(Paired):
    """Match how similar each place is to the places of other images: cross-image relational distillation.

    The sum of three terms, each `mean_u KL(p_t[u] || p_s[u])` per image, with `p[u] = softmax_v(cos(F[u], v) / temperature)`:

    * `batch`: `v` are the places of one image of the batch; the mean over the images. See `losses.cross_image`.
    * `pixels`: `v` are stored features of the teacher at single places, `drawn_pixels` in total.
    * `regions`: `v` are stored means of the teacher's features over a class in an image, `drawn_regions` in total.

    In the last two, both networks are compared with the same entries `v`, and the student's feature is first projected to the
    teacher's channels by a 1×1 convolution, batch norm, ReLU and a 1×1 convolution. They are trained with the student and then
    dropped. All places count, void or not. If the grids differ, the smaller one is used.

    Each class has a queue of pixels and one of regions. At each step, up to 16 random pixels of each class and image, and its
    region, are stored before the entries are drawn. The drawn pixels depend on (seed, epoch, image), the drawn entries on (seed,
    epoch, step). A full queue drops its oldest entries. Empty places are never drawn. Void places are never stored.

    Args:
        temperature: see above.
        batch: the factor of the first term.
        pixels: the factor of the second.
        regions: the factor of the third.
        pool: for the first term, features are averaged over squares of this side. It needs a table of all places of the batch by
            all places of the batch.
        stored_pixels: the length of a class's queue of pixels.
        stored_regions: the length of a class's queue of regions.
        drawn_pixels: entries of all classes together.
        drawn_regions: entries of all classes together.
        tap: where the features are read.
        teacher_tap: the teacher's tap, if its name differs.

    Source: Yang et al. 2022 (CIRKD, arXiv 2204.06986), with the factors of its code, which adds `kd:temperature=1`. That code
    differs in four ways, which are mistakes: the queue of a class holds the first pixels of an image, whatever their class; a
    full queue overwrites its newest entries; queues start with random vectors and are used at once; all classes draw the same
    places of their queues. It also leaves void places out of the last two terms.
    """

    tasks = DENSE
    because = "it stores features of each class, and needs the class of each place"

    def __init__(
        self,
        *,
        temperature: Annotated[float, Field(gt=0)] = 0.1,
        batch: Factor = 1.0,
        pixels: Factor = 0.1,
        regions: Factor = 0.1,
        pool: Count = 2,
        stored_pixels: Count = 20_000,
        stored_regions: Count = 2000,
        drawn_pixels: Count = 4096,
        drawn_regions: Count = 1024,
        tap: str = "last",
        teacher_tap: str | None = None,
    ):
        super().__init__([tap], [teacher_tap or tap])
        self.temperature, self.pool = temperature, pool
        self.factors = {"batch": batch, "pixels": pixels, "regions": regions}
        self.stored = {"pixels": stored_pixels, "regions": stored_regions}
        self.drawn = {"pixels": drawn_pixels, "regions": drawn_regions}
        self.classes = 0
        self.projector: nn.Module = nn.Identity()
        self.queues = nn.ModuleDict()

    def prepare(self, student: Model, batch: Batch, answer: Answer) -> Model:
        self.classes, self.device = student.task.outputs, student.device
        return super().prepare(student, batch, answer)

    def fit(self, ours: list[Shape], theirs: list[Shape]) -> None:
        width = theirs[0][0]
        self.queues = nn.ModuleDict(
            {
                kind: Queues(self.classes, size, width, name=f"cirkd ({kind})", device=self.device)
                for kind, size in self.stored.items()
                if self.factors[kind]
            }
        )
        if self.queues:
            self.projector = nn.Sequential(
                nn.Conv2d(ours[0][0], width, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 1, bias=False),
            )

    def remembered(self) -> int:
        return sum(self.queues_of(kind).entries.nbytes for kind in self.queues)

    def queues_of(self, kind: str) -> Queues:
        """The queues of pixels, or of regions."""
        return cast(Queues, self.queues[kind])

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"]:
        ((ours, theirs),) = self.features(output, answer)
        within = {"temperature": self.temperature, "pool": self.pool, "reduction": "none"}
        terms = [self.factors["batch"] * losses.cross_image(ours, theirs, **within)] if self.factors["batch"] else []
        projected = self.projector(ours).float() if self.queues else ours
        with torch.autocast(ours.device.type, enabled=False):
            theirs = directions(theirs.flatten(2))
            projected = directions(projected.flatten(2))
            self.push(batch, nearest(batch.targets, ours).flatten(1), theirs)
            for kind in self.queues:
                terms.append(self.factors[kind] * self.to_entries(projected, theirs, *self.draw(kind, batch)))
        return torch.stack(terms).sum(0) if terms else ours.new_zeros(len(ours))

    @torch.no_grad()
    def push(self, batch: Batch, own: Int[Tensor, "b n"], theirs: Float[Tensor, "b width n"]) -> None:
        """Store pixels and regions of this batch."""
        if "pixels" in self.queues:
            draws = batch.draw("cirkd", own.shape[1])
            self.queues_of("pixels").push(*pixels_of_classes(theirs, own, draws, self.classes, PUSHED))
        if "regions" in self.queues:
            self.queues_of("regions").push(*regions_of_classes(theirs, own, self.classes))

    def draw(self, kind: str, batch: Batch) -> tuple[Float[Tensor, "v width"], Bool[Tensor, " v"]]:
        """This step's entries, the same number of each class, and whether they are there."""
        generator = randomness.generator(f"cirkd {kind} {batch.epoch} {batch.step}", batch.seed)
        entries, there = self.queues_of(kind).draw(-(-self.drawn[kind] // self.classes), generator)
        return entries.flatten(0, 1), there.flatten()

    def to_entries(
        self,
        ours: Float[Tensor, "b width n"],
        theirs: Float[Tensor, "b width n"],
        entries: Float[Tensor, "v width"],
        there: Bool[Tensor, " v"],
    ) -> Float[Tensor, " b"]:
        """The divergence of the similarities to some entries; 0 if no entry is there."""
        near, wanted = (
            (feature.transpose(1, 2) @ entries.T / self.temperature).masked_fill(~there, FAR)
            for feature in (ours, theirs)
        )
        return softmax_divergence(near, wanted).mean(1)
