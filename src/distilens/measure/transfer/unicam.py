"""UniCAM: maps of what one model knows of a task and another does not, against a fixed reference set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

from distilens.explain.activation import full
from distilens.explain.explanation import checked, quietly
from distilens.foundation.errors import UserError
from distilens.measure.transfer.distance_correlation import FEWEST, ROUNDING, Distances
from distilens.models.model import Model
from distilens.models.taps import LAST, grid

Features = Literal["pooled", "flat"]

AT_ONCE = 1 << 26
"""Bytes per chunk of distances to the reference set."""

NOTHING = 1e-10
"""If less than this share of a model's geometry remains after removing the other model, it counts as zero."""


def tapped(model: Model, images: Float[Tensor, "b c h w"], tap: str) -> Float[Tensor, "b k i j"]:
    """The features of images at a tap, on a grid, in float32; the model does not change."""
    with quietly(model), torch.no_grad(), model.reading(tap) as reading:
        model.logits(checked(model, images))
        return full(grid(reading.take(), model.size))


def as_rows(feature: Float[Tensor, "b k *grid"], features: Features) -> Float[Tensor, "b d"]:
    """One row per image: the channels' means, or all values."""
    return feature.flatten(2).mean(2) if features == "pooled" else feature.flatten(1)


def embedded(task: Tensor, classes: int | None = None) -> Float[Tensor, "b e"]:
    """The task's row per image: embeddings unchanged, class numbers as one-hot rows.

    Raises:
        UserError: images without a label.
    """
    if task.ndim > 1 or task.is_floating_point():
        return task.double() if task.ndim > 1 else task.double()[:, None]
    if len(task) and int(task.min()) < 0:
        raise UserError("images without a label have no row in the task: leave them out")
    return one_hot(task.long(), max(classes or 0, int(task.max()) + 1 if len(task) else 1)).double()


