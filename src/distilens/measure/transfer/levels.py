"""Scores per level: FSS of each pair, RS of each model, and RS of the knowledge that one model has and another lacks."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from distilens.data.batch import Batch
from distilens.data.splits import Split
from distilens.explain.explanation import quietly
from distilens.foundation import randomness
from distilens.foundation.errors import UserError
from distilens.measure.transfer.dependence import Contrast, Dependence, contrast
from distilens.measure.transfer.distance_correlation import FEWEST, Distances
from distilens.measure.transfer.relevant import most_relevant
from distilens.measure.transfer.similarity import cka, fss, normalised_rows, rs
from distilens.measure.transfer.unicam import Features, as_rows
from distilens.models.model import Model
from distilens.models.objects import takes_modules
from distilens.models.taps import grid

LOGITS = "logits"
"""The level of the logits, which every model has. It has no grid, so it has no maps."""

CALLED = {("student", "base"): "distilled", ("base", "student"): "residual", ("teacher", "student"): "missed"}
"""Names for what one model's features have and another's lack: gained by distillation, lost (or never had), left to learn."""


@dataclass(frozen=True)
class Pair:
    """Knowledge that model `of` has and model `given` lacks; `called` is distilled, residual or missed for a run's models."""

    of: str
    given: str

    @property
    def called(self) -> str:
        return CALLED.get((self.of, self.given), f"{self.of} without {self.given}")


def pairs_of(models: Iterable[str]) -> list[Pair]:
    """All ordered pairs, named pairs first."""
    pairs = [Pair(of, given) for of, given in itertools.permutations(models, 2)]
    order = list(CALLED)
    return sorted(pairs, key=lambda one: order.index(key) if (key := (one.of, one.given)) in CALLED else len(order))


def pictured(models: Iterable[str]) -> list[Pair]:
    """The pairs with maps: the named pairs, or all pairs if no pair has a name."""
    every = pairs_of(models)
    return [one for one in every if (one.of, one.given) in CALLED] or every


@dataclass(frozen=True)
class Level:
    """A level of comparison: one tap per model."""

    name: str
    taps: Mapping[str, str]

    @property
    def has_grid(self) -> bool:
        return LOGITS not in self.taps.values()


def levels_of(models: Mapping[str, Model], wanted: Sequence[str] = ()) -> list[Level]:
    """The levels at which models are compared.

    Args:
        models: by name.
        wanted: taps in notation (`layer1`, `last-1`, `logits`), for all models or for one (`student=features.3`). A model with
            its own taps uses only these. The models' first taps form the first level, the second taps the second, and so on.
            The default is the last two or three grids that all models have, and the logits.

    Raises:
        UserError: taps that do not exist or differ in number, an unknown model.
    """
    common = [part for part in wanted if "=" not in part]
    own: dict[str, list[str]] = {name: [] for name in models}
    for part in wanted:
        name, named, tap = part.partition("=")
        if named and name not in own:
            raise UserError(f"{part}: there is no model {name!r}; given {', '.join(models)}")
        if named:
            own[name].append(tap)
    asked = {name: own[name] or common for name in models} if wanted else dict.fromkeys(models, shared(models))
    if len({len(taps) for taps in asked.values()}) > 1:
        listed = "; ".join(f"{name}: {', '.join(taps) or 'none'}" for name, taps in asked.items())
        raise UserError(f"taps are compared in order, so all models need the same number of taps; given {listed}")
    levels = []
    for taps in zip(*asked.values(), strict=True):
        if LOGITS in taps and set(taps) != {LOGITS}:
            raise UserError(f"logits can only be compared with logits; given {', '.join(taps)}")
        paths = {name: path_in(model, tap) for (name, model), tap in zip(models.items(), taps, strict=True)}
        same = len(set(paths.values())) == 1
        name = next(iter(paths.values())) if same else " / ".join(dict.fromkeys(taps))
        if name in {level.name for level in levels}:
            raise UserError(f"two levels are called {name!r}: name each once")
        levels.append(Level(name, paths))
    return levels


def path_in(model: Model, tap: str) -> str:
    """The path of a tap in a model, checked by tapping it."""
    if tap == LOGITS:
        return tap
    path = model.path_of(tap)
    with model.reading(path):
        return path


def shared(models: Mapping[str, Model]) -> list[str]:
    """The last grids that all models have, at most three, and the logits."""
    common = []
    for tap in ("last-2", "last-1", "last"):
        try:
            for model in models.values():
                model.path_of(tap)
        except UserError:
            continue
        common.append(tap)
    return [*common, LOGITS]


