"""HTML for notebooks: small tables and images."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
from PIL import Image


def table(rows: Iterable[Sequence[object]], header: Sequence[str] = ()) -> str:
    """Rows of text as an HTML table; the text is escaped."""
    head = f"<thead><tr>{cells(header, 'th')}</tr></thead>" if header else ""
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<table>{head}<tbody>{body}</tbody></table>"


def cells(row: Sequence[object], kind: str) -> str:
    return "".join(f'<{kind} style="text-align: left">{escape(str(value))}</{kind}>' for value in row)


def heading(text: str) -> str:
    return f"<p><strong>{escape(text)}</strong></p>"


def link(target: str, text: str) -> str:
    return f'<p><a href="{escape(target)}">{escape(text)}</a></p>'


def picture(image: np.ndarray, caption: str, side: int = 64) -> str:
    """An image `[h w 3]` of uint8, embedded in the page, at least `side` pixels high."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "png")
    content = base64.b64encode(stream.getvalue()).decode("ascii")
    shown = f'<img alt="{escape(caption)}" height="{max(side, image.shape[0])}" src="data:image/png;base64,{content}">'
    return (
        f'<figure style="display: inline-block; margin: 4px">{shown}<figcaption>{escape(caption)}</figcaption></figure>'
    )
