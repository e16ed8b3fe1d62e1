"""Parquet files: their schema, and images in their columns."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distilens.foundation.errors import UserError, nearest

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet


@contextmanager
def explain_arrow_errors(file: Path) -> Iterator[None]:
    """Turn any error of Arrow about a file into one `UserError` that names it."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, OverflowError, MemoryError, UnicodeDecodeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{file} is not a parquet file, or is damaged: {reason.rstrip('.')}. Fetch or write it again"
        ) from None


def open_parquet(file: Path) -> pyarrow.parquet.ParquetFile:
    import pyarrow.parquet

    with explain_arrow_errors(file):
        return pyarrow.parquet.ParquetFile(file, page_checksum_verification=True)


def schema_of(file: Path) -> pyarrow.Schema:
    with explain_arrow_errors(file):
        return open_parquet(file).schema_arrow


def declared_features(schema: pyarrow.Schema) -> Mapping[str, Any]:
    """The columns as described by Hugging Face datasets in the schema; empty if there is no description."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def declared_names(schema: pyarrow.Schema, label: str) -> list[str] | None:
    """The names of the classes in the schema, if any."""
    feature = declared_features(schema).get(label)
    names = feature.get("names") if isinstance(feature, dict) else None
    return names if isinstance(names, list) and names and all(isinstance(name, str) for name in names) else None


def holds_images(kind: pyarrow.DataType) -> bool:
    """Whether a column can hold encoded images: bytes, or structs {bytes, path}."""
    from pyarrow import types

    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def read_column(files: Sequence[Path], column: str) -> Iterator[bytes | Path | None]:
    """The encoded images in a column, as bytes or as paths."""
    for file in files:
        with explain_arrow_errors(file):
            for batch in open_parquet(file).iter_batches(256, columns=[column]):
                for value in batch.column(0).to_pylist():
                    yield read_bytes(value, file.parent)


def row_namer(files: Sequence[Path], root: Path) -> Callable[[int], str]:
    """Gives the name of a row of a set in messages."""
    starts = np.cumsum([0, *(open_parquet(file).metadata.num_rows for file in files)])

    def name(row: int) -> str:
        place = int(np.searchsorted(starts, row, side="right")) - 1
        return f"row {row - starts[place]} of {files[place].relative_to(root)}"

    return name


def read_bytes(value: Any, folder: Path | None) -> bytes | Path | None:
    """The encoded image in Hugging Face's format: bytes, or {bytes, path}; a path without bytes names a file."""
    if isinstance(value, dict):
        if value["bytes"] is None and value.get("path"):
            return (folder / value["path"]) if folder else Path(value["path"])
        return value["bytes"]
    return value


def check_columns(file: Path, root: Path, columns: Mapping[str, str], images: Sequence[str]) -> None:
    """Check that a file has some columns.

    Args:
        columns: by the option that names it.
        images: the options whose columns hold encoded images.

    Raises:
        UserError: there is no such column, or it holds no images.
    """
    schema = schema_of(file)
    for option, column in columns.items():
        if column not in schema.names:
            raise UserError(
                f"{file.relative_to(root)} has no column {column!r} ({option}={column})."
                f"{nearest(column, schema.names)} Its columns: {', '.join(schema.names)}"
            )
    for option in images:
        kind = schema.field(columns[option]).type
        if not holds_images(kind):
            raise UserError(
                f"the column {columns[option]!r} of {file.name} is {kind}: expected encoded images, as bytes or {{bytes, path}}"
            )
