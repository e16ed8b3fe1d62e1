"""The error for user mistakes, and helpers for its messages."""

import os
from collections.abc import Sequence
from pathlib import Path


class UserError(ValueError):
    """A user's mistake. The message says what is wrong, what was given, and what would be right.

    The command line prints the message, without a traceback, and exits with 2.
    """


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """`" Did you mean 'kd'?"` for the known name closest to `name`, or an empty string."""
    import difflib

    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def shortened(names: Sequence[str], *, quoted: bool = False, most: int = 8) -> str:
    """Names for a message, at most one line: `a, b, c, … (100 in all)`."""
    shown = ", ".join(repr(name) if quoted else str(name) for name in names[:most])
    return f"{shown}, … ({len(names)} in all)" if len(names) > most else shown


def suggest_path(path: Path) -> str:
    """`". Did you mean 'photos'?"` if a file or folder beside a missing path has a similar name; else an empty string."""
    beside = path.absolute().parent
    if path.exists() or not (beside.is_dir() and os.access(beside, os.R_OK)):
        return ""
    meant = nearest(path.name, [one.name for one in beside.iterdir()])
    return f".{meant}" if meant else ""
