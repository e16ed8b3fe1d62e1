"""What a finished run prints."""

from types import SimpleNamespace

import pytest

from distilens.cli import terminal
from distilens.foundation import devices
from distilens.report import remarks


def test_only_the_main_process_prints(monkeypatch, capsys):
    monkeypatch.setattr(devices, "processes", lambda: SimpleNamespace(is_main_process=False))
    terminal.conclude(SimpleNamespace())  # it is not even looked at
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("busy", [True, False])
def test_a_busy_machine_is_said_below_the_table(monkeypatch, capsys, busy):
    latency = {"median": 1.0, "low": 0.9, "high": 9.0 if busy else 1.1, "batch": 1, "device": "cpu"}
    share = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "n": 40}
    models = {"student": {"model": "resnet8", "test": share, "parameters": 10, "latency_ms": latency}}
    terminal.show_scores(SimpleNamespace(scores={"models": models}))
    printed = capsys.readouterr().out
    assert "resnet8" in printed or "student" in printed
    line = remarks.busy_warning(models)
    assert (line is not None) is busy
    assert ("This machine was busy while the latency of student was measured" in printed) is busy
