"""What `distilens validate` prints: the verdict first, then what the cost is made of, then data and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from distilens.costs import TIMED_STEPS, Added
from distilens.data.cached import readable
from distilens.listing import shortened
from distilens.terminal import as_table
from distilens.validate import Inspection, about_data

NAME_WIDE = 24
"""Columns that a method's notation takes; the rest is left out."""


def show_inspection(found: Inspection, *, full: bool = False, console: Console | None = None) -> None:
    """Print what a recipe makes of its data and models and would cost; with `full`, the recipe with every option as well."""
    console = console or Console()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    if found.plans:
        say(verdict(found))
        say(f"{found.busy}\n" if found.busy else "")
        console.print(cost_table(found))
        console.print()
        say("what each method adds by itself, beside the labels:")
        console.print(methods_table(found.methods))
        console.print()
    console.print(data_table(found))
    for name, data in found.data.items():
        about = about_data(data)
        for line in (f"{about['name']}, fingerprint {about['fingerprint']}", *about["notes"]):
            say(f"{name}: {line}")
    for role, about in found.models.items():
        console.print()
        console.print(shapes_table(role, about))
        for line in model_lines(about):
            say(line)
    if full:
        say(f"\n{found.recipe.to_toml()}")


def verdict(found: Inspection) -> str:
    middle, low, high = map(duration, found.seconds)
    return (
        f"about {middle} of training on this machine, {low} to {high} (the median, fastest and slowest of {TIMED_STEPS} timed "
        f"steps each); {found.memory / 2**20:,.0f} MiB in the largest step"
    )


def cost_table(found: Inspection) -> Table:
    rows = []
    for plan in found.plans:
        middle, low, high = map(duration, plan.seconds)
        rate = f"{plan.images / plan.step.median:,.0f}"
        memory = f"{plan.step.memory / 2**20:,.0f} MiB"
        rows.append((plan.role, f"{plan.steps:,}", rate, middle, f"{low} to {high}", memory))
    return as_table(("training", "steps", "images/s", "time", "from to", "memory"), rows)


def methods_table(methods: Mapping[str, Added | None]) -> Table:
    titles = ("method", "trained", "kept of images", "a step", "parameters", "MACs")
    rows = [
        (shortened(part, NAME_WIDE), "reads what another one puts into the student", "", "", "", "")
        if what is None
        else (
            shortened(part, NAME_WIDE),
            f"{what.trained:+,}",
            readable(what.kept),
            f"{1000 * what.seconds:+.0f} ms",
            f"{what.parameters:+,}",
            f"{what.macs:+,}",
        )
        for part, what in methods.items()
    ]
    return as_table(titles, rows)


def data_table(found: Inspection) -> Table:
    rows = []
    for name, data in found.data.items():
        about = about_data(data)
        counts = [f"{about[split]:,}" for split in ("train", "validation", "test")]
        masks = "yes" if about["masks"] else "no"
        size = "×".join(map(str, about["size"]))
        rows.append((name, *counts, len(about["classes"]), size, masks))
    titles = ("data", "train", "validation", "test", "classes", "size", "evidence masks")
    return as_table(titles, rows)


def shapes_table(role: str, about: Mapping[str, Any]) -> Table:
    rows = [
        ("", path, f"{shape}{'  ← last feature map' if path == about['last'] else ''}")
        for path, shape in about["shapes"].items()
    ]
    return as_table((f"{role}: {about['model']}", "module", "output"), rows)


def model_lines(about: Mapping[str, Any]) -> list[str]:
    size = "×".join(map(str, about["size"]))
    mean, std = (", ".join(f"{value:.3g}" for value in about[name]) for name in ("mean", "std"))
    lines = [
        f"{about['parameters']:,} parameters, {about['macs']:,} MACs at {size}, {about['classes']} classes",
        f"weights {about['weights']}; pixels in [0, 1] less {mean}, over {std}, at {size} by {about['interpolation']} resizing",
    ]
    lines += [f"trained with {about['trained_with']}"] if about["trained_with"] else []
    return [*lines, *(f"- {note}" for note in about["notes"])]


def duration(seconds: float) -> str:
    """`7 s`, `1 min 1 s`, `2 h 1 min`; below three seconds with a decimal."""
    if seconds < 3:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
