"""Progress: a bar in terminals, lines elsewhere, and the remaining time in both."""

import io
import re
import time

import pytest
from rich.console import Console

from distilens.foundation import progress
from distilens.foundation.progress import Work, clock, shows_bars


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch):
    """The time, which stands still until a test moves it."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def log() -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, width=120), stream


def shown(stream: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())


def terminal(width: int = 80) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=True, width=width, legacy_windows=False), stream


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00"), (17, "0:17"), (65, "1:05"), (725, "12:05"), (3723, "1:02:03"), (90000, "1 day, 1:00:00")],
)
def test_times_are_short(seconds, text):
    assert clock(seconds) == text


def test_notebooks_have_a_bar_or_lines(monkeypatch):
    notebook = Console(force_jupyter=True, file=io.StringIO())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name == "ipywidgets" else None)
    assert shows_bars(notebook)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not shows_bars(notebook)
    assert not shows_bars(Console(file=io.StringIO()))
    assert shows_bars(Console(file=io.StringIO(), force_terminal=True))


def test_a_log_gets_a_line_after_each_tenth_with_speed_and_rest(at):
    console, stream = log()
    with Work(console, "recording", 2000, unit="images") as work:
        for _ in range(40):
            at[0] += 0.5
            work.advance(50)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0] == "recording 200/2,000  100 images/s  0:00:18 left"
    assert lines[-1] == "recording 2,000/2,000  100 images/s"


def test_the_rest_of_a_resumed_work_is_estimated_from_this_time_alone(at):
    console, stream = log()
    with Work(console, "teacher", 100, done=50) as work:
        at[0] += 20
        work.advance(10)
        work.line("teacher epoch 3/5")
    assert stream.getvalue() == "teacher epoch 3/5  0:01:20 left\n"


def test_parts_of_a_plan_have_estimates_before_and_during_the_work(at):
    console, stream = log()
    with Work(console, "explain") as work:
        work.begin("first")
        work.plan({"first": 30.0, "second": 90.0})
        work.begin("second")
        done = work.follow("second: maps", 3.0)
        at[0] += 20  # for 30 of the planned seconds
        done(10)
        work.begin("third")
    assert stream.getvalue().splitlines() == [
        "explain: first",
        "explain: second  0:02:00 left",
        "explain: third  0:01:00 left",
    ]


def test_a_terminal_shows_the_part_the_share_and_the_time():
    console, stream = terminal()
    with Work(console, "explain") as work:
        work.plan({"first": 4.0, "second": 4.0})
        done = work.follow("gradcam: maps", 1.0)
        done(2)
        time.sleep(0.06)
        done(2)
        work.bar.refresh()
        assert " 50%" in shown(stream)
        done(4)
    lines = shown(stream).replace("\r", "\n").splitlines()
    last = [line for line in lines if line.strip()][-1]
    assert re.match(r"gradcam: maps .*100% took 0:00", last)
    assert not any("explain: " in line for line in lines)  # lines are for logs


@pytest.mark.parametrize(("width", "length"), [(80, 8), (99, 8), (100, 20), (200, 20)])
def test_the_bar_is_long_if_there_is_room(width: int, length: int):
    console, stream = terminal(width)
    with Work(console, "explain", 2) as work:
        work.advance(2)
    last = shown(stream).replace("\r", "\n").split("\n")[-2]
    assert last.count("━") == length


def test_the_speed_of_a_resumed_work_is_that_of_this_time(at):
    console, stream = log()
    with Work(console, "recording", 100, done=50, unit="images") as work:
        at[0] += 2
        work.advance(10)
    assert stream.getvalue() == "recording 60/100  5 images/s  0:00:08 left\n"


def test_a_short_work_shows_nothing_and_a_long_one_disappears(at):
    for seconds, drawn in ((0.5, False), (1.5, True)):
        console, stream = terminal()
        with Work(console, "decoding images", 100, unit="images", after=1.0, transient=True) as work:
            at[0] += seconds
            work.advance(100)
        assert ("decoding images" in shown(stream)) == drawn
        assert ("100/100" in shown(stream)) == drawn
        assert not drawn or stream.getvalue().endswith("\x1b[2K")  # the line is cleared in the end


def test_lines_may_go_elsewhere(at):
    lines = []
    with Work(None, "codebook:", 20, unit="images", say=lines.append) as work:
        at[0] += 1
        work.advance(10)
    assert lines == ["codebook: 10/20  10 images/s  0:00:01 left"]


def test_without_a_console_nothing_is_printed(capsys):
    with Work(None, "explain", 10, unit="images") as work:
        work.begin("first")
        work.follow("first", 1.0)(10)
        work.line("text")
    assert work.done == 10
    assert capsys.readouterr() == ("", "")
