"""Record a teacher's answers in advance, with one process or several, and verify recorded answers."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from rich.console import Console

from distilens.core import Batch, needs_of
from distilens.data.augment import AUGMENTS
from distilens.data.pipeline import Batches
from distilens.foundation.devices import processes
from distilens.foundation.errors import UserError
from distilens.foundation.files import readable
from distilens.foundation.memory import reuse_freed_memory as memory_kept
from distilens.foundation.progress import Work
from distilens.methods import build_methods
from distilens.report.terminal import as_table
from distilens.runs.run import Run, wait_and_lock
from distilens.runs.training import train_teacher
from distilens.teachers import StoredTeacher, following
from distilens.teachers.needs import Need
from distilens.teachers.records import Shelf, check_room
from distilens.teachers.stored import OpenShelf, encoded
from distilens.training.loop import make_accelerator

CLOSE = {"float32": 0.01, "bfloat16": 0.05, "float16": 0.02}
"""The largest allowed difference of a recomputed answer from the recorded one, as a share of the record's largest value. Rounding
on another processor stays below it; another picture or teacher does not."""
MOMENT = 1.0
"""A verification that takes fewer seconds shows no progress."""


@dataclass(frozen=True)
class Task:
    """The answers to one need for one variant (None: the untransformed images), and which of this process's images have one."""

    need: Need
    variant: int | None
    place: OpenShelf
    filled: np.ndarray  # bool, per entry of `Recorder.positions`

    @property
    def missing(self) -> int:
        return len(self.filled) - int(self.filled.sum())


