"""Data from arrays and tensors in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from distilens.data.copies import find_copies
from distilens.data.labels import classes_in, names_in, whole
from distilens.data.pictures import as_array, as_uint8, channels_last
from distilens.data.source import Rows, Source, as_rgb, check_labels, digest
from distilens.data.splits import Data
from distilens.data.subset import subset
from distilens.foundation.errors import UserError
from distilens.tasks import Classification


def from_arrays(
    images: Any,
    labels: Any,
    *,
    classes: Sequence[str] | None = None,
    masks: Any = None,
    test: Rows | tuple[Any, Any] | None = None,
    seed: int = 0,
) -> Data:
    """Data from your own arrays or tensors. For other options use `subset(source_of(...), name, ...)`.

    Args:
        images: `[n 3 h w]`, `[n h w 3]` or grey `[n h w]`; integers from 0 to 255, or floats from 0 to 1.
        labels: `[n]`: whole numbers, -1 = none, or names; or one-hot `[n classes]`.
        classes: the names of the labels 0, 1, ...; by default the numbers (or names) in the training labels.
        masks: `[n h w]`, not 0 on the evidence.
        test: images and labels; without them a fixed fifth of every class is held out.

    Raises:
        UserError: the arrays have another form, or the labels are wrong.
    """
    return subset(source_of(images, labels, classes=classes, masks=masks, test=test), "arrays", seed=seed)


def source_of(
    images: Any,
    labels: Any,
    *,
    classes: Sequence[str] | None = None,
    masks: Any = None,
    test: Rows | tuple[Any, Any] | None = None,
) -> Source:
    """Make a source from arrays, as in `from_arrays`."""
    parts = {"train": make_rows(images, labels, masks, "train")}
    if test is not None:
        given = (test.images, test.targets, test.masks) if isinstance(test, Rows) else (*test, None)
        parts["test"] = make_rows(*given, "test")
    return source_of_rows(parts, classes)


def source_of_rows(parts: dict[str, Rows], classes: Sequence[str] | None) -> Source:
    """Make a source from sets by name; their labels are numbers or names."""
    train = parts["train"]
    for part, rows in parts.items():
        if rows.images.shape[1:] != train.images.shape[1:]:
            raise UserError(
                f"the {part} images are {list(rows.images.shape[1:])}, those of train {list(train.images.shape[1:])}: "
                "expected one size"
            )
    classes, labels = classes_in({part: rows.targets for part, rows in parts.items()}, classes)
    check_labels(labels, classes)
    parts = {part: replace(rows, targets=labels[part]) for part, rows in parts.items()}
    arrays = [
        array for rows in parts.values() for array in (rows.images, rows.targets, rows.masks) if array is not None
    ]
    copies = find_copies({part: rows.images for part, rows in parts.items()}, lambda part, row: f"row {row} of {part}")
    key = digest("arrays", list(classes), *arrays)
    return Source(
        parts["train"],
        parts.get("test"),
        parts.get("validation"),
        Classification(tuple(classes)),
        key,
        copies=tuple(copies),
    )


def make_rows(images: Any, labels: Any, masks: Any, part: str) -> Rows:
    """Make a set from arrays. Its labels are numbers, or names that `classes_in` will turn into class indices.

    Raises:
        UserError: the arrays are wrong; the message says how.
    """
    pixels = pixels_of(images, f"the {part} images")
    column = label_column(labels, len(pixels), f"the {part} labels")
    if masks is not None:
        masks = as_array(masks)
        if masks.shape != pixels.shape[:3]:
            raise UserError(f"the {part} masks are {list(masks.shape)}; expected {list(pixels.shape[:3])}")
        masks = np.where(masks != 0, 255, 0).astype(np.uint8)
    return Rows(pixels, column, masks)


def pixels_of(images: Any, what: str) -> np.ndarray:
    """Convert pictures to uint8 `[n h w 3]`.

    Raises:
        UserError: the arrays have another form.
    """
    values = as_array(images)
    if values.dtype.kind not in "biuf" or values.ndim not in (3, 4) or not len(values):
        flat = values.ndim == 2 and values.dtype.kind in "biuf"
        how = ". Bring flat rows into shape by reshape(-1, 3, height, width), or (-1, height, width) if grey" * flat
        raise UserError(
            f"{what} are {values.dtype} {list(values.shape)}; expected [n 3 h w], [n h w 3] or grey [n h w], as integers "
            f"from 0 to 255 or floats from 0 to 1{how}"
        )
    if values.ndim == 4:
        values = channels_last(values, torch_like=hasattr(images, "detach"), what=what)
    if values.ndim == 4 and values.shape[-1] == 4:
        raise UserError(f"{what} have 4 channels; expected 3. Leave the transparency out: images[..., :3]")
    if values.dtype.kind in "iu" and values[:256].max() <= 1 and values.max() == 1:
        raise UserError(
            f"{what} hold whole numbers from 0 to 1, which would be black pictures: if 1 means white, give floats "
            "(images.astype('float32')), or 255 * images"
        )
    exact = values.dtype == np.uint8
    low, high = (0.0, 255.0) if exact else (float(values.min()), float(values.max()))
    return as_rgb(as_uint8(values, low, high, what))


def label_column(labels: Any, count: int, what: str) -> np.ndarray:
    """Convert labels to int64 `[n]`, or to objects `[n]`: names or None.

    Raises:
        UserError: the labels have another shape or type.
    """
    values = as_array(labels)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim == 2 and values.dtype.kind in "biuf":
        values = from_one_hot(values, what)
    if values.shape != (count,) or values.dtype.kind not in "biufUSO":
        raise UserError(f"{what} are {values.dtype} {list(values.shape)}; expected {count} integers or names")
    if values.dtype.kind == "f":
        return whole(values.astype(np.float64), what)
    if values.dtype.kind in "USO":
        plain = [value.item() if hasattr(value, "item") else value for value in values.tolist()]
        if all(isinstance(value, int) for value in plain):
            return np.array(plain, dtype=np.int64)
        return names_in([None if value is None else str(value) for value in plain])
    return values.astype(np.int64)


def from_one_hot(values: np.ndarray, what: str) -> np.ndarray:
    """Class indices from one-hot rows.

    Raises:
        UserError: the labels are soft, or a row has several.
    """
    if not (np.isin(values, (0, 1)).all() and (values.sum(1) == 1).all()):
        raise UserError(
            f"{what} are {list(values.shape)} and not one-hot: expected one class per image. The classes of soft labels "
            "are labels.argmax(1)"
        )
    return values.argmax(1)
