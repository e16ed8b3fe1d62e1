"""Devices and processes: the clock, fast number formats, values of all processes."""

import time

import pytest
import torch

from distilens.foundation.devices import gather, mean_of_processes, now, profits_from_bfloat16


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


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_that_only_emulates_bfloat16_does_not_profit(monkeypatch: pytest.MonkeyPatch, native: bool):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: native or including_emulation)
    assert profits_from_bfloat16.__wrapped__() is native


@pytest.mark.parametrize(
    ("able", "profits"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx2": True}, False), ({}, False)],
)
def test_a_processor_profits_if_it_has_the_instructions(monkeypatch: pytest.MonkeyPatch, able: dict, profits: bool):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    assert profits_from_bfloat16.__wrapped__() is profits


def test_values_are_gathered_and_averaged_over_the_processes_of_a_launch(monkeypatch: pytest.MonkeyPatch):
    """This process is the second of two; the first has values that are larger by 10."""
    own = torch.arange(6.0).view(3, 2)
    assert gather(own) is own
    assert mean_of_processes(own) is own

    def all_gather(shards, values):
        assert values.is_contiguous()
        shards[0].copy_(values + 10)
        shards[1].copy_(values)

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather", all_gather)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda values: values.add_(values + 10))
    assert torch.equal(gather(own.T), torch.cat([own.T + 10, own.T]))
    assert torch.equal(mean_of_processes(own.clone()), own + 5)
