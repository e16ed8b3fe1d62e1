"""Find the mask of each image from the names of folders and files.

images/1.jpg, masks/1.png                 the same name in two folders
train/images/1.jpg, train/masks/1.png     the split above; also images/train/1.jpg and masks/train/1.png
train_images/1.jpg, train_masks/1.png     the split in the name of the folder
1.jpg, 1_mask.png                         one folder
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np

from distilens.data.decode import Encoded
from distilens.data.source import write_option
from distilens.data.sources.layout import split_of
from distilens.data.sources.listed import choose_test_files
from distilens.data.sources.tree import Parts, Tree
from distilens.foundation.errors import UserError, shortened

IMAGES = {"images", "image", "imgs", "img", "pictures", "photos", "jpegimages", "input", "inputs", "leftimg8bit"}
MASKS = {
    *(
        "masks",
        "mask",
        "labels",
        "label",
        "annotations",
        "annotation",
        "segmentationclass",
        "segmentation",
        "segmentations",
    ),
    *("gt", "groundtruth", "labelids"),
}
"""Words in the names of folders."""

MASK_END = re.compile(r"(.+?)[ _.-](masks?|labels?|seg|segmentation|gt|annotations?|labelids|l)$", re.IGNORECASE)
IMAGE_END = re.compile(r"(.+?)[ _.-](images?|img|leftimg8bit|sat)$", re.IGNORECASE)

SHOWN = 20
"""The most names in a message about images without masks."""


@dataclass
class Paired:
    """The images of each split with their masks.

    Attributes:
        pairs: by split, in the order of the images' paths.
        alone: images without a mask, and masks without an image.
        outside: pictures that are neither images nor masks, by reason.
        named: whether the splits are folders.
    """

    pairs: dict[str, list[tuple[Parts, Parts]]] = field(default_factory=lambda: defaultdict(list))
    alone: tuple[list[Parts], list[Parts]] = field(default_factory=lambda: ([], []))
    outside: dict[str, list[Parts]] = field(default_factory=lambda: defaultdict(list))
    named: bool = False

    @property
    def count(self) -> int:
        return sum(map(len, self.pairs.values()))


def find_pairs(tree: Tree, *, sure: bool) -> Paired | None:
    """The images and masks below a root; None if the pictures do not look like that.

    Args:
        sure: whether the user has said that there are masks; else at least half of the masks need an image, and of masks beside
            their images at least half of the pictures must be in pairs, without folders that could be classes.

    Raises:
        UserError: the user said so, but there is no pair; or two pictures have one name.
    """
    paired = pairs_in_folders(tree)
    if paired.count and (sure or 2 * paired.count >= paired.count + len(paired.alone[1])):
        return paired
    beside = pairs_beside(tree)
    folders = {parts[:-1] for pictures in beside.pairs.values() for parts, _ in pictures}
    classes = {parts for parts in folders if not (parts and split_of(parts[-1]))}
    if beside.count and (sure or (4 * beside.count >= len(tree.pictures) and len(classes) < 2)):
        return beside
    if sure:
        raise UserError(
            f"target=mask: no image in {tree.root} has a mask. Expected images/1.jpg and masks/1.png, or 1.jpg and 1_mask.png"
        )
    return None


def pairs_in_folders(tree: Tree) -> Paired:
    """Pairs in two folders each, one of images and one of masks."""
    sides: dict[Parts, tuple[list[Parts], list[Parts]]] = defaultdict(lambda: ([], []))
    paired = Paired()
    for picture in tree.pictures:
        key, side = key_of(picture[:-1])
        if side is None:
            paired.outside["pictures outside of the folders of images and masks"].append(picture)
        else:
            sides[key][side].append(picture)
    for key, (images, masks) in sides.items():
        if images and masks:
            add_pairs(paired, key, images, masks)
        else:
            kind = "images without a folder of masks" if images else "masks without a folder of images"
            paired.outside[kind] += images or masks
    return with_splits(paired)


def key_of(folders: Parts) -> tuple[Parts, int | None]:
    """The folders without the word for images or masks; and 0 for images, 1 for masks, None for neither."""
    for place in reversed(range(len(folders))):
        words = re.findall(r"[^\W_]+", folders[place].casefold())
        for side, known in ((1, MASKS), (0, IMAGES)):
            if known & set(words):
                rest = "_".join(word for word in words if word not in IMAGES | MASKS)
                return (*folders[:place], *([rest] if rest else []), *folders[place + 1 :]), side
    return folders, None


def pairs_beside(tree: Tree) -> Paired:
    """Pairs in one folder: `1.jpg` and `1_mask.png`."""
    folders: dict[Parts, list[Parts]] = defaultdict(list)
    for picture in tree.pictures:
        folders[picture[:-1]].append(picture)
    paired = Paired()
    for folder, pictures in folders.items():
        stems = {stem_of(picture) for picture in pictures}
        masks = [one for one in pictures if (match := MASK_END.match(stem_of(one))) and match[2].lower() != "l"]
        if any(MASK_END.match(stem_of(mask))[1] in stems for mask in masks):  # type: ignore[index]
            add_pairs(paired, folder, [one for one in pictures if one not in set(masks)], masks)
        else:
            paired.outside["pictures without masks beside them"] += pictures
    return with_splits(paired)


def add_pairs(paired: Paired, key: Parts, images: Sequence[Parts], masks: Sequence[Parts]) -> None:
    """Pair images and masks of two lists by their names without suffix, else without words such as `_mask` at the end."""
    by_name = named_once(masks, None)
    rest = []
    for image in images:
        mask = by_name.pop(stem_of(image), None)
        if mask is None:
            rest.append(image)
        else:
            paired.pairs["/".join(key)].append((image, mask))
    by_name = named_once(list(by_name.values()), MASK_END)
    for image in rest:
        stem = stem_of(image)
        match = IMAGE_END.match(stem)
        mask = by_name.pop(stem, None) or (by_name.pop(match[1], None) if match else None)
        if mask is None:
            paired.alone[0].append(image)
        else:
            paired.pairs["/".join(key)].append((image, mask))
    paired.alone[1].extend(by_name.values())
    named_once(images, None)


def named_once(pictures: Sequence[Parts], end: re.Pattern[str] | None) -> dict[str, Parts]:
    """Pictures by their name without suffix (and without a word at its end).

    Raises:
        UserError: two pictures have one name.
    """
    named: dict[str, Parts] = {}
    for picture in pictures:
        stem = stem_of(picture)
        match = end.match(stem) if end else None
        name = match[1] if match else stem
        if name in named:
            raise UserError(
                f"{'/'.join(named[name])} and {'/'.join(picture)} have one name: expected one mask for each image"
            )
        named[name] = picture
    return named


def stem_of(picture: Parts) -> str:
    return PurePosixPath(picture[-1]).stem


def with_splits(paired: Paired) -> Paired:
    """The same with the pairs by split, from the names of the folders around them."""
    parts = {key: next((part for name in key.split("/") if (part := split_of(name))), None) for key in paired.pairs}
    found: dict[str, list[tuple[Parts, Parts]]] = defaultdict(list)
    named = "train" in parts.values()
    for key, pairs in paired.pairs.items():
        part = parts[key]
        if named and part is None:
            paired.outside["pictures in folders beside the splits"] += [image for image, _ in pairs]
        else:
            found[part if named and part else "train"] += pairs
    return Paired({part: sorted(pairs) for part, pairs in found.items()}, paired.alone, paired.outside, named)


def check_alone(paired: Paired, *, skip_bad: bool) -> None:
    """Refuse images without a mask and masks without an image, or leave them out with `skip_bad`.

    Raises:
        UserError: it counts and names them.
    """
    kinds = ("images without a mask", "masks without an image")
    if skip_bad:
        paired.outside |= {kind: alone for kind, alone in zip(kinds, paired.alone, strict=True) if alone}
        return
    words = [
        f"{len(alone):,} {kind} ({shortened(['/'.join(one) for one in alone], most=SHOWN)})"
        for kind, alone in zip(kinds, paired.alone, strict=True)
        if alone
    ]
    if words:
        raise UserError(
            f"there are {' and '.join(words)}. A mask has the name of its image, perhaps with _mask at the end. Add what is "
            "missing, give an image without labels a mask of 255, or leave them out: " + write_option("skip_bad=true")
        )


def hold_out_pairs(paired: Paired, tree: Tree) -> dict[str, list[tuple[Parts, Parts]]]:
    """A fixed fifth as the test set, by a hash of the images' paths."""
    files = {tree.file(image): (image, mask) for image, mask in paired.pairs["train"]}
    if len(files) < 3:
        return dict(paired.pairs)
    held = choose_test_files([("", file) for file in files], tree.root)
    return {
        "train": [pair for file, pair in files.items() if file not in held],
        "test": [pair for file, pair in files.items() if file in held],
    }


def encode_pairs(pairs: Sequence[tuple[Parts, Parts]], tree: Tree) -> Encoded:
    return Encoded(
        np.zeros(len(pairs), dtype=np.int64),
        lambda: (tree.file(image) for image, _ in pairs),
        lambda row: "/".join(pairs[row][0]),
        lambda: (tree.file(mask) for _, mask in pairs),
    )


def places_of_pairs(pairs: Mapping[str, Sequence[tuple[Parts, Parts]]]) -> dict[str, dict[str, int]]:
    """The number of images from each folder."""
    counts = Counter("/".join(image[:-1]) or "." for one in pairs.values() for image, _ in one)
    return {"images with masks": dict(counts)}
