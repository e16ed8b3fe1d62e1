"""Streamed images travel to workers by path or in shared memory, whatever the start method."""

import os
import pickle
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch

from distilens.data.pipeline import Streamed


def test_a_memory_map_travels_by_its_path(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (500, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    streamed = Streamed(np.load(tmp_path / "images.npy", mmap_mode="r"))
    sent = pickle.dumps(streamed)
    assert len(sent) < 1000 < images.nbytes
    again, rows = pickle.loads(sent), np.array([3, 499, 0])
    assert torch.equal(again[rows], torch.from_numpy(images[rows]))
    assert isinstance(again.images, np.memmap)
    assert not again.images.flags.writeable


def test_an_array_travels_in_shared_memory():
    images = np.random.default_rng(0).integers(0, 256, (500, 8, 8, 3), dtype=np.uint8)
    assert len(bytes(ForkingPickler.dumps(Streamed(images)))) < 2000


SCRIPT = """
import multiprocessing
import sys

import distilens

def main():
    settings = {"epochs": 1, "batch_size": 16, "resident": False, "workers": 1}
    distilens.distill("resnet8", None, "shapes:train=3000,test=40,size=32", ["ce"], settings=settings | {"epochs": 1})
    print("done")

if sys.argv[1] == "bare":
    if multiprocessing.get_start_method(allow_none=True) is None:
        multiprocessing.set_start_method("spawn")
    main()
elif __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["guarded", "bare"])
def test_workers_that_are_spawned(tmp_path, how):
    """As on macOS and Windows. A script without a guard ends in an error; it must not wait for ever."""
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "script.py", how]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    if how == "guarded":
        assert done.returncode == 0, done.stderr[-2000:]
        assert "done" in done.stdout
    else:
        assert done.returncode != 0
        assert "__main__" in done.stderr
