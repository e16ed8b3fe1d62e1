"""A progress bar for decoding images."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.progress


class Progress:
    """A progress bar with an estimate on stderr, shown after one second."""

    MOMENT = 1.0
    STEP = 32

    def __init__(self, total: int):
        self.total, self.done, self.began = total, 0, time.monotonic()
        self.bar: rich.progress.Progress | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self) -> None:
        self.done += 1
        if self.done % self.STEP == 0:
            if self.bar is None and time.monotonic() - self.began > self.MOMENT:
                self.bar = self.started()
            if self.bar is not None:
                self.bar.update(self.bar.task_ids[0], completed=self.done)

    def started(self) -> rich.progress.Progress:
        from rich import progress
        from rich.console import Console

        count, left = progress.MofNCompleteColumn(), progress.TimeRemainingColumn()
        columns = (progress.TextColumn("decoding images"), progress.BarColumn(), count, left)
        bar = progress.Progress(*columns, console=Console(stderr=True), transient=True)
        bar.add_task("decode", total=self.total)
        bar.start()
        return bar
