"""`predictions.npz`: the logits of all models of a run for all images of test and validation."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped

from distilens.data.splits import Split
from distilens.foundation import randomness
from distilens.foundation.errors import UserError
from distilens.foundation.files import write_arrays
from distilens.tasks import Classification, Task, as_task, task_from
from distilens.tasks.saving import plain_task

FILE = "predictions.npz"
SPLITS = ("test", "validation")

EXACT = 16_000_000
"""Up to this number, logits are written as float32 (64 MB); above it, as float16."""
MOST = 128_000_000
"""The most logits that are written (256 MB as float16); for more, each split keeps the same share of its images."""


@dataclass(frozen=True, eq=False, repr=False)
class SplitPredictions:
    """The models' logits on one split, one image per row.

    Attributes:
        targets: `[n]`; in classification int64 class numbers, -1 for an image without a label.
        index: int64 `[n]`, the rows of the images in the source data set.
        logits: by model (`teacher`, `base`, `student`), `[n classes]`: float32, or float16 for very large sets. In a segmentation
            the class at each place, uint8 `[n h w]`.
        names: the files of the images, relative to the data set's folder; None if the images are not files.
        total: the number of images of the split; larger than `n` only if the file would have been too large.
    """

    targets: Shaped[np.ndarray, "n ..."]
    index: Int[np.ndarray, " n"]
    logits: Mapping[str, Shaped[np.ndarray, "n ..."]]
    names: tuple[str, ...] | None = None
    total: int = 0

    def __len__(self) -> int:
        return len(self.index)

    @property
    def labels(self) -> Int[np.ndarray, " n"]:
        """The targets, by their name in classification."""
        return self.targets

    def probabilities(self, model: str) -> Float[np.ndarray, "n classes"]:
        """The softmax of a model's logits, in [0, 1], float64."""
        from scipy.special import softmax

        return softmax(self.logits[model].astype(np.float64), axis=1)

    def predicted(self, model: str) -> Int[np.ndarray, " n"]:
        """The class with the largest logit, per image."""
        return self.logits[model].argmax(1)

    def name(self, row: int) -> str:
        """The file of an image, else its row in the source."""
        return self.names[row] if self.names else f"image {self.index[row]}"

    def part(self, rows: Int[np.ndarray, " m"]) -> SplitPredictions:
        """The predictions for the images in `rows`."""
        names = self.names and tuple(self.names[row] for row in rows.tolist())
        logits = {model: values[rows] for model, values in self.logits.items()}
        return replace(self, targets=self.targets[rows], index=self.index[rows], logits=logits, names=names)


@dataclass(frozen=True, eq=False)
class Predictions:
    """The logits of all models of a run on test and validation.

    Attributes:
        task: what the logits are: a classification into `classes`, or another task.
        test: the predictions for the test split.
        validation: the predictions for the validation split.
    """

    task: Task
    test: SplitPredictions
    validation: SplitPredictions

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits; empty if the task has none."""
        return self.task.classes

    def __repr__(self) -> str:
        models = ", ".join(self.test.logits)
        return f"Predictions({models}; {len(self.test):,} test, {len(self.validation):,} validation images)"

    def save(self, path: Path) -> None:
        """Write an `.npz` atomically.

        Up to 16 million logits are float32 (64 MB before compression). More are float16, which keeps three digits. Above 128
        million, each split keeps the same share of its images, sampled with a fixed seed.

        Raises:
            UserError: there is no permission to write, or the disk is full.
        """
        count = sum(values.size for split in (self.test, self.validation) for values in split.logits.values())
        arrays: dict[str, np.ndarray] = {
            "classes": np.array(self.classes, dtype=str),
            "models": np.array(list(self.test.logits)),
        }
        if not isinstance(self.task, Classification):
            arrays["task"] = np.array(json.dumps(plain_task(self.task)))
        for key in SPLITS:
            split: SplitPredictions = getattr(self, key)
            kept = split if count <= MOST else split.part(sample_rows(len(split), max(1, len(split) * MOST // count)))
            arrays |= {f"{key}_labels": kept.targets, f"{key}_index": kept.index, f"{key}_total": np.array(len(split))}
            if kept.names is not None:
                arrays[f"{key}_names"] = np.array(kept.names)
            arrays |= {
                f"{key}_logits_{model}": values if count <= EXACT or values.dtype == np.uint8 else halved(values)
                for model, values in kept.logits.items()
            }
        write_arrays(path, arrays)


def sample_rows(count: int, kept: int) -> Int[np.ndarray, " kept"]:
    """`kept` of `count` rows, sampled with a fixed seed, in ascending order."""
    return torch.randperm(count, generator=randomness.generator("predictions", 0))[:kept].sort().values.numpy()


def halved(values: Float[np.ndarray, "n classes"]) -> Float[np.ndarray, "n classes"]:
    """The values as float16, clipped to its range; NaN stays."""
    largest = float(np.finfo(np.float16).max)
    return values.clip(-largest, largest).astype(np.float16)


def predictions_of(split: Split, logits: Mapping[str, Shaped[torch.Tensor, "n ..."]]) -> SplitPredictions:
    """Several models' predictions for a whole split."""
    names = split.names()
    return SplitPredictions(
        targets=split.targets,
        index=split.index,
        logits={model: values.numpy() for model, values in logits.items()},
        names=None if names is None else tuple(names),
        total=len(split),
    )


def read_predictions(path: Path) -> Predictions:
    """Read the file that `Predictions.save` wrote.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    if not path.is_file():
        raise UserError(
            f"no predictions at {path}: the run is not measured yet, or an earlier version measured it. Write them with: "
            f"distilens measure {path.parent}"
        )
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
        models = [str(model) for model in arrays["models"]]
        splits = {
            key: SplitPredictions(
                targets=arrays[f"{key}_labels"],
                index=arrays[f"{key}_index"],
                logits={model: arrays[f"{key}_logits_{model}"] for model in models},
                names=tuple(map(str, arrays[f"{key}_names"])) if f"{key}_names" in arrays else None,
                total=int(arrays[f"{key}_total"]),
            )
            for key in SPLITS
        }
        task = task_from(json.loads(str(arrays["task"]))) if "task" in arrays else as_task(arrays["classes"].tolist())
        return Predictions(task, **splits)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is damaged ({error}): delete it, and write it again with: distilens measure {path.parent}"
        ) from None
