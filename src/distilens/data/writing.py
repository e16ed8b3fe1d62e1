"""Decode images once, in threads, into one array per set; later reads map it into memory, read-only.

A decoded set is a folder `cache/<key>/`. It is written under another name and renamed when complete, so a reader never sees an
incomplete set. If two processes decode the same set at once, the first to finish wins.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from distilens.data.cache import ADVICE, cached_folder, read_source
from distilens.data.copies import find_copies
from distilens.data.decode import Bad, Encoded, decode_all, extents_of, shorter_sides_of
from distilens.data.labels import describe_alike_names
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
from distilens.data.source import Source, check_labels, digest, write_option
from distilens.foundation.errors import UserError
from distilens.foundation.files import check_disk
from distilens.foundation.progress import Work, visible_console

VERSION = 2
MOMENT = 1.0
"""Decoding that takes fewer seconds shows no progress."""
"""This number is part of every key. Raise it when the same bytes would decode to other pixels."""


def decode_source(
    cache: Path,
    key: str,
    read: Callable[[], tuple[Mapping[str, Encoded], Sequence[str]]],
    pixels: Pixels,
    *,
    skip_bad: bool,
) -> Source:
    """The source of encoded sets. If the cache has it, `read` is not called and nothing is decoded.

    Args:
        key: a key of the images' content and options; with `pixels`, `skip_bad` and VERSION it makes the fingerprint.
        read: returns the sets by name (`train`, `test`, `validation`) and the classes, which may be empty. Without a labelled
            test set, the validation set is the test set, as is usual with ImageNet.

    Raises:
        UserError: an image cannot be decoded, a label is wrong, or the disk is full.
    """
    fingerprint = digest(VERSION, key, asdict(pixels), skip_bad)

    def write(folder: Path) -> None:
        sets, classes = read()
        sets, moved = assign_splits(sets)
        if classes:
            check_labels(
                {part: encoded.labels for part, encoded in sets.items()},
                classes,
                lambda part, row: sets[part].name(row),
            )
        with allow_large_images(pixels.large):
            written = write_images(folder, sets, pixels, skip_bad=skip_bad)
        for part, values in written.labels.items():
            np.save(folder / f"{part}_labels.npy", values)
        images = {part: np.load(folder / f"{part}_images.npy", mmap_mode="r") for part in sets}
        copies = find_copies(images, lambda part, row: sets[part].name(int(written.rows[part][row])))
        about = {
            "classes": list(classes),
            "skipped": written.skipped,
            "remarks": [*moved, *written.remarks(sets, classes)],
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
        remarks.append("there is no test set: the validation set is the test set, and another one is held out of train")
    return labelled, remarks


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
    """

    labels: dict[str, np.ndarray] = field(default_factory=dict)
    rows: dict[str, np.ndarray] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    flat: dict[str, list[int]] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    decided: list[str] = field(default_factory=list)

    def remarks(self, sets: Mapping[str, Encoded], classes: Sequence[str]) -> list[str]:
        """What a user must know, in sentences."""
        counted = [f"{what}: {count:,} pictures" for what, count in Counter(self.said).most_common()]
        flat = [sets[part].labels[np.array(rows, dtype=np.int64)] for part, rows in self.flat.items()]
        first = next((sets[part].name(rows[0]) for part, rows in self.flat.items() if rows), "")
        every = np.concatenate([encoded.labels for encoded in sets.values()])
        one_colour = describe_flat(np.concatenate(flat), every, classes, first)
        return [line for line in (*self.decided, *counted, one_colour, describe_alike_names(classes)) if line]


def write_images(folder: Path, sets: Mapping[str, Encoded], pixels: Pixels, *, skip_bad: bool) -> Written:
    """Decode the sets into `<set>_images.npy`.

    It starts again with a common range if an image has more than 8 bits, and with a common size if the sizes differ.
    """
    decided: list[str] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while True:
            try:
                written = write_sets(pool, folder, sets, pixels, skip_bad=skip_bad)
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
    pool: ThreadPoolExecutor, folder: Path, sets: Mapping[str, Encoded], pixels: Pixels, *, skip_bad: bool
) -> Written:
    total = sum(len(encoded.labels) for encoded in sets.values())
    written = Written(flat={part: [] for part in sets})
    shape: tuple[int, ...] | None = None
    with show_decoding(total) as work:
        for part, encoded in sets.items():
            rows, flat = [], written.flat[part]
            # Written in order to the file, not into a memory map: on a full disk a write raises an error, but a memory
            # map ends the process. The header is corrected when the number of images is known.
            with open(folder / f"{part}_images.npy", "wb") as file:
                for row, image in enumerate(decode_all(pool, encoded.images(), pixels, written.said)):
                    work.advance()
                    if isinstance(image, Bad):
                        words = f"{encoded.name(row)}: {image.reason}"
                        if not skip_bad:
                            raise UserError(
                                f"cannot decode {words}. Repair or remove it, or skip such images: "
                                + write_option("skip_bad=true")
                            )
                        written.skipped.append(words)
                        continue
                    if shape is None:
                        shape = image.shape
                        check_disk(folder.parent, total * image.size, "decoded images", ADVICE)
                    if image.shape != shape:
                        raise SizesError
                    if not rows:
                        write_header(file, len(encoded.labels), image.shape)
                    if nearly_one_colour(image):
                        flat.append(row)
                    file.write(np.ascontiguousarray(image).data)
                    rows.append(row)
                if not rows:
                    first_bad = written.skipped[-len(encoded.labels)]
                    raise UserError(f"no image of the {part} set can be decoded; the first is {first_bad}")
                assert shape is not None
                write_header(file, len(rows), shape)
            written.rows[part] = np.array(rows)
            written.labels[part] = encoded.labels[written.rows[part]]
    return written


def show_decoding(total: int) -> Work:
    """The progress on stderr of decoding a number of images; nothing if it takes less than a moment."""
    return Work(visible_console(), "decoding images", total, unit="images", after=MOMENT, transient=True)


def write_header(file: BinaryIO, count: int, shape: tuple[int, ...]) -> None:
    """Write the .npy header of a uint8 array `[count *shape]` at the start of a file. It has room for any count."""
    file.seek(0)
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
    np.lib.format.write_array_header_1_0(file, header)