@takes_modules
def features_at(
    model: Model,
    batches: Iterable[Batch],
    taps: Sequence[str],
    features: Features = "pooled",
    *,
    explained: bool = False,
    done: Callable[[int], object] = lambda count: None,
) -> dict[str, Float[Tensor, "n d"]]:
    """The features of all images by tap, one row per image, from one forward pass; on the CPU, float32. `logits` is a tap too.

    Args:
        explained: hide the half of each image where the model's own map is weak: see `most_relevant`.
        done: is called with the number of images after each batch.
    """
    collected: dict[str, list[Tensor]] = {tap: [] for tap in taps}
    with quietly(model), torch.no_grad(), ExitStack() as stack:
        reading = {tap: stack.enter_context(model.reading(tap)) for tap in taps if tap != LOGITS}
        for batch in batches:
            seen = most_relevant(model, batch.images, batch.targets) if explained else batch.images
            logits = model.logits(seen)
            for tap, rows in collected.items():
                made = logits if tap == LOGITS else as_rows(grid(reading[tap].take(), model.size), features)
                rows.append(made.float().cpu())
            done(len(batch.images))
    return {tap: torch.cat(rows) for tap, rows in collected.items()}


def level_scores(
    rows: Mapping[str, Float[Tensor, "n _"]],
    task: Distances,
    *,
    index: Tensor | None = None,
    full: bool = False,
    biased: bool = False,
    permutations: int = 0,
    done: Callable[[int], object] = lambda count: None,
) -> dict[str, Any]:
    """All scores of several models' features at one level, as plain data.

    Args:
        rows: features by model.
        task: the distances of the task.
        index: identifies the samples of the rows.
        full: also remove the other model's features from the task.
        biased: the statistic of the paper's released code, on rows of length 1; it has no interval and no partial form.
        done: is called with 1 after each statistic.

    Returns:
        `fss`: per pair, with CKA. `rs`: per model. `given`: per ordered pair. `apart`: the differences student minus base, and
        distilled minus residual, with their intervals.
    """
    spaces = {}
    for name, features in rows.items():
        spaces[name] = Distances(normalised_rows(features) if biased else features, index)
        done(1)
    how = {"biased": biased, "permutations": permutations}
    alike, alone, left = [], [], []
    for x, y in itertools.combinations(rows, 2):
        alike.append({"of": x, "to": y, **plain(fss(spaces[x], spaces[y], **how)), "cka": cka(rows[x], rows[y])})
        done(1)
    for x in rows:
        alone.append({"of": x, **plain(rs(spaces[x], task, **how))})
        done(1)
    for pair in [] if biased else pairs_of(rows):
        score = rs(spaces[pair.of], task, spaces[pair.given], full=full, permutations=permutations)
        left.append({"of": pair.of, "given": pair.given, "called": pair.called, **plain(score)})
        done(1)
    apart = [] if biased else contrasts(spaces, task, full)
    done(1)
    return {"fss": alike, "rs": alone, "given": left, "apart": apart}


def contrasts(spaces: Mapping[str, Distances], task: Distances, full: bool) -> list[dict[str, Any]]:
    """The differences of student and base, and of distilled and residual, on the same images."""
    differences = []
    if {"student", "base"} <= set(spaces) and task.n > FEWEST:
        student, base = spaces["student"], spaces["base"]
        differences.append(describe_difference("rs", "student", "base", contrast((student, task), (base, task))))
        one, other = (student, task, base), (base, task, student)
        differences.append(describe_difference("given", "distilled", "residual", contrast(one, other, full=full)))
        if "teacher" in spaces:
            teacher = spaces["teacher"]
            differences.append(
                describe_difference("fss", "student", "base", contrast((student, teacher), (base, teacher)))
            )
    return differences


def describe_difference(what: str, of: str, than: str, found: Contrast) -> dict[str, Any]:
    return {"what": what, "of": of, "than": than, **plain(found)}


def plain(found: Dependence | Contrast) -> dict[str, Any]:
    """The values as JSON types; NaN becomes None."""
    values = found.plain("value")
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()}


def choose_images(split: Split, count: int, seed: int = 0) -> Split:
    """A sample of a split with equally many images per class: see `balanced`."""
    return dataclasses.replace(split, index=split.index[balanced(split.targets, count, seed)])


def balanced(labels: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """At most `count` positions, equally many per class, sampled with a fixed seed, in ascending order.

    Images without a label are left out.

    Raises:
        UserError: fewer than two classes, or fewer than two images per class.
    """
    present = np.unique(labels[labels >= 0])
    if len(present) < 2:
        raise UserError(
            f"the images have {len(present)} class{'es' * (len(present) != 1)}: comparing features with a task needs two"
        )
    order = torch.randperm(len(labels), generator=randomness.generator("balanced", seed)).numpy()
    each = count // len(present)
    picked = [order[labels[order] == label][:each] for label in present]
    if each < 2:
        raise UserError(f"{count} images of {len(present)} classes: take {2 * len(present)} or more")
    fewest = min(len(positions) for positions in picked)
    return np.sort(np.concatenate([positions[:fewest] for positions in picked]))
