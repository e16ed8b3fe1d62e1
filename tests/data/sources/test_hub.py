"""Data sets of torchvision: what their arrays become, and a download that fails."""

import re

import numpy as np
import pytest
from torchvision import datasets

from distilens.data import load
from distilens.data.sources.hub import pixels_of
from distilens.foundation.errors import UserError


def test_arrays_of_every_order_become_the_same_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    assert np.array_equal(pixels_of(pixels), pixels)
    assert np.array_equal(pixels_of(pixels.transpose(0, 3, 1, 2)), pixels)
    grey = pixels_of(pixels[..., 0])
    assert grey.shape == (4, 5, 6, 3)
    assert all(np.array_equal(grey[..., channel], pixels[..., 0]) for channel in range(3))


@pytest.mark.parametrize("error", [RuntimeError, OSError])
def test_a_failed_download_is_said_in_one_line(tmp_path, monkeypatch, error):
    def fail(root, *, train, download):
        assert download
        raise error("no route to host\nand more")

    monkeypatch.setattr(datasets, "CIFAR10", fail)
    message = re.escape(f"CIFAR10 cannot be downloaded to {tmp_path}: no route to host")
    with pytest.raises(UserError, match=f"{message}$"):
        load(f"torchvision:CIFAR10,root=[{tmp_path}],download=true", tmp_path / "cache")
