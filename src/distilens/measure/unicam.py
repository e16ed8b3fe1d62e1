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
from distilens.measure.distance_correlation import FEWEST, ROUNDING, Distances
from distilens.taps import LAST, grid

Features = Literal["pooled", "flat"]

AT_ONCE = 1 << 26
"""Bytes of a batch of distances to the reference set that are worked on at once."""

NOTHING = 1e-10
"""The share of a model's geometry that is left without the other's, below which nothing is."""


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
    the same reference set. Distances are taken at the tap itself, so that no network is run backwards, and the sums over
    the set are made once: a map costs the two forwards, however large the set. Maps are not negative and small; two models
    with the same features have empty ones.

    Args:
        model: whose features are shown.
        other: what it knows as well is left out; None leaves out nothing.
        images: the reference set, `[n c h w]`, best with as many of each class; 512 or more.
        task: of the reference set: labels `[n]`, or embeddings `[n e]`.
        tap: where the features are read.
        other_tap: where those of the other model are read.
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
        self.model, self.other, self.tap, self.other_tap = model, other, tap, other_tap
        self.features: Features = features
        others = None if other is None else as_rows(tapped(other, images, other_tap), features)
        self.known = Known(as_rows(tapped(model, images, tap), features), embedded(task), others)

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
        given = None if self.other is None else as_rows(tapped(self.other, images, self.other_tap), self.features)
        said = embedded(task, self.known.task.rows.shape[1])
        return self.known.maps(feature, said, given, among=among, features=self.features)


class Known:
    """What a reference set's features know of its task, and of that what others do not: the statistic, and its gradient as maps.

    Args:
        rows: features of the reference set, a row an image.
        task: what is known of each image, a row each.
        others: another model's features of the same images.

    Raises:
        UserError: too few images, other numbers of them.
    """

    @torch.inference_mode(False)
    def __init__(
        self, rows: Float[Tensor, "n d"], task: Float[Tensor, "n e"], others: Float[Tensor, "n o"] | None = None
    ):
        if len(rows) < FEWEST:
            raise UserError(f"a reference set of {len(rows)} images: take {FEWEST} at least, and better 512")
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
        """The maps of some images from their features; `given` are the other model's rows. Otherwise as `UniCAM`'s call."""
        width = self.task.rows.shape[1]
        if len(task) != len(feature):
            raise UserError(f"the task says something of {len(task)} images, and {len(feature)} are to be explained")
        if task.shape[1] != width:
            raise UserError(f"embeddings of {task.shape[1]} numbers, and those of the reference set have {width}")
        device = self.rows.rows.device
        rows, task = as_rows(feature, features).to(device).double(), task.to(device).double()
        given = None if given is None else given.to(device).double()
        places = torch.full((len(rows),), -1) if among is None else among.cpu()
        slope = torch.empty_like(rows)
        for some in self.chunks(places):
            inside = places[some].to(device) if places[some[0]] >= 0 else None
            slope[some] = self.slopes(rows[some], None if given is None else given[some], task[some], inside)
        weights = slope.view(*feature.shape[:2], -1).mean(2) if features == "flat" else slope / feature[0, 0].numel()
        return torch.einsum("bk,bkij->bij", weights.to(feature.device), feature.double()).relu().float()

    def chunks(self, places: Tensor) -> Iterator[Tensor]:
        """Positions of some images at a time, all of them in the reference set, or none."""
        count = max(1, AT_ONCE // (8 * len(self.task.rows)))
        for chosen in (places < 0, places >= 0):
            yield from (some for some in chosen.nonzero().flatten().split(count) if len(some))

    def slopes(self, rows: Tensor, given: Tensor | None, task: Tensor, inside: Tensor | None) -> Float[Tensor, "b d"]:
        """The gradient of the objective at the rows of some images, each together with the reference set."""
        with torch.enable_grad():
            rows = rows.detach().requires_grad_()
            x, g = self.rows.with_image(rows, inside), self.task.with_image(task, inside)
            value = ratio(x, g)
            if given is not None and self.others is not None:
                y = self.others.with_image(given, inside)
                shared = ratio(x, y)
                left = (1 - shared.square()).clamp_min(0)
                some = left > NOTHING
                value = torch.where(some, (value - shared * ratio(g, y)) / left.where(some, 1).sqrt(), 0)
            return torch.autograd.grad(value.sum(), rows)[0]


class Space:
    """The reference set in one representation: its rows, the distances between them, and their sums."""

    def __init__(self, rows: Float[Tensor, "n d"]):
        self.rows = rows
        self.matrix = Distances(rows).matrix
        self.sums = self.matrix.sum(1)

    def with_image(self, rows: Float[Tensor, "b d"], inside: Tensor | None) -> WithImage:
        return WithImage(self, rows, inside)


class WithImage:
    """The set and one image more, for each of some images: the distances of each image to the set, and the sums of all.

    An image that is `inside` the set stands in its own place there: the set is taken without it.
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
        """`⟨A, B⟩` of the U-centred distances, from sums alone; at most rounding is 0."""
        both = (self.space.matrix * other.space.matrix).sum() + 2 * (self.far * other.far).sum(1)
        if self.own is not None and other.own is not None:
            both = both - 2 * (self.own * other.own).sum(1)
        m = self.size
        rows = (self.sums * other.sums).sum(1) + self.last * other.last
        totals = (self.sums.sum(1) + self.last) * (other.sums.sum(1) + other.last)
        found = both - 2 / (m - 2) * rows + totals / ((m - 1) * (m - 2))
        return found.where(found.abs() > ROUNDING * both.abs(), 0)


def ratio(x: WithImage, y: WithImage) -> Float[Tensor, " b"]:
    """The distance correlation; 0 where one of the two does not vary."""
    xx, yy = x.inner(x), y.inner(y)
    known = (xx > 0) & (yy > 0)
    return torch.where(known, x.inner(y) / (xx * yy).where(known, 1).sqrt(), 0)
