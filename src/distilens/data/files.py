"""Data sets from parquet files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distilens.data.cached import content_of
from distilens.data.decode import Encoded
from distilens.data.pixels import Ground, Pixels, Range, Side
from distilens.data.source import Source, digest, shortened
from distilens.data.writing import decoded
from distilens.errors import UserError, nearest

if TYPE_CHECKING:
    import pyarrow

PATTERNS = {"train": "train*.parquet", "test": "test*.parquet", "validation": "val*.parquet"}


def parquet(
    cache: Path,
    *,
    path: Path,
    image: str = "img",
    label: str = "label",
    size: Side | None = None,
    skip_bad: bool = False,
    ground: Ground = "white",
    range_: Range = None,
    large: bool = False,
) -> Source:
    """Images and labels in parquet files: train*.parquet, test*.parquet, perhaps validation*.parquet.

    The files lie in the folder itself or, as on the Hugging Face hub, in `data/` or one other folder below it. Images
    are structs {bytes, path} or plain bytes; labels are names, or integers (whose names the Hugging Face metadata may
    give, otherwise they are "0", "1", ...). With `size` every image is resized and cropped to a square;
    `skip_bad` leaves out the images that cannot be decoded, and `Source.skipped` names them; for `ground`, `range` and
    `large` see `Pixels`.

    Source: https://parquet.apache.org, https://huggingface.co/docs/datasets/image_load

    Raises:
        UserError: no such folder, files or columns; labels at fault; images not to be decoded, or of several sizes.
    """
    root = existing(path)
    files = parquet_files(root)
    content = content_of([file for part in files.values() for file in part], root, cache)
    key = digest("parquet", content, image, label)

    def read() -> tuple[dict[str, Encoded], Sequence[str]]:
        names = class_names(files["train"][0], label)
        columns = {part: label_column(files[part], root, image, label) for part in files}
        if any(column.dtype == object for column in columns.values()):
            names = sorted({value for value in columns["train"] if value is not None})
            columns = {part: by_name(columns[part], names, part) for part in files}
        if names is None:
            names = [str(value) for value in range(max(int(column.max(initial=-1)) for column in columns.values()) + 1)]
        sets = {part: encoded_parquet(files[part], root, image, columns[part]) for part in files}
        return sets, names

    return decoded(cache, key, read, Pixels(size, ground, range_, large), skip_bad=skip_bad)


def existing(path: Path) -> Path:
    root = Path(path).expanduser()
    if not root.is_dir():
        what = "is a file, and a folder is wanted" if root.exists() else "does not exist"
        raise UserError(f"the folder path={path} {what} (looked from {Path.cwd()})")
    return root


def parquet_files(root: Path) -> dict[str, list[Path]]:
    """The files of each set, in order."""
    below = [folder for folder in sorted(root.iterdir()) if folder.is_dir() and any(folder.glob(PATTERNS["train"]))]
    places = [root, root / "data", *(below if len(below) == 1 else [])]
    for place in places:
        if any(place.glob(PATTERNS["train"])):
            found = {part: sorted(place.glob(pattern)) for part, pattern in PATTERNS.items()}
            return {part: files for part, files in found.items() if files}
    if below:
        raise UserError(f"several folders in {root} have train*.parquet: name one, path={below[0]} for example")
    there = shortened(sorted(entry.name for entry in root.iterdir())) or "nothing"
    raise UserError(f"no train*.parquet in {root} or {root / 'data'}; there is {there}")


def class_names(file: Path, label: str) -> list[str] | None:
    """The names that Hugging Face datasets wrote into the schema, if any."""
    metadata = opened(file).schema_arrow.metadata or {}
    try:
        return json.loads(metadata[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None


def opened(file: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{file} is no parquet file: {str(error).splitlines()[0]}") from None


def label_column(files: Sequence[Path], root: Path, image: str, label: str) -> np.ndarray:
    """The labels of a set as int64, none = -1; or as objects, where they are names."""
    import pyarrow

    columns = []
    for file in files:
        schema = opened(file).schema_arrow
        for option, column in (("image", image), ("label", label)):
            if column not in schema.names:
                raise UserError(
                    f"{file.relative_to(root)} has no column {column!r} ({option}={column})."
                    f"{nearest(column, schema.names)} Its columns: {', '.join(schema.names)}"
                )
        check_image_type(schema.field(image).type, image, file)
        values = opened(file).read([label]).column(0)
        if pyarrow.types.is_integer(values.type):
            columns.append(values.cast(pyarrow.int64()).fill_null(-1).to_numpy())
        elif pyarrow.types.is_string(values.type) or pyarrow.types.is_large_string(values.type):
            columns.append(np.array(values.to_pylist(), dtype=object))
        else:
            raise UserError(f"the labels in {label!r} of {file.name} are {values.type}; integers or names are wanted")
    return np.concatenate(columns)


def check_image_type(kind: pyarrow.DataType, image: str, file: Path) -> None:
    import pyarrow

    if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)):
        raise UserError(
            f"the column {image!r} of {file.name} is {kind}: wanted are encoded images, as bytes or {{bytes, path}}"
        )


def by_name(column: np.ndarray, names: Sequence[str], part: str) -> np.ndarray:
    """Positions of class names; the names are those of the training set."""
    position = {name: place for place, name in enumerate(names)}
    unknown = sorted({value for value in column if value is not None} - set(names))
    if unknown:
        raise UserError(f"the {part} set has the class {shortened(unknown, quoted=True)}, of which train has no image")
    return np.array([-1 if value is None else position[value] for value in column], dtype=np.int64)


def encoded_parquet(files: Sequence[Path], root: Path, image: str, labels: np.ndarray) -> Encoded:
    starts = np.cumsum([0, *(opened(file).metadata.num_rows for file in files)])

    def images() -> Iterator[bytes | Path | None]:
        for file in files:
            for batch in opened(file).iter_batches(256, columns=[image]):
                for value in batch.column(0).to_pylist():
                    yield encoded_bytes(value, file.parent)

    def name(row: int) -> str:
        place = int(np.searchsorted(starts, row, side="right")) - 1
        return f"row {row - starts[place]} of {files[place].relative_to(root)}"

    return Encoded(labels, images, name)


def encoded_bytes(value: Any, folder: Path | None) -> bytes | Path | None:
    """What Hugging Face calls an image: bytes, or {bytes, path}, where a path alone names a file."""
    if isinstance(value, dict):
        if value["bytes"] is None and value.get("path"):
            return (folder / value["path"]) if folder else Path(value["path"])
        return value["bytes"]
    return value
