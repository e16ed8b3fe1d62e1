"""Segmentations of torchvision in local folders: Pascal VOC and Cityscapes. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from distilens.data.cache import content_of
from distilens.data.decode import Encoded
from distilens.data.masks import Masks
from distilens.data.pixels import Pixels, Side
from distilens.data.source import Source, digest
from distilens.data.sources.files import existing_folder
from distilens.data.sources.listed import add_file_names
from distilens.data.writing import decode_source
from distilens.foundation.errors import UserError

VOC = (
    *(
        "background",
        "aeroplane",
        "bicycle",
        "bird",
        "boat",
        "bottle",
        "bus",
        "car",
        "cat",
        "chair",
        "cow",
        "diningtable",
    ),
    *("dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""The classes of Pascal VOC, in the order of the palette; 255 is the border of an object."""

Files = Mapping[str, Sequence[tuple[Path, Path]]]
"""Images and masks by split."""


def voc(
    cache: Path,
    *,
    path: Path,
    year: Literal["2007", "2008", "2009", "2010", "2011", "2012"] = "2012",
    size: Side | None = None,
    skip_bad: bool = False,
) -> Source:
    """Pascal VOC: 21 classes, from a folder with VOCdevkit/VOC2012, as torchvision.datasets.VOCSegmentation reads it.

    Its `train` is the training set, its `val` the test set. The images have different sizes: see `size`.

    Source: Everingham et al. 2010, "The Pascal visual object classes challenge", IJCV 88

    Raises:
        UserError: the files are not there.
    """
    from torchvision.datasets import VOCSegmentation

    root = existing_folder(path).absolute()
    files: dict[str, list[tuple[Path, Path]]] = {}
    for part, own in (("train", "train"), ("validation", "val")):
        try:
            loaded = VOCSegmentation(str(root), year=year, image_set=own, download=False)
        except (RuntimeError, OSError):
            raise UserError(
                f"the files of Pascal VOC {year} are not in {root}, or are incomplete: expected VOCdevkit/VOC{year} with "
                f"JPEGImages, SegmentationClass and ImageSets/Segmentation/{own}.txt"
            ) from None
        files[part] = [(Path(image), Path(mask)) for image, mask in zip(loaded.images, loaded.masks, strict=True)]
    return source_of_files(cache, root, files, Masks(VOC), Pixels(size), skip_bad=skip_bad)


def cityscapes(cache: Path, *, path: Path, size: Side | None = None, skip_bad: bool = False) -> Source:
    """Cityscapes: 19 classes, from a folder with leftImg8bit and gtFine, as torchvision.datasets.Cityscapes reads it.

    Its `val` is the test set: the masks of its own test set are not public. All classes that do not count in the benchmark are
    void.

    Source: Cordts et al. 2016 (arXiv 1604.01685)

    Raises:
        UserError: the files are not there.
    """
    from torchvision.datasets import Cityscapes

    root = existing_folder(path).absolute()
    files: dict[str, list[tuple[Path, Path]]] = {}
    for part, own in (("train", "train"), ("validation", "val")):
        # torchvision would unpack archives that lie in the folder
        if not all((root / kind / own).is_dir() for kind in ("leftImg8bit", "gtFine")):
            raise UserError(
                f"the files of Cityscapes are not in {root}, or incomplete: expected leftImg8bit/{own} and gtFine/{own}, with "
                "a folder for each city"
            )
        loaded = Cityscapes(str(root), split=own, mode="fine", target_type="semantic")
        files[part] = sorted(
            (Path(image), Path(mask)) for image, (mask,) in zip(loaded.images, loaded.targets, strict=True)
        )
    counted = sorted((one for one in Cityscapes.classes if 0 <= one.train_id < 255), key=lambda one: one.train_id)
    void = tuple(one.id for one in Cityscapes.classes if one not in counted and one.id >= 0)
    masks = Masks(tuple(one.name for one in counted), tuple(one.id for one in counted), void)
    return source_of_files(cache, root, files, masks, Pixels(size), skip_bad=skip_bad)


def source_of_files(cache: Path, root: Path, files: Files, masks: Masks, pixels: Pixels, *, skip_bad: bool) -> Source:
    """Make a segmentation from the files of images and masks by split.

    Raises:
        UserError: a file does not exist; it is named.
    """
    every = [file for pairs in files.values() for pair in pairs for file in pair]
    absent = [file for file in every if not file.is_file()]
    if absent or not files["train"]:
        what = f"{len(absent):,} files are missing, such as {absent[0]}" if absent else "there are no training images"
        raise UserError(f"{what} (in {root})")

    def encoded(pairs: Sequence[tuple[Path, Path]]) -> Encoded:
        return Encoded(
            np.zeros(len(pairs), dtype=np.int64),
            lambda: (image for image, _ in pairs),
            lambda row: str(pairs[row][0].relative_to(root)),
            lambda: (mask for _, mask in pairs),
        )

    names = {part: [str(image.relative_to(root)) for image, _ in pairs] for part, pairs in files.items()}
    source = decode_source(
        cache,
        digest("files with masks", content_of(every, root, cache), names),
        lambda: ({part: encoded(pairs) for part, pairs in files.items()}, ()),
        pixels,
        skip_bad=skip_bad,
        masks=masks,
    )
    return add_file_names(
        source, {part: [("images", image) for image, _ in pairs] for part, pairs in files.items()}, root
    )
