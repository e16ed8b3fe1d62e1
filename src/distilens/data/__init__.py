"""Data sets by name: `shapes:shortcut=0.9,shots=20`, `parquet:path=data/cifar10`, `torchvision:CIFAR10`.

A name stands for a `Source`; the options that all names share (`limit`, `shots`, `classes`, `min_images`, `val_fraction`, `seed`)
choose from it the rows of a run, a `Data`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from distilens.data.arrays import from_arrays, source_of
from distilens.data.pixels import Side
from distilens.data.source import Rows, Source, digest, shortened
from distilens.data.subset import Data, Split, subset
from distilens.data.unsplit import can_be_split, unsplit
from distilens.errors import UserError
from distilens.specs import Registry, Spec

__all__ = ["SOURCES", "Data", "Rows", "Source", "Split", "as_data", "from_arrays", "load", "source_of", "subset"]

CACHE = Path("runs/data")
"""Where decoded and generated images are kept."""


def options(
    *,
    limit: Annotated[int, Field(ge=1)] | None = None,
    shots: Annotated[int, Field(ge=1)] | None = None,
    classes: tuple[str | int, ...] | None = None,
    min_images: Annotated[int, Field(ge=1)] | None = None,
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1,
    seed: Annotated[int, Field(ge=0)] = 0,
) -> None:
    """The options that every data set takes: see `subset`."""


def as_source(name: str) -> str:
    """What a path that was given in place of a source should be."""
    path = Path(name).expanduser()
    if path.is_dir():
        kind = (
            "parquet"
            if any(any(path.glob(pattern)) for pattern in ("train*.parquet", "*/train*.parquet"))
            else "folder"
        )
        return f" It is a folder: {kind}:path={name} reads it."
    if not path.is_file():
        return ""
    if path.suffix.lower() in (".csv", ".tsv"):
        return f" It is a file: csv:path={name} reads it."
    return f" If it is a picture to be explained: image:{name}."


def named(source: Source, names: Sequence[str]) -> Source:
    """A source whose classes have other names, in their order.

    Raises:
        UserError: not one name for each class, or the same name twice.
    """
    if isinstance(names, str) or len(names) != len(source.classes) or len(set(names)) < len(names):
        raise UserError(
            f"class_names gives each of the {len(source.classes)} classes ({shortened(source.classes)}) a name of its own, in "
            f"this order; given {names if isinstance(names, str) else shortened(list(map(str, names)))}"
        )
    classes = tuple(map(str, names))
    return replace(source, classes=classes, fingerprint=digest(source.fingerprint, *classes))


SOURCES = Registry(
    "data",
    {
        "shapes": "distilens.data.shapes:shapes",
        "digits": "distilens.data.digits:digits",
        "parquet": "distilens.data.files:parquet",
        "folder": "distilens.data.folders:folder",
        "csv": "distilens.data.csv_labels:csv",
        "hf": "distilens.data.hub:hf",
        "image": "distilens.data.image:image",
        "torchvision": "distilens.data.hub:torchvision",
    },
    common=options,
    hint=as_source,
)


def load(part: Any, cache: Path | None = None, *, to_explain: bool = False) -> Data:
    """The data set that the notation names; of Python objects what `as_data` makes; a `Data` is returned as it is.

    A source's own `seed` (that of `shapes`) is also the seed of the splits.

    Args:
        cache: where decoded images are kept; `runs/data` by default.
        to_explain: also take images that cannot be trained and tested on: without classes, or one of each.

    Raises:
        UserError: whatever is wrong with the notation, the files or the choice of rows.
    """
    if isinstance(part, Data):
        return part
    if not is_notation(part):
        return as_data(part, cache, to_explain=to_explain)
    spec = SOURCES.resolve(part)
    source = SOURCES.build(spec, CACHE if cache is None else Path(cache))
    chosen = {name: spec.options[name] for name in ("limit", "shots", "classes", "min_images", "val_fraction", "seed")}
    name = str(Spec.parse(part))
    if to_explain and not can_be_split(source, chosen["classes"]):
        return unsplit(source, name, limit=chosen["limit"], classes=chosen["classes"], seed=chosen["seed"])
    return subset(source, name, **chosen)


def is_notation(given: Any) -> bool:
    """Whether something names data, and is no data itself: a text, a `Spec`, or a table with a name."""
    return isinstance(given, str | Spec) or (isinstance(given, Mapping) and isinstance(given.get("name"), str))


def as_data(
    given: Any,
    cache: Path | None = None,
    *,
    size: Side | None = None,
    limit: int | None = None,
    shots: int | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    class_names: Sequence[str] | None = None,
    to_explain: bool = False,
) -> Data:
    """Data from whatever holds pictures and labels.

    Args:
        given: one of these, or a pair `(train, test)`, a triple `(train, validation, test)` or a dictionary of them:

            * images and labels `(X, y)`: tensors or arrays, NCHW or NHWC or grey, 0 to 255 or 0 to 1; or lists;
            * a map-style torch `Dataset` of `(image, label)`, tensors or Pillow images, or of dictionaries;
            * a `DataLoader`: its data set is taken;
            * a `datasets.Dataset` or `DatasetDict` of Hugging Face.

            A notation and a `Data` are taken as `load` takes them. Each item is read once: random transforms are told by a
            second reading of a few, and remarked on.
        cache: where the pixels of data sets are kept; `runs/data` by default. Arrays stay in memory.
        size: the side of the pictures, or height and width; by default as they are, or a usual side if they are of several.
        limit: at most so many images of each split.
        shots: so many training images of every class.
        val_fraction: the share of every class that is held out to validate on.
        seed: of what is held out, of `limit` and of `shots`.
        class_names: a name for each class, in the order of the labels; by default the names that the data carry, or the labels.
        to_explain: also take images that cannot be trained and tested on: without classes, or one of each.

    Raises:
        UserError: nothing that holds pictures and labels (it says what would), pictures or labels at fault.

    Example:
        >>> import torch
        >>> data = as_data((torch.rand(60, 3, 16, 16), torch.arange(60) % 3))
        >>> data.classes, data.size, len(data.train)
        (('0', '1', '2'), (16, 16), 42)
    """
    from distilens.data.objects import source_of_objects

    if isinstance(given, Data) or is_notation(given):
        if (size, limit, shots, val_fraction, seed, class_names) != (None, None, None, 0.1, 0, None):
            raise UserError(
                "options of a data set that has a name are said in its notation: folder:path=pictures,size=96"
            )
        return load(given, cache, to_explain=to_explain)
    source = source_of_objects(given, CACHE if cache is None else Path(cache), size)
    if class_names is not None:
        source = named(source, class_names)
    name = type(given).__name__ if not isinstance(given, tuple | list | dict) else "objects"
    if to_explain and not can_be_split(source, None):
        return unsplit(source, name, limit=limit, seed=seed)
    return subset(source, name, limit=limit, shots=shots, val_fraction=val_fraction, seed=seed)
