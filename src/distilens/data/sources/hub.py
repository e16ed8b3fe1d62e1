"""Data sets from other libraries: Hugging Face datasets, torchvision."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from distilens.data.decode import Encoded
from distilens.data.labels import NAMES, as_declared, classes_in, column_values
from distilens.data.masks import Ignored, Masks
from distilens.data.pixels import Ground, Pixels, Range, Side
from distilens.data.source import SPLITS, Source, as_rgb, digest, with_remark
from distilens.data.sources.mask_columns import FOUND, usual_mask
from distilens.data.sources.parquet_files import read_bytes
from distilens.data.writing import add_columns, decode_source
from distilens.foundation.errors import UserError, nearest, shortened

TORCHVISION = ("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "STL10", "SVHN", "USPS")
"""The sets that torchvision holds as arrays. Sets that it reads file by file are better read as folders."""


PLAIN = Masks()


def hf(
    name: str,
    /,
    cache: Path,
    *,
    config: str | None = None,
    image: str | None = None,
    label: str | None = None,
    target: str | None = None,
    class_names: tuple[str, ...] | None = None,
    values: tuple[int, ...] | None = None,
    ignore: Ignored = (),
    colours: tuple[str, ...] | None = None,
    size: Side | None = None,
    skip_bad: bool = False,
    ground: Ground = "white",
    range_: Range = None,
    large: bool = False,
) -> Source:
    """A data set of the Hugging Face hub, or a local folder in one of its formats.

    The folder may also be written by `save_to_disk`. By default `image` is the only image column, and `label` the only column
    of class labels, or the first usual name; labels are classes, integers or names. With `size` every image is resized and
    cropped to a square. `skip_bad` leaves out images that cannot be decoded; `Source.skipped` lists them. For `ground`,
    `range` and `large` see `Pixels`. The download is stored in the hub's own cache (HF_HOME). A set with a second column of
    images and no labels is a segmentation; `target` names its column of masks. For `class_names`, `values`, `ignore` and
    `colours` see `Masks`.

    Source: https://huggingface.co/docs/datasets

    Raises:
        UserError: the set cannot be loaded, lacks these columns, or has no train split.
    """
    pixels = Pixels(size, ground, range_, large)
    masks = Masks(class_names, values, ignore, colours)
    what, splits = f"hf:{name}", hub_splits(name, config)
    return source_of_splits(splits, what, cache, pixels, image, label, skip_bad=skip_bad, target=target, masks=masks)


def source_of_splits(
    splits: Mapping[str, Any],
    what: str,
    cache: Path,
    pixels: Pixels,
    image: str | None = None,
    label: str | None = None,
    *,
    skip_bad: bool = False,
    target: str | None = None,
    masks: Masks = PLAIN,
) -> Source:
    """Make a source from the splits of a loaded data set, by our split names; `what` is its name in messages."""
    features = splits["train"].features
    mask = mask_column(features, image, label, target, what)
    if mask is not None:
        source = source_of_masks(splits, what, cache, pixels, image, mask, masks, skip_bad=skip_bad)
        return source if target is not None else with_remark(source, FOUND.format(mask))
    image = image_column(features, image, what)
    label = label_column(features, label, what)
    where = f"the labels in {label!r} of {what}"
    declared = {part: getattr(split.features[label], "names", None) for part, split in splits.items()}
    columns = {
        part: as_declared(column_values(arrow_column(split, label), where), declared[part], declared["train"])
        for part, split in splits.items()
    }
    classes, labels = classes_in(columns, declared["train"])

    def encoded(part: str) -> Encoded:
        return Encoded(labels[part], lambda: hub_images(splits[part], image), partial(name_row, what, part))

    # Arrow files of one data set differ between machines (they can hold absolute paths), so the images are hashed.
    content = [digest(part, labels[part], hash_of(hub_images(splits[part], image))) for part in splits]
    key = digest("hf", content, list(classes))
    source = decode_source(
        cache, key, lambda: ({part: encoded(part) for part in splits}, classes), pixels, skip_bad=skip_bad
    )
    return add_hub_columns(source, splits, image, what)


def source_of_masks(
    splits: Mapping[str, Any],
    what: str,
    cache: Path,
    pixels: Pixels,
    image: str | None,
    mask: str,
    masks: Masks,
    *,
    skip_bad: bool,
) -> Source:
    """Make a segmentation from the splits of a loaded data set."""
    image = image_column({name: kind for name, kind in splits["train"].features.items() if name != mask}, image, what)

    def encoded(part: str) -> Encoded:
        there = np.array([value is not None for value in hub_images(splits[part], mask)])
        return Encoded(
            np.where(there, 0, -1),
            lambda: hub_images(splits[part], image),
            partial(name_row, what, part),
            lambda: hub_images(splits[part], mask),
        )

    content = [
        digest(part, *(hash_of(hub_images(splits[part], column)) for column in (image, mask))) for part in splits
    ]
    source = decode_source(
        cache,
        digest("hf masks", content),
        lambda: ({part: encoded(part) for part in splits}, ()),
        pixels,
        skip_bad=skip_bad,
        masks=masks,
    )
    return add_hub_columns(source, splits, image, what)


def mask_column(features: Any, image: str | None, label: str | None, target: str | None, what: str) -> str | None:
    """The column of masks; None if the set has labels, or no such column."""
    import datasets

    if target is not None:
        if label is not None:
            raise UserError(f"label={label} and target={target}: expected one of them, labels or masks")
        return choose_column("target", target, [], features, what)
    pictures = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if label is not None or labels or any(column in NAMES and column not in pictures for column in features):
        return None
    return usual_mask(pictures, image)


def add_hub_columns(source: Source, splits: Mapping[str, Any], image: str, what: str) -> Source:
    """Add the columns of numbers and text, and the name of each image's file as `path`."""
    import datasets

    def reader(split: Any, column: str) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            if column == image:
                plain = split.select_columns([image]).cast_column(image, datasets.Image(decode=False))[image]
                return np.array([value and value["path"] for value in plain], dtype=object)
            values = arrow_column(split, column).to_pylist()
            return np.array([None if value is None else str(value) for value in values], dtype=object)

        return read

    def columns(split: Any) -> dict[str, Callable[[], np.ndarray]]:
        plain = [
            name for name, kind in split.features.items() if isinstance(kind, datasets.Value | datasets.ClassLabel)
        ]
        return {"path": reader(split, image), **{name: reader(split, name) for name in plain}}

    names = {part: partial(name_row, what, part) for part in splits}
    return add_columns(
        source,
        {part: columns(split) for part, split in splits.items()},
        names,
        {part: len(split) for part, split in splits.items()},
    )


