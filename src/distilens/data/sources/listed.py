"""Lists of files with their classes, by split: the test hold-out, the encoded images, the file names and folders."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from distilens.data.decode import Encoded
from distilens.data.source import Rows, Source
from distilens.data.subset import TEST_SHARE

Listed = Mapping[str, Sequence[tuple[str | None, Path]]]
"""The class and file of every image, by split; the class is None if unknown."""


def hold_out_test(images: Sequence[tuple[str | None, Path]], root: Path) -> Listed:
    """Hold out a fixed fifth of every class as the test set."""
    held_out = choose_test_files(images, root)
    listed = {
        "train": [image for image in images if image[1] not in held_out],
        "test": [image for image in images if image[1] in held_out],
    }
    return {part: files for part, files in listed.items() if files}


def choose_test_files(images: Iterable[tuple[str | None, Path]], root: Path) -> set[Path]:
    """About a fifth of every class, selected by a hash of the path only: at least one image; of three or more, two stay.

    By rank, as `subset.held_out` selects, a file that is added would move others between training and test.
    """
    classes: dict[str, list[tuple[float, Path]]] = {}
    start = len(os.fsencode(root)) + 1
    for name, file in images:
        if name is None:
            continue
        code = hashlib.sha256(os.fsencode(file)[start:].replace(os.sep.encode(), b"/")).digest()
        classes.setdefault(name, []).append((int.from_bytes(code[:6], "big") / 2**48, file))
    files = set()
    for ordered in map(sorted, classes.values()):
        count = sum(share < TEST_SHARE for share, _ in ordered)
        count = min(max(count, 1), max(len(ordered) - 2, 1), len(ordered) - 1)
        files |= {file for _, file in ordered[:count]}
    return files


def encode_files(images: Sequence[tuple[str | None, Path]], classes: Sequence[str], root: Path) -> Encoded:
    position = {name: place for place, name in enumerate(classes)}
    labels = np.array([-1 if name is None else position[name] for name, _ in images], dtype=np.int64)
    return Encoded(labels, lambda: (file for _, file in images), lambda row: str(images[row][1].relative_to(root)))


def add_file_names(source: Source, listed: Listed, root: Path) -> Source:
    """Add the file name of each image to the source: all listed files except the skipped ones."""
    sets = {part: images for part, images in listed.items() if part == "train" or any(name for name, _ in images)}
    if "test" not in sets and "validation" in sets:  # as in `writing.assign_splits`
        sets["test"] = sets.pop("validation")
    start, without = len(str(root)) + 1, {line.partition(": ")[0] for line in source.skipped}
    updated: dict[str, Rows] = {}
    for part, images in sets.items():
        rows: Rows | None = getattr(source, part)
        names = [name for _, file in images if (name := str(file)[start:]) not in without]
        if rows is not None and len(names) == len(rows):
            updated[part] = replace(rows, names=tuple(map(readable_name, names)))
    return replace(source, **updated)


def readable_name(name: str) -> str:
    """A file's name with `/` between folders, and a replacement mark for each byte that is not UTF-8."""
    return os.fsencode(name).decode("utf-8", "replace").replace(os.sep, "/")


def places_of(
    listed: Listed, classes: Sequence[str], root: Path, skipped: Sequence[str] = ()
) -> dict[str, dict[str, int]]:
    """Per class, the number of images from each folder below the root, without the skipped ones."""
    without = {line.partition(": ")[0] for line in skipped}
    places: dict[str, Counter[str]] = {name: Counter() for name in classes}
    start = len(str(root)) + 1
    for images in listed.values():
        for name, file in images:
            if without and str(file)[start:] in without:
                continue
            places.setdefault(name or "no class", Counter())[os.path.dirname(str(file)[start:]) or "."] += 1
    return {name: dict(counts) for name, counts in places.items()}
