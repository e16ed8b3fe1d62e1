"""The handwritten digits of scikit-learn: small, real, no download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from distilens.data.drawing import held_out
from distilens.data.source import Rows, Source, as_rgb, digest
from distilens.data.subset import TEST_SHARE
from distilens.tasks import as_task

VERSION = 1


def digits(cache: Path, *, size: Annotated[int, Field(ge=8)] = 32) -> Source:
    """1,797 real handwritten digits, enlarged bilinearly from 8 × 8 to `size`; a fixed fifth of each class is the test set.

    Source: Alpaydin and Kaynak, "Cascading classifiers", Kybernetika 1998; the UCI test set, as scikit-learn ships it
    """
    from sklearn.datasets import load_digits

    loaded: Any = load_digits()
    labels = loaded.target.astype(np.int64)
    images = as_rgb(enlarge_digits(loaded.images, size))
    generator = np.random.default_rng(20240000 + VERSION)
    rank = np.empty(len(labels), dtype=np.int64)
    for digit in range(10):
        rows = generator.permutation(np.flatnonzero(labels == digit))
        rank[rows] = np.arange(len(rows))
    test = held_out(labels, rank, TEST_SHARE)
    fingerprint = digest("digits", VERSION, images, labels)
    train, tested = Rows(images[~test], labels[~test]), Rows(images[test], labels[test])
    return Source(train, tested, None, as_task(list(map(str, range(10)))), fingerprint)


def enlarge_digits(grey: np.ndarray, size: int) -> np.ndarray:
    """Enlarge `[n 8 8]` with values 0..16 to uint8 `[n size size]`: bilinear, align_corners=False."""
    centres = np.clip((np.arange(size) + 0.5) * grey.shape[1] / size - 0.5, 0, grey.shape[1] - 1)
    # One row of weights per new pixel, at most two of them not 0: the interpolation is one matrix on either side.
    weights = np.clip(1 - np.abs(centres[:, None] - np.arange(grey.shape[1])), 0, None)
    return np.round(weights @ grey @ weights.T * (255 / 16)).astype(np.uint8)
