"""Progress of long work: a bar with an estimate of the remaining time, or lines of text without a terminal."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

WIDE = 100
"""From this number of terminal columns on, the bar is long."""
OFTEN = 0.05
"""A bar is drawn again after this many seconds: drawing takes longer than decoding a small image."""


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
    """One bar for a long work, with the remaining time. Without a terminal, it prints lines with the remaining time.

    Args:
        console: the console for the output; None is silent.
        name: the name of the work.
        total: how much is to be done, in any unit. `plan` gives it later.
        done: how much was done before, if the work is resumed.
        unit: what is counted, such as `images`: the bar shows the count and the speed, and a log gets a line after each tenth.
        after: seconds until it shows anything, for works that are mostly short.
        transient: whether the bar disappears in the end.
        say: receives the lines; by default the console, if it has no bar.
    """

    def __init__(
        self,
        console: Console | None,
        name: str,
        total: float = 0.0,
        *,
        done: float = 0.0,
        unit: str = "",
        after: float = 0.0,
        transient: bool = False,
        say: Callable[[str], object] | None = None,
    ):
        self.console, self.name, self.unit, self.after = console, name, unit, after
        self.total, self.done, self.before = total, done, done
        self.start = self.drawn = time.perf_counter()
        self.wide = console is not None and console.width >= WIDE
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20 if self.wide else 8),
            TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            Left(table_column=Column(no_wrap=True, min_width=9)),
        )
        self.has_bar, self.print = console is not None and shows_bars(console), say or self.print_plainly
        self.bar = Progress(*columns, console=console, disable=not self.has_bar, transient=transient)
        self.task = self.bar.add_task(name, total=total or None, completed=done, note="")  # type: ignore[arg-type]

    def __enter__(self) -> Work:
        self.start = time.perf_counter()
        if not self.after:
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def plan(self, seconds: Mapping[str, float]) -> None:
        """Set the total from estimates in seconds, by part."""
        self.total, self.start = sum(seconds.values()), time.perf_counter()
        self.bar.update(self.task, total=self.total)

    def say(self, text: str) -> None:
        """Show the current part of the work in the bar."""
        self.bar.update(self.task, description=text)

    def begin(self, label: str) -> None:
        """Print the part that begins, in a log without a bar."""
        self.line(f"{self.name}: {label}")

    def follow(self, text: str, seconds: float) -> Callable[[int], object]:
        """Show the part that begins. Call the returned function with a number of finished images, at `seconds` per image."""
        self.say(text)
        return lambda images: self.advance(seconds * images)

    def advance(self, amount: float = 1, note: str | None = None) -> None:
        """Count what was done, and draw the bar. `note` is shown in it; by default the share, or the count and the speed."""
        before, self.done = self.done, self.done + amount
        now = time.perf_counter()
        if now - self.start < self.after:
            return
        if note is not None or now - self.drawn > OFTEN or self.done >= self.total:
            self.bar.start()  # it may have waited
            self.bar.update(self.task, completed=self.done, note=self.counted() if note is None else note)
            self.drawn = now
        if self.unit and 10 * self.done // self.total > 10 * before // self.total:
            self.line(f"{self.name} {self.counted()}")

    def counted(self) -> str:
        """How much is done, in words."""
        if not self.unit:
            return f"{self.done / self.total:4.0%}" if self.total else ""
        rate = (self.done - self.before) / max(time.perf_counter() - self.start, 1e-9)
        pace = f"{rate:,.0f} {self.unit}/s" if rate >= 1 or not rate else f"{clock(1 / rate)} each"
        return f"{self.done:,.0f}/{self.total:,.0f}  {pace}"

    def line(self, text: str) -> None:
        """Print a line with the remaining time, in a log without a bar."""
        self.print(f"{text}{self.left()}")

    def print_plainly(self, text: str) -> None:
        if self.console is not None and not self.has_bar:
            self.console.print(text, highlight=False, markup=False)

    def left(self) -> str:
        """The estimated remaining time. Before anything is done, the total is taken as seconds."""
        progress, rest = self.done - self.before, self.total - self.done
        pace = (time.perf_counter() - self.start) / progress if progress else 1.0
        return f"  {timedelta(seconds=round(pace * rest))} left" if rest > 0 else ""
