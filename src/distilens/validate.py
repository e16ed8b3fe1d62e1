"""A recipe looked at before it is run: every option, shapes through the models, parameters, MACs, time and memory."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from distilens.core import Model, Teacher
from distilens.costs import TIMED_STEPS, added, time_step
from distilens.data import load
from distilens.data.augment import AUGMENTS
from distilens.data.batches import Batches
from distilens.data.cached import readable
from distilens.data.subset import Data
from distilens.explain import check_taps
from distilens.measure import macs, parameters
from distilens.models import build_model
from distilens.recipe import Recipe, Training
from distilens.roles import how_trained, make_teacher, told_of
from distilens.teachers import LiveTeacher, as_one, following, nobody
from distilens.train import processes
from distilens.usual import in_words, kind_of_model, settled


def inspect_recipe(recipe: Recipe, console: Console, *, timed: bool = True) -> None:
    """Print a recipe with every option, what it makes of its data and models, and what a run of it would cost."""
    cache = Path("runs/data")
    console.print(recipe.to_toml(), highlight=False, markup=False, soft_wrap=True)
    data = load(recipe.data, cache)
    teacher_data = data if recipe.teacher_data == recipe.data else load(recipe.teacher_data, cache)
    show_data(console, {"data": data} | ({"teacher.data": teacher_data} if teacher_data is not data else {}))
    student = build_model(recipe.student.model, data.classes, data.size)
    part = recipe.teacher
    teachers = {
        role: make_teacher(recipe, data, notation, how_trained(part, notation))
        for role, notation in (part.models if part else {}).items()
        if part
    }
    several = following(part.joined, len(part.models)) if part else None
    if several is not None:
        several.check(data)
    for role, model in (*teachers.items(), ("student", student)):
        trained = recipe.train
        if part and role in part.models:
            trained = recipe.teacher_training if how_trained(part, part.models[role]) != "none" else None
        show_model(console, role, model, trained)
        check_taps(recipe.explain.explainers, model)
    if timed:
        show_cost(console, recipe, data, teacher_data, student, teachers)


def show_data(console: Console, sets: Mapping[str, Data]) -> None:
    table = headed("data", "train", "validation", "test", "classes", "size", "evidence masks", "fingerprint")
    for name, data in sets.items():
        counts = [f"{len(split):,}" for split in (data.train, data.validation, data.test)]
        masks = "yes" if data.test.rows.masks is not None else "no"
        size = "×".join(map(str, data.size))
        add(table, f"{name}: {data.name}", *counts, len(data.classes), size, masks, data.fingerprint)
    console.print(table)
    for name, data in sets.items():
        for line in (*data.inventory.origins(), *data.inventory.lines()):
            console.print(f"{name}: {line}", highlight=False, markup=False, soft_wrap=True)


def show_model(console: Console, role: str, model: Model, settings: Training | None) -> None:
    """Parameters, MACs, how it is trained, and the shape of each top-level module's output, in the order of the forward."""
    seen = model.observe()
    last = model.last_tap
    table = headed(f"{role}: {model.name}", "module", "output")
    for path, (output, _) in seen.items():
        shown = path.count(".") == 0 or path == last
        if path and shown:
            mark = "  ← last feature map" if path == last else ""
            add(table, "", path, f"{shape_of(output)}{mark}")
    console.print()
    console.print(table)
    size = "×".join(map(str, model.size))
    console.print(f"{parameters(model):,} parameters, {macs(model):,} MACs at {size}, {len(model.classes)} classes")
    weights = {True: "loaded", False: "random", None: "as your module brings them"}[model.loaded]
    mean, std = (", ".join(f"{value:.3g}" for value in each.flatten().tolist()) for each in (model.mean, model.std))
    console.print(
        f"weights {weights}; pixels in [0, 1] less {mean}, over {std}, at {size} by {model.interpolation} resizing"
    )
    if settings is not None:
        kind = kind_of_model(model)
        console.print(f"trained with {in_words(settled(settings, kind))} ({kind})", highlight=False, markup=False)
    for text in told_of(model):
        console.print(f"- {text}", highlight=False, markup=False)


def shape_of(output: object) -> str:
    return str(list(output.shape)) if isinstance(output, torch.Tensor) else type(output).__name__


def show_cost(
    console: Console, recipe: Recipe, data: Data, teacher_data: Data, student: Model, teachers: Mapping[str, Model]
) -> None:
    """Time a few steps of each training, and say what the whole would take."""
    table = headed("training", "steps", "images/s", "time", "memory of a step")
    whole = 0.0
    plans: list[tuple[str, Model, Data, tuple[str, ...], Training, Teacher]] = []
    part = recipe.teacher
    for role, model in teachers.items():
        if part and how_trained(part, part.models[role]) != "none":
            model = copy.deepcopy(model)  # who answers is frozen
            plans.append((role, model, teacher_data, part.methods, recipe.teacher_training, nobody))
    plans.append(("base", student, data, recipe.base.methods, recipe.train, nobody))
    device = cast(torch.device, processes().device)
    each = [LiveTeacher(model.to(device)) for model in teachers.values()]
    answering = as_one(each, part.joined, part.control) if part else nobody
    plans.append(("student", student, data, recipe.student.methods, recipe.train, answering))
    for role, model, seen, methods, settings, who in plans:
        batches = Batches(seen.train, settings.batch_size, augment=AUGMENTS.build(settings.augment), device=device)
        seconds, memory = time_step(model, methods, batches, settings, who)
        steps = settings.epochs * len(batches)
        whole += steps * seconds
        rate = f"{batches.size / seconds:,.0f}"
        add(table, role, f"{steps:,}", rate, duration(steps * seconds), f"{memory / 2**20:,.0f} MiB")
    console.print()
    console.print(table)
    console.print(f"about {duration(whole)} of training on this machine, from {TIMED_STEPS} timed steps each")
    show_added(console, recipe, data, student, answering)


def show_added(console: Console, recipe: Recipe, data: Data, student: Model, teacher: Teacher) -> None:
    """What each method of the student adds to its training, and to itself."""
    settings = recipe.train
    batches = Batches(data.train, settings.batch_size, augment=AUGMENTS.build(settings.augment), device=student.device)
    titles = (
        "each method, beside the labels",
        "trained with it",
        "kept of images",
        "time of a step",
        "student's parameters",
        "student's MACs",
    )
    table = headed(*titles)
    for part, what in added(student, recipe.student.methods, batches, settings, teacher).items():
        if what is None:
            add(table, part, "reads what another one puts into the student")
            continue
        cells = (f"{what.trained:+,}", readable(what.kept), f"{1000 * what.seconds:+.0f} ms")
        add(table, part, *cells, f"{what.parameters:+,}", f"{what.macs:+,}")
    console.print()
    console.print(table)


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def headed(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(Text(title), overflow="fold")
    return table


def add(table: Table, *cells: object) -> None:
    table.add_row(*(Text(str(cell)) for cell in cells))
