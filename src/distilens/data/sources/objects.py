"""Data from Python objects: tensors, torch data sets, loaders, Hugging Face data sets, lists of pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from distilens.data.decode import Encoded
from distilens.data.labels import NAMES, as_declared, classes_in
from distilens.data.masks import Masks
from distilens.data.pictures import as_array, as_uint8, channels_last, is_array, is_picture, open_picture, picture_of
from distilens.data.pixels import Pixels, Side
from distilens.data.source import SPLITS, Source, digest
from distilens.data.sources.arrays import label_column, make_rows, source_of_rows
from distilens.data.sources.object_kinds import (
    has_pictures,
    hold_masks,
    is_columns,
    is_hub,
    is_items,
    is_pair_of_lists,
    is_set,
    is_tensors,
)
from distilens.data.writing import decode_source, show_decoding
from distilens.foundation.errors import UserError, shortened

HOW = (
    "Data are a notation such as folder:path=pictures; images and labels (X, y), or images and masks; a torch Dataset (or a "
    "DataLoader, whose data set is taken); a Hugging Face Dataset or DatasetDict; a list of (image, label); or a pair (train, "
    "test) of these"
)

PLAIN = Masks()

REREAD = 8
"""Number of items that are read twice to detect random transforms."""


def source_of_objects(given: Any, cache: Path, size: Side | None = None, masks: Masks = PLAIN) -> Source:
    """Make a source from Python objects.

    Args:
        masks: what the values of masks mean, if there are masks.

    Raises:
        UserError: the object does not hold pictures and labels; the message lists what does.
    """
    sets, notes = {}, []
    for part, one in name_sets(given).items():
        sets[part], remarks = unwrap_loader(one)
        notes += remarks
    if all(is_hub(one) and has_pictures(one) for one in sets.values()):
        from distilens.data.sources.hub import source_of_splits

        source = source_of_splits(sets, "the data set", cache, Pixels(size), masks=masks)
    elif hold_masks(sets):
        from distilens.data.sources.object_masks import source_of_masks

        source = source_of_masks(sets, cache, Pixels(size), masks)
    elif size is None and all(is_columns(one) or is_tensors(one) for one in sets.values()):
        source = source_of_columns(sets)
    else:
        source = source_of_items({part: items_of(one, part) for part, one in sets.items()}, cache, Pixels(size))
    inventory = replace(source.inventory, remarks=(*dict.fromkeys(notes), *source.inventory.remarks))
    return replace(source, inventory=inventory)


def name_sets(given: Any) -> dict[str, Any]:
    """The sets by name: from a dictionary, a pair (train, test), a triple (train, validation, test), or a single set."""
    if isinstance(given, Mapping):
        sets = {part: given[name] for part, names in SPLITS.items() for name in names if name in given}
        if "train" not in sets:
            raise UserError(f"a dictionary of data needs train; given {shortened(list(map(str, given)))}. {HOW}")
        return sets
    if isinstance(given, tuple | list) and len(given) in (2, 3) and all(map(is_set, given)):
        names = ("train", "test") if len(given) == 2 else ("train", "validation", "test")
        return dict(zip(names, given, strict=True))
    return {"train": given}


def unwrap_loader(given: Any) -> tuple[Any, list[str]]:
    """The data set of a loader, and remarks about that."""
    if hasattr(given, "dataset") and hasattr(given, "batch_size"):
        return given.dataset, [
            "only the data set of the DataLoader is used: batch size, order and augmentation are settings of the training"
        ]
    return given, []


def source_of_columns(sets: Mapping[str, Any]) -> Source:
    """Make a source from arrays, which stay in memory."""
    rows = {}
    for part, given in sets.items():
        images, labels = given.tensors if is_tensors(given) else given
        rows[part] = make_rows(images, labels, None, part)
    return source_of_rows(rows, None)


@dataclass(frozen=True)
class Items:
    """A set whose items are read by number.

    Attributes:
        read: returns the item at a position.
        names: of the labels 0, 1, ..., if the set has them.
    """

    part: str
    count: int
    read: Callable[[int], Any]
    names: Sequence[str] | None

    def both(self, place: int) -> tuple[Any, Any]:
        """The picture at a position, and its label or None."""
        item = self.read(place)
        try:
            return picture_of(item), label_of(item)
        except UserError as error:
            raise UserError(f"item {place} of {self.part}: {error}") from None

    def pixels(self, place: int) -> np.ndarray:
        """The picture at a position as an array `[h w c]` or `[h w]` of any type."""
        return pixels_of_one(self.both(place)[0], f"item {place} of {self.part}")


def items_of(given: Any, part: str) -> Items:
    """Read a set by its items.

    Raises:
        UserError: the object has no items by number.
    """
    if is_columns(given) or is_tensors(given) or is_pair_of_lists(given):
        images, labels = given.tensors if is_tensors(given) else given
        if len(images) != len(labels):
            raise UserError(f"there are {len(images)} {part} images and {len(labels)} labels: expected one per image")
        return Items(part, len(images), lambda place: (images[place], labels[place]), None)
    if is_items(given):
        if not len(given):
            raise UserError(f"the {part} set is empty")
        return Items(part, len(given), lambda place: given[place], names_of(given))
    if hasattr(given, "__iter__") and not isinstance(given, str | bytes | Mapping) and not is_array(given):
        raise UserError(
            f"a {type(given).__name__} has no items by number (__len__ and __getitem__): its pictures cannot be held out and "
            f"shuffled. If they fit into memory, give list(data). {HOW}"
        )
    alone = is_array(given) and as_array(given).ndim >= 3
    raise UserError(
        f"images without labels: give both, (X, y). {HOW}" if alone else f"no data in a {type(given).__name__}. {HOW}"
    )


def names_of(given: Any) -> Sequence[str] | None:
    """The class names of a data set, or of the data sets inside it (for a Subset or a ConcatDataset)."""
    names = getattr(given, "classes", None)
    if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
        return list(names)
    if hasattr(given, "features"):
        declared = [getattr(feature, "names", None) for feature in given.features.values()]
        return next((names for names in declared if names), None)
    joined = [names_of(one) for one in getattr(given, "datasets", None) or ()]
    if any(names != joined[0] for names in joined):
        raise UserError(
            "the joined data sets name their classes differently, so that one number means several classes: "
            f"{'; '.join(shortened(names) if names else 'no names' for names in joined)}. Give the labels as names"
        )
    inner = getattr(given, "dataset", None)
    return joined[0] if joined else None if inner is None else names_of(inner)


def label_of(item: Any) -> Any:
    """The label of an item: a number, a name, or None."""
    if isinstance(item, Mapping):
        key = next((name for name in NAMES if name in item), None)
        label = None if key is None else item[key]
    else:
        label = item[1] if isinstance(item, tuple | list) and len(item) > 1 and not is_picture(item) else None
    if label is None or isinstance(label, str):
        return label
    if isinstance(label, Mapping):
        raise UserError(f"its label is a dictionary of {', '.join(map(str, label))}: expected one class")
    values = as_array(label)
    if values.ndim > 1:
        raise UserError(f"its label is {list(values.shape)}: expected one class")
    return label_column(values.reshape(1, -1), 1, "its label").tolist()[0]


def pixels_of_one(picture: Any, what: str) -> np.ndarray:
    if hasattr(picture, "convert"):
        return array_of_pillow(picture)
    if isinstance(picture, str | Path):
        return open_picture(picture)
    if not is_picture(picture):
        shape = list(picture.shape) if hasattr(picture, "shape") else type(picture).__name__
        raise UserError(f"{what} is not a picture but {shape}: expected a tensor, an array, a Pillow image or a path")
    values = as_array(picture)
    return channels_last(values, torch_like=hasattr(picture, "detach"), what=what) if values.ndim == 3 else values


def array_of_pillow(picture: Any) -> np.ndarray:
    """A Pillow image as an upright array; deep images keep their values, transparent ones their alpha."""
    from PIL import ImageOps

    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("L", "RGB") or picture.mode.startswith(("I", "F")):
        return np.asarray(picture)
    transparent = picture.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in picture.info
    return np.asarray(picture.convert("RGBA" if transparent else "RGB"))


def source_of_items(sets: Mapping[str, Items], cache: Path, pixels: Pixels) -> Source:
    """Make a source from items: each is read once to hash the content, and once more to write its pixels to the cache."""
    contents = {part: read_items(items) for part, items in sets.items()}
    low, high = min(one.low for one in contents.values()), max(one.high for one in contents.values())
    declared = sets["train"].names
    columns = {
        part: as_declared(label_column(np.array(one.labels, dtype=object), len(one.labels), f"the {part} labels"),
                          sets[part].names, declared)
        for part, one in contents.items()
    }  # fmt: skip
    classes, labels = classes_in(columns, declared)
    changing = [line for one in contents.values() for line in one.changing]

    def encoded(part: str, items: Items) -> Encoded:
        def images() -> Iterator[np.ndarray]:
            for place in range(items.count):
                yield scale_picture(items.pixels(place), low, high, f"the {part} images")

        return Encoded(labels[part], images, lambda row: f"item {row} of {part}")

    key = digest("objects", classes, *(digest(part, labels[part], one.content) for part, one in contents.items()))
    source = decode_source(
        cache,
        key,
        lambda: ({part: encoded(part, items) for part, items in sets.items()}, classes),
        pixels,
        skip_bad=False,
    )
    inventory = replace(source.inventory, remarks=(*changing, *source.inventory.remarks))
    return replace(source, inventory=inventory)


def scale_picture(values: np.ndarray, low: float, high: float, what: str) -> np.ndarray:
    """Scale a picture to uint8; whole numbers of more than 8 bits are kept, and scaled when their range is known."""
    deep = values.dtype.kind in "iu" and values.ndim == 2 and high > 255 and low >= 0
    return values.astype(np.uint16 if high < 2**16 else np.int32) if deep else as_uint8(values, low, high, what)


@dataclass(frozen=True)
class ItemsRead:
    """Results of the first pass over a set: labels, range of the values, hash of the content, remarks about changing items."""

    labels: list[Any]
    low: float
    high: float
    content: str
    changing: list[str]


def read_items(items: Items) -> ItemsRead:
    """Read every item once, and a few of them twice.

    Raises:
        UserError: an item that cannot be read.
    """
    state, labels, low, high = hashlib.sha256(), [], np.inf, -np.inf
    again = {round(place) for place in np.linspace(0, items.count - 1, min(REREAD, items.count))}
    changing = []
    with show_decoding(items.count) as work:
        for place in range(items.count):
            picture, label = read_item(items, place)
            values = pixels_of_one(picture, f"item {place} of {items.part}")
            state.update(f"{values.dtype.str}{values.shape}".encode() + np.ascontiguousarray(values).tobytes())
            labels.append(label)
            if values.dtype != np.uint8 and values.size:
                low, high = float(np.minimum(low, values.min())), float(np.maximum(high, values.max()))
            if place in again:
                picture, other = read_item(items, place)
                if other != label or not np.array_equal(pixels_of_one(picture, ""), values):
                    changing.append(place)
            work.advance()
    if low > high:  # all pictures have 8 bits: their values need no scaling
        low, high = 0.0, 255.0
    return ItemsRead(labels, low, high, state.hexdigest(), describe_changing_items(items.part, changing, len(again)))


def describe_changing_items(part: str, changing: Sequence[int], tested: int) -> list[str]:
    """A warning if items change between two reads; else an empty list."""
    if not changing:
        return []
    return [
        f"item {changing[0]} of {part} changes between two reads ({len(changing)} of the {tested} tested): a random "
        "transform? Each item is read once and stored, and distilens augments by itself (augment=): give the data without it"
    ]


def read_item(items: Items, place: int) -> tuple[Any, Any]:
    try:
        return items.both(place)
    except UserError:
        raise
    except Exception as error:  # a user's own code may raise anything
        raise UserError(f"item {place} of {items.part} cannot be read: {type(error).__name__}: {error}") from error
