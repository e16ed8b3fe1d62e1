"""Data sets by name: `shapes:shortcut=0.9,shots=20`, `parquet:path=data/cifar10`, `torchvision:CIFAR10`.

A name stands for a `Source`. The options that all names share (`limit`, `shots`, `classes`, `min_images`, `val_fraction`, `seed`,
`draw`, `group`, `where`, `part`, `few`, `from_split`) select the rows for a run: a `Data`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from distilens.data.masks import Masks
from distilens.data.pixels import Side
from distilens.data.source import Rows, Source, digest
from distilens.data.sources.arrays import from_arrays, source_of
from distilens.data.sources.unsplit import can_be_split, unsplit
from distilens.data.splits import Data, Split
from distilens.data.subset import subset
from distilens.foundation.errors import UserError, shortened
from distilens.foundation.notation import Registry, Spec
from distilens.tasks import Classification, Segmentation, Task

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
    draw: Annotated[int, Field(ge=0)] | None = None,
    group: str | None = None,
    where: str | None = None,
    part: str | None = None,
    few: Annotated[int, Field(ge=1)] | None = None,
    from_split: Literal["train", "validation", "test"] | None = None,
) -> None:
    """The options that every data set takes: see `subset`."""


def as_source(name: str) -> str:
    """A hint for a path given in place of a source: the notation that reads it."""
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


def rename_classes(source: Source, names: Sequence[str]) -> Source:
    """The source with new names for its classes, in the same order.

    Raises:
        UserError: there is not one name per class, or a name comes twice.
    """
    if isinstance(names, str) or len(names) != len(source.classes) or len(set(names)) < len(names):
        raise UserError(
            f"class_names must give each of the {len(source.classes)} classes ({shortened(source.classes)}) a different name, "
            f"in this order; given {names if isinstance(names, str) else shortened(list(map(str, names)))}"
        )
    classes = tuple(map(str, names))
    return replace(source, task=Classification(classes), fingerprint=digest(source.fingerprint, *classes))


SOURCES = Registry(
    "data",
    {
        "shapes": "distilens.data.sources.shapes:shapes",
        "digits": "distilens.data.sources.digits:digits",
        "parquet": "distilens.data.sources.files:parquet",
        "folder": "distilens.data.sources.folders:folder",
        "csv": "distilens.data.sources.csv_labels:csv",
        "hf": "distilens.data.sources.hub:hf",
        "image": "distilens.data.sources.image:image",
        "python": "distilens.data.sources.own:python",
        "torchvision": "distilens.data.sources.hub:torchvision",
        "voc": "distilens.data.sources.streets:voc",
        "cityscapes": "distilens.data.sources.streets:cityscapes",
    },
    common=options,
    hint=as_source,
)


def load(part: Any, cache: Path | None = None, *, to_explain: bool = False) -> Data:
    """Load data by notation. Python objects go to `as_data`; a `Data` is returned unchanged.

    If a source has its own `seed` (as `shapes` does), that is also the seed of the splits.

    Args:
        cache: where decoded images are kept; `runs/data` by default.
        to_explain: also accept images that cannot be trained and tested on: without classes, or one image per class.

    Raises:
        UserError: a mistake in the notation, the files or the selection of rows.
    """
    if isinstance(part, Data):
        return part
    if not is_notation(part):
        return as_data(part, cache, to_explain=to_explain)
    spec = SOURCES.resolve(part)
    source = SOURCES.build(spec, CACHE if cache is None else Path(cache))
    selection = {name: spec.options[name] for name in inspect.signature(options).parameters}
    name = str(Spec.parse(part))
    if isinstance(source, Data):  # a function of the user's own made it
        usual = SOURCES.resolve(Spec(spec.name, spec.argument)).options
        if given := [key for key in selection if selection[key] != usual[key]]:
            raise UserError(f"{name}: the function returns a Data, whose rows are chosen: leave out {', '.join(given)}")
        return replace(source, name=name)
    if to_explain and not can_be_split(source, selection["classes"]):
        return unsplit(source, name, limit=selection["limit"], classes=selection["classes"], seed=selection["seed"])
    return subset(source, name, **selection)


def is_notation(given: Any) -> bool:
    """Whether something is a name for data, not the data: a string, a `Spec`, or a dictionary with a `name`."""
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
    task: Task | None = None,
    to_explain: bool = False,
    values: Sequence[int] | None = None,
    ignore: int | Sequence[int] = (),
) -> Data:
    """Make a `Data` from Python objects with pictures and labels or masks.

    Args:
        given: one of these, or a pair `(train, test)`, a triple `(train, validation, test)` or a dictionary of them:

            * images and labels `(X, y)`: tensors or arrays, NCHW or NHWC or grey, 0 to 255 or 0 to 1; or lists;
            * a map-style torch `Dataset` of `(image, label)`, tensors or Pillow images, or of dictionaries;
            * a `DataLoader`: its data set is taken;
            * a `datasets.Dataset` or `DatasetDict` of Hugging Face.

            In place of labels there may be masks of the size of the pictures: arrays `[n h w]` of whole numbers, or per item a
            tensor, an array or a Pillow image (in a dictionary under `mask` or a similar key). That is a segmentation.

            A notation and a `Data` are handled as in `load`. Each item is read once. A few are read twice to detect random
            transforms, which lead to a remark.
        cache: where the pixels of data sets are kept; `runs/data` by default. Arrays stay in memory.
        size: the side of the pictures, or height and width; by default unchanged, or a usual side if the sizes differ.
        limit: maximum number of images per split.
        shots: number of training images per class.
        val_fraction: the share of every class that is held out for validation.
        seed: of the hold-out, of `limit` and of `shots`.
        class_names: one name per class, in the order of the labels; by default the names in the data, or the labels. For masks
            the names of the values 0, 1, ..., or of `values`.
        task: a task of your own, if the targets are not classes. They are kept as they are, one per image; pictures have one
            size and stay in memory.
        to_explain: also accept images that cannot be trained and tested on: without classes, or one image per class.
        values: for masks: the value of each class; by default all values that occur.
        ignore: for masks: values that become void, as 255 does.

    Raises:
        UserError: the object does not hold pictures and labels (the message lists what does), or they have a mistake.

    Example:
        >>> import torch
        >>> data = as_data((torch.rand(60, 3, 16, 16), torch.arange(60) % 3))
        >>> data.classes, data.size, len(data.train)
        (('0', '1', '2'), (16, 16), 42)
    """
    from distilens.data.sources.objects import source_of_objects
    from distilens.data.sources.own_task import source_of_task

    if isinstance(given, Data) or is_notation(given):
        own = (size, limit, shots, val_fraction, seed, class_names, task, values, ignore)
        if own != (None, None, None, 0.1, 0, None, None, None, ()):
            raise UserError("write the options of a named data set into its notation: folder:path=pictures,size=96")
        return load(given, cache, to_explain=to_explain)
    if task is not None and not isinstance(task, Classification):
        return subset(
            source_of_task(given, task), task.name, limit=limit, shots=shots, val_fraction=val_fraction, seed=seed
        )
    masks = Masks(
        None if class_names is None else tuple(class_names),
        None if values is None else tuple(values),
        ignore if isinstance(ignore, int) else tuple(ignore),
    )
    source = source_of_objects(given, CACHE if cache is None else Path(cache), size, masks)
    dense = isinstance(source.task, Segmentation)
    if not dense and masks not in (Masks(), Masks(masks.names)):
        raise UserError("values= and ignore= are about masks, and the data has labels")
    if class_names is not None and not dense:
        source = rename_classes(source, class_names)
    name = type(given).__name__ if not isinstance(given, tuple | list | dict) else "objects"
    if to_explain and not can_be_split(source, None):
        return unsplit(source, name, limit=limit, seed=seed)
    return subset(source, name, limit=limit, shots=shots, val_fraction=val_fraction, seed=seed)
