"""Pictures that stand on a page several times are embedded once, and referred to where they are shown."""

import base64
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Shared:
    """A picture that is embedded once: the id of its element, and its size in pixels."""

    id: str
    width: int
    height: int


def shared_pictures(content: Any) -> dict[str, Shared]:
    """Those data URIs that stand in plain data more than once, in order."""
    counted = Counter(uri for uri in texts(content) if uri.startswith("data:image/"))
    found: dict[str, Shared] = {}
    for uri, count in counted.items():
        if count > 1:
            picture = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
            found[uri] = Shared(f"picture-{len(found)}", *picture.size)
    return found


def texts(content: Any) -> Iterator[str]:
    """All texts in plain data, however deep."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, Mapping):
        for value in content.values():
            yield from texts(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from texts(value)
