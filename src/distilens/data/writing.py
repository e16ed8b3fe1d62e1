"""Decode images once, in threads, into one array per set; later reads map it into memory, read-only.

A decoded set is a folder `cache/<key>/`. It is written under another name and renamed when complete, so a reader never sees an
incomplete set. If two processes decode the same set at once, the first to finish wins.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from distilens.data.cache import ADVICE, cached_folder, read_source
from distilens.data.copies import find_copies
from distilens.data.decode import Bad, Encoded, decode_all, extents_of, shorter_sides_of
from distilens.data.labels import describe_alike_names
from distilens.data.masks import Masks, Pair, Table, check_targets, decode_pair, find_table
from distilens.data.pixels import (
    DeepError,
    Pixels,
    SizesError,
    allow_large_images,
    describe_flat,
    find_range,
    nearly_one_colour,
    usual_size,
)
from distilens.data.source import Columns, Rows, Source, check_labels, digest, write_option
from distilens.foundation.errors import UserError
from distilens.foundation.files import check_disk
from distilens.foundation.progress import Work, visible_console
from distilens.tasks import Classification, Task
from distilens.tasks.saving import plain_task

VERSION = 2
"""This number is part of every key. Raise it when the same bytes would decode to other pixels."""

MOMENT = 1.0
"""Decoding that takes fewer seconds shows no progress."""

VALIDATION_TESTS = "there is no test set: the validation set is the test set, and another one is held out of train"
"""A remark, by which `own_set` knows it again."""


def decode_source(
    cache: Path,
    key: str,
    read: Callable[[], tuple[Mapping[str, Encoded], Sequence[str]]],
    pixels: Pixels,
    *,
    skip_bad: bool,
    masks: Masks | None = None,
) -> Source:
    """The source of encoded sets. If the cache has it, `read` is not called and nothing is decoded.

    Args:
        key: a key of the images' content and options; with `pixels`, `skip_bad`, `masks` and VERSION it makes the fingerprint.
        read: returns the sets by name (`train`, `test`, `validation`) and the classes, which may be empty. Without a labelled
            test set, the validation set is the test set, as is usual with ImageNet.
        masks: for a segmentation: what the values of the masks mean. The classes are then found from them.

    Raises:
        UserError: an image cannot be decoded, a label is wrong, or the disk is full.
    """
    dense = [] if masks is None else ["masks", masks.plain()]
    fingerprint = digest(VERSION, key, asdict(pixels), skip_bad, *dense)

    def write(folder: Path) -> None:
        sets, classes = read()
        sets, moved = assign_splits(sets)
        if masks is None and classes:
            check_labels(
                {part: encoded.labels for part, encoded in sets.items()},
                classes,
                lambda part, row: sets[part].name(row),
            )
        with allow_large_images(pixels.large):
            written = write_images(folder, sets, pixels, masks, skip_bad=skip_bad)
        task = written.task(folder, classes)
        if masks is None:
            for part, values in written.labels.items():
                np.save(folder / f"{part}_labels.npy", values)
        images = {part: np.load(folder / f"{part}_images.npy", mmap_mode="r") for part in sets}
        copies = find_copies(images, lambda part, row: sets[part].name(int(written.rows[part][row])))
        about = {
            "classes": list(task.classes),
            **({} if masks is None else {"task": plain_task(task)}),
            "skipped": written.skipped,
            "remarks": [*moved, *written.remarks(sets, task.classes)],
            "copies": [asdict(group) for group in copies],
        }
        (folder / "set.json").write_text(json.dumps(about), encoding="utf-8")

    return read_source(cached_folder(cache, fingerprint, write), fingerprint)


def assign_splits(sets: Mapping[str, Encoded]) -> tuple[dict[str, Encoded], list[str]]:
    """The training set and the labelled sets, and remarks. Without a labelled test set, the validation set is the test set."""
    labelled = {part: sets[part] for part in sets if part == "train" or (sets[part].labels >= 0).any()}
    remarks = [f"the {part} set has no labels, and is not used" for part in sets if part not in labelled]
    if "test" not in labelled and "validation" in labelled:
        labelled["test"] = labelled.pop("validation")
        remarks.append(VALIDATION_TESTS)
    return labelled, remarks


def add_columns(
    source: Source, columns: Mapping[str, Columns], name: Mapping[str, Callable[[int], str]], counts: Mapping[str, int]
) -> Source:
    """Add columns of a table to the sets of a source, without the rows that were skipped.

    Args:
        columns: by set as it was given to `decode_source`.
        name: gives the name of a row in messages, as in `Encoded`.
        counts: the number of rows, with those that were skipped.
    """
    without = {line.partition(": ")[0] for line in source.skipped}

    def of(part: str, read: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
        return lambda: read()[
            [row for row in range(counts[part]) if name[part](row) not in without] if without else ...
        ]

    sets = {}
    for part in ("train", "validation", "test"):
        rows: Rows | None = getattr(source, part)
        own = "validation" if part == "test" and VALIDATION_TESTS in source.inventory.remarks else part
        if rows is not None and own in columns:
            sets[part] = replace(rows, columns={key: of(own, read) for key, read in columns[own].items()})
    return replace(source, **sets)


@dataclass
class Written:
    """The result of decoding the images.

    Attributes:
        labels: the labels of the written images, by set.
        rows: the rows of the written images among all images of the set, by set.
        skipped: the skipped images, each with its reason.
        flat: the rows of images that are nearly one colour, by set; counted among all images of the set.
        said: remarks on single images, one entry per remark and image.
        decided: the range of images with more than 8 bits, and the common size of images of several sizes, in words.
        table: of a segmentation: its classes and their values.
    """

    labels: dict[str, np.ndarray] = field(default_factory=dict)
    rows: dict[str, np.ndarray] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    flat: dict[str, list[int]] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    decided: list[str] = field(default_factory=list)
    table: Table | None = None

    def task(self, folder: Path, classes: Sequence[str]) -> Task:
        """What the written targets are.

        Raises:
            UserError: a segmentation has no targets, or only one class.
        """
        if self.table is None:
            return Classification(tuple(classes))
        targets = {part: np.load(folder / f"{part}_targets.npy", mmap_mode="r") for part in self.rows}
        return check_targets(targets, self.table.classes, self.table.void)

    def remarks(self, sets: Mapping[str, Encoded], classes: Sequence[str]) -> list[str]:
        """What a user must know, in sentences."""
        counted = [f"{what}: {count:,} pictures" for what, count in Counter(self.said).most_common()]
        flat = [sets[part].labels[np.array(rows, dtype=np.int64)] for part, rows in self.flat.items()]
        first = next((sets[part].name(rows[0]) for part, rows in self.flat.items() if rows), "")
        every = np.concatenate([encoded.labels for encoded in sets.values()])
        if self.table is not None:  # an image has no class of its own
            flat, every = [np.full(len(labels), -1) for labels in flat], np.full(len(every), -1)
        one_colour = describe_flat(np.concatenate(flat), every, () if self.table else classes, first)
        return [line for line in (*self.decided, *counted, one_colour, describe_alike_names(classes)) if line]


def write_images(
    folder: Path, sets: Mapping[str, Encoded], pixels: Pixels, masks: Masks | None = None, *, skip_bad: bool
) -> Written:
    """Decode the sets into `<set>_images.npy`, and the masks of a segmentation into `<set>_targets.npy`.

    It starts again with a common range if an image has more than 8 bits, and with a common size if the sizes differ.
    """
    decided: list[str] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        table, remark = (None, "") if masks is None else find_table(masks, pool, sets)
        decided += [remark] * bool(remark)
        while True:
            try:
                written = write_sets(pool, folder, sets, pixels, table, skip_bad=skip_bad)
            except DeepError:
                bounds, remark = find_range(extents_of(pool, sets))
                pixels = replace(pixels, bounds=bounds)
            except SizesError:
                size, remark = usual_size(shorter_sides_of(pool, sets))
                pixels = replace(pixels, size=size)
            else:
                written.decided = decided
                return written
            decided += [remark] * bool(remark)


def write_sets(
    pool: ThreadPoolExecutor,
    folder: Path,
    sets: Mapping[str, Encoded],
    pixels: Pixels,
    table: Table | None,
    *,
    skip_bad: bool,
) -> Written:
    total = sum(len(encoded.labels) for encoded in sets.values())
    written = Written(flat={part: [] for part in sets}, table=table)
    shape: tuple[int, ...] | None = None
    with show_decoding(total) as work:
        for part, encoded in sets.items():
            rows, flat = [], written.flat[part]
            with ExitStack() as stack:
                names = ("images",) if table is None else ("images", "targets")
                files = [SetFile(stack.enter_context(open(folder / f"{part}_{name}.npy", "wb"))) for name in names]
                for row, made in enumerate(decode_set(pool, encoded, pixels, written.said, table)):
                    work.advance()
                    if isinstance(made, Bad):
                        words = f"{encoded.name(row)}: {made.reason}"
                        if not skip_bad:
                            raise UserError(
                                f"cannot decode {words}. Repair or remove it, or skip such images: "
                                + write_option("skip_bad=true")
                            )
                        written.skipped.append(words)
                        continue
                    arrays = (made,) if table is None else made
                    if shape is None:
                        shape = arrays[0].shape
                        check_disk(folder.parent, total * sum(array.size for array in arrays), "decoded images", ADVICE)
                    if arrays[0].shape != shape:
                        raise SizesError
                    if nearly_one_colour(arrays[0]):
                        flat.append(row)
                    for file, array in zip(files, arrays, strict=True):
                        file.append(array)
                    rows.append(row)
                if not rows:
                    first_bad = written.skipped[-len(encoded.labels)]
                    raise UserError(f"no image of the {part} set can be decoded; the first is {first_bad}")
                for file in files:
                    file.finish()
            written.rows[part] = np.array(rows)
            written.labels[part] = encoded.labels[written.rows[part]]
    return written


def decode_set(
    pool: ThreadPoolExecutor, encoded: Encoded, pixels: Pixels, remarks: list[str], table: Table | None
) -> Iterable[Any]:
    """The images of a set, or pairs of images and masks; a `Bad` where one is not readable."""
    if table is None:
        return decode_all(pool, encoded.images(), pixels, remarks)
    assert encoded.masks is not None
    pairs = map(Pair, encoded.images(), encoded.masks())
    return decode_all(pool, pairs, pixels, remarks, partial(decode_pair, table=table))


class SetFile:
    """Arrays of one shape, written one after another as a .npy file of uint8.

    Written in order to the file, not into a memory map: on a full disk a write raises an error, but a memory map ends the
    process. The header is corrected when the number of arrays is known.
    """

    def __init__(self, file: BinaryIO):
        self.file, self.count, self.shape = file, 0, ()

    def append(self, array: np.ndarray) -> None:
        if not self.count:
            self.shape = array.shape
            write_header(self.file, 0, self.shape)
        self.file.write(np.ascontiguousarray(array).data)
        self.count += 1

    def finish(self) -> None:
        write_header(self.file, self.count, self.shape)


def show_decoding(total: int) -> Work:
    """The progress on stderr of decoding a number of images; nothing if it takes less than a moment."""
    return Work(visible_console(), "decoding images", total, unit="images", after=MOMENT, transient=True)


def write_header(file: BinaryIO, count: int, shape: tuple[int, ...]) -> None:
    """Write the .npy header of a uint8 array `[count *shape]` at the start of a file. It has room for any count."""
    file.seek(0)
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
    np.lib.format.write_array_header_1_0(file, header)
