"""Faithfulness: the model's probability when the pixels that a map ranks highest are removed, or shown alone.

In a dense task a target is an aim `[b h w]` (the class at the explained places, -1 elsewhere). Then only pixels outside the
explained places are changed, in the order of the map: without its own pixels a place loses its class whatever the map says. The
probability is that of the aim's class, the mean over its places (`task.confidence`). The aim is fixed. An image whose places are
none or all of its pixels has no number: NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from distilens.explain.explanation import checked, quietly
from distilens.explain.maps import empty, normalise_maps
from distilens.explain.path import blocks, rows_at_once
from distilens.foundation.errors import UserError
from distilens.measure.maps.imputation import Fill, filled, noisy_linear
from distilens.models.grids import resized
from distilens.models.model import Model
from distilens.models.objects import takes_modules
from distilens.tasks.segmentation import places_of

SHARES = tuple(tenth / 10 for tenth in range(1, 10))


@dataclass(frozen=True)
class Curves:
    """The class's probability by the share of pixels shown (`insertion`) or removed (`deletion`), strongest pixels first.

    An empty map, which has no order, gives NaN. The areas use the trapezoid rule over the true shares. In a dense task the shares
    are those of the pixels outside the explained places, rounded to whole pixels.

    Attributes:
        shares: from 0 to 1.
    """

    shares: Float[Tensor, " p"]
    insertion: Float[Tensor, "b p"]
    deletion: Float[Tensor, "b p"]

    @property
    def insertion_auc(self) -> Float[Tensor, " b"]:
        """The area under `insertion`, in [0, 1]; higher is better."""
        return torch.trapezoid(self.insertion, self.shares, dim=1)

    @property
    def deletion_auc(self) -> Float[Tensor, " b"]:
        """The area under `deletion`, in [0, 1]; lower is better."""
        return torch.trapezoid(self.deletion, self.shares, dim=1)


class Perturbed:
    """Images, the ranks of their pixels by their maps, and the model's probabilities for the partly removed images.

    Attributes:
        inside: the explained places of a dense task, which are never changed and rank last; otherwise no pixel.
        removable: the number of the other pixels, per image.
        counts: how many pixels have been changed at each point of the curves, per image.
        empty: which images have no number.
    """

    def __init__(
        self, model: Model, images: Tensor, maps: Tensor, target: Tensor, *, fill: Fill, steps: int, chunk: int | None
    ):
        if len(maps) != len(images) or len(target) != len(images):
            raise UserError(
                f"one map and one target per image: {len(images)} images, {len(maps)} maps, {len(target)} targets"
            )
        if steps < 1 or (chunk is not None and chunk < 1):
            raise UserError(f"steps and chunk are at least 1; given steps={steps}, chunk={chunk}")
        self.model, self.images, self.target, self.fill = model, checked(model, images), target, fill
        self.chunk = rows_at_once(images, chunk, recorded=False)
        size = (images.shape[2], images.shape[3])
        pixels = size[0] * size[1]
        fine = resized(maps, size)
        self.inside = places_to_keep(model, images, target)
        self.removable = pixels - self.inside.flatten(1).sum(1)
        if model.task.dense:
            self.shares = torch.linspace(0, 1, min(steps, pixels) + 1, device=images.device)
            self.counts = (self.shares * self.removable[:, None]).round().long()
            self.empty = empty(fine.masked_fill(self.inside, 0)) | (self.removable == pixels)
        else:
            step = -(-pixels // steps)
            counts = torch.tensor([*range(0, pixels, step), pixels], device=images.device)
            self.shares, self.counts = counts.float() / pixels, counts.expand(len(images), -1)
            self.empty = empty(maps)
        self.rank = ranked(fine.masked_fill(self.inside, -torch.inf))
        with quietly(model), torch.no_grad():
            self.hidden = filled(model, self.images, fill)

    def probability(self, images: Float[Tensor, "r c h w"], target: Int[Tensor, "r ..."]) -> Float[Tensor, " r"]:
        return self.model.task.confidence(self.model.logits(images).float(), target)

    def ends(self) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """The probabilities for the whole images and for the fill only: the common ends of both curves.

        In a dense task the explained places stay.
        """
        whole = torch.cat([self.probability(*chunk) for chunk in self.split(self.images)])
        if self.model.task.dense:
            bare = self.filling(self.images, self.inside, self.hidden.expand_as(self.images))
            return whole, torch.cat([self.probability(*chunk) for chunk in self.split(bare)])
        if len(self.hidden) == len(self.images):
            return whole, torch.cat([self.probability(*chunk) for chunk in self.split(self.hidden)])
        nothing = self.model.logits(self.hidden).float()
        nothing = nothing.expand(len(self.images), *nothing.shape[1:])
        return whole, self.model.task.confidence(nothing, self.target)

    def filling(self, images: Tensor, shown: Tensor, hidden: Tensor) -> Float[Tensor, "r c h w"]:
        """The images where they are shown, elsewhere the fill."""
        if self.fill == "noisy_linear":
            return noisy_linear(images, shown)
        return torch.where(shown[:, None], images, hidden)

    def split(self, images: Tensor) -> zip[tuple[Tensor, Tensor]]:
        return zip(images.split(self.chunk), self.target.split(self.chunk), strict=True)

    def between(self, *, insert: bool) -> Float[Tensor, "b q"]:
        """The probabilities between the ends: with only the strongest pixels, or without them."""
        counts = self.counts[:, 1:-1]
        probabilities = self.images.new_empty(counts.shape)
        hidden = self.hidden.expand_as(self.images)
        for part, few in blocks(len(self.images), counts.shape[1], self.chunk):
            strongest = self.rank[part, None] < counts[part, few, None, None]
            shown = strongest | self.inside[part, None] if insert else ~strongest
            images, behind = (
                pixels[part, None].expand(-1, shown.shape[1], -1, -1, -1).flatten(0, 1)
                for pixels in (self.images, hidden)
            )
            rows = self.filling(images, shown.flatten(0, 1), behind)
            aims = self.target[part].repeat_interleave(shown.shape[1], 0)
            probabilities[part, few] = self.probability(rows, aims).view(shown.shape[:2])
        return probabilities

    def curve(self, *, insert: bool, whole: Tensor, nothing: Tensor) -> Float[Tensor, "b p"]:
        first, last = (nothing, whole) if insert else (whole, nothing)
        curve = torch.cat([first[:, None], self.between(insert=insert), last[:, None]], 1)
        return curve.masked_fill(self.empty[:, None], torch.nan)


@takes_modules
def curves(
    model: Model,
    images: Float[Tensor, "b c h w"],
    maps: Float[Tensor, "b h2 w2"],
    target: Int[Tensor, "b ..."],
    *,
    steps: int = 20,
    fill: Fill = "blur",
    chunk: int | None = None,
) -> Curves:
    """Insertion and deletion: the class's probability as pixels are shown, or removed, in the order of the map.

    The cost is `2 (steps - 1) + 2` forward passes per image (the curves share their ends).

    Args:
        maps: maps on any grid, resized bilinearly to the images; the largest values come first, equal values in reading order.
        steps: number of steps of a curve; each changes `ceil(pixels / steps)` pixels.
        fill: the value of a pixel that is not shown. The paper takes `blur` for insertion and `zero` for deletion; torch-cam
            takes zero after normalisation, which is `mean`.
        chunk: rows (images times points) per forward pass; by default the fastest number.

    Source: Petsiuk et al. 2018 (RISE, arXiv 1806.07421), section 4.2.
    """
    rows = Perturbed(model, images, maps, target, fill=fill, steps=steps, chunk=chunk)
    with quietly(model), torch.no_grad():
        whole, nothing = rows.ends()
        return Curves(
            rows.shares,
            insertion=rows.curve(insert=True, whole=whole, nothing=nothing),
            deletion=rows.curve(insert=False, whole=whole, nothing=nothing),
        )


@takes_modules
def insertion(
    model: Model,
    images: Float[Tensor, "b c h w"],
    maps: Float[Tensor, "b h2 w2"],
    target: Int[Tensor, "b ..."],
    *,
    steps: int = 20,
    fill: Fill = "blur",
    chunk: int | None = None,
) -> Float[Tensor, " b"]:
    """The area under the insertion curve only, in [0, 1]; higher is better. See `curves`."""
    return area(Perturbed(model, images, maps, target, fill=fill, steps=steps, chunk=chunk), insert=True)


@takes_modules
def deletion(
    model: Model,
    images: Float[Tensor, "b c h w"],
    maps: Float[Tensor, "b h2 w2"],
    target: Int[Tensor, "b ..."],
    *,
    steps: int = 20,
    fill: Fill = "blur",
    chunk: int | None = None,
) -> Float[Tensor, " b"]:
    """The area under the deletion curve only, in [0, 1]; lower is better. See `curves`."""
    return area(Perturbed(model, images, maps, target, fill=fill, steps=steps, chunk=chunk), insert=False)


def area(rows: Perturbed, *, insert: bool) -> Float[Tensor, " b"]:
    """The area under one of the curves."""
    with quietly(rows.model), torch.no_grad():
        whole, nothing = rows.ends()
        return torch.trapezoid(rows.curve(insert=insert, whole=whole, nothing=nothing), rows.shares, dim=1)


@takes_modules
def road(
    model: Model,
    images: Float[Tensor, "b c h w"],
    maps: Float[Tensor, "b h2 w2"],
    target: Int[Tensor, "b ..."],
    *,
    shares: Sequence[float] = SHARES,
    noise: float = 0.01,
    chunk: int | None = None,
) -> Float[Tensor, " b"]:
    """ROAD: insertion and deletion in one number; removed pixels are imputed, so that holes do not reveal the shape.

    `mean over shares of (p_c(without the weakest) - p_c(without the strongest)) / 2`, with removed pixels filled by
    `noisy_linear`. The score is in [-0.5, 0.5]; higher is better. A random order scores 0, an empty map gives NaN. It equals
    pytorch-grad-cam's `ROADCombined` on the class's probability. The imputation runs on the CPU, image by image.

    Source: Rong et al. 2022 (ROAD, arXiv 2202.00449), section 5.
    """
    rows = Perturbed(model, images, maps, target, fill="noisy_linear", steps=1, chunk=chunk)
    with quietly(model), torch.no_grad():
        total = images.new_zeros(len(images))
        for share in shares:
            removed = (share * rows.removable.cpu().double()).round().long().to(images.device)[:, None, None]
            strongest = rows.rank < rows.removable[:, None, None] - removed
            for sign, keep in ((1, strongest | rows.inside), (-1, rows.rank >= removed)):
                imputed = noisy_linear(rows.images, keep, noise=noise)
                total += sign * torch.cat([rows.probability(*chunked) for chunked in rows.split(imputed)])
        return (total / (2 * len(shares))).masked_fill(rows.empty, torch.nan)


def places_to_keep(model: Model, images: Float[Tensor, "b c h w"], target: Tensor) -> Bool[Tensor, "b h w"]:
    """The explained places of a dense task, at the images' resolution; otherwise no pixel.

    Raises:
        UserError: the task is dense, but the target is not an aim.
    """
    size = (images.shape[2], images.shape[3])
    if not model.task.dense:
        return torch.zeros(len(images), *size, dtype=torch.bool, device=images.device)
    if target.ndim != 3:
        raise UserError(
            f"a {model.task.name} is measured at the places that were explained, [b h w] (explanation.target): the class there, "
            f"-1 elsewhere; given {list(target.shape)}"
        )
    return places_of(target, size)


def ranked(maps: Float[Tensor, "b h w"]) -> Int[Tensor, "b h w"]:
    """The rank of every pixel, 0 for the strongest; equal values rank in reading order."""
    flat = maps.flatten(1)
    order = flat.sort(dim=1, descending=True, stable=True).indices
    place = torch.arange(flat.shape[1], device=maps.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, place).view(maps.shape)


@takes_modules
def masked_confidence(
    model: Model, images: Float[Tensor, "b c h w"], maps: Float[Tensor, "b h2 w2"], target: Int[Tensor, "b ..."]
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """The class's probability for the images, and for the images masked by their maps: the inputs of the three measures below.

    The map is scaled to [0, 1] (negative values count as 0) and resized to the image. The masked image is
    `E = mean + m (x - mean)`: where the map is 0, it shows the mean colour that the model expects. This equals the product of map
    and normalised image. An empty map hides everything.

    In a dense task the explained places stay as they are, and the map is scaled on the other pixels. An image whose explained
    places are none or all of its pixels gives NaN for the second number.
    """
    with quietly(model), torch.no_grad():
        images = checked(model, images)
        size, inside = (images.shape[2], images.shape[3]), places_to_keep(model, images, target)
        if model.task.dense:
            seen = normalise_outside(resized(maps, size), inside)[:, None]
        else:
            seen = resized(normalise_maps(maps, signed=False), size)[:, None]
        mean = model.mean.to(images)
        first, second = (
            model.task.confidence(model.logits(pixels).float(), target)
            for pixels in (images, mean + seen * (images - mean))
        )
        if model.task.dense:
            places = inside.flatten(1)
            second = second.masked_fill(places.all(1) | ~places.any(1), torch.nan)
        return first, second


def normalise_outside(maps: Float[Tensor, "b h w"], inside: Bool[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """`normalise_maps` by the values outside some places; 1 inside."""
    positive = maps.clamp_min(0)
    least = positive.masked_fill(inside, torch.inf).amin((1, 2), keepdim=True)
    return normalise_maps(torch.where(inside, least, positive), signed=False).masked_fill(inside, 1)


def average_drop(whole: Float[Tensor, " b"], masked: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Average Drop per image, the confidence lost behind the map: `max(0, Y - O) / Y`, in [0, 1]; lower is better.

    `Y, O = masked_confidence(...)`. The mean over images is the Average Drop. pytorch-grad-cam does not divide its drop by `Y`.

    Source: Chattopadhay et al. 2018 (Grad-CAM++, arXiv 1710.11063), section 4.1.
    """
    return (whole - masked).relu() / whole.clamp_min(torch.finfo(whole.dtype).tiny)


def increase_in_confidence(whole: Float[Tensor, " b"], masked: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Increase in Confidence: 1 if the masked image gets a higher probability, else 0. `Y, O = masked_confidence(...)`.

    Source: Chattopadhay et al. 2018 (Grad-CAM++, arXiv 1710.11063), section 4.1.
    """
    return (masked > whole).to(whole.dtype).masked_fill(masked.isnan(), torch.nan)


def average_gain(whole: Float[Tensor, " b"], masked: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Average Gain per image, the confidence gained behind the map: `max(0, O - Y) / (1 - Y)`, in [0, 1]; higher is better.

    Source: Zhang et al. 2024 (Opti-CAM, arXiv 2301.07002), section 4.
    """
    return (masked - whole).relu() / (1 - whole).clamp_min(torch.finfo(whole.dtype).tiny)
