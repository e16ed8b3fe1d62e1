"""Data sets from folders of pictures: one folder per class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from distilens.data.cache import content_of
from distilens.data.decode import Encoded
from distilens.data.masks import Ignored, Masks
from distilens.data.pixels import Ground, Pixels, Range, Side
from distilens.data.source import Inventory, Source, digest
from distilens.data.sources.files import existing_folder
from distilens.data.sources.layout import Layout, layout_of
from distilens.data.sources.listed import Listed, add_file_names, encode_files, hold_out_test, places_of
from distilens.data.sources.paired import (
    Paired,
    check_alone,
    encode_pairs,
    find_pairs,
    hold_out_pairs,
    places_of_pairs,
)
from distilens.data.sources.tree import Tree, check_links, is_picture, suffixes, walk_tree
from distilens.data.writing import decode_source
from distilens.foundation.errors import UserError, shortened


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
    target: Literal["mask", "label"] | None = None,
    class_names: tuple[str, ...] | None = None,
    values: tuple[int, ...] | None = None,
    ignore: Ignored = (),
    colours: tuple[str, ...] | None = None,
    group: str | None = None,
) -> Source:
    """Images in one folder per class, or images and masks; train/ and test/ (and validation/) above or below are optional.

    Splits are recognised by their usual names in any case (`Training`, `test_set`, `val`, `dev`). An extra folder around
    everything is passed through. Without a test set, a fixed fifth of every class is the test set: the images whose path has
    a small hash, so that adding images moves no other image. Hidden and system folders are not read, and linked folders are
    read once; `Source.inventory` counts what is left out. Pictures without classes can be explained. `splits=false` takes
    every folder as a class. `level` says how many folders down the classes are. `skip_bad` skips images that cannot be
    decoded and broken links. For `size`, `ground`, `range` and `large` see `Pixels`.

    Source: the layout of torchvision.datasets.ImageFolder

    Raises:
        UserError: no such folder, no images, an ambiguous layout, or bad images or links.
    """
    root = existing_folder(path).absolute()
    tree = walk_tree(root)
    check_links(tree, skip_bad=skip_bad)
    if not tree.pictures:
        raise no_pictures(tree)
    check_names(tree)
    pixels = Pixels(size, ground, range_, large)
    paired = None if target == "label" else find_pairs(tree, sure=target == "mask")
    if paired is not None:
        masks = Masks(class_names, values, ignore, colours)
        return read_paired(cache, tree, paired, pixels, masks, skip_bad=skip_bad, hold_out=group is None)
    given = {"class_names": class_names, "values": values, "ignore": ignore or None, "colours": colours}
    if wrong := [name for name, value in given.items() if value is not None]:
        raise UserError(
            f"{', '.join(wrong)}= is about masks, and {path} is read as folders of classes: target=mask reads masks"
        )
    layout = layout_of(tree, splits=splits, level=level)
    listed = list_images(tree, layout, hold_out=group is None)
    content = content_of([file for images in listed.values() for _, file in images], root, cache)
    # A class folder without an image has no content, but must change the key.
    key = digest(
        "folder", content, layout.classes, {part: len(images) for part, images in listed.items()}, splits, level
    )

    def read() -> tuple[dict[str, Encoded], Sequence[str]]:
        return {part: encode_files(images, layout.classes, root) for part, images in listed.items()}, layout.classes

    source = decode_source(cache, key, read, pixels, skip_bad=skip_bad)
    return replace(add_file_names(source, listed, root), inventory=inventory_of(tree, layout, listed, source))


def read_paired(
    cache: Path, tree: Tree, paired: Paired, pixels: Pixels, masks: Masks, *, skip_bad: bool, hold_out: bool
) -> Source:
    """A segmentation from images and their masks; without folders for splits a fixed fifth is the test set.

    Args:
        hold_out: False: leave it to `subset`.
    """
    check_alone(paired, skip_bad=skip_bad)
    pairs = paired.pairs if paired.named or not hold_out else hold_out_pairs(paired, tree)
    files = [tree.file(parts) for one in pairs.values() for pair in one for parts in pair]
    names = {part: [("/".join(image), "/".join(mask)) for image, mask in one] for part, one in pairs.items()}
    source = decode_source(
        cache,
        digest("folder masks", content_of(files, tree.root, cache), names),
        lambda: ({part: encode_pairs(one, tree) for part, one in pairs.items()}, ()),
        pixels,
        skip_bad=skip_bad,
        masks=masks,
    )
    listed = {part: [("images", tree.file(image)) for image, _ in one] for part, one in pairs.items()}
    outside = {
        reason: ["/".join(parts) for parts in pictures] for reason, pictures in paired.outside.items() if pictures
    }
    inventory = replace(source.inventory, places=places_of_pairs(pairs), left_out={**outside, **tree.left_out})
    return replace(add_file_names(source, listed, tree.root), inventory=inventory)


def check_names(tree: Tree) -> None:
    """Check that all folder names are UTF-8: the name of a class is written into files and pages.

    Raises:
        UserError: it names the first folder whose name is not UTF-8.
    """
    for parts in tree.folders:
        if parts and not parts[-1].isprintable() and any(0xD800 <= ord(character) < 0xE000 for character in parts[-1]):
            raise UserError(
                f"the name of the folder {os.fsencode('/'.join(parts))!r} in {tree.root} is not UTF-8: rename it"
            )


def no_pictures(tree: Tree) -> UserError:
    there = ", ".join(f"{len(names):,} {reason}" for reason, names in tree.left_out.items())
    return UserError(
        f"no images in {tree.root}: expected a folder per class ({tree.root / 'cat' / '1.png'}), or train/ and test/ with a "
        f"folder per class. Images end in .jpg, .png or one of {len(suffixes()) - 2} others"
        + f"; there are {there}"
        * bool(there)
    )


def list_images(tree: Tree, layout: Layout, *, hold_out: bool = True) -> Listed:
    """The files of each split. Without a test split, a fifth of every class is held out if `hold_out`."""
    listed = {part: [(name, tree.file(path)) for name, path in files] for part, files in layout.pictures.items()}
    if hold_out and layout.classes and not layout.named:
        return hold_out_test(listed["train"], tree.file(layout.base))
    return listed


def inventory_of(tree: Tree, layout: Layout, listed: Listed, source: Source) -> Inventory:
    """Where the images of each split are, and what was left out."""
    outside = {reason: ["/".join(path) for path in paths] for reason, paths in layout.outside.items()}
    return Inventory(
        places_of(listed, layout.classes, tree.root, source.skipped),
        {**outside, **tree.left_out},
        (*layout.remarks, *source.inventory.remarks),
        hint_of(tree),
    )


def hint_of(tree: Tree) -> str:
    """A hint for data with fewer than two classes: the folders and tables that were found."""
    tables, folders = tree.tables(), ["/".join(parts) for parts in tree.folders if parts]
    hints = [f"Folders seen: {shortened(folders)}." if folders else "There are no folders in it."]
    if tables:
        name = next((table for table in tables if "train" in table.lower()), tables[0])
        hints.append(f"If the labels are in {shortened(tables)}, name it: csv:path={tree.root / name}.")
    beside = [] if folders else folders_of_pictures(tree.root.parent)
    if len(beside) > 1:
        hints.append(
            f"{tree.root.parent} holds several folders with pictures ({shortened(beside)}): path={tree.root.parent}."
        )
    return " ".join(["Expected a folder per class, and at least two classes.", *hints])


def folders_of_pictures(place: Path) -> list[str]:
    """The names of the folders directly in `place` that have a picture among their first hundred entries."""
    if not os.access(place, os.R_OK):
        return []
    folders = [path for path in place.iterdir() if path.name[0] != "." and path.is_dir() and os.access(path, os.R_OK)]
    return sorted(
        path.name for path in folders if any(is_picture(file.suffix.lower()) for file in islice(path.iterdir(), 100))
    )
