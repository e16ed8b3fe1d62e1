"""What all models of a run answered to all images of test and validation: `predictions.npz`, for whoever computes more of it."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int

from distilens import draws
from distilens.data.subset import Split
from distilens.errors import UserError
from distilens.files import write_arrays

FILE = "predictions.npz"
SPLITS = ("test", "validation")

EXACT = 16_000_000
"""Logits that are written as float32 (64 MB): those of more images or classes are written as float16."""
MOST = 128_000_000
"""Logits that are written at all (256 MB as float16): of larger sets an even part of the images is kept."""


@dataclass(frozen=True, eq=False, repr=False)
class SplitPredictions:
    """The answers to the images of one split, an image a row.

    Attributes:
        labels: int64 `[n]`, positions in the classes; -1 = none.
        index: int64 `[n]`, the rows of the images in the source data set.
        logits: by model (`teacher`, `base`, `student`), `[n classes]`: float32, or float16 of very many.
        names: the files of the images, below the data set's folder; None where the images are not files.
        total: the images that the split has: more than `n` only where `n` would have made the file too large.
    """

    labels: Int[np.ndarray, " n"]
    index: Int[np.ndarray, " n"]
    logits: Mapping[str, Float[np.ndarray, "n classes"]]
    names: tuple[str, ...] | None = None
    total: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def probabilities(self, model: str) -> Float[np.ndarray, "n classes"]:
        """The softmax of a model's logits, in [0, 1], float64."""
        from scipy.special import softmax

        return softmax(self.logits[model].astype(np.float64), axis=1)

    def predicted(self, model: str) -> Int[np.ndarray, " n"]:
        """The class with the largest logit."""
        return self.logits[model].argmax(1)

    def name(self, row: int) -> str:
        """The file of an image, or its row in the source."""
        return self.names[row] if self.names else f"image {self.index[row]}"

    def part(self, rows: Int[np.ndarray, " m"]) -> SplitPredictions:
        """The answers to some of the images."""
        names = self.names and tuple(self.names[row] for row in rows.tolist())
        logits = {model: values[rows] for model, values in self.logits.items()}
        return replace(self, labels=self.labels[rows], index=self.index[rows], logits=logits, names=names)


@dataclass(frozen=True, eq=False)
class Predictions:
    """The logits of all models of a run on test and validation.

    Attributes:
        classes: the names of the classes, in the order of the logits.
        test: the answers to the test split.
        validation: the answers to the validation split.
    """

    classes: tuple[str, ...]
    test: SplitPredictions
    validation: SplitPredictions

    def __repr__(self) -> str:
        models = ", ".join(self.test.logits)
        return f"Predictions({models}; {len(self.test):,} test, {len(self.validation):,} validation images)"

    def save(self, path: Path) -> None:
        """Write an `.npz`, whole or not at all.

        Up to 16 million logits are float32 (64 MB before compression). More are float16, which keeps three digits. Above 128
        million an even part of the images of each split is kept, drawn with a fixed seed.

        Raises:
            UserError: the file may not be written, or the disk is full.
        """
        count = sum(values.size for split in (self.test, self.validation) for values in split.logits.values())
        arrays: dict[str, np.ndarray] = {"classes": np.array(self.classes), "models": np.array(list(self.test.logits))}
        for key in SPLITS:
            split: SplitPredictions = getattr(self, key)
            kept = split if count <= MOST else split.part(drawn(len(split), max(1, len(split) * MOST // count)))
            arrays |= {f"{key}_labels": kept.labels, f"{key}_index": kept.index, f"{key}_total": np.array(len(split))}
            if kept.names is not None:
                arrays[f"{key}_names"] = np.array(kept.names)
            arrays |= {
                f"{key}_logits_{model}": values if count <= EXACT else halved(values)
                for model, values in kept.logits.items()
            }
        write_arrays(path, arrays)


def drawn(count: int, kept: int) -> Int[np.ndarray, " kept"]:
    """`kept` of `count` rows, drawn once and for all, in order."""
    return torch.randperm(count, generator=draws.generator("predictions", 0))[:kept].sort().values.numpy()


def halved(values: Float[np.ndarray, "n classes"]) -> Float[np.ndarray, "n classes"]:
    """As float16: what is larger than it can hold becomes the largest that it can; NaN stays."""
    largest = float(np.finfo(np.float16).max)
    return values.clip(-largest, largest).astype(np.float16)


def predictions_of(split: Split, logits: Mapping[str, Float[torch.Tensor, "n classes"]]) -> SplitPredictions:
    """The answers of some models to a whole split."""
    names = split.names()
    return SplitPredictions(
        labels=split.labels.astype(np.int64),
        index=split.index,
        logits={model: values.numpy() for model, values in logits.items()},
        names=None if names is None else tuple(names),
        total=len(split),
    )


def read_predictions(path: Path) -> Predictions:
    """What `Predictions.save` wrote.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    if not path.is_file():
        raise UserError(
            f"no predictions at {path}: an earlier version measured this run, or nobody has yet. Write them with: distilens "
            f"measure {path.parent}"
        )
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
        models = [str(model) for model in arrays["models"]]
        splits = {
            key: SplitPredictions(
                labels=arrays[f"{key}_labels"],
                index=arrays[f"{key}_index"],
                logits={model: arrays[f"{key}_logits_{model}"] for model in models},
                names=tuple(map(str, arrays[f"{key}_names"])) if f"{key}_names" in arrays else None,
                total=int(arrays[f"{key}_total"]),
            )
            for key in SPLITS
        }
        return Predictions(tuple(map(str, arrays["classes"])), **splits)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is damaged ({error}): delete it, and write it again with: distilens measure {path.parent}"
        ) from None
