"""The device of a command, as the library that computes reads it."""

import os
from types import SimpleNamespace

import pytest
import torch

from distilens.cli.options import Manner
from distilens.foundation.errors import UserError


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """Two GPUs, and an environment that says nothing; it is restored afterwards."""
    for name in ("ACCELERATE_USE_CPU", "ACCELERATE_TORCH_DEVICE"):
        monkeypatch.setenv(name, "before")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(is_available=lambda: True, device_count=lambda: 2))
    monkeypatch.setattr(torch, "mps", SimpleNamespace(is_available=lambda: False, device_count=lambda: 1))


def chosen() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("ACCELERATE_")}


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (None, {}),
        ("cpu", {"ACCELERATE_USE_CPU": "true"}),
        ("cuda", {"ACCELERATE_TORCH_DEVICE": "cuda"}),
        ("cuda:1", {"ACCELERATE_TORCH_DEVICE": "cuda:1"}),
    ],
)
def test_a_device_that_is_there_is_chosen(device, expected):
    Manner(device=device).choose_device()
    assert chosen() == expected


@pytest.mark.parametrize(
    ("device", "count"), [("cuda:2", "2 cuda devices"), ("mps", "no mps device"), ("xpu:1", "no xpu device")]
)
def test_a_device_that_is_not_there_is_said_before_anything_is_computed(device, count):
    with pytest.raises(UserError, match=f"^--device {device}: this machine has {count}$"):
        Manner(device=device).choose_device()
    assert chosen() == {}
