"""A segmentation that is quickly learnt: squares of two colours on a dark ground; the upper edge is void."""

import torch
from torch import nn

import distilens
from distilens.tasks import VOID, Segmentation

TASK = Segmentation(("ground", "green", "blue"))


def squares(count=80, height=24, width=32, seed=0):
    """Images `[n 3 h w]` and masks `[n h w]`."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, height, width, generator=generator) * 0.4
    masks = torch.zeros(count, height, width, dtype=torch.uint8)
    for place in range(count):
        top, left = (int(torch.randint(0, side - 10, (1,), generator=generator)) for side in (height, width))
        number = 1 + place % 2
        masks[place, top : top + 10, left : left + 10] = number
        images[place, number, top : top + 10, left : left + 10] += 0.6
    masks[:, :2] = VOID
    return images, masks


def pictures() -> distilens.Data:
    return distilens.as_data(squares(), task=TASK)


class Net(nn.Module):
    """A convolutional encoder at half the size, and a head of one layer."""

    def __init__(self, classes, width=8):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1), nn.ReLU()
        )
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, images):
        return self.head(self.encoder(images))


def teacher(classes):
    return Net(classes, 16)


def student(classes):
    return Net(classes, 4)


def model(width=8, seed=0):
    torch.manual_seed(seed)
    return distilens.Model(Net(len(TASK.classes), width), TASK, size=(24, 32))
