"""Small teachers, and batches, for the tests of several teachers and of controls."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from distilens.core import Answer, Batch, Model, Teacher
from distilens.data import Data, load
from distilens.data.augment import AUGMENTS
from distilens.data.pipeline import Batches
from distilens.teachers import LiveTeacher
from distilens.teachers.needs import Need, make_answer, moved, spread


def live(data: Data, seed: int = 0, *, stride: int = 2, classes: Sequence[str] | None = None) -> LiveTeacher:
    """A tiny network that tells images apart."""
    torch.manual_seed(seed)
    names = tuple(classes or data.classes)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=stride, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, len(names)),
    )  # fmt: skip
    with torch.no_grad():
        network[-1].weight *= 8
    return LiveTeacher(Model(network, names, size=data.size, name=f"tiny{seed}"))


def batches(data: Data, size: int = 12, *, augment: str = "crop:padding=2", **options) -> Batches:
    return Batches(data.train, size, augment=AUGMENTS.build(augment), variant_seed=0, **options)


class Said(Teacher):
    """A teacher that says what it is told, by the index of the image: logits, maps, scores."""

    def __init__(
        self,
        *,
        number: float = 0.0,
        scores: dict[int, float] | None = None,
        right: dict[int, bool] | None = None,
        grid: int = 4,
        channels: int = 2,
        classes: tuple[str, ...] | None = None,
    ):
        self.number, self.scores, self.right = number, scores or {}, right or {}
        self.grid, self.channels, self.classes = grid, channels, classes
        self.asked: list[tuple[str, ...]] = []

    def values(self, batch: Batch, *shape: int) -> Tensor:
        """The teacher's number and the image's index, as a tensor of any shape."""
        value = self.number + batch.index.float() / 1000
        return value.view(-1, *[1] * len(shape)).expand(-1, *shape).clone()

    def __call__(self, batch: Batch, needs: Sequence[str]) -> Answer:
        self.asked.append(tuple(needs))
        values, index = {}, batch.index.tolist()
        for need in map(Need.parse, needs):
            if need.kind == "logits":
                values[need] = self.values(batch, 3)
            elif need.kind == "features":
                values[need] = self.values(batch, self.channels, 4, 4)
            elif need.kind == "maps":
                rows = torch.from_numpy(need.rows(batch))
                picture = self.values(batch, self.grid, self.grid)
                picture[:, 0, 0] += 1
                maps, explained = moved(batch, need, picture[rows], rows), torch.full((len(rows),), int(self.number))
                values[need] = spread(batch, rows, maps), spread(batch, rows, explained)
            elif need.what == "correct":
                values[need] = torch.tensor([float(self.right.get(one, True)) for one in index])
            else:
                values[need] = torch.tensor([self.scores.get(one, 0.0) for one in index])
        return make_answer(values)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Data:
    return load("shapes:train=80,test=40,size=16", tmp_path_factory.mktemp("shapes"))


@pytest.fixture
def live_of():
    """`live_of(data, seed)`: a tiny live teacher."""
    return live


@pytest.fixture
def batches_of():
    """`batches_of(data, size)`: batches of its training images."""
    return batches


@pytest.fixture
def said():
    """`said(number=..., scores=...)`: a teacher that says what it is told."""
    return Said
