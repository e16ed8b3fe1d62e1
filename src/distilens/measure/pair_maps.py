"""Maps of what one model knows and another does not, for a run's images: made, compared over reference sets, put to the test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from distilens import draws
from distilens.core import Batch, Model
from distilens.data.batches import Batches
from distilens.data.subset import Split
from distilens.explain import build_explainer, in_chunks
from distilens.explain.maps import empty
from distilens.measure.faithfulness import insertion
from distilens.measure.levels import Level, Pair, balanced, features_at
from distilens.measure.likeness import mean_interval, pearson
from distilens.measure.localisation import energy_in_mask
from distilens.measure.sanity import randomised
from distilens.measure.unicam import Features, Known, as_rows, tapped

CHUNK = 64
FLOOR = "random:grid=7"
"""Smooth noise: a map that knows nothing of any model."""

Done = Callable[[int], object]


@dataclass(frozen=True, eq=False)
class Reference:
    """The images that all others are explained against.

    Attributes:
        positions: in the split, in order.
        task: of each image, a row.
        rows: by model and tap, the features of each image, a row.
    """

    positions: np.ndarray
    task: Float[Tensor, "n e"]
    rows: Mapping[str, Mapping[str, Float[Tensor, "n _"]]]

    def among(self, positions: Tensor) -> Int[Tensor, " b"]:
        """The place of some images of the split in the set, and -1 for those that are not in it."""
        places = {int(position): place for place, position in enumerate(self.positions)}
        return torch.tensor([places.get(int(position), -1) for position in positions], dtype=torch.long)


def reference_positions(split: Split, count: int, seed: int = 0) -> np.ndarray:
    """At least `count` images of a split, as many of each class; half of the smallest class at most, so that sets differ.

    Raises:
        UserError: see `balanced`.
    """
    counts = np.unique(split.labels[split.labels >= 0], return_counts=True)[1]
    if not len(counts):
        return balanced(split.labels, count)
    each = min(-(-count // len(counts)), int(counts.min()) // 2)
    return balanced(split.labels, len(counts) * max(2, each), seed)


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
    """The features of some images at all levels: one forward of each model.

    Args:
        task: of labels `[n]`, what is known of each image, `[n e]`.
        done: hears which model has seen how many.
    """
    some = replace(split, index=split.index[positions])
    rows = {
        name: features_at(
            model,
            Batches(some, CHUNK, device=model.device),
            list(dict.fromkeys(level.taps[name] for level in levels)),
            features,
            done=lambda count, name=name: done(name, count),
        )
        for name, model in models.items()
    }
    return Reference(positions, task(torch.from_numpy(some.labels)), rows)


def seen_at(
    models: Mapping[str, Model],
    level: Level,
    images: Float[Tensor, "b c h w"],
    *,
    done: Callable[[str, int], object] = lambda name, count: None,
) -> dict[str, Float[Tensor, "b _ _ _"]]:
    """The features of some images at one level, by model, on their grids, on the CPU."""
    found: dict[str, list[Tensor]] = {name: [] for name in models}
    for name, model in models.items():
        for some in images.split(CHUNK):
            found[name].append(tapped(model, some.to(model.device), level.taps[name]).cpu())
            done(name, len(some))
    return {name: torch.cat(parts) for name, parts in found.items()}


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
    """UniCAM's maps of one pair at a level, from features: those of the set, and those `seen` at the images."""
    rows, others = (reference.rows[name][level.taps[name]] for name in (pair.of, pair.given))
    given = as_rows(seen[pair.given], features)
    return Known(rows, reference.task, others).maps(seen[pair.of], task, given, among=among, features=features)


def stability(maps: Float[Tensor, "b i j"], others: list[Float[Tensor, "b i j"]]) -> dict[str, Any]:
    """How alike the maps of the same images are against other reference sets: mean correlation, with interval over images."""
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
    """Are the maps others where there is nothing to know? Correlations with them, near 0 where all is well.

    `shuffled_labels`: of a task whose rows are dealt out anew, to the set and to the images. `random_weights`: of the model as
    it would be before training. Source: Adebayo et al. 2018 (arXiv 1810.03292), sections 3 and 5.
    """
    source = draws.generator("unicam sanity", 0)
    dealt = replace(reference, task=reference.task[torch.randperm(len(reference.task), generator=source)])
    drawn = reference.task[torch.randint(len(reference.task), (len(task),), generator=source)]
    shuffled = pair_maps(pair, level, dealt, seen, drawn, among, features=features)
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
