"""What one model knows of a task that another does not, as maps: UniCAM, against a reference set that does not change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

from distilens.core import Model
from distilens.errors import UserError
from distilens.explain.activation import full
from distilens.explain.explanation import checked, quietly
from distilens.measure.distance_correlation import (
    FEWEST,
    Distances,
    correlation,
    remove,
    u_centred,
)
from distilens.taps import LAST, grid

Features = Literal["pooled", "flat"]

AT_ONCE = 1 << 26
"""Bytes of a batch of matrices of distances, one an image, that are worked on at once."""


def tapped(model: Model, images: Float[Tensor, "b c h w"], tap: str) -> Float[Tensor, "b k i j"]:
    """The features of some images at a tap, on a grid, in float32; leaves no trace in the model."""
    with quietly(model), torch.no_grad(), model.reading(tap) as reading:
        model.logits(checked(model, images))
        return full(grid(reading.take(), model.size))


def as_rows(feature: Float[Tensor, "b k *grid"], features: Features) -> Float[Tensor, "b d"]:
    """One row an image: the channels' means, or all values."""
    return feature.flatten(2).mean(2) if features == "pooled" else feature.flatten(1)


def embedded(task: Tensor, classes: int | None = None) -> Float[Tensor, "b e"]:
    """What a task says of each image: rows of an embedding as they are, class numbers one-hot.

    Raises:
        UserError: labels that are none.
    """
    if task.ndim > 1 or task.is_floating_point():
        return task.double() if task.ndim > 1 else task.double()[:, None]
    if len(task) and int(task.min()) < 0:
        raise UserError("images without a label say nothing of the task: leave them out")
    return one_hot(task.long(), max(classes or 0, int(task.max()) + 1 if len(task) else 1)).double()


