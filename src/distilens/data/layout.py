"""Which picture belongs to which split and class, read from the names of the folders alone.

cat/1.png                     a folder a class
train/cat/1.png               the split above the class, under any of its usual names
cat/train/1.png               the split below the class
pets-v1/train/cat/1.png       an archive's folder around the whole
1.png                         pictures without classes
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from distilens.data.labels import composed
from distilens.data.source import shortened
from distilens.data.tree import Parts, Tree
from distilens.errors import UserError

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
        base: the folder that holds the set; all above it is an archive's wrapping.
        pictures: by split, in the order of classes and paths. The class is None where there are no classes.
        classes: sorted, in Unicode's composed form; empty for pictures without classes.
        outside: pictures that belong to no class, by reason.
        remarks: what was decided, where it could have been decided otherwise.
        named: whether the splits are folders of their own.
    """

    base: Parts
    pictures: dict[str, list[tuple[str | None, Parts]]]
    classes: list[str]
    outside: dict[str, list[Parts]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    named: bool = False


def split_of(name: str) -> str | None:
    """The split that a name stands for, whatever its case: `Training`, `test_set`, `valid`, `val2017`."""
    found = SPLIT.fullmatch(name.casefold().strip())
    return PART_OF[found[1]] if found else None


def splits_among(names: Iterable[str]) -> dict[str, str]:
    """The names that stand for splits; also `pets_train` and `pets_test`, where they differ in nothing else."""
    names = list(names)
    found = {name: part for name in names if (part := split_of(name))}
    if "train" in found.values():
        return found
    alike: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for name in names:
        pieces = re.findall(r"[^\W_]+", name.casefold())
        words = [piece for piece in pieces if piece in PART_OF]
        if len(words) == 1:
            alike[tuple(piece for piece in pieces if piece != words[0])][name] = PART_OF[words[0]]
    groups = [group for group in alike.values() if "train" in group.values() and len(set(group.values())) > 1]
    return groups[0] if len(groups) == 1 else found


class Folders:
    """The folders that hold pictures, and what is directly in them."""

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

    def unwrapped(self, place: Parts, known: Iterable[str] = ()) -> Parts:
        """Go down while all lies in one folder that holds folders itself: an archive's wrapping, and no class."""
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
        found = {parts[depth] for parts in self.tree.folders if len(parts) == depth + 1 and parts[:depth] == place}
        return sorted(found - self.below.get(place, set()))


def layout_of(tree: Tree, *, splits: bool = True, level: int | None = None) -> Layout:
    """Decide what the folders of a tree are.

    Args:
        splits: False: no folder is a split, all are classes.
        level: how many folders down the classes are, below the set or below the splits; by default one.

    Raises:
        UserError: folders that can be read in two ways.
    """
    folders = Folders(tree)
    base = folders.unwrapped(()) if level is None else ()
    names = folders.names(base)
    remarks = [f"the set is read inside of {'/'.join(base)}/"] if base else []
    parts = splits_among(names) if splits else {}
    parts, said = above_classes(folders, base, parts)
    remarks += said
    if not names or (parts and not any(folders.names((*base, name)) for name in parts)):
        return Layout(base, {"train": [(None, picture) for picture in tree.pictures]}, [], {}, remarks)
    if parts:
        places = split_places(folders, base, parts)
        return with_places(folders, base, places, level or 1, remarks, beside=set(names) - set(parts))
    if splits and inside_classes(folders, base):
        return below_classes(folders, base, remarks)
    if level is None:
        check_same_below(folders, base)
        remarks += said_of_depth(folders, base)
    return with_places(folders, base, {"train": base}, level or 1, remarks)


def above_classes(folders: Folders, base: Parts, parts: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The split folders if they are splits, none if they are classes that are called so; and what has to be said."""
    others = [name for name in folders.names(base) if name not in parts]
    kinds = Counter(parts.values())
    filled = [name for name in parts if folders.names((*base, name))]
    if not parts or (others and len(kinds) == 1 and not filled) or (others and "train" not in kinds):
        said = (
            f"{shortened(sorted(parts), quoted=True)} is taken as a class: beside it lie {shortened(others)}, no splits"
        )
        return {}, [said] * bool(parts)
    if not filled:  # pictures without classes: it does not matter which split they lie in
        return dict(parts), []
    twice = [sorted(name for name in parts if parts[name] == part) for part in kinds if kinds[part] > 1]
    if twice:
        raise UserError(
            f"the folders {shortened(twice[0])} could each be the {parts[twice[0][0]]} set: one is wanted. Put them into "
            f"one, or move what is not to be read out of {folders.tree.file(base)}; {TAKE_ALL}"
        )
    if "train" not in kinds:
        raise UserError(
            f"there is no train folder beside {shortened(sorted(parts))} in {folders.tree.file(base)}. Name the one that "
            f"is to be read, path={folders.tree.file((*base, sorted(parts)[0]))} for example; {TAKE_ALL}"
        )
    like = [name for name in others if folders.names((*base, name))]
    if len(kinds) == 1 and like:
        name = next(iter(parts))
        raise UserError(
            f"{name}/ in {folders.tree.file(base)} could be a split or a class: beside it lie {shortened(like)}, with "
            f"folders in them as well. If it is the training set, name it: path={folders.tree.file((*base, name))}; "
            f"{TAKE_ALL}"
        )
    return dict(parts), []


def split_places(folders: Folders, base: Parts, parts: Mapping[str, str]) -> dict[str, Parts]:
    """Where the class folders of each split are: an archive may have been unpacked inside of a split as well."""
    named = {part: (*base, name) for name, part in parts.items()}
    train = folders.unwrapped(named["train"])
    known = folders.names(train)
    return {part: train if part == "train" else folders.unwrapped(place, known) for part, place in named.items()}


def inside_classes(folders: Folders, base: Parts) -> bool:
    """Whether some class has a train folder in it and nothing but splits."""
    for name in folders.names(base):
        inner = folders.names((*base, name))
        parts = splits_among(inner)
        if "train" in parts.values() and len(parts) == len(inner) and len(set(parts.values())) > 1:
            return True
    return False


def with_places(
    folders: Folders,
    base: Parts,
    places: Mapping[str, Parts],
    level: int,
    remarks: list[str],
    beside: set[str] | frozenset[str] = frozenset(),
) -> Layout:
    """The classes are folders in the places of the splits."""
    found: dict[str, list[tuple[str | None, Parts]]] = {part: [] for part in places}
    outside: dict[str, list[Parts]] = defaultdict(list)
    kinds = {parent: kind_of(parent, base, places, level, beside) for parent in folders.direct}
    for picture in folders.tree.pictures:
        part, name = kinds[picture[:-1]]
        if part in found:
            found[part].append((name, picture))
        else:
            outside[part].append(picture)
    classes = {name for pictures in found.values() for name, _ in pictures if name is not None}
    if level == 1:
        classes |= set(map(composed, folders.empty(places["train"])))
    ordered = {part: sorted(pictures, key=lambda one: (one[0] or "", one[1])) for part, pictures in found.items()}
    kept = {part: each for part, each in ordered.items() if each}
    return Layout(base, kept, sorted(classes), outside, remarks, named=places["train"] != base)


def kind_of(
    parent: Parts, base: Parts, places: Mapping[str, Parts], level: int, beside: set[str] | frozenset[str]
) -> tuple[str, str | None]:
    """The split and the class of the pictures in a folder; or the reason why they have none."""
    for part, place in sorted(places.items(), key=lambda one: -len(one[1])):
        depth = len(place) + level
        if parent[: len(place)] == place and len(parent) >= depth:
            return part, composed(parent[depth - 1])
    if parent[len(base) : len(base) + 1] and parent[len(base)] in beside:
        return "pictures in folders beside the splits", None
    return "pictures outside of the folders of the classes", None


def below_classes(folders: Folders, base: Parts, remarks: list[str]) -> Layout:
    """The splits are folders in the classes: `cat/train`, `cat/test`."""
    found: dict[str, list[tuple[str | None, Parts]]] = defaultdict(list)
    depth = len(base)
    parts = {name: splits_among(folders.names((*base, name))) for name in folders.names(base)}
    loose = []
    for picture in folders.tree.pictures:
        name, inner = (picture[depth], picture[depth + 1]) if len(picture) > depth + 2 else ("", "")
        if part := parts.get(name, {}).get(inner):
            found[part].append((composed(name), picture))
        else:
            loose.append(picture)
    if loose:
        shown = next(name for name, inner in parts.items() if "train" in inner.values())
        raise UserError(
            f"{shown}/ in {folders.tree.file(base)} has {shortened(sorted(parts[shown]))} in it, and {len(loose):,} "
            f"pictures lie in no such folder, as {'/'.join(loose[0])}. Put every picture of every class into a split, or "
            "read all below a folder as one class: splits=false"
        )
    classes = sorted(set(map(composed, [*parts, *folders.empty(base)])))
    said = "the splits are read inside of the folders of the classes"
    return Layout(base, dict(found), classes, {}, [*remarks, said], named=True)


def check_same_below(folders: Folders, base: Parts) -> None:
    """Refuse `2023/cat`, `2023/dog`, `2024/cat`, `2024/dog`: which of both are the classes?"""
    names = folders.names(base)
    inner = {tuple(folders.names((*base, name))) for name in names}
    if len(names) < 2 or len(inner) > 1 or len(next(iter(inner))) < 2:
        return
    if not any(folders.direct[(*base, name)] for name in names):
        raise UserError(
            f"the folders {shortened(names)} in {folders.tree.file(base)} all hold the same folders, "
            f"{shortened(next(iter(inner)))}: which of both are the classes? Say how many folders down they are: "
            "level=1 takes the upper ones, level=2 the lower"
        )


def said_of_depth(folders: Folders, base: Parts) -> list[str]:
    """Where no picture lies in a class's own folder, the folders below could be the classes."""
    names = folders.names(base)
    inner = sorted({below for name in names for below in folders.names((*base, name))})
    if len(inner) < 2 or any(folders.direct[(*base, name)] for name in names):
        return []
    return [f"the classes are {shortened(names)}; level=2 takes the folders below as classes: {shortened(inner)}"]
