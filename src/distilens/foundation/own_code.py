"""Objects of the user's own code by `package.module:name`. The working directory is on the path."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from typing import Any

from distilens.foundation.errors import UserError, nearest


def import_object(path: str, kind: str) -> Any:
    """The object at `package.module:name`.

    Args:
        kind: what it is, for messages: `python`, `task`.

    Raises:
        UserError: there is no such module or name.
    """
    module_name, colon, name = path.partition(":")
    if not colon:
        raise UserError(f"{kind}: needs package.module:callable; given {path!r}")
    add_working_directory()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(f"{kind}:{path}: {error}") from None
    if not hasattr(module, name):
        known = [name for name in vars(module) if not name.startswith("_")]
        raise UserError(f"{module_name} has no {name!r}.{nearest(name, known)}")
    return getattr(module, name)


def module_file(path: str) -> str | None:
    """The file of the module in `package.module:name`; None if it has no file, as in a notebook."""
    with contextlib.suppress(ImportError, ValueError, AttributeError):
        add_working_directory()
        module = importlib.util.find_spec(path.partition(":")[0])
        return module.origin if module and module.has_location else None
    return None


def add_working_directory() -> None:
    """Put the working directory on the path."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
