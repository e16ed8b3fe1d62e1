"""Data for a task of one's own, from arrays, data sets and functions."""

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import distilens
from brightness import Brightness
from distilens.data.sources.own_task import code_of
from distilens.foundation.errors import UserError

IMAGES = torch.rand(30, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TARGETS = torch.rand(30, generator=torch.Generator().manual_seed(1)).index_fill(0, torch.tensor([4]), torch.nan)


class Items:
    def __len__(self):
        return 30

    def __getitem__(self, at):
        return (IMAGES[at] * 255).byte().permute(1, 2, 0).numpy(), float(TARGETS[at])


@pytest.mark.parametrize("given", [(IMAGES, TARGETS), TensorDataset(IMAGES, TARGETS), (IMAGES, TARGETS[:, None])])
def test_targets_stay_as_they_are(given):
    data = distilens.as_data(given, task=Brightness())
    rows = np.concatenate([split.index for split in data.splits.values()])
    assert sorted(rows.tolist()) == list(range(30)) and data.classes == ()
    for split in data.splits.values():
        assert np.array_equal(split.targets, TARGETS.numpy()[split.index], equal_nan=True)
    assert 4 in data.train.index  # without a target it only trains
    again = distilens.as_data(given, task=Brightness())
    assert again.fingerprint == data.fingerprint != distilens.as_data(given, task=Brightness(), seed=1).fingerprint


def test_items_are_stacked():
    data = distilens.as_data(Items(), task=Brightness())
    whole = distilens.as_data((IMAGES, TARGETS), task=Brightness())
    assert np.array_equal(data.train.targets, whole.train.targets, equal_nan=True)
    assert np.abs(data.train.rows.images.astype(int) - whole.train.rows.images).max() <= 1


def test_sets_of_their_own():
    data = distilens.as_data({"train": (IMAGES, TARGETS), "test": (IMAGES[:5], TARGETS[:5])}, task=Brightness())
    assert len(data.test) == 4  # one has no target


@pytest.mark.parametrize(
    ("given", "options", "words"),
    [
        ((IMAGES, TARGETS[:7]), {}, "expected numbers, or arrays of numbers, one per image"),
        ((IMAGES, np.array(["a"] * 30)), {}, "expected numbers"),
        (IMAGES, {}, "expected images and targets"),
        ((IMAGES, TARGETS), {"shots": 3}, "shots= is about classes, but the task brightness has none"),
        ({"train": (IMAGES, TARGETS), "test": (IMAGES[..., :4], TARGETS)}, {}, "several sizes"),
    ],
)
def test_mistakes(given, options, words):
    with pytest.raises(UserError, match=words):
        distilens.as_data(given, task=Brightness(), **options)


def test_a_function_makes_the_data():
    data = distilens.load("python:brightness:pictures")
    assert (data.name, data.task) == ("python:brightness:pictures", Brightness())
    with pytest.raises(UserError, match="the function returns a Data, whose rows are chosen: leave out limit"):
        distilens.load("python:brightness:pictures,limit=5")
    with pytest.raises(UserError, match=r"brightness has no 'picture'\. Did you mean 'pictures'"):
        distilens.load("python:brightness:picture")


def test_pictures_of_several_sizes_are_refused():
    class Uneven(Items):
        def __getitem__(self, at):
            return super().__getitem__(at)[0][: 8 - at % 2], 1.0

    with pytest.raises(UserError, match="the train pictures have several sizes: for a task of your own, give one size"):
        distilens.as_data(Uneven(), task=Brightness())


def test_the_source_of_a_task_counts_where_it_can_be_read():
    assert "def loss" in code_of(Brightness())
    space = {"Brightness": Brightness}
    exec("class Typed(Brightness):\n    pass", space)
    assert code_of(space["Typed"]()) == ""
