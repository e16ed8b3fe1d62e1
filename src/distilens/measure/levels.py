"""Models compared level by level: FSS of each pair, RS of each, and RS of what each knows that another does not."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from distilens import draws
from distilens.core import Batch, Model
from distilens.data.subset import Split
from distilens.errors import UserError
from distilens.explain.explanation import quietly
from distilens.measure.dependence import Contrast, Dependence, contrast
from distilens.measure.distance_correlation import FEWEST, Distances
from distilens.measure.explained import most_relevant
from distilens.measure.transfer import cka, fss, normalised_rows, rs
from distilens.measure.unicam import Features, as_rows
from distilens.models.objects import takes_modules
from distilens.taps import grid

LOGITS = "logits"
"""A level that every model has: its answers. It has no grid, so no maps."""

CALLED = {("student", "base"): "distilled", ("base", "student"): "residual", ("teacher", "student"): "missed"}
"""What is in one model's features and not in another's: brought by distillation; lost by it or never had; left to learn."""


@dataclass(frozen=True)
class Pair:
    """What `of` knows and `given` does not; `called` distilled, residual or missed where the models are a run's."""

    of: str
    given: str

    @property
    def called(self) -> str:
        return CALLED.get((self.of, self.given), f"{self.of} without {self.given}")


def pairs_of(models: Iterable[str]) -> list[Pair]:
    """All ordered pairs, those that have a name first."""
    found = [Pair(of, given) for of, given in itertools.permutations(models, 2)]
    order = list(CALLED)
    return sorted(found, key=lambda one: order.index(key) if (key := (one.of, one.given)) in CALLED else len(order))


def pictured(models: Iterable[str]) -> list[Pair]:
    """The pairs whose maps are looked at: those that have a name; all where none has."""
    every = pairs_of(models)
    return [one for one in every if (one.of, one.given) in CALLED] or every


@dataclass(frozen=True)
class Level:
    """Where the models are compared: a tap of each."""

    name: str
    taps: Mapping[str, str]

    @property
    def has_grid(self) -> bool:
        return LOGITS not in self.taps.values()


def levels_of(models: Mapping[str, Model], wanted: Sequence[str] = ()) -> list[Level]:
    """The levels at which models are compared.

    Args:
        models: by name.
        wanted: taps in notation (`layer1`, `last-1`, `logits`), of all models, or of one (`student=features.3`): a model that has
            taps of its own has no others. The first of each are compared with each other, then the second, and so on. By
            default the last two or three grids that all models have, and the logits.

    Raises:
        UserError: taps that do not exist or do not pair up, a model that is not there.
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
    if len({len(each) for each in asked.values()}) > 1:
        listed = "; ".join(f"{name}: {', '.join(each) or 'none'}" for name, each in asked.items())
        raise UserError(f"the models' taps are compared in their order, so each has as many; given {listed}")
    found = []
    for each in zip(*asked.values(), strict=True):
        if LOGITS in each and set(each) != {LOGITS}:
            raise UserError(f"logits are compared with logits; given {', '.join(each)}")
        paths = {name: path_in(model, tap) for (name, model), tap in zip(models.items(), each, strict=True)}
        same = len(set(paths.values())) == 1
        name = next(iter(paths.values())) if same else " / ".join(dict.fromkeys(each))
        if name in {level.name for level in found}:
            raise UserError(f"two levels are called {name!r}: name each once")
        found.append(Level(name, paths))
    return found


def path_in(model: Model, tap: str) -> str:
    """The tap's own path in a model that has it."""
    if tap == LOGITS:
        return tap
    path = model.path_of(tap)
    with model.reading(path):
        return path


