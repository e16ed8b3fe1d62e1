"""A study: several rows, each trained with the same seeds. Its folder holds the plan and one run folder per row and seed.

study.json               rows, seeds, and when the test split was read
runs/teacher/            the teacher, trained once, with the answers that all runs read
runs/ROW-SEED/           a run; its result is in result.json
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from distilens.foundation.errors import UserError, shortened
from distilens.foundation.files import lock_file, read_json, write_json
from distilens.foundation.notation import Spec, safe

FILE = "study.json"
LOCK = ".lock"
KIND = "distilens study 1"
RESULT = "result.json"
KINDS = ("ablation", "seeds", "compression", "search")


@dataclass(frozen=True)
class Row:
    """One recipe of a study.

    Attributes:
        name: its name in tables.
        recipe: the content of the recipe, as plain data.
        about: what the row is, in one sentence.
        facts: further plain data for tables and charts, such as a compression factor.
    """

    name: str
    recipe: Mapping[str, Any]
    about: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Plain data for `study.json`."""
        return {"name": self.name, "recipe": dict(self.recipe), "about": self.about, "facts": dict(self.facts)}


@dataclass(frozen=True)
class Question:
    """A comparison of two rows: what does the first gain over the second?

    Attributes:
        row, against: the names of the rows.
        about: what the difference is, such as `what kd adds`.
    """

    row: str
    against: str
    about: str

    def plain(self) -> dict[str, str]:
        """Plain data for `study.json`."""
        return {"row": self.row, "against": self.against, "about": self.about}


@dataclass(frozen=True)
class Until:
    """When a study adds no more seeds.

    Attributes:
        points: the smallest difference that matters, above 0: points for a metric in percent, else in the metric's unit.
        most: the largest number of seeds of a row.
    """

    points: float
    most: int

    def __post_init__(self) -> None:
        if not (self.points > 0 and 2 <= self.most <= 1000):
            raise UserError(f"--until is above 0, and --most from 2 to 1000; given {self.points:g} and {self.most}")


@dataclass(frozen=True)
class Study:
    """The plan of a study.

    Attributes:
        folder: where it lies.
        kind: one of `KINDS`.
        rows: the recipes that are compared.
        seeds: every row is trained with each of them.
        questions: the comparisons, named before anything is trained.
        command: the command that made it.
        readings: when and by which command the test split was read, and for which rows and seeds.
        until: when no more seeds are added to rows whose questions are undecided; None if none are added.
        more: the row and seed of each training that was added so.
    """

    folder: Path
    kind: str
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    questions: tuple[Question, ...] = ()
    command: str = ""
    readings: tuple[Mapping[str, Any], ...] = ()
    until: Until | None = None
    more: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        names = [safe(row.name) for row in self.rows]
        if taken := [name for name in names if re.fullmatch(r"teacher(-\d+)?", name)]:
            raise UserError(
                f"a row cannot be called {taken[0]!r}: the study's teacher has its folder. Choose another name"
            )
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"a study has each row once; twice: {shortened(twice)}")
        if not names or not self.seeds:
            raise UserError("a study needs a row and a seed")
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise UserError(f"seeds are different whole numbers of at least 0; given {', '.join(map(str, self.seeds))}")

        if self.until is not None and len(self.seeds) > self.until.most:
            raise UserError(f"--most {self.until.most} is less than the {len(self.seeds)} seeds that every row has")
        named = {name for question in self.questions for name in (question.row, question.against)}
        named |= {name for name, _ in self.more}
        if unknown := named - {row.name for row in self.rows}:
            raise UserError(
                f"{self.folder / FILE}: no row is called {min(unknown)}, but a question or a training names it"
            )

    def row(self, name: str) -> Row:
        """The row with a name."""
        return next(row for row in self.rows if row.name == name)

    def place(self, row: Row, seed: int) -> Path:
        """The run folder of a row and a seed."""
        return self.folder / "runs" / f"{safe(row.name)}-{seed}"

    @property
    def jobs(self) -> list[tuple[Row, int]]:
        """All trainings: the first seed of every row, then the second, so that an early stop leaves complete comparisons."""
        planned = [(row, seed) for seed in self.seeds for row in self.rows]
        return planned + [(self.row(name), seed) for name, seed in self.more]

    def seeds_of(self, row: Row) -> tuple[int, ...]:
        """The seeds of a row, those that were added at the end."""
        return (*self.seeds, *(seed for name, seed in self.more if name == row.name))

    def result(self, row: Row, seed: int) -> dict[str, Any] | None:
        """What a training gave; None if it is not finished."""
        return read_json(self.place(row, seed) / RESULT)

    def results(self, row: Row) -> dict[int, dict[str, Any]]:
        """The finished results of a row by seed, without failed ones."""
        found = {seed: self.result(row, seed) for seed in self.seeds_of(row)}
        return {seed: result for seed, result in found.items() if result is not None and "failed" not in result}

    def plain(self) -> dict[str, Any]:
        """The content of `study.json`."""
        return {
            "kind": KIND,
            "study": self.kind,
            "command": self.command,
            "seeds": list(self.seeds),
            "rows": [row.plain() for row in self.rows],
            "questions": [question.plain() for question in self.questions],
            "readings": [dict(reading) for reading in self.readings],
            "until": None if self.until is None else asdict(self.until),
            "more": [list(each) for each in self.more],
        }

    def save(self) -> None:
        """Write `study.json`, together with what other processes have added to it."""
        with updating(self) as whole:
            whole.write()

    def write(self) -> None:
        """Write `study.json` inside `updating`."""
        write_json(self.folder / FILE, self.plain())


