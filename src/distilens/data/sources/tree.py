"""Walk a folder of pictures: collect the pictures, and by reason everything that is left out."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from distilens.data.source import write_option
from distilens.foundation.errors import UserError

Parts = tuple[str, ...]
"""A path below the root, as its components."""

RUBBISH = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "__pycache__"}
"""Folders that systems and programs leave behind; folders that begin with a dot are ignored too."""

SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}

COMMON = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
"""Suffixes that every Pillow decodes: asking it for all of them imports forty modules."""

TEXTS = {"", ".txt", ".csv", ".tsv", ".json", ".xml", ".md", ".py", ".npy", ".mat", ".zip", ".html"}

NO_PICTURES = {"EPS", "MPEG", "HDF5", "GRIB", "BUFR", "WMF", "IPTC"}
"""Formats that Pillow lists but cannot decode on every system."""

HIDDEN, LINKED_AGAIN = "hidden and system folders", "links to folders that are read already"


@dataclass
class Tree:
    """What was found below a root.

    Attributes:
        pictures: in the order of their paths.
        folders: all folders that were read, with or without pictures.
        left_out: by reason, what was not read.
        broken: links to missing files.
    """

    root: Path
    pictures: list[Parts] = field(default_factory=list)
    folders: list[Parts] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    broken: list[str] = field(default_factory=list)

    def file(self, parts: Parts) -> Path:
        return self.root.joinpath(*parts)

    def tables(self) -> list[str]:
        """The files that may hold labels."""
        return [name for suffix in (".csv", ".tsv") for name in self.left_out.get(ending(suffix), ())]


@cache
def suffixes() -> frozenset[str]:
    """The suffixes of all formats that the installed Pillow can decode."""
    from PIL import Image

    known = Image.registered_extensions().items()
    return frozenset(
        suffix for suffix, kind in known if (kind in Image.OPEN and kind not in NO_PICTURES) or kind == "MPO"
    )


def is_picture(suffix: str) -> bool:
    return suffix in COMMON or (suffix not in TEXTS and suffix in suffixes())


def ending(suffix: str) -> str:
    return f"files ending in {suffix}" if suffix else "files without a suffix"


def walk_tree(root: Path) -> Tree:
    """Read a folder and everything below it. Links to folders are followed once; hidden and system folders are skipped.

    Raises:
        UserError: a folder cannot be read.
    """
    tree = Tree(root)
    followed: set[tuple[int, int]] = set()

    def read(folder: str, parts: Parts, above: frozenset[tuple[int, int]]) -> None:
        tree.folders.append(parts)
        above |= {identity(folder)}
        for entry in list_folder(folder):
            name = entry.name
            suffix = os.path.splitext(name)[1].lower()
            below = (*parts, name)
            if entry.is_dir():
                if name.startswith(".") or name.lower() in RUBBISH:
                    tree.left_out[HIDDEN].append("/".join(below))
                    continue
                if entry.is_symlink():
                    place = identity(entry.path)
                    if place in above or place in followed:
                        tree.left_out[LINKED_AGAIN].append("/".join(below))
                        continue
                    followed.add(place)
                read(entry.path, below, above)
            elif name.startswith("."):
                if is_picture(suffix):
                    tree.left_out["hidden files"].append("/".join(below))
            elif entry.is_symlink() and not os.path.exists(entry.path):
                tree.broken.append("/".join(below))
            elif is_picture(suffix) and entry.is_file():
                tree.pictures.append(below)
            elif name.lower() not in SYSTEM_FILES:
                tree.left_out[ending(suffix)].append("/".join(below))

    read(str(root), (), frozenset())
    tree.pictures.sort()
    return tree


def list_folder(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be read: {error.strerror}") from None


def identity(folder: str) -> tuple[int, int]:
    """Device and inode: the same for one folder under different names."""
    stat = os.stat(folder)
    return stat.st_dev, stat.st_ino


def check_links(tree: Tree, *, skip_bad: bool) -> None:
    """Refuse broken links, or leave them out with `skip_bad`.

    Raises:
        UserError: there are broken links; the message names the first.
    """
    if not tree.broken:
        return
    if skip_bad:
        tree.left_out["links that lead nowhere"] += tree.broken
        return
    first = tree.broken[0]
    count = f"{len(tree.broken):,} links lead nowhere" if len(tree.broken) > 1 else "a link leads nowhere"
    raise UserError(
        f"{count}: {first} points to {os.readlink(tree.root / first)}, which does not exist. Fetch the missing files "
        "(dvc pull, git annex get), repair or remove the links, or leave them out: " + write_option("skip_bad=true")
    )
