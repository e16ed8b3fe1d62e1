"""What all tests share: one thread, no network, a cache of their own, and the shapes in annotations checked."""

from __future__ import annotations

import os
import sys
import types

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ.setdefault("OMP_NUM_THREADS", "1")

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

# The hook takes a type checker by name; ours lets an int stand for a float, as Python does.
checking = types.ModuleType("checking")
checking.check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # type: ignore[attr-defined]
sys.modules["checking"] = checking
install_import_hook("distilens", "checking.check")

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


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
