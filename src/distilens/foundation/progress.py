"""Progress of long work: a bar with an estimate of the remaining time, or lines of text without a terminal."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
)
from rich.table import Column
from rich.text import Text


def shows_bars(console: Console) -> bool:
    """Whether a bar can be drawn: in a terminal, or in a notebook with ipywidgets. Otherwise lines are printed."""
    return console.is_terminal or (console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None)


def visible_console() -> Console | None:
    """The console that shows progress by default, in a terminal or a notebook; None elsewhere."""
    console = Console(stderr=True)
    return console if console.is_terminal or console.is_jupyter else None


class Left(ProgressColumn):
    """The remaining time: `0:17 left`; for a finished task, the time that it took."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        if task.finished:
            return Text(f"took {clock(task.finished_time or 0)}")
        return Text("" if task.time_remaining is None else f"{clock(task.time_remaining)} left")


def clock(seconds: float) -> str:
    """`0:17`, `12:05`, `1:02:03`."""
    text = str(timedelta(seconds=round(seconds)))
    return text[2:].removeprefix("0") if text.startswith("0:") else text


class Work:
    """One bar for the whole work, with the remaining time; without a terminal, one line per part of the work.

    Args:
        console: the console for the output; None is silent.
        name: the name of the work in a log.
    """

    def __init__(self, console: Console | None, name: str):
        self.console, self.name = console, name
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            Left(table_column=Column(no_wrap=True, min_width=9)),
        )
        self.bar = Progress(*columns, console=console, disable=console is None or not shows_bars(console))
        self.task = self.bar.add_task(name, total=None)
        self.total = self.done = self.start = 0.0

    def __enter__(self) -> Work:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """Show the current part of the work in the bar."""
        self.bar.update(self.task, description=text)

    def begin(self, label: str) -> None:
        """Print the part that begins, in a log without a bar."""
        if self.console is not None and not shows_bars(self.console):
            self.console.print(f"{self.name}: {label}{self.left()}", highlight=False, markup=False)

    def plan(self, seconds: Mapping[str, float]) -> None:
        """Set the total from estimates in seconds, by part."""
        self.total, self.start = sum(seconds.values()), time.perf_counter()
        self.bar.update(self.task, total=self.total)

    def heard(self, text: str, seconds: float) -> Callable[[int], object]:
        """Show the part that begins. Call the returned function with a number of finished images, at `seconds` per image."""
        self.say(text)

        def done(images: int) -> None:
            self.done += seconds * images
            self.bar.update(self.task, completed=self.done)

        return done

    def left(self) -> str:
        """The estimated remaining time, for logs without a bar."""
        if not self.total:
            return ""
        pace = (time.perf_counter() - self.start) / self.done if self.done else 1.0
        return f"  {timedelta(seconds=max(0, round(pace * (self.total - self.done))))} left"