def read_study(folder: str | Path) -> Study:
    """The study in a folder.

    Raises:
        UserError: there is none, or it is of another version.
    """
    folder = Path(folder)
    content = read_json(folder / FILE)
    if content is None:
        raise UserError(f"{folder} is not a study: it has no {FILE}. distilens ablate RECIPE --out {folder} makes one")
    try:
        if content["kind"] != KIND:
            raise KeyError("kind")
        rows = tuple(Row(**row) for row in content["rows"])
        questions = tuple(Question(**question) for question in content["questions"])
        seeds, readings = tuple(content["seeds"]), tuple(content["readings"])
        until = Until(**content["until"]) if content.get("until") else None
        more = tuple((name, seed) for name, seed in content.get("more", ()))
        return Study(folder, content["study"], rows, seeds, questions, content["command"], readings, until, more)
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{folder / FILE} does not hold a study of this version ({KIND})") from None


def continue_study(planned: Study) -> Study:
    """A planned study, together with what its folder holds: rows and seeds are added, none is changed.

    Raises:
        UserError: the folder holds another study.
    """
    if not (planned.folder / FILE).is_file():
        return planned
    before = read_study(planned.folder)
    elsewhere = "Choose another folder with --out"
    if before.kind != planned.kind:
        raise UserError(f"{planned.folder} holds a study of another kind ({before.kind}). {elsewhere}")
    old = {row.name: row for row in before.rows}
    for row in planned.rows:
        if row.name in old and plain(old[row.name].recipe) != plain(row.recipe):
            raise UserError(
                f"{planned.folder} holds a study of another recipe: its row {row.name} differs. {elsewhere}"
            )
    if not old.keys() & {row.name for row in planned.rows}:
        raise UserError(f"{planned.folder} holds a study of other rows: {shortened(list(old))}. {elsewhere}")
    if before.until is not None and (
        planned.until not in (None, before.until) or not set(planned.seeds) <= set(before.seeds)
    ):
        raise UserError(
            f"{planned.folder} adds seeds by itself, with intervals for {len(before.seeds)} seeds at the start, --until "
            f"{before.until.points:g} and --most {before.until.most}: they hold only if these stay as they were. {elsewhere}"
        )
    rows = (*before.rows, *(row for row in planned.rows if row.name not in old))
    questions = tuple(dict.fromkeys((*before.questions, *planned.questions)))
    seeds = (*before.seeds, *(seed for seed in planned.seeds if seed not in before.seeds))
    readings = (*before.readings, *(reading for reading in planned.readings if reading not in before.readings))
    more = tuple((name, seed) for name, seed in dict.fromkeys((*before.more, *planned.more)) if seed not in seeds)
    until = planned.until or before.until
    return replace(planned, rows=rows, questions=questions, seeds=seeds, readings=readings, until=until, more=more)


@contextmanager
def updating(planned: Study) -> Iterator[Study]:
    """The study as `continue_study` has it, while no other process may write it: several workers may share a folder."""
    with lock_file(planned.folder / LOCK):
        yield continue_study(planned)


def plain(content: Any) -> Any:
    """Plain data as JSON gives it back: lists for tuples."""
    if isinstance(content, Mapping):
        return {str(key): plain(value) for key, value in content.items()}
    return [plain(item) for item in content] if isinstance(content, list | tuple) else content


def seeded(recipe: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The content of a recipe for a seed: of the student's first weights, of the order, and of the images if few are chosen."""
    spec = Spec.parse(recipe["data"])
    few = any(spec.options.get(key) is not None for key in ("limit", "shots", "few")) and "draw" not in spec.options
    data = spec.replaced(draw=seed) if few else spec
    return {**recipe, "seed": seed, "data": str(data)}


def without_teacher(recipe: Mapping[str, Any], methods: Sequence[str]) -> dict[str, Any]:
    """The content of a recipe whose student learns from labels only."""
    content = {key: value for key, value in recipe.items() if key != "teacher"}
    return {**content, "student": {**content["student"], "methods": list(methods)}}
