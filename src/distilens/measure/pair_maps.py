"""Maps of what one model knows and another does not, for a run's images: made, compared over reference sets, put to the test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from distilens.core import Batch, Model
from distilens.data.batches import Batches
from distilens.data.subset import Split
from distilens.explain import build_explainer, in_chunks
from distilens.explain.maps import empty
from distilens.measure.faithfulness import insertion
from distilens.measure.levels import Level, Pair, balanced
from distilens.measure.likeness import mean_interval, pearson
from distilens.measure.localisation import energy_in_mask
from distilens.measure.unicam import Features, UniCAM

CHUNK = 64
FLOOR = "random:grid=7"
"""Smooth noise: a map that knows nothing of any model."""


@dataclass(frozen=True, eq=False)
class Reference:
    """The images that all others are explained against.

    Attributes:
        positions: in the split, in order.
        task: of each image, a row.
    """

    positions: np.ndarray
    images: Float[Tensor, "n c h w"]
    task: Float[Tensor, "n e"]

    def among(self, positions: Tensor) -> Int[Tensor, " b"]:
        """The place of some images of the split in the set, and -1 for those that are not in it."""
        places = {int(position): place for place, position in enumerate(self.positions)}
        return torch.tensor([places.get(int(position), -1) for position in positions], dtype=torch.long)


def reference_set(split: Split, task: Callable[[Tensor], Tensor], count: int = 128, seed: int = 0) -> Reference:
    """At least `count` images of a split (where there are so many), as many of each class.

    Args:
        task: of labels `[n]`, what is known of each image, `[n e]`.

    Raises:
        UserError: see `balanced`.
    """
    classes = max(1, len(np.unique(split.labels[split.labels >= 0])))
    positions = balanced(split.labels, classes * max(2, -(-count // classes)), seed)
    images, _ = split.pixels(positions)
    return Reference(positions, images, task(torch.from_numpy(split.labels[positions])))


def pair_maps(
    pair: Pair,
    models: Mapping[str, Model],
    level: Level,
    reference: Reference,
    images: Float[Tensor, "b c h w"],
    task: Float[Tensor, "b e"],
    positions: Int[Tensor, " b"],
    *,
    features: Features = "pooled",
    done: Callable[[int], object] = lambda count: None,
) -> Float[Tensor, "b i j"]:
    """UniCAM's maps of one pair at a level, on the CPU. `done` hears of the images of the set, and of those explained."""
    model, other = models[pair.of], models[pair.given]
    taps = level.taps[pair.of], level.taps[pair.given]
    explain = UniCAM(
        model,
        other,
        reference.images.to(model.device),
        reference.task,
        tap=taps[0],
        other_tap=taps[1],
        features=features,
    )
    done(len(reference.images))
    among, found = reference.among(positions), []
    for at in torch.arange(len(images)).split(CHUNK):
        found.append(explain(images[at].to(model.device), task[at], among=among[at]).cpu())
        done(len(at))
    return torch.cat(found)


def stability(maps: Float[Tensor, "b i j"], others: list[Float[Tensor, "b i j"]]) -> dict[str, Any]:
    """How alike the maps of the same images are against other reference sets: mean correlation, with interval over images."""
    alike = torch.stack([pearson(maps, other) for other in others]).nanmean(0)
    return mean_interval(alike) | {"sets": len(others)}


def put_to_test(
    model: Model,
    batch: Batch,
    maps: Float[Tensor, "b i j"],
    *,
    done: Callable[[int], object] = lambda count: None,
) -> tuple[dict[str, Any], dict[str, Float[Tensor, " b"]]]:
    """Are the maps true of the model that they are maps of? Means with intervals, and the values of each image.

    Insertion AUC of the model's own first class, beside that of smooth noise on the same images; energy on the evidence,
    beside the evidence's share of the image.
    """
    values: dict[str, list[Tensor]] = {"insertion": [], "floor": []}
    noise = build_explainer(FLOOR)
    for at in torch.arange(len(maps)).split(CHUNK):
        images = batch.images[at].to(model.device)
        with torch.no_grad():
            first = model.logits(images).argmax(1)
        floor = in_chunks(noise, model, images, first).maps.to(model.device)
        values["insertion"].append(insertion(model, images, maps[at].to(model.device), first).cpu())
        values["floor"].append(insertion(model, images, floor, first).cpu())
        done(len(at))
    found = {name: torch.cat(some) for name, some in values.items()}
    if batch.mask is not None:
        found["energy_in_mask"] = energy_in_mask(maps, batch.mask.cpu())
        found["mask_share"] = batch.mask.cpu().mean((1, 2))
    means = {name: mean_interval(some) for name, some in found.items()}
    means["above_floor"] = mean_interval(found["insertion"] - found["floor"])
    return means | {"empty": int(empty(maps).sum()), "n": len(maps)}, found


def pixels_of(split: Split, positions: Tensor) -> Batch:
    """Images of a split, as they are."""
    return Batches(split, len(split), resident=False).batch(positions, None, 0, 0.0)