class UniCAM:
    """Maps of what of a task is in one model's features and not in another's.

    The objective is the semi-partial distance correlation `R(X | Y, G)` of the model's features `X`, less what the other's `Y`
    explain of their geometry, with the task `G`, over the reference set and the image that is explained. With its gradient
    `g` at the features `A` of the image the map is Grad-CAM's: `M = relu(sum_k a_k A_k)`, `a_k` the mean of `g_k` over places.

    * student, other the base student: the features that distillation brought (*distilled*);
    * base, other the student: those that the student has lost or never had (*residual*);
    * teacher, other the student: what there was left to learn (*missed*).

    A map depends on the other images, and changes with them a good deal where they are few; so every image is explained against
    the same reference set. Distances are taken at the tap itself, so that no network is run backwards: a map costs the
    two forwards. Maps are not negative and small; two models with the same features have empty ones.

    Args:
        model: whose features are shown.
        other: what it knows as well is left out; None leaves out nothing.
        images: the reference set, `[n c h w]`, best with as many of each class; 128 or more.
        task: of the reference set: labels `[n]`, or embeddings `[n e]`.
        tap, other_tap: where the features are read.
        features: `pooled` over places, or `flat`.

    Source: Adhane et al. 2025 (arXiv 2412.13943), whose code takes the batch itself as reference, 1 to 32 images of it, and runs
    the gradient through the network.

    Raises:
        UserError: too few images, other numbers of images and of labels, a tap that does not exist.
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        model: Model,
        other: Model | None,
        images: Float[Tensor, "n c h w"],
        task: Tensor,
        *,
        tap: str = LAST,
        other_tap: str = LAST,
        features: Features = "pooled",
    ):
        if len(images) != len(task):
            raise UserError(f"the task says something of {len(task)} images, and the reference set has {len(images)}")
        if len(images) < FEWEST - 1:
            raise UserError(f"a reference set of {len(images)} images: take {FEWEST - 1} at least, and better 128")
        self.model, self.other = model, other
        self.features: Features = features
        self.tap, self.other_tap = tap, other_tap
        self.within: dict[str, Tensor] = {}
        self.task = embedded(task)
        self.rows = as_rows(tapped(model, images, tap), features).double()
        self.others = None if other is None else as_rows(tapped(other, images, other_tap), features).double()

    @torch.inference_mode(False)
    def __call__(
        self, images: Float[Tensor, "b c h w"], task: Tensor, *, among: Tensor | None = None
    ) -> Float[Tensor, "b i j"]:
        """The maps of some images, raw, on the grid of the tap.

        Args:
            images: pixels in [0, 1].
            task: their labels or embeddings, as the reference set's.
            among: the position of each in the reference set, and -1 for those that are not in it; None where none is.

        Raises:
            UserError: embeddings of another width than the reference set's, no images.
        """
        feature = tapped(self.model, images, self.tap)
        rows = as_rows(feature, self.features).double()
        given = (
            None if self.other is None else as_rows(tapped(self.other, images, self.other_tap), self.features).double()
        )
        said = self.alike(embedded(task, self.task.shape[1]), len(images))
        places = torch.full((len(images),), -1) if among is None else among.cpu()
        slope = torch.empty_like(rows)
        for some in self.chunks(places):
            inside = places[some].to(rows.device) if places[some[0]] >= 0 else None
            slope[some] = self.slopes(rows[some], None if given is None else given[some], said[some], inside)
        weights = (
            slope.view(*feature.shape[:2], -1).mean(2) if self.features == "flat" else slope / feature[0, 0].numel()
        )
        return torch.einsum("bk,bkij->bij", weights, feature.double()).relu().float()

    def alike(self, task: Float[Tensor, "b e"], count: int) -> Float[Tensor, "b e"]:
        """The task of the images, if it can be compared with the reference set's."""
        if len(task) != count:
            raise UserError(f"the task says something of {len(task)} images, and {count} are to be explained")
        if task.shape[1] != self.task.shape[1]:
            raise UserError(
                f"embeddings of {task.shape[1]} numbers, and those of the reference set have {self.task.shape[1]}"
            )
        return task.to(self.task.device)

    def chunks(self, places: Tensor) -> Iterator[Tensor]:
        """Positions of some images at a time, all of them in the reference set, or none."""
        count = max(1, AT_ONCE // (8 * (len(self.rows) + 1) ** 2))
        for chosen in (places < 0, places >= 0):
            yield from (some for some in chosen.nonzero().flatten().split(count) if len(some))

    def slopes(self, rows: Tensor, given: Tensor | None, task: Tensor, inside: Tensor | None) -> Float[Tensor, "b d"]:
        """The gradient of the objective at the rows of some images, each together with the reference set."""
        with torch.enable_grad():
            rows = rows.detach().requires_grad_()
            ours = u_centred(extended(self.rows, self.matrix("rows"), rows, inside))
            if given is not None and self.others is not None:
                ours = remove(ours, u_centred(extended(self.others, self.matrix("others"), given, inside)))
            aim = u_centred(extended(self.task, self.matrix("task"), task, inside))
            return torch.autograd.grad(correlation(ours, aim).sum(), rows)[0]

    def matrix(self, name: str) -> Float[Tensor, "n n"]:
        """The distances within the reference set, made once."""
        if name not in self.within:
            self.within[name] = Distances(getattr(self, name)).matrix
        return self.within[name]


def extended(
    reference: Float[Tensor, "n d"], within: Float[Tensor, "n n"], rows: Float[Tensor, "b d"], inside: Tensor | None
) -> Float[Tensor, "b m m"]:
    """Distances within the reference set and one more image, for each of some images; those `inside` stand in their own place."""
    apart = torch.cdist(rows, reference, compute_mode="donot_use_mm_for_euclid_dist")
    count, n = apart.shape
    if inside is None:
        corner = apart.new_zeros(count, 1, 1)
        above = torch.cat([within.expand(count, n, n), apart[:, :, None]], 2)
        return torch.cat([above, torch.cat([apart[:, None], corner], 2)], 1)
    own = torch.arange(n, device=rows.device) == inside[:, None]
    apart = apart.masked_fill(own, 0)
    return torch.where(own[:, :, None], apart[:, None], torch.where(own[:, None], apart[:, :, None], within))