def name_row(what: str, part: str, row: int) -> str:
    return f"row {row} of {what} ({part})"


def hub_splits(name: str, config: str | None) -> dict[str, Any]:
    """The splits by our names."""
    import datasets

    folder = Path(name).expanduser()
    try:
        if any((folder / file).is_file() for file in ("dataset_dict.json", "state.json")):
            loaded = datasets.load_from_disk(str(folder))
        else:
            loaded = datasets.load_dataset(str(folder) if folder.is_dir() else name, config)
    except Exception as error:  # the hub's client, its cache and a dozen readers have no common error class
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(
            f"hf:{name} cannot be loaded: {reason.rstrip('.')}. "
            "Give a data set of huggingface.co/datasets that this machine can reach, or a local folder"
        ) from None
    if isinstance(loaded, datasets.Dataset):  # save_to_disk of a single split
        return {"train": loaded}
    splits = {part: loaded[own] for part, all_names in SPLITS.items() for own in all_names if own in loaded}
    if "train" not in splits:
        raise UserError(f"hf:{name} has no train split; it has {shortened([str(split) for split in loaded])}")
    return splits


def image_column(features: Any, image: str | None, what: str) -> str:
    import datasets

    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    return choose_column("image", image, images, features, what)


def label_column(features: Any, label: str | None, what: str) -> str:
    import datasets

    labels = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    labels = labels or [column for column in NAMES if column in features][:1]
    return choose_column("label", label, labels, features, what)


