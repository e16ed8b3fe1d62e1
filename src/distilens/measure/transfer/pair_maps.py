"""UniCAM maps of model pairs: computed from features, compared over reference sets, and tested for faithfulness."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from distilens.data.batch import Batch
from distilens.data.pipeline import Batches
from distilens.data.splits import Split
from distilens.explain import build_explainer, in_chunks
from distilens.explain.maps import empty
from distilens.foundation import randomness
from distilens.measure.maps.faithfulness import insertion
from distilens.measure.maps.likeness import mean_interval, pearson
from distilens.measure.maps.localisation import energy_in_mask
from distilens.measure.maps.sanity import randomised
from distilens.measure.transfer.levels import Level, Pair, balanced, features_at
from distilens.measure.transfer.unicam import Features, Known, as_rows, tapped
from distilens.models.model import Model

CHUNK = 64
FLOOR = "random:grid=7"
"""Smooth noise: a map that does not depend on any model."""

Done = Callable[[int], object]


@dataclass(frozen=True, eq=False)
class Reference:
    """The reference set that all images are explained against.

    Attributes:
        positions: its positions in the split, in ascending order.
        task: one row per image.
        rows: by model and tap, the features, one row per image.
    """

    positions: np.ndarray
    task: Float[Tensor, "n e"]
    rows: Mapping[str, Mapping[str, Float[Tensor, "n _"]]]

    def among(self, positions: Tensor) -> Int[Tensor, " b"]:
        """The places of images of the split in the set; -1 for images outside it."""
        places = {int(position): place for place, position in enumerate(self.positions)}
        return torch.tensor([places.get(int(position), -1) for position in positions], dtype=torch.long)


def reference_positions(split: Split, count: int, seed: int = 0) -> np.ndarray:
    """Positions of about `count` images, equally many per class; at most half of the smallest class, so that sets can differ.

    Raises:
        UserError: see `balanced`.
    """
    counts = np.unique(split.targets[split.targets >= 0], return_counts=True)[1]
    if not len(counts):
        return balanced(split.targets, count)
    each = min(-(-count // len(counts)), int(counts.min()) // 2)
    return balanced(split.targets, len(counts) * max(2, each), seed)


def reference_set(
    models: Mapping[str, Model],
    levels: Sequence[Level],
    split: Split,
    task: Callable[[Tensor], Tensor],
    positions: np.ndarray,
    *,
    features: Features = "pooled",
    done: Callable[[str, int], object] = lambda name, count: None,
) -> Reference:
    """The reference set at `positions`, with its features at all levels from one forward pass per model.

    Args:
        task: maps labels `[n]` to the task's rows `[n e]`.
        done: is called with the model's name and the number of images after each batch.
    """
    sample = replace(split, index=split.index[positions])
    rows = {
        name: features_at(
            model,
            Batches(sample, CHUNK, device=model.device),
            list(dict.fromkeys(level.taps[name] for level in levels)),
            features,
            done=lambda count, name=name: done(name, count),
        )
        for name, model in models.items()
    }
    return Reference(positions, task(torch.from_numpy(sample.targets)), rows)


def seen_at(
    models: Mapping[str, Model],
    level: Level,
    images: Float[Tensor, "b c h w"],
    *,
    done: Callable[[str, int], object] = lambda name, count: None,
) -> dict[str, Float[Tensor, "b _ _ _"]]:
    """The features of images at one level, by model, on their grids, on the CPU."""
    features: dict[str, list[Tensor]] = {name: [] for name in models}
    for name, model in models.items():
        for chunk in images.split(CHUNK):
            features[name].append(tapped(model, chunk.to(model.device), level.taps[name]).cpu())
            done(name, len(chunk))
    return {name: torch.cat(parts) for name, parts in features.items()}


def pair_maps(
    pair: Pair,
    level: Level,
    reference: Reference,
    seen: Mapping[str, Float[Tensor, "b _ _ _"]],
    task: Float[Tensor, "b e"],
    among: Int[Tensor, " b"],
    *,
    features: Features = "pooled",
) -> Float[Tensor, "b i j"]:
    """UniCAM's maps of one pair at a level, from the features of the reference set and of the images (`seen`)."""
    rows, others = (reference.rows[name][level.taps[name]] for name in (pair.of, pair.given))
    given = as_rows(seen[pair.given], features)
    return Known(rows, reference.task, others).maps(seen[pair.of], task, given, among=among, features=features)


def stability(maps: Float[Tensor, "b i j"], others: list[Float[Tensor, "b i j"]]) -> dict[str, Any]:
    """The mean correlation of maps with those from other reference sets, with an interval over images."""
    alike = torch.stack([pearson(maps, other) for other in others]).nanmean(0)
    return mean_interval(alike) | {"sets": len(others)}


def sanity(
    pair: Pair,
    model: Model,
    level: Level,
    reference: Reference,
    split: Split,
    images: Float[Tensor, "b c h w"],
    seen: Mapping[str, Float[Tensor, "b _ _ _"]],
    task: Float[Tensor, "b e"],
    among: Int[Tensor, " b"],
    maps: Float[Tensor, "b i j"],
    *,
    features: Features = "pooled",
) -> dict[str, Any]:
    """Sanity checks: correlations of the maps with maps that have nothing to show; near 0 is good.

    `shuffled_labels`: maps for a task with shuffled rows, in the set and for the images. `random_weights`: maps of the model with
    random weights.

    Source: Adebayo et al. 2018 (arXiv 1810.03292), sections 3 and 5.
    """
    source = randomness.generator("unicam sanity", 0)
    permuted = replace(reference, task=reference.task[torch.randperm(len(reference.task), generator=source)])
    random_task = reference.task[torch.randint(len(reference.task), (len(task),), generator=source)]
    shuffled = pair_maps(pair, level, permuted, seen, random_task, among, features=features)
    first, _ = split.pixels(reference.positions[:CHUNK])
    untrained = {pair.of: randomised(model, calibrate=first.to(model.device))}
    blind = reference_set(
        untrained, [level], split, lambda labels: reference.task, reference.positions, features=features
    )
    against = replace(reference, rows={**reference.rows, **blind.rows})
    looked = {**seen, **seen_at(untrained, level, images)}
    random = pair_maps(pair, level, against, looked, task, among, features=features)
    return {
        "shuffled_labels": mean_interval(pearson(maps, shuffled)),
        "random_weights": mean_interval(pearson(maps, random)),
    }


def put_to_test(
    model: Model, batch: Batch, maps: Float[Tensor, "b i j"], *, done: Done = lambda count: None
) -> tuple[dict[str, Any], dict[str, Float[Tensor, " b"]]]:
    """Faithfulness and localisation of a model's maps: means with intervals, and the values per image.

    These are the insertion AUC for the model's top class, with that of smooth noise on the same images as `floor`, and the
    energy on the evidence, with the evidence's share of the image as `mask_share`.
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
    scores = {name: torch.cat(parts) for name, parts in values.items()}
    if batch.mask is not None:
        scores["energy_in_mask"] = energy_in_mask(maps, batch.mask.cpu())
        scores["mask_share"] = batch.mask.cpu().mean((1, 2))
    means = {name: mean_interval(score) for name, score in scores.items()}
    means["above_floor"] = mean_interval(scores["insertion"] - scores["floor"])
    return means | {"empty": int(empty(maps).sum()), "n": len(maps)}, scores
