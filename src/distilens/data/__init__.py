"""Data sets by name: `shapes:shortcut=0.9,shots=20`, `parquet:path=data/cifar10`, `torchvision:CIFAR10`.

A name stands for a `Source`; the options that all names share (`limit`, `shots`, `classes`, `min_images`, `val_fraction`, `seed`)
choose from it the rows of a run, a `Data`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from distilens.data.source import Rows, Source
from distilens.data.subset import Data, Split, from_arrays, source_of, subset
from distilens.data.unsplit import can_be_split, unsplit
from distilens.specs import Registry, Spec

__all__ = ["SOURCES", "Data", "Rows", "Source", "Split", "from_arrays", "load", "source_of", "subset"]

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
    return (
        f" It is a file: csv:path={name} reads it."
        if path.suffix.lower() in (".csv", ".tsv") and path.is_file()
        else ""
    )


SOURCES = Registry(
    "data",
    {
        "shapes": "distilens.data.shapes:shapes",
        "digits": "distilens.data.digits:digits",
        "parquet": "distilens.data.files:parquet",
        "folder": "distilens.data.folders:folder",
        "csv": "distilens.data.csv_labels:csv",
        "hf": "distilens.data.hub:hf",
        "torchvision": "distilens.data.hub:torchvision",
    },
    common=options,
    hint=as_source,
)


def load(part: str | Mapping[str, Any] | Spec | Data, cache: Path | None = None, *, to_explain: bool = False) -> Data:
    """The data set that the notation names; a `Data` is returned as it is.

    A source's own `seed` (that of `shapes`) is also the seed of the splits.

    Args:
        cache: where decoded images are kept; `runs/data` by default.
        to_explain: also take images that cannot be trained and tested on: without classes, or one of each.

    Raises:
        UserError: whatever is wrong with the notation, the files or the choice of rows.
    """
    if isinstance(part, Data):
        return part
    spec = SOURCES.resolve(part)
    source = SOURCES.build(spec, CACHE if cache is None else Path(cache))
    chosen = {name: spec.options[name] for name in ("limit", "shots", "classes", "min_images", "val_fraction", "seed")}
    name = str(Spec.parse(part))
    if to_explain and not can_be_split(source, chosen["classes"]):
        return unsplit(source, name, limit=chosen["limit"], classes=chosen["classes"], seed=chosen["seed"])
    return subset(source, name, **chosen)
