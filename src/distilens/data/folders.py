"""Data sets from folders of pictures: a folder a class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated

from pydantic import Field

from distilens.data.cached import content_of
from distilens.data.decode import Encoded
from distilens.data.files import existing
from distilens.data.layout import Layout, layout_of
from distilens.data.listed import Listed, encoded_files, places_of, with_names, with_test
from distilens.data.pixels import Ground, Pixels, Range, Side
from distilens.data.source import Inventory, Source, digest, shortened
from distilens.data.tree import Tree, check_links, is_picture, suffixes, walked
from distilens.data.writing import decoded
from distilens.errors import UserError


def folder(
    cache: Path,
    *,
    path: Path,
    size: Side | None = None,
    skip_bad: bool = False,
    ground: Ground = "white",
    range_: Range = None,
    large: bool = False,
    splits: bool = True,
    level: Annotated[int, Field(ge=1)] | None = None,
) -> Source:
    """Images in a folder a class, with train/ and test/ (and validation/) above or below the classes, or without.

    Splits are known by their usual names whatever their case (`Training`, `test_set`, `val`, `dev`); a folder around the whole
    is passed through. Without a test set a fixed fifth of every class is it: the images whose path has a small hash, so that
    adding images moves none. Hidden and system folders are not read, linked ones once; `Source.inventory` counts what is left
    out. Pictures without classes can be explained. `splits=false` takes every folder as a class, and `level` says how many
    folders down the classes are. `skip_bad` leaves out what cannot be decoded and links to nothing; for `size`, `ground`,
    `range` and `large` see `Pixels`.

    Source: the layout of torchvision.datasets.ImageFolder

    Raises:
        UserError: no such folder, no images; folders that can be read in two ways; images or links at fault.
    """
    root = existing(path).absolute()
    tree = walked(root)
    check_links(tree, skip_bad=skip_bad)
    if not tree.pictures:
        raise no_pictures(tree)
    check_names(tree)
    layout = layout_of(tree, splits=splits, level=level)
    listed = listed_images(tree, layout)
    content = content_of([file for images in listed.values() for _, file in images], root, cache)
    # A class folder without an image has no content, but must not stay unseen.
    key = digest(
        "folder", content, layout.classes, {part: len(images) for part, images in listed.items()}, splits, level
    )

    def read() -> tuple[dict[str, Encoded], Sequence[str]]:
        return {part: encoded_files(images, layout.classes, root) for part, images in listed.items()}, layout.classes

    source = decoded(cache, key, read, Pixels(size, ground, range_, large), skip_bad=skip_bad)
    return replace(with_names(source, listed, root), inventory=inventory_of(tree, layout, listed, source))


def check_names(tree: Tree) -> None:
    """A folder whose name is not UTF-8 cannot be a class: its name goes into files and onto pages.

    Raises:
        UserError: it names the first.
    """
    for parts in tree.folders:
        if parts and not parts[-1].isprintable() and any(0xD800 <= ord(one) < 0xE000 for one in parts[-1]):
            raise UserError(
                f"the name of the folder {os.fsencode('/'.join(parts))!r} in {tree.root} is not UTF-8: rename it"
            )


def no_pictures(tree: Tree) -> UserError:
    there = ", ".join(f"{len(names):,} {reason}" for reason, names in tree.left_out.items())
    return UserError(
        f"no images in {tree.root}: wanted is a folder a class ({tree.root / 'cat' / '1.png'}), or train/ and test/ with a "
        f"folder a class each. Images end in .jpg, .png or one of {len(suffixes()) - 2} others"
        + f"; there are {there}"
        * bool(there)
    )


def listed_images(tree: Tree, layout: Layout) -> Listed:
    """The files of each split; without a test split a fifth of every class is held out."""
    listed = {part: [(name, tree.file(one)) for name, one in found] for part, found in layout.pictures.items()}
    if layout.classes and not layout.named:
        return with_test(listed["train"], tree.file(layout.base))
    return listed


def inventory_of(tree: Tree, layout: Layout, listed: Listed, source: Source) -> Inventory:
    """What lay where, and what was left out."""
    outside = {reason: ["/".join(one) for one in found] for reason, found in layout.outside.items()}
    return Inventory(
        places_of(listed, layout.classes, tree.root, source.skipped),
        {**outside, **tree.left_out},
        (*layout.remarks, *source.inventory.remarks),
        hint_of(tree),
    )


def hint_of(tree: Tree) -> str:
    """What would help where there are no classes, or one alone: the tables and the folders that were seen."""
    tables, folders = tree.tables(), ["/".join(one) for one in tree.folders if one]
    said = [f"Folders seen: {shortened(folders)}." if folders else "There are no folders in it."]
    if tables:
        name = next((one for one in tables if "train" in one.lower()), tables[0])
        said.append(f"If the labels are in {shortened(tables)}, name it: csv:path={tree.root / name}.")
    beside = [] if folders else folders_of_pictures(tree.root.parent)
    if len(beside) > 1:
        said.append(
            f"{tree.root.parent} holds several folders with pictures ({shortened(beside)}): path={tree.root.parent}."
        )
    return " ".join(["Wanted is a folder a class, two at least.", *said])


def folders_of_pictures(place: Path) -> list[str]:
    """The names of the folders right below a place that have a picture among their first hundred entries."""
    if not os.access(place, os.R_OK):
        return []
    folders = [one for one in place.iterdir() if one.name[0] != "." and one.is_dir() and os.access(one, os.R_OK)]
    return sorted(
        one.name for one in folders if any(is_picture(file.suffix.lower()) for file in islice(one.iterdir(), 100))
    )
