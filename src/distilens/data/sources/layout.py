"""Find the split and the class of each picture from the names of its folders.

cat/1.png                     one folder per class
train/cat/1.png               the split above the class, with any usual name
cat/train/1.png               the split below the class
pets-v1/train/cat/1.png       an archive's folder around everything
1.png                         pictures without classes
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from distilens.data.labels import composed
from distilens.data.sources.tree import Parts, Tree
from distilens.foundation.errors import UserError, shortened

WORDS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("val", "valid", "validation", "dev", "development", "eval", "evaluation"),
}
PART_OF = {word: part for part, words in WORDS.items() for word in words}
SPLIT = re.compile(
    rf"({'|'.join(PART_OF)})[ _.-]*(sets?|data|datasets?|images?|imgs?|pictures|split|folder)?[ _.-]*\d*"
)

TAKE_ALL = "splits=false takes every folder as a class"


@dataclass
class Layout:
    """The pictures of each split with their classes.

    Attributes:
        base: the folder of the set, below the folders that an archive adds.
        pictures: by split, in the order of classes and paths. The class is None if there are no classes.
        classes: sorted, in Unicode's composed form; empty for pictures without classes.
        outside: pictures that belong to no class, by reason.
        remarks: decisions that could have been different.
        named: whether the splits are folders.
    """

    base: Parts
    pictures: dict[str, list[tuple[str | None, Parts]]]
    classes: list[str]
    outside: dict[str, list[Parts]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    named: bool = False


def split_of(name: str) -> str | None:
    """The split that a name stands for, in upper or lower case: `Training`, `test_set`, `valid`, `val2017`."""
    match = SPLIT.fullmatch(name.casefold().strip())
    return PART_OF[match[1]] if match else None


def find_splits(names: Iterable[str]) -> dict[str, str]:
    """The names that stand for splits; also `pets_train` and `pets_test`, if they are otherwise equal."""
    names = list(names)
    parts = {name: part for name in names if (part := split_of(name))}
    if "train" in parts.values():
        return parts
    alike: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for name in names:
        pieces = re.findall(r"[^\W_]+", name.casefold())
        words = [piece for piece in pieces if piece in PART_OF]
        if len(words) == 1:
            alike[tuple(piece for piece in pieces if piece != words[0])][name] = PART_OF[words[0]]
    groups = [group for group in alike.values() if "train" in group.values() and len(set(group.values())) > 1]
    return groups[0] if len(groups) == 1 else parts


class Folders:
    """The folders that contain pictures, directly or further below."""

    def __init__(self, tree: Tree):
        self.tree = tree
        self.direct = Counter(parts[:-1] for parts in tree.pictures)
        self.below: dict[Parts, set[str]] = defaultdict(set)
        for parent in self.direct:
            for depth, name in enumerate(parent):
                self.below[parent[:depth]].add(name)

    def names(self, place: Parts) -> list[str]:
        """The folders in `place` with pictures somewhere below them."""
        return sorted(self.below.get(place, ()))

    def unwrap(self, place: Parts, known: Iterable[str] = ()) -> Parts:
        """Go down while everything is in one folder that contains folders itself: an archive's wrapping, not a class."""
        while not self.direct[place]:
            names = self.names(place)
            if len(names) != 1 or names[0] in known or split_of(names[0]) == "train":
                break
            if not self.names((*place, names[0])):
                break
            place = (*place, names[0])
        return place

    def empty(self, place: Parts) -> list[str]:
        """The folders in `place` without any picture."""
        depth = len(place)
        names = {parts[depth] for parts in self.tree.folders if len(parts) == depth + 1 and parts[:depth] == place}
        return sorted(names - self.below.get(place, set()))


