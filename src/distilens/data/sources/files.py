"""Data sets from parquet files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from distilens.data.cache import content_of
from distilens.data.decode import Encoded
from distilens.data.labels import NAMES, as_declared, classes_in, column_values, in_words
from distilens.data.masks import Ignored, Masks
from distilens.data.pixels import Ground, Pixels, Range, Side
from distilens.data.source import Source, digest, with_remark
from distilens.data.sources.mask_columns import (
    FOUND,
    add_parquet_columns,
    ignored_value,
    mask_column,
    mask_names,
    read_pairs,
)
from distilens.data.sources.parquet_files import (
    check_columns,
    declared_names,
    explain_arrow_errors,
    holds_images,
    open_parquet,
    read_column,
    row_namer,
    schema_of,
)
from distilens.data.writing import decode_source
from distilens.foundation.errors import UserError, shortened, suggest_path

if TYPE_CHECKING:
    import pyarrow

PATTERNS = {"train": "train*.parquet", "test": "test*.parquet", "validation": "val*.parquet"}


def parquet(
    cache: Path,
    *,
    path: Path,
    image: str | None = None,
    label: str | None = None,
    target: str | None = None,
    class_names: tuple[str, ...] | None = None,
    values: tuple[int, ...] | None = None,
    ignore: Ignored | None = None,
    colours: tuple[str, ...] | None = None,
    size: Side | None = None,
    skip_bad: bool = False,
    ground: Ground = "white",
    range_: Range = None,
    large: bool = False,
) -> Source:
    """Images with labels or masks in parquet files: train*.parquet, test*.parquet, perhaps validation*.parquet.

    The files are in the folder itself or, as on the Hugging Face hub, in `data/` or one other folder below it. Images are
    structs {bytes, path} or plain bytes, in the column `image`; if there is only one such column, it is found automatically.
    Labels are names, or integers; names for integers may come from the Hugging Face metadata, otherwise the classes are the
    integers in the training set. Their column is `label`, or the first usual name that exists. With `size` every image is
    resized and cropped to a square. `skip_bad` leaves out images that cannot be decoded; `Source.skipped` lists them. For
    `ground`, `range` and `large` see `Pixels`.

    A set with a column of masks and no labels is a segmentation. `target` names the column of masks; it is needed if there are
    labels too. For `class_names`, `values`, `ignore` and `colours` see `Masks`; the names may also stand in the metadata of the
    file (`mask_classes`, a list in JSON), and one void value (`ignore_index`).

    Source: https://parquet.apache.org, https://huggingface.co/docs/datasets/image_load

    Raises:
        UserError: folder, files or columns do not exist; wrong labels; images that cannot be decoded.
    """
    root = existing_folder(path)
    files = parquet_files(root)
    schema = schema_of(files["train"][0])
    first = files["train"][0]
    content = content_of([file for part in files.values() for file in part], root, cache)
    pixels = Pixels(size, ground, range_, large)
    mask = mask_column(schema, first, image, label, target)
    if mask is not None:
        image = image if image is not None else only_image(schema, first, mask)
        masks = Masks(
            class_names if class_names is not None or values or colours else mask_names(schema),
            values,
            ignored_value(schema) if ignore is None else ignore,
            colours,
        )
        source = decode_source(
            cache,
            digest("parquet masks", content, image, mask),
            lambda: ({part: read_pairs(paths, root, image, mask) for part, paths in files.items()}, ()),
            pixels,
            skip_bad=skip_bad,
            masks=masks,
        )
        source = source if target is not None else with_remark(source, FOUND.format(mask))
        return add_parquet_columns(source, files, root, image)
    given = {"class_names": class_names, "values": values, "ignore": ignore, "colours": colours}
    if wrong := [name for name, value in given.items() if value is not None]:
        raise UserError(
            f"{', '.join(wrong)}= is about masks, and {first.name} is read with labels: name the column of masks, target=..."
        )
    image = image if image is not None else only_image(schema, first)
    label = label if label is not None else usual_label(schema, first)
    key = digest("parquet", content, image, label)

    def read() -> tuple[dict[str, Encoded], Sequence[str]]:
        declared = declared_names(schema, label)
        columns = {part: label_column(paths, root, image, label, declared) for part, paths in files.items()}
        names, labels = classes_in(columns, declared)
        return {part: read_encoded(paths, root, image, labels[part]) for part, paths in files.items()}, names

    source = decode_source(cache, key, read, pixels, skip_bad=skip_bad)
    return add_parquet_columns(source, files, root, image)


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


def only_image(schema: pyarrow.Schema, file: Path, mask: str | None = None) -> str:
    """The column of encoded images: `img` or `image`, or the only one that is not the mask."""
    suitable = [field.name for field in schema if holds_images(field.type) and field.name != mask]
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
        check_columns(file, root, {"image": image, "label": label}, ["image"])
        with explain_arrow_errors(file):
            values = open_parquet(file).read([label]).column(0)
            column = column_values(values, f"the labels in {label!r} of {file.name}")
        columns.append(as_declared(column, declared_names(schema, label), declared))
    if any(column.dtype == object for column in columns):
        columns = [in_words(as_declared(column, declared, None)) for column in columns]
    return np.concatenate(columns)


def read_encoded(files: Sequence[Path], root: Path, image: str, labels: np.ndarray) -> Encoded:
    return Encoded(labels, lambda: read_column(files, image), row_namer(files, root))
