"""Devices: the clock."""

import time

import pytest
import torch

from distilens.foundation.devices import now


def test_the_clock_waits_for_the_work_of_its_own_device(monkeypatch: pytest.MonkeyPatch):
    waited = []
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    monkeypatch.setattr(time, "perf_counter", lambda: float(len(waited)))
    assert now(torch.device("cpu")) == 0
    assert now(torch.device("cuda", 1)) == 1  # the time is read after the wait
    assert waited == [torch.device("cuda", 1)]
    assert now(torch.device("meta")) == 1


def test_without_an_accelerator_it_is_the_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: None)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: pytest.fail("nothing to wait for"))
    before = time.perf_counter()
    assert before <= now(torch.device("cpu")) <= time.perf_counter()
