"""What all tests share: one thread, no network, a cache of their own, and the shapes in annotations checked."""

from __future__ import annotations

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ.setdefault("OMP_NUM_THREADS", "1")

import jaxtyping

from checking import checked

jaxtyping.jaxtyped = checked  # which the hook puts before each function
jaxtyping.install_import_hook("distilens", "checking.check")

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
os.fsync = lambda file: None  # no test cuts the power
gc.disable()  # until all is imported, of which nothing is garbage


def pytest_collection_finish():
    """What was imported stays: the garbage collector need not go through it again in each test."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_unconfigure():
    gc.unfreeze()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A data cache and a working directory of the test's own."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "data"
    folder.mkdir(parents=True)
    return folder
