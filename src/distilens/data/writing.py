"""From encoded images to one memory map: decoded once, in threads, and mapped read-only ever after.

A decoded set is a folder `cache/<key>/`, written under another name and renamed when complete: a reader never sees half
of one, and of two processes that decode the same set at once the first to finish wins.
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

from distilens.data.cached import check_disk, read_source, remembered
from distilens.data.copies import copies_in
from distilens.data.decode import Bad, Encoded, decode_all, extents_of, shorter_sides_of
from distilens.data.labels import said_of_names
from distilens.data.pixels import (
    DeepError,
    Pixels,
    SizesError,
    found_range,
    large_allowed,
    nearly_one_colour,
    said_of_flat,
    usual_size,
)
from distilens.data.source import Source, check_labels, digest, said_option
from distilens.data.waiting import Progress
from distilens.errors import UserError

VERSION = 2
"""Part of every key: raise it when the same bytes would decode to other pixels."""


def decoded(
    cache: Path,
    key: str,
    read: Callable[[], tuple[Mapping[str, Encoded], Sequence[str]]],
    pixels: Pixels,
    *,
    skip_bad: bool,
) -> Source:
    """The source of some encoded sets; `read` is called, and anything decoded, only if the cache does not have it.

    Args:
        key: what the images are read from (content and options); with `pixels`, `skip_bad` and VERSION the fingerprint.
        read: the sets by name (`train`, `test`, `validation`) and the classes, which may be none. Where there is no labelled
            test set, the validation set takes its place, as is the custom with ImageNet.

    Raises:
        UserError: an image that cannot be decoded, labels at fault, a full disk.
    """
    fingerprint = digest(VERSION, key, asdict(pixels), skip_bad)

    def write(folder: Path) -> None:
        sets, classes = read()
        sets, moved = in_their_roles(sets)
        if classes:
            check_labels(
                {part: encoded.labels for part, encoded in sets.items()},
                classes,
                lambda part, row: sets[part].name(row),
            )
        with large_allowed(pixels.large):
            written = write_images(folder, sets, pixels, skip_bad=skip_bad)
        for part, values in written.labels.items():
            np.save(folder / f"{part}_labels.npy", values)
        images = {part: np.load(folder / f"{part}_images.npy", mmap_mode="r") for part in sets}
        copies = copies_in(images, lambda part, row: sets[part].name(int(written.rows[part][row])))
        about = {
            "classes": list(classes),
            "skipped": written.skipped,
            "remarks": [*moved, *written.remarks(sets, classes)],
            "copies": [asdict(group) for group in copies],
        }
        (folder / "set.json").write_text(json.dumps(about), encoding="utf-8")

    return read_source(remembered(cache, fingerprint, write), fingerprint)


def in_their_roles(sets: Mapping[str, Encoded]) -> tuple[dict[str, Encoded], list[str]]:
    """The sets that have labels; the validation set as test where there is no other. And what has to be said of that."""
    labelled = {part: sets[part] for part in sets if part == "train" or (sets[part].labels >= 0).any()}
    said = [f"the {part} set has no labels, and is not used" for part in sets if part not in labelled]
    if "test" not in labelled and "validation" in labelled:
        labelled["test"] = labelled.pop("validation")
        said.append("there is no test set: the validation set is the test set, and another one is held out of train")
    return labelled, said


@dataclass
class Written:
    """What became of the images while they were decoded.

    Attributes:
        labels: of those that are there, by set.
        rows: where they stand among all that were read.
        skipped: those that are not, each with its reason.
        flat: the rows of each set, as it was read, that are nearly one colour.
        said: what was done to an image that must be said, once for each such image.
        decided: how deep images were scaled, and to which size images of several sizes were brought.
    """

    labels: dict[str, np.ndarray] = field(default_factory=dict)
    rows: dict[str, np.ndarray] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    flat: dict[str, list[int]] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    decided: list[str] = field(default_factory=list)

    def remarks(self, sets: Mapping[str, Encoded], classes: Sequence[str]) -> list[str]:
        """What a user has to know, in sentences."""
        counted = [f"{what}: {count:,} pictures" for what, count in Counter(self.said).most_common()]
        flat = [sets[part].labels[np.array(rows, dtype=np.int64)] for part, rows in self.flat.items()]
        first = next((sets[part].name(rows[0]) for part, rows in self.flat.items() if rows), "")
        every = np.concatenate([encoded.labels for encoded in sets.values()])
        one_colour = said_of_flat(np.concatenate(flat), every, classes, first)
        return [one for one in (*self.decided, *counted, one_colour, said_of_names(classes)) if one]


def write_images(folder: Path, sets: Mapping[str, Encoded], pixels: Pixels, *, skip_bad: bool) -> Written:
    """Decode the sets into `<set>_images.npy`.

    Once more with a range for all, if an image of more than 8 bits is met, and with a size, if several are.
    """
    decided: list[str] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while True:
            try:
                written = write_sets(pool, folder, sets, pixels, skip_bad=skip_bad)
            except DeepError:
                bounds, said = found_range(extents_of(pool, sets))
                pixels = replace(pixels, bounds=bounds)
            except SizesError:
                size, said = usual_size(shorter_sides_of(pool, sets))
                pixels = replace(pixels, size=size)
            else:
                written.decided = decided
                return written
            decided += [said] * bool(said)


def write_sets(
    pool: ThreadPoolExecutor, folder: Path, sets: Mapping[str, Encoded], pixels: Pixels, *, skip_bad: bool
) -> Written:
    total = sum(len(encoded.labels) for encoded in sets.values())
    written = Written(flat={part: [] for part in sets})
    shape: tuple[int, ...] | None = None
    with Progress(total) as progress:
        for part, encoded in sets.items():
            kept, flat = [], written.flat[part]
            # Written in order through the file rather than into a map of it: on a full disk a write raises, whereas a
            # page of a map ends the process. The header is put right when the number of images is known.
            with open(folder / f"{part}_images.npy", "wb") as file:
                for row, image in enumerate(decode_all(pool, encoded.images(), pixels, written.said)):
                    progress.advance()
                    if isinstance(image, Bad):
                        words = f"{encoded.name(row)}: {image.reason}"
                        if not skip_bad:
                            raise UserError(
                                f"cannot decode {words}. Mend or remove it, or leave such images out: "
                                + said_option("skip_bad=true")
                            )
                        written.skipped.append(words)
                        continue
                    if shape is None:
                        shape = image.shape
                        check_disk(folder, total * image.size)
                    if image.shape != shape:
                        raise SizesError
                    if not kept:
                        write_header(file, len(encoded.labels), image.shape)
                    if nearly_one_colour(image):
                        flat.append(row)
                    file.write(np.ascontiguousarray(image).data)
                    kept.append(row)
                if not kept:
                    first_bad = written.skipped[-len(encoded.labels)]
                    raise UserError(f"not one image of the {part} set can be decoded; the first is {first_bad}")
                assert shape is not None
                write_header(file, len(kept), shape)
            written.rows[part] = np.array(kept)
            written.labels[part] = encoded.labels[written.rows[part]]
    return written


def write_header(file: BinaryIO, count: int, shape: tuple[int, ...]) -> None:
    """The .npy header of `[count *shape]` uint8 at the start of a file. NumPy leaves room in it for any count."""
    file.seek(0)
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
    np.lib.format.write_array_header_1_0(file, header)
