"""The one exception that a user can mend."""

import os
from pathlib import Path


class UserError(ValueError):
    """A mistake in what was asked for: the message says what was wrong, what was given and what would be right.

    The command line prints the message, without a traceback, and exits with 2.
    """


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """`" Did you mean 'kd'?"` for the known name closest to `name`, or an empty string."""
    import difflib

    found = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {found[0]!r}?" if found else ""


def nearest_beside(path: Path) -> str:
    """`". Did you mean 'photos'?"` where something beside a path that does not exist has nearly its name."""
    beside = path.absolute().parent
    if path.exists() or not (beside.is_dir() and os.access(beside, os.R_OK)):
        return ""
    meant = nearest(path.name, [one.name for one in beside.iterdir()])
    return f".{meant}" if meant else ""