def shared(models: Mapping[str, Model]) -> list[str]:
    """The last grids that all models have, three at most, and the logits."""
    found = []
    for tap in ("last-2", "last-1", "last"):
        try:
            for model in models.values():
                model.path_of(tap)
        except UserError:
            continue
        found.append(tap)
    return [*found, LOGITS]


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
    """The features of all images at some taps, one row an image, from one forward; `logits` is a tap too. On the CPU, float32.

    Args:
        explained: of what is left of the images where the model's own map is weak half hidden: see `most_relevant`.
        done: hears how many images are done.
    """
    found: dict[str, list[Tensor]] = {tap: [] for tap in taps}
    with quietly(model), torch.no_grad(), ExitStack() as stack:
        reading = {tap: stack.enter_context(model.reading(tap)) for tap in taps if tap != LOGITS}
        for batch in batches:
            seen = most_relevant(model, batch.images, batch.labels) if explained else batch.images
            logits = model.logits(seen)
            for tap, rows in found.items():
                made = logits if tap == LOGITS else as_rows(grid(reading[tap].take(), model.size), features)
                rows.append(made.float().cpu())
            done(len(batch.images))
    return {tap: torch.cat(rows) for tap, rows in found.items()}


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
    """All scores of some models' features at one level, as plain data.

    Args:
        rows: by model, its features.
        task: the distances of the task.
        index: which samples the rows are.
        full: the other model's features are removed from the task too.
        biased: the statistic of the paper's released code, of rows of length 1; it has neither interval nor partial form.

    Returns:
        `fss`: of each pair, with CKA. `rs`: of each model. `given`: of each ordered pair. `apart`: how much larger the student's
        are than the base's, and the distilled than the residual, with intervals of the differences.
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
        found = rs(spaces[pair.of], task, spaces[pair.given], full=full, permutations=permutations)
        left.append({"of": pair.of, "given": pair.given, "called": pair.called, **plain(found)})
        done(1)
    apart = [] if biased else contrasts(spaces, task, full)
    done(1)
    return {"fss": alike, "rs": alone, "given": left, "apart": apart}


def contrasts(spaces: Mapping[str, Distances], task: Distances, full: bool) -> list[dict[str, Any]]:
    """The differences that a reader asks for, of the same images."""
    found = []
    if {"student", "base"} <= set(spaces) and task.n > FEWEST:
        student, base = spaces["student"], spaces["base"]
        found.append(said("rs", "student", "base", contrast((student, task), (base, task))))
        one, other = (student, task, base), (base, task, student)
        found.append(said("given", "distilled", "residual", contrast(one, other, full=full)))
        if "teacher" in spaces:
            teacher = spaces["teacher"]
            found.append(said("fss", "student", "base", contrast((student, teacher), (base, teacher))))
    return found


def said(what: str, of: str, than: str, found: Contrast) -> dict[str, Any]:
    return {"what": what, "of": of, "than": than, **plain(found)}


def plain(found: Dependence | Contrast) -> dict[str, Any]:
    """As JSON has it."""
    values = asdict(found)
    if "notes" in values:
        values["notes"] = list(values["notes"])
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()}


def chosen(split: Split, count: int, seed: int = 0) -> Split:
    """Some images of a split, as many of each class: see `balanced`."""
    return dataclasses.replace(split, index=split.index[balanced(split.labels, count, seed)])


def balanced(labels: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """`count` positions at most, as many of each class, drawn once and for all; in order. Images without a label are left out.

    Raises:
        UserError: all images have the same label, or none; fewer than two images a class.
    """
    present = np.unique(labels[labels >= 0])
    if len(present) < 2:
        raise UserError(
            f"the images have {len(present)} class{'es' * (len(present) != 1)}: what features say of a task takes two"
        )
    order = torch.randperm(len(labels), generator=draws.generator("balanced", seed)).numpy()
    each = count // len(present)
    picked = [order[labels[order] == label][:each] for label in present]
    if each < 2:
        raise UserError(f"{count} images of {len(present)} classes: take {2 * len(present)} or more")
    fewest = min(len(some) for some in picked)
    return np.sort(np.concatenate([some[:fewest] for some in picked]))
