"""The files of an export and their verification: `export.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distilens import __version__
from distilens.foundation.errors import UserError
from distilens.foundation.files import read_json

FILE = "export.json"
KIND = "distilens exports 1"


@dataclass(frozen=True)
class Exported:
    """The files of an export and how they were verified: what `export.json` holds.

    Attributes:
        folder: where the files are.
        about: the student's description.
        files: one entry per file, also for refused ones (`refused` says why, and there is no file).
        data: the name of the data; None if the files were compared on example images only.
    """

    folder: Path
    about: Mapping[str, Any]
    files: tuple[Mapping[str, Any], ...] = ()
    data: str | None = None
    tolerance: float = 0.5

    @property
    def refused(self) -> list[Mapping[str, Any]]:
        """The entries of the files that were not kept."""
        return [entry for entry in self.files if entry.get("refused")]

    def paths(self) -> list[Path]:
        """The files."""
        return [self.folder / entry["file"] for entry in self.files if not entry.get("refused")]

    def plain(self) -> dict[str, Any]:
        """The content of `export.json`."""
        return {
            "kind": KIND,
            "distilens": __version__,
            "student": dict(self.about),
            "data": self.data,
            "tolerance": self.tolerance,
            "files": [dict(entry) for entry in self.files],
        }

    def __repr__(self) -> str:
        kept = ", ".join(entry["file"] for entry in self.files if not entry.get("refused"))
        return f"Exported({str(self.folder)!r}: {kept or 'no file'})"


def read_exported(folder: Path) -> Exported | None:
    """The export in a folder; None if there is none."""
    content = read_json(folder / FILE)
    if not isinstance(content, dict) or content.get("kind") != KIND:
        return None
    return Exported(folder, content["student"], tuple(content["files"]), content["data"], content["tolerance"])


class Refused(UserError):  # noqa: N818  # some files were refused
    """Some files do not answer as the student does; the others are there."""

    def __init__(self, found: Exported):
        self.found = found
        super().__init__("; ".join(f"{entry['file']} is not kept: {entry['refused']}" for entry in found.refused))
