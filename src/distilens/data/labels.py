"""Columns of labels of any type: the classes, and the class index of each row."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from distilens.foundation.errors import UserError, shortened

NAMES = (
    *("label", "labels", "class", "class_name", "class_id", "category", "category_name", "category_id"),
    *("target", "breed", "species", "diagnosis", "dx", "label_name", "y"),
)
"""The usual names of label columns."""


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC): macOS writes é as two characters, others as one."""
    return unicodedata.normalize("NFC", name)


def in_order(names: Iterable[str]) -> list[str]:
    """Class names in order: by value if all are whole numbers, else alphabetically."""
    names = set(names)
    numbers = all(name.isdecimal() for name in names)
    return sorted(names, key=lambda name: (int(name), name) if numbers else (0, name))


def column_values(column: Any, where: str) -> np.ndarray:
    """The labels in an Arrow column: int64 with -1 = none; or objects: names or None.

    Whole numbers may be stored as floats, as pandas does if a value is missing. Dictionaries (pandas' Categorical), the view
    types of Polars, bytes and booleans are also read.

    Args:
        column: an Array or ChunkedArray.
        where: the name of the column in messages.

    Raises:
        UserError: numbers that are not whole, several labels per row, or a type that cannot be labels.
    """
    import pyarrow
    from pyarrow import types

    kind = column.type
    if types.is_dictionary(kind):
        kind = kind.value_type
        column = column.cast(kind)
    if types.is_integer(kind):
        return column.cast(pyarrow.int64()).fill_null(-1).to_numpy()
    if types.is_floating(kind):
        return whole(column.cast(pyarrow.float64()).to_numpy(zero_copy_only=False), where)
    if types.is_boolean(kind):
        return np.array([value if value is None else str(value) for value in column.to_pylist()], dtype=object)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return names_in(column.to_pylist())
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
        return names_in([value if value is None else value.decode() for value in column.to_pylist()])
    if types.is_null(kind):
        return np.full(len(column), -1, dtype=np.int64)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        raise UserError(
            f"{where} hold several labels per row ({kind}): expected one class per picture. Name such a column, label=..."
        )
    raise UserError(f"{where} are {kind}: expected whole numbers or names. Name such a column, label=...")


def whole(values: np.ndarray, where: str) -> np.ndarray:
    missing = np.isnan(values)
    rounded = np.where(missing, -1, values).astype(np.int64)
    wrong = np.flatnonzero(~missing & (rounded != values))
    if len(wrong):
        raise UserError(
            f"{where} hold numbers that are not whole, {values[wrong[0]]:g} in row {wrong[0]}: expected classes. Name a "
            "column of classes, label=..."
        )
    return rounded


def names_in(values: Sequence[str | None]) -> np.ndarray:
    """Names in Unicode's composed form; an empty name means no label."""
    form = {value: composed(value) or None for value in set(values) if value is not None}
    return np.array([None if value is None else form[value] for value in values], dtype=object)


def classes_in(
    columns: Mapping[str, np.ndarray], declared: Sequence[str] | None = None
) -> tuple[list[str], dict[str, np.ndarray]]:
    """The classes of a set, and its labels as class indices.

    Args:
        columns: by split, as returned by `column_values`.
        declared: the names of the labels 0, 1, ..., if the files have them. Otherwise the classes are the labels in use: 1, 2, 5
            give the three classes "1", "2", "5".
    """
    words = any(column.dtype == object for column in columns.values())
    if declared is not None and not words:
        return [composed(name) for name in declared], dict(columns)
    if words:
        columns = {part: in_words(as_declared(column, declared, None)) for part, column in columns.items()}
    there = set[str]().union(*map(known, columns.values()))
    names = [composed(name) for name in declared or ()]
    names += in_order(there - set(names))
    place = {name: position for position, name in enumerate(names)}
    return names, {part: placed(column, place) for part, column in columns.items()}


def as_declared(column: np.ndarray, own: Sequence[str] | None, all_names: Sequence[str] | None) -> np.ndarray:
    """Replace numbers by names if a file or a split declares other names than the first one.

    Args:
        own: the names that it declares.
        all_names: the names that the first one declares: the classes of the whole set.

    Raises:
        UserError: a number without a name.
    """
    if column.dtype == object or own is None or (all_names is not None and list(own) == list(all_names)):
        return column
    wrong = column[(column < -1) | (column >= len(own))]
    if len(wrong):
        raise UserError(f"there is a label {wrong[0]}, and the declared names are {shortened(own)}")
    names = np.array([composed(name) for name in own] + [None], dtype=object)  # the last entry is for the label -1
    return names[column]


def in_words(column: np.ndarray) -> np.ndarray:
    if column.dtype == object:
        return column
    return np.array([None if value == -1 else str(value) for value in column.tolist()], dtype=object)


def known(column: np.ndarray) -> set[str]:
    """The classes that a column names."""
    if column.dtype == object:
        return {value for value in column if value is not None}
    return {str(value) for value in np.unique(column[column >= 0])}


def placed(column: np.ndarray, place: Mapping[str, int]) -> np.ndarray:
    """Replace each label by its class index; values below 0 are unchanged."""
    if column.dtype == object:
        return np.array([-1 if value is None else place[value] for value in column], dtype=np.int64)
    values, inverse = np.unique(column, return_inverse=True)
    places = np.array([value if value < 0 else place[str(value)] for value in values.tolist()], dtype=np.int64)
    return places[inverse] if len(values) else column


def describe_alike_names(classes: Sequence[str]) -> str:
    """A warning if names differ only in case or spaces; else an empty string."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        alike["".join(name.casefold().split())].append(name)
    groups = [names for names in alike.values() if len(names) > 1]
    if not groups:
        return ""
    shown = "; ".join(shortened(names, quoted=True) for names in groups[:3])
    return f"some classes differ only in case or spaces, {shown}: if they are the same class, give them one name"