class UniCAM:
    """UniCAM: maps of the part of a task that one model's features have and another's lack.

    The objective is the semi-partial distance correlation `R(X | Y, G)` with the task `G`, over the reference set and the
    explained image: `X` are the model's features, from which the geometry of the other model's features `Y` is removed. With the
    objective's gradient `g` at the features `A` of the image, the map is built as in Grad-CAM: `M = relu(sum_k a_k A_k)`, where
    `a_k` is the mean of `g_k` over places.

    * model student, other base: the features that distillation brought (*distilled*);
    * model base, other student: the features that the student lost or never had (*residual*);
    * model teacher, other student: the features left to learn (*missed*).

    A map depends on the other images, strongly if they are few. So every image is explained against the same reference set.
    Distances are taken at the tap, so there is no backward pass through a network, and the sums over the set are computed once: a
    map costs two forward passes for any size of the set. Maps are not negative, and small. Two models with the same features have
    empty maps.

    Args:
        model: the model whose features are shown.
        other: the model whose knowledge is removed; None removes nothing.
        images: the reference set, `[n c h w]`, 512 or more, best with equally many per class.
        task: of the reference set: labels `[n]`, or embeddings `[n e]`.
        tap: the model's tap.
        other_tap: the other model's tap.
        features: `pooled` over places, or `flat`.

    Source: Adhane et al. 2025 (arXiv 2412.13943). The paper's code takes 1 to 32 images of the batch itself as reference, and
    runs the gradient through the network.

    Raises:
        UserError: too few images, different numbers of images and labels, a tap that does not exist.
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
            raise UserError(f"the task has rows for {len(task)} images, but the reference set has {len(images)} images")
        self.model, self.other, self.tap, self.other_tap = model, other, tap, other_tap
        self.features: Features = features
        others = None if other is None else as_rows(tapped(other, images, other_tap), features)
        self.known = Known(as_rows(tapped(model, images, tap), features), embedded(task), others)

    @torch.inference_mode(False)
    def __call__(
        self, images: Float[Tensor, "b c h w"], task: Tensor, *, among: Tensor | None = None
    ) -> Float[Tensor, "b i j"]:
        """The raw maps of images, on the grid of the tap.

        Args:
            images: pixels in [0, 1].
            task: their labels or embeddings, of the same kind as the reference set's.
            among: each image's position in the reference set, -1 for images outside it; None if all are outside.

        Raises:
            UserError: embeddings of another width than the reference set's, no images.
        """
        feature = tapped(self.model, images, self.tap)
        given = None if self.other is None else as_rows(tapped(self.other, images, self.other_tap), self.features)
        embeddings = embedded(task, self.known.task.rows.shape[1])
        return self.known.maps(feature, embeddings, given, among=among, features=self.features)


class Known:
    """UniCAM's statistic on a reference set, and its gradient as maps.

    Args:
        rows: features of the reference set, one row per image.
        task: the task, one row per image.
        others: another model's features of the same images.

    Raises:
        UserError: too few images.
    """

    @torch.inference_mode(False)
    def __init__(
        self, rows: Float[Tensor, "n d"], task: Float[Tensor, "n e"], others: Float[Tensor, "n o"] | None = None
    ):
        if len(rows) < FEWEST:
            raise UserError(f"the reference set has {len(rows)} images: take at least {FEWEST}, and better 512")
        self.rows, self.task = Space(rows.double()), Space(task.to(rows.device).double())
        self.others = None if others is None else Space(others.to(rows.device).double())

    @torch.inference_mode(False)
    def maps(
        self,
        feature: Float[Tensor, "b k i j"],
        task: Float[Tensor, "t e"],
        given: Float[Tensor, "b o"] | None = None,
        *,
        among: Tensor | None = None,
        features: Features = "pooled",
    ) -> Float[Tensor, "b i j"]:
        """The maps of images from their features; `given` are the other model's rows. Otherwise as in `UniCAM.__call__`."""
        width = self.task.rows.shape[1]
        if len(task) != len(feature):
            raise UserError(f"the task has rows for {len(task)} images, but {len(feature)} images are to be explained")
        if task.shape[1] != width:
            raise UserError(f"the embeddings have {task.shape[1]} numbers, but those of the reference set have {width}")
        device = self.rows.rows.device
        rows, task = as_rows(feature, features).to(device).double(), task.to(device).double()
        given = None if given is None else given.to(device).double()
        places = torch.full((len(rows),), -1) if among is None else among.cpu()
        slope = torch.empty_like(rows)
        for chunk in self.chunks(places):
            inside = places[chunk].to(device) if places[chunk[0]] >= 0 else None
            slope[chunk] = self.slopes(rows[chunk], None if given is None else given[chunk], task[chunk], inside)
        weights = slope.view(*feature.shape[:2], -1).mean(2) if features == "flat" else slope / feature[0, 0].numel()
        return torch.einsum("bk,bkij->bij", weights.to(feature.device), feature.double()).relu().float()

    def chunks(self, places: Tensor) -> Iterator[Tensor]:
        """Chunks of positions of images, each completely inside or completely outside the reference set."""
        count = max(1, AT_ONCE // (8 * len(self.task.rows)))
        for chosen in (places < 0, places >= 0):
            yield from (chunk for chunk in chosen.nonzero().flatten().split(count) if len(chunk))

    def slopes(self, rows: Tensor, given: Tensor | None, task: Tensor, inside: Tensor | None) -> Float[Tensor, "b d"]:
        """The gradient of the objective at the rows of images, each added to the reference set."""
        with torch.enable_grad():
            rows = rows.detach().requires_grad_()
            x, g = self.rows.with_image(rows, inside), self.task.with_image(task, inside)
            value = ratio(x, g)
            if given is not None and self.others is not None:
                y = self.others.with_image(given, inside)
                shared = ratio(x, y)
                left = (1 - shared.square()).clamp_min(0)
                remains = left > NOTHING
                value = torch.where(remains, (value - shared * ratio(g, y)) / left.where(remains, 1).sqrt(), 0)
            return torch.autograd.grad(value.sum(), rows)[0]


class Space:
    """The reference set in one representation: its rows, their distances, and the sums of these distances."""

    def __init__(self, rows: Float[Tensor, "n d"]):
        self.rows = rows
        self.matrix = Distances(rows).matrix
        self.sums = self.matrix.sum(1)

    def with_image(self, rows: Float[Tensor, "b d"], inside: Tensor | None) -> WithImage:
        return WithImage(self, rows, inside)


class WithImage:
    """The reference set plus one image, for each image of a batch: its distances to the set, and all sums.

    If the images are `inside` the set, each is removed from the set first.
    """

    def __init__(self, space: Space, rows: Float[Tensor, "b d"], inside: Tensor | None):
        self.space, self.inside = space, inside
        self.far = torch.cdist(rows, space.rows, compute_mode="donot_use_mm_for_euclid_dist")
        self.own = space.matrix[inside] if inside is not None else None
        sums = space.sums.expand(self.far.shape)
        if self.own is not None and inside is not None:
            place = torch.arange(len(space.rows), device=rows.device) == inside[:, None]
            self.far, sums = self.far.masked_fill(place, 0), (sums - self.own).masked_fill(place, 0)
        self.sums, self.last = sums + self.far, self.far.sum(1)
        self.size = len(space.rows) + (inside is None)

    def inner(self, other: WithImage) -> Float[Tensor, " b"]:
        """`⟨A, B⟩` of the U-centred distances, from sums only; values within rounding become 0."""
        both = (self.space.matrix * other.space.matrix).sum() + 2 * (self.far * other.far).sum(1)
        if self.own is not None and other.own is not None:
            both = both - 2 * (self.own * other.own).sum(1)
        m = self.size
        rows = (self.sums * other.sums).sum(1) + self.last * other.last
        totals = (self.sums.sum(1) + self.last) * (other.sums.sum(1) + other.last)
        product = both - 2 / (m - 2) * rows + totals / ((m - 1) * (m - 2))
        return product.where(product.abs() > ROUNDING * both.abs(), 0)


def ratio(x: WithImage, y: WithImage) -> Float[Tensor, " b"]:
    """The distance correlation; 0 if one of the two does not vary."""
    xx, yy = x.inner(x), y.inner(y)
    known = (xx > 0) & (yy > 0)
    return torch.where(known, x.inner(y) / (xx * yy).where(known, 1).sqrt(), 0)
