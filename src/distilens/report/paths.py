"""Paths on a page: only their last part is shown, because the page's readers need not know the machine's folders."""

import re
from functools import cache
from pathlib import Path

ROOTS = frozenset(("home", "Users", "root", "mnt", "media", "tmp", "Volumes", "scratch", "data", "var", "opt", "srv"))
"""Top folders of absolute paths, also of other machines; those of this machine are looked up."""

ABSOLUTE = re.compile(r"""(?<![\w./~<-])(?:[A-Za-z]:[\\/]|~?/)(?!/)[^\s"'<>,;)\]}|`]*""")


def without_places(text: str) -> str:
    """The text with each absolute path replaced by its last part.

    >>> without_places("folder:path=/home/me/pets,size=64 of https://example.org/pets")
    'folder:path=pets,size=64 of https://example.org/pets'
    """
    return ABSOLUTE.sub(lambda found: last_part(found[0]), text) if "/" in text or "\\" in text else text


def shown_folder(folder: Path) -> str:
    """A folder for a command on a page: as given, or only its name if the path is absolute."""
    return folder.resolve().name if folder.is_absolute() else str(folder)


def last_part(path: str) -> str:
    parts = [part for part in re.split(r"[\\/]", path) if part]
    stripped = path.rstrip("/\\")
    end = path[len(stripped) :] if not stripped else ""
    if path[0] not in "~/":  # C:\...
        return parts[-1] if len(parts) > 1 else path
    if path[0] == "~":
        return parts[-1] if len(parts) > 1 else path
    return (parts[-1] + end) if parts and is_root(parts[0]) else path


@cache
def is_root(name: str) -> bool:
    return name in ROOTS or Path("/", name).exists()
