"""Columns of masks, and all other columns of a table of images."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distilens.data.decode import Encoded
from distilens.data.labels import NAMES
from distilens.data.source import Columns, Source
from distilens.data.sources.parquet_files import (
    check_columns,
    declared_names,
    explain_arrow_errors,
    holds_images,
    open_parquet,
    read_column,
    row_namer,
)
from distilens.data.writing import add_columns
from distilens.foundation.errors import UserError, nearest

if TYPE_CHECKING:
    import pyarrow

MASKS = (
    "mask",
    "masks",
    "segmentation",
    "segmentation_mask",
    "semantic_mask",
    "annotation",
    "annotations",
    "label",
    "labels",
)
"""The usual names of columns of masks; they count only if the column holds images."""

FOUND = "no column of labels: {!r} has the masks of a segmentation"
"""A remark."""

PICTURES = ("img", "image", "pixel_values")


def mask_column(
    schema: pyarrow.Schema, file: Path, image: str | None, label: str | None, target: str | None
) -> str | None:
    """The column of masks; None if the set has labels, or no such column.

    Raises:
        UserError: `target` is not a column, or `label` is given too.
    """
    if target is not None:
        if label is not None:
            raise UserError(f"label={label} and target={target}: expected one of them, labels or masks")
        if target not in schema.names:
            raise UserError(
                f"{file.name} has no column {target!r} (target={target}).{nearest(target, schema.names)} Its columns: "
                f"{', '.join(schema.names)}"
            )
        return target
    labels = [name for name in NAMES if name in schema.names and not is_picture(schema.field(name).type)]
    if label is not None or labels or any(declared_names(schema, name) for name in schema.names):
        return None
    return usual_mask([field.name for field in schema if holds_images(field.type)], image)


def is_picture(kind: pyarrow.DataType) -> bool:
    """Whether a column can only hold images: structs {bytes, path}; names of classes may be bytes too."""
    from pyarrow import types

    return types.is_struct(kind) and holds_images(kind)


def usual_mask(pictures: Sequence[str], image: str | None) -> str | None:
    """The column of masks among columns of images: one with a usual name, else the other one of two."""
    usual = next((name for name in MASKS if name in pictures and name != image), None)
    if usual is not None or len(pictures) != 2:
        return usual if len(pictures) > 1 else None
    image = image if image is not None else next((name for name in PICTURES if name in pictures), None)
    return next((name for name in pictures if name != image), None) if image in pictures else None


def mask_names(schema: pyarrow.Schema) -> tuple[str, ...] | None:
    """The names of the values 0, 1, ... in the metadata of a file, under `mask_classes`; None if there are none."""
    try:
        names = json.loads((schema.metadata or {})[b"mask_classes"])
    except (KeyError, ValueError):
        return None
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def ignored_value(schema: pyarrow.Schema) -> int | tuple[int, ...]:
    """The void value in the metadata of a file, under `ignore_index`; empty if there is none."""
    try:
        return int((schema.metadata or {})[b"ignore_index"])
    except (KeyError, ValueError):
        return ()


def read_pairs(files: Sequence[Path], root: Path, image: str, mask: str) -> Encoded:
    """A set of images with masks."""
    for file in files:
        check_columns(file, root, {"image": image, "target": mask}, ["image", "target"])
    with explain_arrow_errors(files[0]):
        there = [value is not None for value in read_column(files, mask)]
    return Encoded(
        np.where(there, 0, -1),
        lambda: read_column(files, image),
        row_namer(files, root),
        lambda: read_column(files, mask),
    )


def add_parquet_columns(source: Source, files: Mapping[str, Sequence[Path]], root: Path, image: str) -> Source:
    """Add the columns of numbers and text, and the name of each image's file as `path`."""
    columns = {part: parquet_columns(paths, image) for part, paths in files.items()}
    counts = {part: sum(open_parquet(file).metadata.num_rows for file in paths) for part, paths in files.items()}
    return add_columns(source, columns, {part: row_namer(paths, root) for part, paths in files.items()}, counts)


def parquet_columns(files: Sequence[Path], image: str) -> Columns:
    """The columns of a set, each read when it is asked for."""
    schema = open_parquet(files[0]).schema_arrow

    def reader(column: str, inner: str | None = None) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            values: list[Any] = []
            for file in files:
                with explain_arrow_errors(file):
                    table = open_parquet(file).read([column if inner is None else f"{column}.{inner}"])
                    values += [
                        value if inner is None or value is None else value[inner]
                        for value in table.column(0).to_pylist()
                    ]
            return np.array([None if value is None else str(value) for value in values], dtype=object)

        return read

    columns = {field.name: reader(field.name) for field in schema if is_plain(field.type)}
    kind = schema.field(image).type
    if is_picture(kind) and kind.get_field_index("path") >= 0:
        columns.setdefault("path", reader(image, "path"))
    return columns


def is_plain(kind: pyarrow.DataType) -> bool:
    """Whether a column holds numbers, text, dates, or true and false."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return (
        text or types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_temporal(kind)
    )
