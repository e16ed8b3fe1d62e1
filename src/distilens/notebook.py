"""What objects show of themselves in a notebook: small tables and pictures, as HTML."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

    from distilens.model import Model


def table(rows: Iterable[Sequence[object]], header: Sequence[str] = ()) -> str:
    """Rows of text as a table; what stands in them is escaped."""
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
    """An image `[h w 3]` of uint8 in the page itself, at least so many pixels high."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "png")
    content = base64.b64encode(stream.getvalue()).decode("ascii")
    shown = f'<img alt="{escape(caption)}" height="{max(side, image.shape[0])}" src="data:image/png;base64,{content}">'
    return (
        f'<figure style="display: inline-block; margin: 4px">{shown}<figcaption>{escape(caption)}</figcaption></figure>'
    )


def of_model(model: Model) -> str:
    """A model's name, size, classes and pixels."""
    shown = ", ".join(model.classes[:10]) + (", ..." if len(model.classes) > 10 else "")
    height, width = model.size
    rows = [
        ("network", type(model.network).__name__),
        ("parameters", f"{sum(parameter.numel() for parameter in model.parameters()):,}"),
        ("classes", f"{len(model.classes)}: {shown}"),
        ("pixels", f"{height}×{width}, mean {numbers(model.mean)}, deviation {numbers(model.std)}"),
        *([("taps", ", ".join(model.taps))] if model.taps else []),
    ]
    return heading(model.name) + table(rows)


def numbers(values: Tensor) -> str:
    return ", ".join(f"{value:.3g}" for value in values.flatten().tolist())
