"""The steps of a comparison: time estimates, features, scores, maps, growth in training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from distilens import __version__
from distilens.data import Data, Split
from distilens.data.pipeline import Batches, batch_at
from distilens.foundation import randomness
from distilens.foundation.devices import now
from distilens.foundation.errors import UserError
from distilens.foundation.progress import Work
from distilens.measure import predict
from distilens.measure.accuracies import EVALUATION_BATCH
from distilens.measure.maps.likeness import mean_interval
from distilens.measure.maps.side_by_side import as_pixels, choose, named_files
from distilens.measure.transfer.distance_correlation import FEWEST, Distances
from distilens.measure.transfer.embeddings import class_embeddings
from distilens.measure.transfer.levels import (
    LOGITS,
    Level,
    choose_images,
    features_at,
    level_scores,
    levels_of,
    pairs_of,
    pictured,
)
from distilens.measure.transfer.pair_maps import (
    Reference,
    pair_maps,
    put_to_test,
    reference_positions,
    reference_set,
    sanity,
    seen_at,
    stability,
)
from distilens.measure.transfer.settings import CompareSettings
from distilens.models.model import Model
from distilens.models.saved import fingerprint_of

KIND = "distilens transfer 1"
GROWN = 512
"""Images on which each saved state of a model is scored."""
TESTS = 40
"""Forward passes per tested image: two insertions of 20 steps."""
FIRST_FORWARD = 16
"""Images on which the time of a forward pass is measured."""


@runtime_checkable
class States(Sized, Iterable[tuple[int, Model]], Protocol):
    """States of a model during training, by epoch: a list of pairs, or an iterable that loads them one by one."""


class Comparing:
    """The steps of one comparison."""

    def __init__(
        self, models: Mapping[str, Model], data: Data, how: CompareSettings, work: Work, remarks: tuple[str, ...] = ()
    ):
        self.models, self.data, self.how, self.work, self.remarks = models, data, how, work, remarks
        self.levels = levels_of(models, how.taps)
        self.embeddings = class_embeddings(how.embeddings, data)
        self.some = choose_images(data.test, how.samples)
        self.index = torch.from_numpy(self.some.index)
        if len(self.some) < FEWEST:
            raise UserError(f"{data.name} has {len(self.some)} images for a comparison, which needs at least {FEWEST}")
        self.task = Distances(self.task_of(torch.from_numpy(self.some.targets)), self.index)
        self.pairs = pictured(models)
        self.pace = {name: self.seconds(model) for name, model in models.items()}

    def task_of(self, labels: Tensor) -> Tensor:
        return self.embeddings[labels]

    def seconds(self, model: Model) -> float:
        """Seconds per image of one forward pass."""
        batch = Batches(self.some, FIRST_FORWARD, device=model.device)
        self.work.say("first images")
        predict(model, [next(iter(batch))])
        start = now(model.device)
        predict(model, [next(iter(batch))])
        return (now(model.device) - start) / batch.size

    def all(self, grown: Mapping[str, States]) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
        """The scores, and the arrays of the pictures by level."""
        how, grids = self.how, [level for level in self.levels if level.has_grid]
        self.plan(grids, sum(map(len, grown.values())))
        rows = {}
        for name, model in self.models.items():
            self.work.begin(f"features of {name}")
            rows[name] = self.features(name, model, self.some)
        scores = [
            {"name": level.name, "taps": dict(level.taps), **self.scores(level, rows, self.task)}
            for level in self.levels
        ]
        pictures, arrays = self.pictures(grids, rows) if grids else ({}, {})
        about = {
            "kind": KIND,
            "distilens": __version__,
            "models": {
                name: {"model": model.name, "weights": fingerprint_of(model)} for name, model in self.models.items()
            },
            "data": self.data.name,
            "classes": list(self.data.classes),
            "split": "test",
            "n": len(self.some),
            "settings": how.model_dump(mode="json"),
            "remarks": list(self.remarks),
            "levels": scores,
            "maps": pictures,
            "growth": self.growth(grown),
        }
        return about, arrays

    def plan(self, grids: Sequence[Level], states: int) -> None:
        """Plan the work from estimates in seconds."""
        m, how = len(self.models), self.how
        self.each = 2.5e-7 * len(self.some) ** 2  # seconds per statistic
        costs = {f"features of {name}": pace * len(self.some) for name, pace in self.pace.items()}
        count = 2 * m + len(pairs_of(self.models)) * 3 // 2 + 1
        costs |= {f"scores {level.name}": self.each * count for level in self.levels}
        explained = len(grids) * (how.images + how.measured)
        costs["maps"] = bool(grids) * ((1 + how.sets) * how.reference + explained) * sum(self.pace.values())
        costs["tests"] = bool(grids) * sum(TESTS * how.measured * self.pace[pair.of] for pair in self.pairs)
        costs["growth"] = states * min(GROWN, len(self.some)) * max(self.pace.values())
        self.work.plan(costs)

    def features(self, name: str, model: Model, split: Split) -> dict[str, Tensor]:
        """The features of a split at all levels and the logits, by tap."""
        batches = Batches(split, EVALUATION_BATCH if not self.how.explained else 64, device=model.device)
        taps = list(dict.fromkeys([*(level.taps[name] for level in self.levels), LOGITS]))
        return features_at(
            model,
            batches,
            taps,
            self.how.features,
            explained=self.how.explained,
            done=self.work.follow(f"features of {name}", self.pace[name]),
        )

    def scores(self, level: Level, rows: Mapping[str, Mapping[str, Tensor]], task: Distances) -> dict[str, Any]:
        self.work.begin(f"scores at {level.name}")
        return level_scores(
            {name: rows[name][level.taps[name]] for name in self.models},
            task,
            index=self.index,
            full=self.how.full,
            biased=self.how.biased,
            permutations=self.how.permutations,
            done=self.work.follow(f"scores at {level.name}", self.each),
        )

    def pictures(
        self, grids: Sequence[Level], rows: Mapping[str, Mapping[str, Tensor]]
    ) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
        """The maps of all pairs at all levels with a grid: the measurements, and the arrays for the page."""
        test, how = self.data.test, self.how
        self.work.begin("reference sets")
        drawn = [reference_positions(test, how.reference, seed) for seed in range(1 + how.sets)]
        sets = [
            reference_set(
                self.models,
                grids,
                test,
                self.task_of,
                positions,
                features=how.features,
                done=self.count_forwards("reference sets"),
            )
            for positions in drawn
        ]
        positions = torch.from_numpy(np.flatnonzero(np.isin(test.index, self.some.index)))
        order = torch.randperm(len(positions), generator=randomness.generator("compared", 0))
        measured = positions[order[: how.measured]]
        logits = {name: each[LOGITS] for name, each in rows.items()}
        answering = {name: each for name, each in logits.items() if self.answers_for_data(name)}
        shown = positions[choose(answering or logits, how.images, test)]
        arrays, measurements = {}, {}
        for level in grids:
            self.work.begin(f"maps at {level.name}")
            arrays[level.name] = self.pictures_at(level, sets[0], shown)
            measurements[level.name] = self.measured(level, sets, measured, last=level is grids[-1])
        reference = {
            "n": len(drawn[0]),
            "index": test.index[drawn[0]].tolist(),
            "sets": how.sets,
            "shared": float(np.mean([np.isin(drawn[0], other).mean() for other in drawn[1:]])),
            "measured": len(measured),
        }
        return {"reference": reference, "levels": measurements}, arrays

    def answers_for_data(self, name: str) -> bool:
        return len(self.models[name].classes) == len(self.data.classes)

    def count_forwards(self, label: str) -> Callable[[str, int], object]:
        """A callback `(model's name, number of images)` that counts forward passes as progress."""
        counters = {name: self.work.follow(label, pace) for name, pace in self.pace.items()}
        return lambda name, count: counters[name](count)

    def pictures_at(self, level: Level, reference: Reference, positions: Tensor) -> dict[str, np.ndarray]:
        """The arrays of the pictures at one level: images, labels, masks, and one map per pair."""
        batch = batch_at(self.data.test, positions)
        seen = seen_at(self.models, level, batch.images, done=self.count_forwards(f"maps at {level.name}"))
        task, among = self.task_of(batch.targets), reference.among(positions)
        arrays = {
            "index": batch.index.numpy(),
            "images": as_pixels(batch.images),
            "labels": batch.targets.numpy(),
            "signed": np.array(False),
            "roles": np.array([pair.called for pair in self.pairs]),
            "answers_of": np.array([pair.of for pair in self.pairs]),
            **named_files(self.data.test, positions),
        }
        if batch.mask is not None:
            arrays["masks"] = (batch.mask * 255).round().byte().numpy()
        for pair in self.pairs:
            maps = pair_maps(pair, level, reference, seen, task, among, features=self.how.features)
            arrays[f"maps_{pair.called}"] = maps.numpy()
            if self.answers_for_data(pair.of):
                model = self.models[pair.of]
                with torch.no_grad():
                    confidence, prediction = model.logits(batch.images.to(model.device)).float().softmax(1).max(1)
                arrays[f"prediction_{pair.called}"] = prediction.cpu().numpy()
                arrays[f"confidence_{pair.called}"] = confidence.cpu().numpy()
        return arrays

    def measured(self, level: Level, sets: Sequence[Reference], positions: Tensor, *, last: bool) -> dict[str, Any]:
        """The stability of each pair's maps and, at the last level, their faithfulness, localisation and sanity checks."""
        batch = batch_at(self.data.test, positions)
        seen = seen_at(self.models, level, batch.images, done=self.count_forwards(f"maps at {level.name}"))
        task, features = self.task_of(batch.targets), self.how.features
        results: dict[str, Any] = {}
        energies: dict[str, Tensor] = {}
        for pair in self.pairs:
            maps, *others = (
                pair_maps(pair, level, each, seen, task, each.among(positions), features=features) for each in sets
            )
            entry = {"of": pair.of, "given": pair.given, "stability": stability(maps, others)}
            if last:
                model, among = self.models[pair.of], sets[0].among(positions)
                done = self.work.follow(f"tests at {level.name}: {pair.called}", TESTS * self.pace[pair.of])
                means, values = put_to_test(model, batch, maps, done=done)
                inputs = (sets[0], self.data.test, batch.images, seen, task, among, maps)
                entry |= means | sanity(pair, model, level, *inputs, features=features)
                if "energy_in_mask" in values:
                    energies[pair.called] = values["energy_in_mask"]
            results[pair.called] = entry
        if {"distilled", "residual"} <= set(energies):
            results["distilled"]["energy_above_residual"] = mean_interval(energies["distilled"] - energies["residual"])
        return results

    def growth(self, grown: Mapping[str, States]) -> dict[str, Any]:
        """RS of each saved state, and FSS to the teacher, at the last level with a grid, on up to `GROWN` images."""
        level = next((level for level in reversed(self.levels) if level.has_grid), self.levels[-1])
        sample = choose_images(self.data.test, min(GROWN, self.how.samples))
        index = torch.from_numpy(sample.index)
        task = Distances(self.task_of(torch.from_numpy(sample.targets)), index)
        scored: dict[str, list[dict[str, Any]]] = {}
        teacher: dict[str, Tensor] = {}
        for name, states in grown.items():
            if len(states):
                self.work.begin(f"growth of {name}")
                if "teacher" in self.models and name != "teacher" and not teacher:
                    rows = self.features("teacher", self.models["teacher"], sample)
                    teacher = {"teacher": rows[level.taps["teacher"]]}
            for epoch, model in states:
                rows = self.features(name, model.to(self.models[name].device), sample)[level.taps[name]]
                scores = level_scores({**teacher, name: rows}, task, index=index, biased=self.how.biased)
                row = {"epoch": epoch, "rs": next(one for one in scores["rs"] if one["of"] == name)}
                scored.setdefault(name, []).append(row | ({"fss": scores["fss"][0]} if scores["fss"] else {}))
        return {"level": level.name, "n": len(sample), "models": scored} if scored else {}
