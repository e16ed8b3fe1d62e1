"""The output of `distilens validate`: the verdict first, then the costs, then data and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from distilens.cli.listing import shorten
from distilens.foundation.files import readable
from distilens.report.terminal import as_table
from distilens.runs.inspection import Inspection, about_data
from distilens.training.costs import TIMED_STEPS, Added

NAME_WIDE = 24
"""Width of a method's notation; the rest is cut off."""


def show_inspection(inspected: Inspection, *, full: bool = False, console: Console | None = None) -> None:
    """Print the data, models and costs of a recipe; with `full` also the recipe with every option."""
    console = console or Console()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    if inspected.plans:
        say(verdict(inspected))
        say(f"{inspected.busy}\n" if inspected.busy else "")
        console.print(cost_table(inspected))
        console.print()
        say("what each method adds alone, to training with labels:")
        console.print(methods_table(inspected.methods))
        console.print()
    console.print(data_table(inspected))
    for name, data in inspected.data.items():
        about = about_data(data)
        for line in (f"{about['name']}, fingerprint {about['fingerprint']}", *about["notes"]):
            say(f"{name}: {line}")
    for role, about in inspected.models.items():
        console.print()
        console.print(shapes_table(role, about))
        for line in model_lines(about):
            say(line)
    if full:
        say(f"\n{inspected.recipe.to_toml()}")


def verdict(inspected: Inspection) -> str:
    middle, low, high = map(duration, inspected.seconds)
    return (
        f"about {middle} of training on this machine, {low} to {high} (the median, fastest and slowest of {TIMED_STEPS} timed "
        f"steps each); {inspected.memory / 2**20:,.0f} MiB in the largest step"
    )


def cost_table(inspected: Inspection) -> Table:
    rows = []
    for plan in inspected.plans:
        middle, low, high = map(duration, plan.seconds)
        rate = f"{plan.images / plan.step.median:,.0f}"
        memory = f"{plan.step.memory / 2**20:,.0f} MiB"
        rows.append((plan.role, f"{plan.steps:,}", rate, middle, f"{low} to {high}", memory))
    return as_table(("training", "steps", "images/s", "time", "from to", "memory"), rows)


def methods_table(methods: Mapping[str, Added | None]) -> Table:
    titles = ("method", "trained", "image memory", "per step", "parameters", "MACs")
    rows = [
        (shorten(part, NAME_WIDE), "reads a part that another method inserts into the student", "", "", "", "")
        if what is None
        else (
            shorten(part, NAME_WIDE),
            f"{what.trained:+,}",
            readable(what.kept),
            f"{1000 * what.seconds:+.0f} ms",
            f"{what.parameters:+,}",
            f"{what.macs:+,}",
        )
        for part, what in methods.items()
    ]
    return as_table(titles, rows)


def data_table(inspected: Inspection) -> Table:
    rows = []
    for name, data in inspected.data.items():
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
        f"weights {about['weights']}; pixels in [0, 1] minus {mean}, divided by {std}, at {size} with {about['interpolation']} "
        "resizing",
    ]
    lines += [f"trained with {about['trained_with']}"] if about["trained_with"] else []
    return [*lines, *(f"- {note}" for note in about["notes"])]


def duration(seconds: float) -> str:
    """`7 s`, `1 min 1 s`, `2 h 1 min`; with one decimal below three seconds."""
    if seconds < 3:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
