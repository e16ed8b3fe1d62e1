"""Markdown from templates: every text is shown as it is, whatever it contains."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from distilens.report.paths import without_places

SPECIAL = re.compile(r"[\\`*_<>|~&$]|\](?=[(\[:])|:(?=//)|^[#=]|^[+-](?=[\s+-])|(?<=\d)[.)](?=\s)")
"""What Markdown reads as markup: escapes, code, emphasis, HTML, tables, formulas, links, and what begins a line."""


def environment() -> Environment:
    """The templates of this folder. Texts are escaped; a `Markup` stays as it is."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=shown,
    )
    made.filters |= {"code": code, "row": row}
    return made


def shown(value: Any) -> Any:
    """A value as the template shows it."""
    return escape(value) if type(value) is str else value


def escape(text: str) -> str:
    r"""A text that Markdown shows as it is, on one line; absolute paths are shortened to their last part.

    >>> print(escape("<b>*cat*</b>\n# dog [x](y)"))
    \<b\>\*cat\*\</b\> # dog [x\](y)
    """
    return SPECIAL.sub(r"\\\g<0>", one_line(text))


def code(text: Any) -> Markup:
    """A text as inline code."""
    line = one_line(str(text))
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return Markup(f"{fence}{pad}{line}{pad}{fence}")


def row(cells: Sequence[str]) -> Markup:
    """A row of a table."""
    return Markup("| " + " | ".join(escape(cell) or "–" for cell in cells) + " |")


def one_line(text: str) -> str:
    """A text without line breaks and without absolute paths."""
    return without_places(" ".join(text.split()))
