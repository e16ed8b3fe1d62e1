"""Where on the machine files are is nobody's business who reads a page: paths are shown by their last part."""

import re
from functools import cache
from pathlib import Path

ROOTS = frozenset(("home", "Users", "root", "mnt", "media", "tmp", "Volumes", "scratch", "data", "var", "opt", "srv"))
"""First folders of absolute paths, on other machines as well; those of this machine are looked up."""

ABSOLUTE = re.compile(r"""(?<![\w./~<-])(?:[A-Za-z]:[\\/]|~?/)(?!/)[^\s"'<>,;)\]}|`]*""")


def without_places(text: str) -> str:
    """A text with the last part of each absolute path in place of the path.

    >>> without_places("folder:path=/home/me/pets,size=64 of https://example.org/pets")
    'folder:path=pets,size=64 of https://example.org/pets'
    """
    return ABSOLUTE.sub(lambda found: last_part(found[0]), text) if "/" in text or "\\" in text else text


def shown_folder(folder: Path) -> str:
    """A folder in a command on a page: as it was given, or by its name alone where it was given in full."""
    return folder.resolve().name if folder.is_absolute() else str(folder)


def last_part(path: str) -> str:
    parts = [part for part in re.split(r"[\\/]", path) if part]
    kept = path.rstrip("/\\")
    end = path[len(kept) :] if not kept else ""
    if path[0] not in "~/":  # C:\...
        return parts[-1] if len(parts) > 1 else path
    if path[0] == "~":
        return parts[-1] if len(parts) > 1 else path
    return (parts[-1] + end) if parts and is_root(parts[0]) else path


@cache
def is_root(name: str) -> bool:
    return name in ROOTS or Path("/", name).exists()
