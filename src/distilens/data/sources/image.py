"""A single picture to explain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from distilens.data.decode import Encoded
from distilens.data.pixels import Ground, Pixels, Range, Side
from distilens.data.source import Source, digest
from distilens.data.writing import decode_source
from distilens.foundation.errors import UserError


def image(
    name: str,
    /,
    cache: Path,
    *,
    size: Side | None = None,
    ground: Ground = "white",
    range_: Range = None,
    large: bool = False,
) -> Source:
    """One picture without a class: `image:cat.jpg`, for `distilens explain` and `gallery`.

    For `size`, `ground`, `range` and `large` see `Pixels`.

    Source: any format that Pillow reads, https://pillow.readthedocs.io

    Raises:
        UserError: the file does not exist, or is not a picture.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        raise UserError(f"image:{name} is a folder: folder:path={name} reads the pictures in it")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"the picture {name} cannot be read: {error.strerror} (looked from {Path.cwd()})") from None
    encoded = Encoded(np.array([-1]), lambda: iter([content]), lambda row: path.name)
    key = digest("image", content)
    source = decode_source(
        cache, key, lambda: ({"train": encoded}, []), Pixels(size, ground, range_, large), skip_bad=False
    )
    return replace(source, train=replace(source.train, names=(path.name,)))
