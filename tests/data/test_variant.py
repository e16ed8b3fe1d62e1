"""Variants of images, as keys of stored answers."""

import numpy as np

import distilens
from distilens.data.augment import AUGMENTS
from distilens.data.variant import Variant


def test_a_variant_says_how_it_was_drawn():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    split = distilens.from_arrays(pixels, np.arange(40) % 2).train
    assert Variant(None, split, split.index, None, 3).drawing() == {}
    drawn = Variant(0, split, split.index, AUGMENTS.build("crop:padding=2"), 3).drawing()
    assert (drawn["variant seed"], drawn["augment"]["padding"]) == (3, 2)
    assert "mixed from" not in drawn
