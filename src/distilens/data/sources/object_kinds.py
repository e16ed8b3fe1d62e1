"""What kind of data a Python object is."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from distilens.data.labels import NAMES
from distilens.data.pictures import as_array, is_array, is_picture
from distilens.data.sources.mask_columns import MASKS


def is_set(given: Any) -> bool:
    """Whether something is a complete set: a data set, a loader, or images with labels."""
    return (
        is_columns(given)
        or is_mask_columns(given)
        or is_items(given)
        or (hasattr(given, "dataset") and hasattr(given, "batch_size"))
    )


def is_columns(given: Any) -> bool:
    """Whether something is `(images, labels)` as two arrays."""
    if not (isinstance(given, tuple | list) and len(given) == 2):
        return False
    images, labels = given
    return is_array(images) and images.ndim >= 2 and is_column(labels)


def is_mask_columns(given: Any) -> bool:
    """Whether something is `(images, masks)` as two arrays: masks `[n h w]` (or with an axis of one channel) of whole numbers."""
    given = given.tensors if is_tensors(given) else given
    if not (isinstance(given, tuple | list) and len(given) == 2 and all(map(is_array, given))):
        return False
    images, masks = given
    if images.ndim not in (3, 4) or len(images) != len(masks) or "float" in str(masks.dtype):
        return False
    shape = tuple(side for axis, side in enumerate(masks.shape) if masks.ndim == 3 or axis not in (1, 3) or side > 1)
    return masks.ndim in (3, 4) and shape[1:] in (tuple(images.shape[1:3]), tuple(images.shape[-2:]))


def hold_masks(sets: Mapping[str, Any]) -> bool:
    """Whether the sets have a mask for each picture; of a data set the first item is read."""
    if all(map(is_mask_columns, sets.values())):
        return True
    given = sets["train"]
    if is_columns(given) or is_tensors(given):
        return False
    if isinstance(given, tuple | list) and len(given) == 2 and all(isinstance(one, list) and one for one in given):
        return is_picture(given[0][0]) and mask_of((given[0][0], given[1][0])) is not None
    return is_items(given) and len(given) > 0 and mask_of(first_item(given)) is not None


def first_item(given: Any) -> Any:
    try:
        return given[0]
    except Exception:  # a user's own code may raise anything; reading all items reports it
        return None


def mask_of(item: Any) -> Any:
    """The mask of an item: a Pillow image, or an array with two axes or more; None if there is none, or a label."""
    if isinstance(item, Mapping):
        if any(name in item and not is_picture(item[name]) for name in NAMES):
            return None
        mask = next((item[name] for name in MASKS if name in item), None)
    else:
        mask = item[1] if isinstance(item, tuple | list) and len(item) > 1 and not is_picture(item) else None
    return mask if is_picture(mask) else None


def is_column(given: Any) -> bool:
    return (is_array(given) and given.ndim in (1, 2)) or (
        isinstance(given, list) and bool(given) and np.ndim(as_array(given[0])) in (0, 1) and not is_picture(given[0])
    )


def is_tensors(given: Any) -> bool:
    """Whether something is torch's `TensorDataset` of images and labels."""
    return type(given).__name__ == "TensorDataset" and len(getattr(given, "tensors", ())) == 2


def is_items(given: Any) -> bool:
    """Whether items can be read by number: a map-style data set, or a list of pictures with labels."""
    if isinstance(given, str | bytes | Mapping) or is_array(given) or is_picture(given):
        return False
    if not (hasattr(given, "__getitem__") and hasattr(given, "__len__")):
        return False
    if isinstance(given, tuple | list):
        return bool(given) and isinstance(given[0], tuple | Mapping)
    return True


def is_hub(given: Any) -> bool:
    """Whether something is a `datasets.Dataset` that returns its rows as stored."""
    library = sys.modules.get("datasets")
    return library is not None and isinstance(given, library.Dataset) and given.format["type"] != "custom"


def has_pictures(split: Any) -> bool:
    return any(type(feature).__name__ == "Image" for feature in split.features.values())


def is_pair_of_lists(given: Any) -> bool:
    """Whether something is `([picture, picture, …], labels)`."""
    return (
        isinstance(given, tuple | list)
        and len(given) == 2
        and isinstance(given[0], list)
        and bool(given[0])
        and is_picture(given[0][0])
        and is_column(given[1])
    )
