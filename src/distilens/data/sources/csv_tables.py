"""CSV files with the classes of pictures: find the files, the columns and the rows."""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from distilens.data.labels import NAMES
from distilens.data.sources.layout import WORDS
from distilens.data.sources.tree import suffixes
from distilens.foundation.errors import UserError, nearest, shortened, suggest_path

IMAGES = (
    *("image", "image_id", "image_name", "image_path", "img", "img_id", "img_name", "img_path", "id", "id_code"),
    *("file", "file_name", "filename", "file_path", "filepath", "path", "picture", "photo", "fname", "name", "x"),
)
SPLITS = ("split", "set", "subset", "partition", "phase", "usage", "is_valid", "is_test")

YES, NO = {"true", "1", "1.0", "yes"}, {"false", "0", "0.0", "no", ""}


@dataclass(frozen=True)
class Table:
    """The columns and rows of a CSV file about pictures."""

    file: Path
    columns: list[str]
    rows: list[list[str]]


def table_files(path: Path) -> tuple[dict[str, Path], list[str]]:
    """The table of each split, and the names of the tables that are not read."""
    if path.is_file():
        return {"train": path}, []
    if not path.is_dir():
        raise UserError(
            f"path={path} does not exist (looked from {Path.cwd()}); expected a CSV file, or a folder with one"
            f"{suggest_path(path)}"
        )
    there = sorted(one for one in path.iterdir() if one.suffix.lower() in (".csv", ".tsv") and one.name[0] != ".")
    parts: dict[str, list[Path]] = defaultdict(list)
    for file in there:
        words = re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", file.stem).lower())
        splits = {part for part, names in WORDS.items() if set(words) & set(names)}
        if len(splits) == 1 and not set(words) & {"sample", "submission"}:
            parts[splits.pop()].append(file)
    if len(there) == 1:
        return {"train": there[0]}, []
    if not there or len(parts["train"]) != 1 or any(len(files) > 1 for files in parts.values()):
        names = shortened([file.name for file in there]) or "none"
        raise UserError(
            f"which table has the labels? CSV files in {path}: {names}. Name it, path={path / 'train.csv'} for example"
        )
    chosen = {part: parts[part][0] for part in WORDS if parts.get(part)}
    return chosen, [file.name for file in there if file not in chosen.values()]


def read_table(file: Path) -> Table:
    """Read columns and rows. If the first row already names a picture, there is no header: the columns are called 0, 1, ..."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 (byte {error.start}): save it as CSV UTF-8") from None
    first = text.partition("\n")[0]
    separator = max(",;\t|", key=first.count)
    rows = [
        row
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        if any(cell.strip() for cell in row)
    ]
    if not rows:
        raise UserError(f"{file} is empty; expected one row per picture, with columns for the picture and its class")
    if any(PurePosixPath(cell.lower()).suffix in suffixes() for cell in rows[0]):
        return Table(file, [str(place) for place in range(len(rows[0]))], rows)
    columns = [cell.strip() for cell in rows[0]]
    twice = next((name for name in columns if name and columns.count(name) > 1), None)
    if twice:
        raise UserError(f"{file.name} has two columns {twice!r}: give each column a different name")
    wrong = next((place for place, row in enumerate(rows, 1) if len(row) != len(columns)), None)
    if wrong:
        raise UserError(
            f"row {wrong} of {file.name} has {len(rows[wrong - 1])} cells, its header {len(columns)}: put values that contain "
            f"{separator!r} in quotation marks"
        )
    return Table(file, columns, rows[1:])


def column(table: Table, option: str, given: str | None, usual: Sequence[str]) -> int | None:
    """The position of a column: the given one, or the first of the usual names that exists."""
    if given is not None:
        if given not in table.columns:
            raise UserError(
                f"{table.file.name} has no column {given!r} ({option}={given}).{nearest(given, table.columns)} "
                f"Its columns: {', '.join(table.columns)}"
            )
        return table.columns.index(given)
    plain = [re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") for name in table.columns]
    return next((plain.index(name) for name in usual if name in plain), None)


def image_column(table: Table, given: str | None) -> int:
    position = column(table, "image", given, IMAGES)
    if position is None:
        ends = [place for place in range(len(table.columns)) if table.rows and names_pictures(table, place)]
        position = ends[0] if len(ends) == 1 else None
    if position is None:
        raise UserError(
            f"no column of {table.file.name} has a usual name for pictures: name it, image=...; its columns are "
            f"{', '.join(table.columns)}"
        )
    return position


def merge_label_columns(table: Table, image: int, given: str | None) -> Table:
    """Turn one column of 0 and 1 per class into a single column of classes; other tables are returned unchanged.

    Raises:
        UserError: a picture has no 1, or several.
    """
    if given is not None or label_column(table, image, None, needed=False) is not None:
        return table
    split = column(table, "split", None, SPLITS)
    places = [
        place
        for place in range(len(table.columns))
        if place not in (image, split) and all(row[place].strip().lower() in YES | NO for row in table.rows)
    ]
    if len(places) < 2:
        return table
    labels = []
    for row in table.rows:
        names = [table.columns[place] for place in places if row[place].strip().lower() in YES]
        if len(names) != 1:
            raise UserError(
                f"{table.file.name} has a column for each class ({shortened([table.columns[place] for place in places])}), and "
                f"{row[image]} is in {len(names)} of them: expected one class per picture. Name a column of classes, label=..."
            )
        labels.append(names[0])
    return Table(
        table.file, [*table.columns, "label"], [[*row, name] for row, name in zip(table.rows, labels, strict=True)]
    )


def names_pictures(table: Table, place: int) -> bool:
    return all(PurePosixPath(row[place].strip().lower()).suffix in suffixes() for row in table.rows[:20])


def label_column(table: Table, image: int, given: str | None, *, needed: bool = True) -> int | None:
    position = column(table, "label", given, NAMES) if given is None or needed or given in table.columns else None
    if position is None and given is None and len(table.columns) == 2:
        position = 1 - image
    if position is None and needed:
        raise UserError(
            f"no column of {table.file.name} has a usual name for classes: name it, label=...; its columns are "
            f"{', '.join(table.columns)}"
        )
    return position