class Recorder:
    """Records the answers that a run's methods need from one of its teachers.

    Args:
        run: its recipe names methods, data, augmentation and precision; its teacher must exist.
        role: the folder of the teacher in the run.
        variants: the number of variants per image; by default as many as the run shows.
        share: the share of the images to record here, counted from 0, and the number of shares.
    """

    def __init__(
        self, run: Run, role: str = "teacher", *, variants: int | None = None, share: tuple[int, int] = (0, 1)
    ):
        settings = run.recipe.train
        self.run, self.role, self.accelerator = run, role, make_accelerator(settings)
        self.teacher = cast(StoredTeacher, run.answers(role, recording=True))
        self.needs = [Need.parse(text) for text in needs_of(build_methods(run.recipe.student.methods).values())]
        part = run.recipe.teacher
        several = following(part.joined, len(part.models)) if part else None
        self.needs = stored_needs([*self.needs, *(several.asks(self.needs) if several and self.needs else [])])
        if not self.needs:
            raise UserError("nothing to record: the student's methods need nothing from a teacher")
        self.teacher.variants = self.variants = variants or settings.shown
        split, seed = run.data.train, settings.variant_seed
        augment = AUGMENTS.build(settings.augment)
        self.size = max(1, settings.batch_size // self.accelerator.num_processes)
        options = {"device": self.accelerator.device, **settings.reading}
        self.still = Batches(split, self.size, **options)
        options["resident"] = False  # `moving` uses the images of `still`
        self.moving = Batches(split, self.size, augment=augment, ordered=True, variant_seed=seed, **options)
        self.moving.images, self.moving.resident = self.still.images, self.still.resident
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        parts = torch.arange(len(split)).split(self.size)
        mine = parts[share[0] * world + rank :: share[1] * world]
        self.positions = torch.cat(mine).numpy() if mine else np.zeros(0, np.int64)

    def batches(self, variant: int | None) -> Batches:
        return self.still if variant is None else self.moving

    def batch(self, positions: np.ndarray, variant: int | None) -> Batch:
        return self.batches(variant).batch(torch.from_numpy(positions), None, variant or 0, 0.0)

    def tasks(self) -> list[Task]:
        """What to record, and what of it is already recorded."""
        tasks = []
        for need in self.needs:
            numbers: list[int | None] = list(range(self.variants)) if need.of == "images" else [None]
            if need.of == "images" and self.moving.augment and self.moving.augment.still:
                numbers = [0]
            place = self.place(need, numbers[0])
            for variant in numbers:
                index = self.run.data.train.index[self.positions]
                filled = place.shelf.filled(index, variant)
                tasks.append(Task(need, variant, place, filled))
        return tasks

    def place(self, need: Need, variant: int | None) -> OpenShelf:
        """The shelf of a need. The answer to a first batch of one image determines the format of its records."""
        with self.accelerator.autocast():
            first = self.batch(np.zeros(1, np.int64), variant)
            assert first.variant is not None
            return self.teacher.place(first, need, first.variant)

    def record(self, tasks: list[Task], console: Console | None) -> None:
        """Record what is missing: the untransformed images first, then one variant after the other, in the order of the set."""
        due: dict[int | None, list[Task]] = {}
        for task in tasks:
            if task.missing:
                due.setdefault(task.variant, []).append(task)
        missing = {variant: ~np.logical_and.reduce([task.filled for task in mine]) for variant, mine in due.items()}
        count = sum(int(rows.sum()) for rows in missing.values())
        with memory_kept(), Work(console, "recording", count, unit="images") as work:
            for variant, rows in missing.items():
                batches, needs = self.batches(variant), [task.need.question for task in due[variant]]
                for part, raw in batches.read(torch.from_numpy(self.positions[rows]).split(self.size)):
                    with self.accelerator.autocast():
                        self.teacher(batches.batch(part, raw, variant or 0, 0.0), needs)
                    work.advance(len(part))

    def verify(self, need: Need, tasks: list[Task], count: int) -> tuple[str, int, int, int, float]:
        """Recompute random recorded answers to a need and compare.

        Returns:
            the need's name, the number of answers, how many are equal to the last bit, how many differ by more than `CLOSE`,
            and the largest difference (as a share of its record's largest value).
        """
        mine = [task for task in tasks if task.need is need]
        ends = np.cumsum([task.filled.sum() for task in mine])
        if not ends[-1]:
            raise UserError(f"there is nothing to verify: no answers to {need.name} in {self.teacher.folder}")
        chosen = np.sort(np.random.default_rng().choice(ends[-1], min(count, int(ends[-1])), replace=False))
        parts = np.split(chosen, np.searchsorted(chosen, ends[:-1]))
        same, off, most = 0, 0, 0.0
        with Work(
            self.run.console, f"verifying {need.name}", len(chosen), unit="answers", after=MOMENT, transient=True
        ) as work:
            for task, part, end in zip(mine, parts, ends, strict=True):
                there = self.positions[task.filled]
                picked = there[part - (end - len(there))]
                for chunk in np.split(picked, range(self.size, len(picked), self.size)):
                    if len(chunk):
                        exact, differences = self.compare_chunk(task, chunk)
                        same += exact
                        off += int((differences > CLOSE[self.precision(need)]).sum())
                        most = max(most, float(differences.max()))
                        work.advance(len(chunk))
        return need.name, len(chosen), same, off, most

    def precision(self, need: Need) -> str:
        with self.accelerator.autocast():
            return "float32" if need.exact or self.teacher.teacher is None else self.teacher.teacher.precision

    def compare_chunk(self, task: Task, positions: np.ndarray) -> tuple[int, np.ndarray]:
        """The number of recomputed answers with the same bytes, and the difference of each answer."""
        batch, shelf = self.batch(positions, task.variant), task.place.shelf
        with self.accelerator.autocast():
            ((values, targets),) = self.teacher.ask(batch, [task.need], np.arange(len(positions)))
        again = encoded(task.place, task.need, values, targets)
        there, _ = shelf.read(shelf.rows(self.run.data.train.index[positions], task.variant))
        decoded = [task.place.codec.decode(records, torch.device("cpu")) for records in (there, again)]
        was, now = (rows.reshape(len(positions), -1) for rows in decoded)
        largest = was.abs().amax(1).clamp(min=1e-30)
        content = [name for name in shelf.dtype.names or () if name != "sum"]
        exact = sum(
            all(np.array_equal(a[name], b[name]) for name in content) for a, b in zip(there, again, strict=True)
        )
        return exact, ((was - now).abs().amax(1) / largest).numpy()


def stored_needs(needs: list[Need]) -> list[Need]:
    """The needs that are stored: each question once; of several needs for logits only that with the most logits."""
    most = max((need.top or sys.maxsize for need in needs if need.kind == "logits"), default=0)
    answers = [need for need in needs if need.kind != "logits" or (need.top or sys.maxsize) == most]
    return list({need.name: need for need in answers if need.kind != "module"}.values())


def recorders_of(run: Run, *, variants: int | None = None, share: tuple[int, int] = (0, 1)) -> list[Recorder]:
    """The recorders of a run, one per teacher. Teachers that do not exist yet are trained first.

    Raises:
        UserError: there is no teacher, or nothing to record.
    """
    if run.recipe.teacher is None:
        raise UserError("there is nothing to record without a teacher: name one in [teacher]")
    with wait_and_lock(run):  # only one launch at a time trains the teacher; any number record
        train_teacher(run)
    return [Recorder(run, role, variants=variants, share=share) for role in run.recipe.teacher.models]


def record(run: Run, *, variants: int | None = None, part: tuple[int, int] = (0, 1), again: bool = False) -> None:
    """Record a teacher's answers for a run. If the teacher does not exist yet, it is trained first.

    Args:
        variants: the number of variants per image; by default as many as the run shows.
        part: the share of this machine, counted from 0, and the number of machines; for machines with separate launches.
        again: delete what is already recorded.

    Raises:
        UserError: no teacher, nothing to record, existing answers from other inputs, or not enough disk space.
    """
    if again and part != (0, 1):
        raise UserError("again deletes the records of all parts: use it once, with part 1/1, or delete the folder")
    if variants is not None and variants < 1:
        raise UserError(f"the number of variants must be at least 1; given {variants}")
    recorders = recorders_of(run, variants=variants, share=part)
    plans = [print_plan(recorder, again) for recorder in recorders]
    for folder in {recorder.teacher.folder for recorder in recorders}:
        check_room(folder, sum(needed for _, needed in plans))
    processes().wait_for_everyone()
    for recorder, (tasks, _) in zip(recorders, plans, strict=True):
        recorder.record(tasks, run.console if processes().is_main_process else None)
        run.say(f"recorded in {recorder.teacher.folder}; read with teacher.answers=stored")


def print_plan(recorder: Recorder, again: bool) -> tuple[list[Task], int]:
    """Print a recorder's plan. Returns its tasks and the number of bytes that it will write."""
    if again:
        delete_shelves(recorder)
    tasks = recorder.tasks()
    report_damage(recorder, tasks)
    missing = {task.need.name: 0 for task in tasks}
    for task in tasks:
        missing[task.need.name] += task.missing
    show_role(recorder)
    show_plan(recorder.run, recorder, tasks, missing)
    return tasks, sum(count * shelf_of(tasks, name).dtype.itemsize for name, count in missing.items())


def show_role(recorder: Recorder) -> None:
    """Print the teacher's name if there are several teachers."""
    part = recorder.run.recipe.teacher
    if part is not None and part.others:
        recorder.run.say(f"{recorder.role}: {part.models[recorder.role]}")


def verify(run: Run, count: int) -> bool:
    """Recompute random recorded answers of a run and print the differences. Returns whether all differences are small.

    Raises:
        UserError: nothing is recorded, `count` is below 1, or several processes were started.
    """
    if processes().num_processes > 1 or count < 1:
        raise UserError("verify takes a single process and a number of answers of at least 1")
    verified = []
    for recorder in recorders_of(run):
        tasks = recorder.tasks()
        report_damage(recorder, tasks)
        show_role(recorder)
        verified.append(show_verified(run, [recorder.verify(need, tasks, count) for need in recorder.needs]))
    return all(verified)


def report_damage(recorder: Recorder, tasks: list[Task]) -> None:
    for task in tasks:
        recorder.teacher.report_damage(task.place.shelf)


def delete_shelves(recorder: Recorder) -> None:
    """Delete the shelves that a run would read, even if they were recorded from other inputs."""
    if processes().is_main_process:
        for need in recorder.needs:
            for path in recorder.teacher.files(need):
                path.unlink(missing_ok=True)
    processes().wait_for_everyone()


def shelf_of(tasks: list[Task], name: str) -> Shelf:
    return next(task.place.shelf for task in tasks if task.need.name == name)


def show_plan(run: Run, recorder: Recorder, tasks: list[Task], missing: dict[str, int]) -> None:
    """Print what is recorded already and what this process will record."""
    if run.console is None or not processes().is_main_process:
        return
    rows = []
    for name, count in missing.items():
        mine = [task for task in tasks if task.need.name == name]
        size = mine[0].place.shelf.dtype.itemsize
        variants = "" if mine[0].variant is None else str(len(mine))
        there = sum(int(task.filled.sum()) for task in mine)
        all_images = f"{len(recorder.positions):,}"
        rows.append((name, size, all_images, variants, f"{there:,}", f"{count:,}", readable(count * size)))
    titles = ("answers", "bytes each", "images", "variants", "done", "to record", "to write")
    run.console.print(as_table(titles, rows))


def show_verified(run: Run, rows: list[tuple[str, int, int, int, float]]) -> bool:
    """Print the result of a verification. Returns whether no answer is too far off."""
    if run.console is not None and processes().is_main_process:
        titles = ("answers", "recomputed", "same bytes", "too far off", "largest difference")
        lines = [(name, *(f"{count:,}" for count in counts), f"{most:.2g}") for name, *counts, most in rows]
        run.console.print(as_table(titles, lines))
    return not any(off for *_, off, _ in rows)