def layout_of(tree: Tree, *, splits: bool = True, level: int | None = None) -> Layout:
    """Decide which folders of a tree are splits and classes.

    Args:
        splits: False: no folder is a split, all are classes.
        level: depth of the class folders below the set or below the splits; by default 1.

    Raises:
        UserError: the folders are ambiguous.
    """
    folders = Folders(tree)
    base = folders.unwrap(()) if level is None else ()
    names = folders.names(base)
    remarks = [f"the data set is read from the inner folder {'/'.join(base)}/"] if base else []
    parts = find_splits(names) if splits else {}
    parts, more = splits_above_classes(folders, base, parts)
    remarks += more
    if not names or (parts and not any(folders.names((*base, name)) for name in parts)):
        return Layout(base, {"train": [(None, picture) for picture in tree.pictures]}, [], {}, remarks)
    if parts:
        places = split_places(folders, base, parts)
        return layout_with_splits(folders, base, places, level or 1, remarks, beside=set(names) - set(parts))
    if splits and has_splits_inside_classes(folders, base):
        return layout_with_inner_splits(folders, base, remarks)
    if level is None:
        check_same_below(folders, base)
        remarks += describe_depth(folders, base)
    return layout_with_splits(folders, base, {"train": base}, level or 1, remarks)


def splits_above_classes(folders: Folders, base: Parts, parts: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The folders that are splits, empty if they are classes with such names; and remarks."""
    others = [name for name in folders.names(base) if name not in parts]
    kinds = Counter(parts.values())
    filled = [name for name in parts if folders.names((*base, name))]
    if not parts or (others and len(kinds) == 1 and not filled) or (others and "train" not in kinds):
        remark = f"{shortened(sorted(parts), quoted=True)} is taken as a class: beside it are {shortened(others)}, not splits"
        return {}, [remark] * bool(parts)
    if not filled:  # pictures without classes: the split does not matter
        return dict(parts), []
    twice = [sorted(name for name in parts if parts[name] == part) for part in kinds if kinds[part] > 1]
    if twice:
        raise UserError(
            f"the folders {shortened(twice[0])} could each be the {parts[twice[0][0]]} set: expected one. Put them into "
            f"one, or move folders that should not be read out of {folders.tree.file(base)}; {TAKE_ALL}"
        )
    if "train" not in kinds:
        raise UserError(
            f"there is no train folder beside {shortened(sorted(parts))} in {folders.tree.file(base)}. Name the folder to "
            f"read, path={folders.tree.file((*base, sorted(parts)[0]))} for example; {TAKE_ALL}"
        )
    like = [name for name in others if folders.names((*base, name))]
    if len(kinds) == 1 and like:
        name = next(iter(parts))
        raise UserError(
            f"{name}/ in {folders.tree.file(base)} could be a split or a class: beside it are {shortened(like)}, which also "
            f"contain folders. If it is the training set, name it: path={folders.tree.file((*base, name))}; "
            f"{TAKE_ALL}"
        )
    return dict(parts), []


def split_places(folders: Folders, base: Parts, parts: Mapping[str, str]) -> dict[str, Parts]:
    """The folder with the class folders of each split; it may be inside an archive's folder in the split."""
    named = {part: (*base, name) for name, part in parts.items()}
    train = folders.unwrap(named["train"])
    known = folders.names(train)
    return {part: train if part == "train" else folders.unwrap(place, known) for part, place in named.items()}


def has_splits_inside_classes(folders: Folders, base: Parts) -> bool:
    """Whether some class folder contains only splits, with train among them."""
    for name in folders.names(base):
        inner = folders.names((*base, name))
        parts = find_splits(inner)
        if "train" in parts.values() and len(parts) == len(inner) and len(set(parts.values())) > 1:
            return True
    return False


def layout_with_splits(
    folders: Folders,
    base: Parts,
    places: Mapping[str, Parts],
    level: int,
    remarks: list[str],
    beside: set[str] | frozenset[str] = frozenset(),
) -> Layout:
    """The layout if the classes are folders inside the splits."""
    by_split: dict[str, list[tuple[str | None, Parts]]] = {part: [] for part in places}
    outside: dict[str, list[Parts]] = defaultdict(list)
    kinds = {parent: kind_of(parent, base, places, level, beside) for parent in folders.direct}
    for picture in folders.tree.pictures:
        part, name = kinds[picture[:-1]]
        if part in by_split:
            by_split[part].append((name, picture))
        else:
            outside[part].append(picture)
    classes = {name for pictures in by_split.values() for name, _ in pictures if name is not None}
    if level == 1:
        classes |= set(map(composed, folders.empty(places["train"])))
    ordered = {part: sorted(pictures, key=lambda pair: (pair[0] or "", pair[1])) for part, pictures in by_split.items()}
    filled = {part: pictures for part, pictures in ordered.items() if pictures}
    return Layout(base, filled, sorted(classes), outside, remarks, named=places["train"] != base)


def kind_of(
    parent: Parts, base: Parts, places: Mapping[str, Parts], level: int, beside: set[str] | frozenset[str]
) -> tuple[str, str | None]:
    """The split and the class of the pictures in a folder; or the reason why they have none, and None."""
    for part, place in sorted(places.items(), key=lambda one: -len(one[1])):
        depth = len(place) + level
        if parent[: len(place)] == place and len(parent) >= depth:
            return part, composed(parent[depth - 1])
    if parent[len(base) : len(base) + 1] and parent[len(base)] in beside:
        return "pictures in folders beside the splits", None
    return "pictures outside of the folders of the classes", None


def layout_with_inner_splits(folders: Folders, base: Parts, remarks: list[str]) -> Layout:
    """The layout if the splits are folders inside the classes: `cat/train`, `cat/test`."""
    by_split: dict[str, list[tuple[str | None, Parts]]] = defaultdict(list)
    depth = len(base)
    parts = {name: find_splits(folders.names((*base, name))) for name in folders.names(base)}
    loose = []
    for picture in folders.tree.pictures:
        name, inner = (picture[depth], picture[depth + 1]) if len(picture) > depth + 2 else ("", "")
        if part := parts.get(name, {}).get(inner):
            by_split[part].append((composed(name), picture))
        else:
            loose.append(picture)
    if loose:
        shown = next(name for name, inner in parts.items() if "train" in inner.values())
        raise UserError(
            f"{shown}/ in {folders.tree.file(base)} has {shortened(sorted(parts[shown]))} in it, and {len(loose):,} "
            f"pictures are in no such folder, such as {'/'.join(loose[0])}. Put every picture of every class into a split, or "
            "read everything below a folder as one class: splits=false"
        )
    classes = sorted(set(map(composed, [*parts, *folders.empty(base)])))
    remark = "the splits are inside the class folders"
    return Layout(base, dict(by_split), classes, {}, [*remarks, remark], named=True)


def check_same_below(folders: Folders, base: Parts) -> None:
    """Refuse `2023/cat`, `2023/dog`, `2024/cat`, `2024/dog`: either level could be the classes."""
    names = folders.names(base)
    inner = {tuple(folders.names((*base, name))) for name in names}
    if len(names) < 2 or len(inner) > 1 or len(next(iter(inner))) < 2:
        return
    if not any(folders.direct[(*base, name)] for name in names):
        raise UserError(
            f"the folders {shortened(names)} in {folders.tree.file(base)} all hold the same folders, "
            f"{shortened(next(iter(inner)))}: which of the two are the classes? Give their depth: "
            "level=1 takes the upper ones, level=2 the lower"
        )


def describe_depth(folders: Folders, base: Parts) -> list[str]:
    """A remark if no picture is directly in a class folder: then the folders below could be the classes."""
    names = folders.names(base)
    inner = sorted({below for name in names for below in folders.names((*base, name))})
    if len(inner) < 2 or any(folders.direct[(*base, name)] for name in names):
        return []
    return [f"the classes are {shortened(names)}; level=2 takes the folders below as classes: {shortened(inner)}"]