def choose_column(option: str, given: str | None, suitable: Sequence[str], features: Any, what: str) -> str:
    if given is not None:
        if given not in features:
            known = list(features)
            raise UserError(f"{what} has no column {given!r}.{nearest(given, known)} Its columns: {', '.join(known)}")
        return given
    if len(suitable) != 1:
        kind = "images" if option == "image" else "class labels"
        which = ", ".join(suitable or features)
        count = "several columns" if suitable else "no column"
        raise UserError(f"{what} has {count} of {kind}: name one, {option}=...; the columns are {which}")
    return suitable[0]


def arrow_column(split: Any, column: str) -> Any:
    return split.select_columns([column]).with_format("arrow")[:][column]


def hub_images(split: Any, image: str) -> Iterator[bytes | Path | None]:
    """The encoded images of a split, as bytes or as paths."""
    import datasets

    column = split.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    for table in column.with_format("arrow").iter(256):
        for value in table[image].to_pylist():
            yield read_bytes(value, None)


def hash_of(images: Iterator[bytes | Path | None]) -> str:
    """The sha256 of encoded images, one after another."""
    state = hashlib.sha256()
    for image in images:
        content = image.read_bytes() if isinstance(image, Path) else (image or b"")
        state.update(f"{len(content)}:".encode() + content)
    return state.hexdigest()


def torchvision(
    name: str, /, cache: Path, *, root: Path = Path("data"), size: Side | None = None, download: bool = False
) -> Source:
    """A data set of torchvision with its images in arrays: CIFAR10, CIFAR100, (Fashion, K)MNIST, SVHN, STL10, USPS.

    With `size` every image is resized and cropped to a square.

    Source: https://docs.pytorch.org/vision/stable/datasets.html

    Raises:
        UserError: the set is unknown, or its files are missing and `download` is false or fails.
    """
    from torchvision import datasets

    if name not in TORCHVISION:
        raise UserError(
            f"unknown torchvision data set {name!r}.{nearest(name, TORCHVISION)} Known: {', '.join(TORCHVISION)}. "
            "Others can be read with folder:path=... or hf:NAME"
        )
    constructor = getattr(datasets, name)
    root = Path(root).expanduser()
    sets = {}
    for part in ("train", "test"):
        by_name = "split" in inspect.signature(constructor).parameters
        try:
            option = {"split": part} if by_name else {"train": part == "train"}
            sets[part] = constructor(str(root), download=download, **option)
        except (RuntimeError, OSError) as error:
            if download:
                raise UserError(f"{name} cannot be downloaded to {root}: {str(error).splitlines()[0]}") from None
            raise UserError(
                f"the files of {name} are not in {root}, or are incomplete. Fetch them with download=true"
            ) from None
    pixels = {part: pixels_of(loaded.data) for part, loaded in sets.items()}
    labels = {part: labels_of(loaded) for part, loaded in sets.items()}
    classes = [str(one) for one in getattr(sets["train"], "classes", None) or range(int(labels["train"].max()) + 1)]

    def encoded(part: str) -> Encoded:
        return Encoded(labels[part], lambda: iter(pixels[part]), lambda row: f"row {row} of {name} ({part})")

    content = [part for both in zip(pixels.values(), labels.values(), strict=True) for part in both]
    key = digest("torchvision", name, classes, *content)
    how = Pixels(size)
    return decode_source(cache, key, lambda: ({part: encoded(part) for part in sets}, classes), how, skip_bad=False)


def pixels_of(data: Any) -> np.ndarray:
    """Convert torchvision's arrays to `[n h w 3]`, from `[n h w 3]`, grey `[n h w]`, or channels first."""
    pixels = np.asarray(data)
    if pixels.ndim == 4 and pixels.shape[1] == 3 and pixels.shape[3] != 3:
        pixels = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    return as_rgb(pixels)


def labels_of(loaded: Any) -> np.ndarray:
    labels = loaded.targets if hasattr(loaded, "targets") else loaded.labels
    return np.asarray(labels).astype(np.int64)
