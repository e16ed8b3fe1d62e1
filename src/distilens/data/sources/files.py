"""Data sets from parquet files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distilens.data.cache import content_of
from distilens.data.decode import Encoded
from distilens.data.labels import NAMES, as_declared, classes_in, column_values, in_words
from distilens.data.pixels import Ground, Pixels, Range, Side
from distilens.data.source import Source, digest
from distilens.data.writing import decode_source
from distilens.foundation.errors import UserError, nearest, shortened, suggest_path

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

PATTERNS = {"train": "train*.parquet", "test": "test*.parquet", "validation": "val*.parquet"}


def parquet(
    cache: Path,
    *,
    path: Path,
    image: str | None = None,
    label: str | None = None,
    size: Side | None = None,
    skip_bad: bool = False,
    ground: Ground = "white",
    range_: Range = None,
    large: bool = False,
) -> Source:
    """Images and labels in parquet files: train*.parquet, test*.parquet, perhaps validation*.parquet.

    The files are in the folder itself or, as on the Hugging Face hub, in `data/` or one other folder below it. Images are
    structs {bytes, path} or plain bytes, in the column `image`; if there is only one such column, it is found automatically.
    Labels are names, or integers; names for integers may come from the Hugging Face metadata, otherwise the classes are the
    integers in the training set. Their column is `label`, or the first usual name that exists. With `size` every image is
    resized and cropped to a square. `skip_bad` leaves out images that cannot be decoded; `Source.skipped` lists them. For
    `ground`, `range` and `large` see `Pixels`.

    Source: https://parquet.apache.org, https://huggingface.co/docs/datasets/image_load

    Raises:
        UserError: folder, files or columns do not exist; wrong labels; images that cannot be decoded.
    """
    root = existing_folder(path)
    files = parquet_files(root)
    schema = schema_of(files["train"][0])
    image = image if image is not None else only_image(schema, files["train"][0])
    label = label if label is not None else usual_label(schema, files["train"][0])
    content = content_of([file for part in files.values() for file in part], root, cache)
    key = digest("parquet", content, image, label)

    def read() -> tuple[dict[str, Encoded], Sequence[str]]:
        declared = declared_names(schema, label)
        columns = {part: label_column(paths, root, image, label, declared) for part, paths in files.items()}
        names, labels = classes_in(columns, declared)
        return {part: read_encoded(paths, root, image, labels[part]) for part, paths in files.items()}, names

    return decode_source(cache, key, read, Pixels(size, ground, range_, large), skip_bad=skip_bad)


def existing_folder(path: Path) -> Path:
    root = Path(path).expanduser()
    if not root.is_dir():
        what = "is a file, expected a folder" if root.exists() else "does not exist"
        raise UserError(f"the folder {path} {what} (looked from {Path.cwd()}){suggest_path(root)}")
    return root


def parquet_files(root: Path) -> dict[str, list[Path]]:
    """The files of each set, in order."""
    below = [folder for folder in sorted(root.iterdir()) if folder.is_dir() and any(folder.glob(PATTERNS["train"]))]
    places = [root, root / "data", *(below if len(below) == 1 else [])]
    for place in places:
        if any(place.glob(PATTERNS["train"])):
            sets = {part: sorted(place.glob(pattern)) for part, pattern in PATTERNS.items()}
            return {part: files for part, files in sets.items() if files}
    if below:
        raise UserError(f"several folders in {root} have train*.parquet: name one, path={below[0]} for example")
    there = shortened(sorted(entry.name for entry in root.iterdir())) or "nothing"
    raise UserError(f"no train*.parquet in {root} or {root / 'data'}; there is {there}")


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


def only_image(schema: pyarrow.Schema, file: Path) -> str:
    """The column of encoded images: `img` or `image`, or the only one."""
    suitable = [field.name for field in schema if holds_images(field.type)]
    usual = next((name for name in ("img", "image") if name in suitable), None)
    if usual is None and len(suitable) != 1:
        count = "several columns" if suitable else "no column"
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise UserError(
            f"{file.name} has {count} of encoded images (bytes, or {{bytes, path}}): name one, image=...; its columns are "
            f"{columns}"
        )
    return usual or suitable[0]


def usual_label(schema: pyarrow.Schema, file: Path) -> str:
    """The only column with declared names, or the first usual name that exists."""
    declared = [name for name in schema.names if declared_names(schema, name)]
    usual = declared[0] if len(declared) == 1 else next((name for name in NAMES if name in schema.names), None)
    if usual is None:
        raise UserError(
            f"no column of {file.name} has a usual name for labels: name it, label=...; its columns are {', '.join(schema.names)}"
        )
    return usual


def label_column(
    files: Sequence[Path], root: Path, image: str, label: str, declared: Sequence[str] | None = None
) -> np.ndarray:
    """The labels of a set as in `column_values`; as names if a file declares other names than the first file."""
    columns = []
    for file in files:
        schema = schema_of(file)
        for option, column in (("image", image), ("label", label)):
            if column not in schema.names:
                raise UserError(
                    f"{file.relative_to(root)} has no column {column!r} ({option}={column})."
                    f"{nearest(column, schema.names)} Its columns: {', '.join(schema.names)}"
                )
        if not holds_images(schema.field(image).type):
            raise UserError(
                f"the column {image!r} of {file.name} is {schema.field(image).type}: expected encoded images, as bytes or "
                "{bytes, path}"
            )
        with explain_arrow_errors(file):
            values = open_parquet(file).read([label]).column(0)
            column = column_values(values, f"the labels in {label!r} of {file.name}")
        columns.append(as_declared(column, declared_names(schema, label), declared))
    if any(column.dtype == object for column in columns):
        columns = [in_words(as_declared(column, declared, None)) for column in columns]
    return np.concatenate(columns)


def holds_images(kind: pyarrow.DataType) -> bool:
    """Whether a column can hold encoded images: bytes, or structs {bytes, path}."""
    from pyarrow import types

    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def read_encoded(files: Sequence[Path], root: Path, image: str, labels: np.ndarray) -> Encoded:
    starts = np.cumsum([0, *(open_parquet(file).metadata.num_rows for file in files)])

    def images() -> Iterator[bytes | Path | None]:
        for file in files:
            with explain_arrow_errors(file):
                for batch in open_parquet(file).iter_batches(256, columns=[image]):
                    for value in batch.column(0).to_pylist():
                        yield read_bytes(value, file.parent)

    def name(row: int) -> str:
        place = int(np.searchsorted(starts, row, side="right")) - 1
        return f"row {row - starts[place]} of {files[place].relative_to(root)}"

    return Encoded(labels, images, name)


def read_bytes(value: Any, folder: Path | None) -> bytes | Path | None:
    """The encoded image in Hugging Face's format: bytes, or {bytes, path}; a path without bytes names a file."""
    if isinstance(value, dict):
        if value["bytes"] is None and value.get("path"):
            return (folder / value["path"]) if folder else Path(value["path"])
        return value["bytes"]
    return value
