"""Data that a function of your own makes."""

from __future__ import annotations

from pathlib import Path

from distilens.data.source import Source
from distilens.data.sources.objects import source_of_objects
from distilens.data.splits import Data
from distilens.foundation.errors import UserError
from distilens.foundation.own_code import import_object


def python(path: str, /, cache: Path) -> Source | Data:
    """Your own: `python:package.module:function` returns what `as_data` takes, or a `Data` (for a task of your own).

    The working directory is on the path. This runs your code, so it names a module, never a downloaded file.

    Source: your own code
    """
    make = import_object(path, "python")
    if not callable(make):
        raise UserError(f"python:{path} is not callable: it is a {type(make).__name__}")
    made = make()
    return made if isinstance(made, Data) else source_of_objects(made, cache)
