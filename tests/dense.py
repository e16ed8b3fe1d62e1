"""A tiny dense task, its data and its networks, for tests of methods."""

import numpy as np
import torch
from torch import Tensor, nn

from distilens import as_data
from distilens.core import Batch, Model
from distilens.data.pipeline import Batches
from distilens.data.splits import Data
from distilens.tasks import VOID, Segmentation

TASK = Segmentation(("ground", "plant", "sky"))
SIDE = 16


class Tiny(nn.Module):
    """Three features, each on half the grid of the one before, and a head: logits on a quarter of the image's grid."""

    def __init__(self, width: int):
        super().__init__()
        self.early = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU())
        self.late = nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU())
        self.head = nn.Conv2d(width, TASK.outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.late(self.middle(self.early(images))))


def network(width: int = 4, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return Model(Tiny(width), TASK, size=(SIDE, SIDE))


def pictures(count: int = 40, seed: int = 0) -> Data:
    """Images whose colour says the class of each place, in blocks of 4×4; some places are void."""
    chance = np.random.default_rng(seed)
    masks = chance.integers(0, 3, (count, 4, 4)).repeat(4, 1).repeat(4, 2).astype(np.uint8)
    images = (80 * np.eye(3)[masks] + chance.uniform(0, 80, (*masks.shape, 3))).astype(np.uint8)
    masks[chance.random(masks.shape) < 0.1] = VOID
    return as_data((images, masks), task=TASK)


def first_batch(data: Data, size: int = 6) -> Batch:
    return next(Batches(data.train, size).epoch(0))
