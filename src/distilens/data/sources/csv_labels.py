"""Data sets with labels in a CSV file."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np

from distilens.data.cache import content_of
from distilens.data.decode import Encoded
from distilens.data.labels import composed, in_order
from distilens.data.pixels import Ground, Pixels, Range, Side
from distilens.data.source import Inventory, Source, digest, write_option
from distilens.data.sources.csv_tables import (
    NO,
    SPLITS,
    YES,
    Table,
    column,
    image_column,
    label_column,
    merge_label_columns,
    read_table,
    table_files,
)
from distilens.data.sources.layout import split_of
from distilens.data.sources.listed import Listed, add_file_names, encode_files, hold_out_test, places_of, readable_name
from distilens.data.sources.tree import Parts, Tree, check_links, walk_tree
from distilens.data.writing import decode_source
from distilens.foundation.errors import UserError, suggest_path


@dataclass(frozen=True)
class Labelled:
    """A picture of a table: its path below the root, its class or None, its split in the table, if any, and its whole row."""

    picture: Parts
    label: str | None
    part: str | None
    row: Mapping[str, str] = field(default_factory=dict, compare=False)


def csv(
    cache: Path,
    *,
    path: Path,
    image: str | None = None,
    label: str | None = None,
    split: str | None = None,
    pictures: Path | None = None,
    size: Side | None = None,
    skip_bad: bool = False,
    ground: Ground = "white",
    range_: Range = None,
    large: bool = False,
    group: str | None = None,
) -> Source:
    """Labels in a CSV file, and pictures in a folder beside it.

    `path` is the file, or a folder with train.csv (and test.csv, val.csv) or with a single CSV file. `image` is the column with
    the pictures' paths, names, or names without suffix; `label` the column with the classes; `split` a column with the values
    train, test or validation. Columns with usual names are found automatically. `pictures` is the folder with the pictures; by
    default the file's folder and all folders below it are searched. A table may also have a column of 0 and 1 for each class.
    Without test pictures a fixed fifth of every class is held out. `skip_bad` leaves out pictures that are missing or cannot
    be decoded. For `size`, `ground`, `range` and `large` see `Pixels`. With `group` the test set is held out by `subset`, in
    whole groups.

    Source: https://www.rfc-editor.org/rfc/rfc4180

    Raises:
        UserError: file, columns or pictures do not exist; a picture has two labels; a value does not name a split.
    """
    files, ignored = table_files(Path(path).expanduser())
    home = next(iter(files.values())).parent
    root = home.absolute() if pictures is None else Path(pictures).expanduser().absolute()
    if not root.is_dir():
        raise UserError(f"the folder pictures={pictures} does not exist (looked from {Path.cwd()}){suggest_path(root)}")
    tree = walk_tree(root)
    check_links(tree, skip_bad=skip_bad)
    index = Index(tree)
    left: dict[str, list[str]] = defaultdict(list)
    left["tables that are not read"] += ignored
    rows: list[Labelled] = []
    for part, file in files.items():
        table = read_table(file)
        table = merge_label_columns(table, image_column(table, image), label)
        if part != "train" and label_column(table, image_column(table, image), label, needed=False) is None:
            left["tables without labels"].append(file.name)
            continue
        rows += find_labelled(table, index, part if len(files) > 1 else None, (image, label, split), left, skip_bad)
    listed, classes = group_by_split(remove_repeats(rows, left), tree, hold_out=group is None)
    content = content_of([file for entries in listed.values() for _, file in entries], root, cache)
    key = digest("csv", content, classes, {part: [name for name, _ in entries] for part, entries in listed.items()})

    def read() -> tuple[dict[str, Encoded], Sequence[str]]:
        return {part: encode_files(entries, classes, root) for part, entries in listed.items()}, classes

    source = decode_source(cache, key, read, Pixels(size, ground, range_, large), skip_bad=skip_bad)
    named = {file for entries in listed.values() for _, file in entries}
    left["pictures that no table names"] += ["/".join(one) for one in tree.pictures if tree.file(one) not in named]
    left_out = {reason: names for reason, names in left.items() if names}
    hint = "Expected at least two classes: name the column that has them, label=..."
    return replace(
        add_table_columns(add_file_names(source, listed, root), rows),
        inventory=Inventory(places_of(listed, classes, root, source.skipped), left_out, source.inventory.remarks, hint),
    )


def add_table_columns(source: Source, rows: Sequence[Labelled]) -> Source:
    """Add the columns of the tables to the sets of a source, by the names of the files; a table may lack a column."""
    by_name = {readable_name("/".join(row.picture)): row.row for row in reversed(rows)}
    names = dict.fromkeys(name for row in rows for name in row.row)

    def reader(files: Sequence[str], name: str) -> Callable[[], np.ndarray]:
        return lambda: np.array([by_name[file].get(name) or None for file in files], dtype=object)

    sets = {
        part: replace(own, columns={name: reader(own.names, name) for name in names})
        for part in ("train", "validation", "test")
        if (own := getattr(source, part)) is not None and own.names is not None
    }
    return replace(source, **sets)


class Index:
    """Find pictures by the path, the name, or the name without suffix that a table gives."""

    def __init__(self, tree: Tree):
        self.tree = tree
        self.names: dict[str, list[Parts]] = defaultdict(list)
        self.stems: dict[str, list[Parts]] = defaultdict(list)
        for picture in tree.pictures:
            self.names[picture[-1]].append(picture)
            self.stems[PurePosixPath(picture[-1]).stem].append(picture)

    def find(self, value: str, part: str | None) -> list[Parts]:
        """The pictures that match best: exactly one unless the table is wrong or ambiguous."""
        pieces = tuple(piece for piece in value.replace("\\", "/").split("/") if piece not in ("", "."))
        if not pieces:
            return []
        matches = self.names.get(pieces[-1]) or self.stems.get(pieces[-1]) or []
        if len(matches) > 1:
            alike = [count_common_folders(picture[:-1], pieces[:-1]) for picture in matches]
            matches = [picture for picture, count in zip(matches, alike, strict=True) if count == max(alike)]
        if len(matches) > 1 and part:
            own = [picture for picture in matches if part in {split_of(name) for name in picture[:-1]}]
            matches = own or matches
        return matches


def count_common_folders(first: Parts, second: Parts) -> int:
    """How many folders agree, counted from the file upwards; one more if all agree."""
    count = 0
    for one, other in zip(reversed(first), reversed(second), strict=False):
        if one != other:
            return count
        count += 1
    return count + (len(first) == len(second))


def find_labelled(
    table: Table,
    index: Index,
    part: str | None,
    columns: tuple[str | None, str | None, str | None],
    left: dict[str, list[str]],
    skip_bad: bool,
) -> list[Labelled]:
    """The pictures of a table that exist on the disk."""
    image = image_column(table, columns[0])
    label = label_column(table, image, columns[1])
    split = column(table, "split", columns[2], SPLITS) if part is None else None
    assert label is not None
    present, missing = [], []
    for row in table.rows:
        value = row[image].strip()
        pictures = index.find(value, part)
        if len(pictures) > 1:
            both = " and ".join("/".join(one) for one in pictures[:2])
            raise UserError(f"{value!r} in {table.file.name} could be {both}. Write the path, or give pictures=FOLDER")
        if not pictures:
            missing.append(value)
            continue
        whole = {name: cell.strip() for name, cell in zip(table.columns, row, strict=False)}
        present.append(
            Labelled(
                pictures[0], composed(row[label].strip()) or None, part or split_in_table(table, row, split), whole
            )
        )
    if missing and (not skip_bad or not present):
        raise UserError(
            f"{len(missing):,} of {len(table.rows):,} pictures of {table.file.name} (column "
            f"{table.columns[image]!r}) are not below {index.tree.root}, the first is {missing[0]!r}. Give their folder, "
            "pictures=..., or another column, image=...; or leave them out: " + write_option("skip_bad=true")
        )
    left[f"pictures of {table.file.name} that are not there"] += missing
    return present


def split_in_table(table: Table, row: list[str], split: int | None) -> str | None:
    if split is None:
        return None
    value, name = row[split].strip(), table.columns[split].lower()
    if name in ("is_valid", "is_test") and value.lower() in YES | NO:  # as fastai writes it
        return "train" if value.lower() in NO else "validation" if name == "is_valid" else "test"
    part = split_of(value)
    if part is None:
        raise UserError(
            f"the column {table.columns[split]!r} of {table.file.name} says {value!r}: expected train, test or validation "
            "(or one of their usual names). Rename the values, or the column if it means something else"
        )
    return part


def remove_repeats(rows: Sequence[Labelled], left: dict[str, list[str]]) -> list[Labelled]:
    """Remove repeated rows of a picture; refuse a picture with two labels or two splits."""
    seen: dict[Parts, Labelled] = {}
    for row in rows:
        before = seen.setdefault(row.picture, row)
        if before is not row:
            name = "/".join(row.picture)
            for what, one, other in (("labels", before.label, row.label), ("splits", before.part, row.part)):
                if one != other:
                    raise UserError(f"{name} has two {what}, {one!r} and {other!r}: expected one row per picture")
            left["rows that name a picture again"].append(name)
    return list(seen.values())


def group_by_split(rows: Sequence[Labelled], tree: Tree, *, hold_out: bool) -> tuple[Listed, list[str]]:
    """The pictures of each split, and the classes; without splits a fixed fifth is the test set if `hold_out`."""
    parts: Mapping[Parts, str | None] = {row.picture: row.part for row in rows}
    if not any(parts.values()):
        above = {row.picture: split_of(row.picture[0]) if len(row.picture) > 1 else None for row in rows}
        parts = above if all(above.values()) and "train" in above.values() else dict.fromkeys(parts)
    labels = spell_labels({row.picture: row.label for row in rows})
    listed: dict[str, list[tuple[str | None, Path]]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.picture):
        listed[parts[row.picture] or "train"].append((labels[row.picture], tree.file(row.picture)))
    sets = listed if any(parts.values()) or not hold_out else hold_out_test(listed["train"], tree.root)
    if not sets.get("train"):
        raise UserError(f"no row belongs to the training set; the splits are {', '.join(sorted(sets))}")
    return sets, in_order(name for pictures in sets.values() for name, _ in pictures if name is not None)


def spell_labels(labels: Mapping[Parts, str | None]) -> dict[Parts, str | None]:
    """Write whole numbers such as 1.0 as 1.

    Raises:
        UserError: all labels have decimals, and some are not whole.
    """
    numbers = all(label is None or re.fullmatch(r"\d+\.\d+", label) for label in labels.values())
    fractions = [label for label in labels.values() if label is not None and label.rstrip("0")[-1:] != "."]
    if numbers and not fractions:
        return {picture: label and label.partition(".")[0] for picture, label in labels.items()}
    if numbers and any(labels.values()):
        raise UserError(
            f"the labels are numbers that are not whole, such as {fractions[0]}: expected classes. Name another column, label=..."
        )
    return dict(labels)
