"""Shared pictures: a picture that a page shows several times is embedded once and then referenced."""

import base64
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Shared:
    """A picture that is embedded once: its element's id, and its size in pixels."""

    id: str
    width: int
    height: int


def shared_pictures(content: Any) -> dict[str, Shared]:
    """The data URIs that occur more than once in plain data, in order."""
    counted = Counter(uri for uri in texts(content) if uri.startswith("data:image/"))
    pictures: dict[str, Shared] = {}
    for uri, count in counted.items():
        if count > 1:
            picture = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
            pictures[uri] = Shared(f"picture-{len(pictures)}", *picture.size)
    return pictures


def texts(content: Any) -> Iterator[str]:
    """All texts in nested plain data."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, Mapping):
        for value in content.values():
            yield from texts(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from texts(value)
