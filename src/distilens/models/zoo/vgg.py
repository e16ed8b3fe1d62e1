"""VGG for small images, as in the tables of distillation papers."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from distilens.foundation.errors import UserError
from distilens.models.zoo.resnet import initialise_convolutions

CONVOLUTIONS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convolutions in each of the five stages, by depth."""

CHANNELS = (64, 128, 256, 512, 512)
"""Channels of each of the five stages."""


def vgg(classes: int, *, depth: int = 8) -> nn.Module:
    """VGG with batch norm for small images: a plain network without shortcuts (in papers vgg13 teaches vgg8).

    Five stages of 3x3 convolutions with 64, 128, 256, 512, 512 channels (one convolution per stage at depth 8), with the
    image halved in between, then an average over the image and one linear layer instead of VGG's three. Depths 8, 11, 13,
    16, 19.

    Source: Simonyan and Zisserman 2015 (arXiv 1409.1556), configurations A, B, D, E; vgg8 and the sizes as in
    RepDistiller: images with a height below 64 pixels are halved three times, not four, so the last two stages see 4x4
    at 32x32.
    Taps: `layer1` to `layer5` (after the stage's last ReLU, before the halving), `fc`.
    Raises: UserError if the depth is another one.
    """
    if depth not in CONVOLUTIONS:
        known = ", ".join(map(str, CONVOLUTIONS))
        closest = min(CONVOLUTIONS, key=lambda valid: abs(valid - depth))
        raise UserError(f"the depth of a vgg is one of {known}; it was {depth}. Nearest valid: {closest}.")
    return VGG(classes, CONVOLUTIONS[depth])


class VGG(nn.Module):
    """Five stages, average over the image, linear classifier. Built by `vgg`."""

    def __init__(self, classes: int, convolutions: tuple[int, ...]):
        super().__init__()
        self.layer1 = _stage(convolutions[0], 3, CHANNELS[0])
        self.layer2 = _stage(convolutions[1], CHANNELS[0], CHANNELS[1])
        self.layer3 = _stage(convolutions[2], CHANNELS[1], CHANNELS[2])
        self.layer4 = _stage(convolutions[3], CHANNELS[2], CHANNELS[3])
        self.layer5 = _stage(convolutions[4], CHANNELS[3], CHANNELS[4])
        self.pool = nn.MaxPool2d(2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(CHANNELS[4], classes)
        initialise_convolutions(self)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        features = self.pool(self.layer1(images))
        features = self.pool(self.layer2(features))
        features = self.pool(self.layer3(features))
        features = self.layer4(features)
        if images.shape[2] >= 64:
            features = self.pool(features)
        features = self.layer5(features)
        return self.fc(torch.flatten(self.avgpool(features), 1))


def _stage(convolutions: int, channels_in: int, channels_out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(convolutions):
        # The bias has no effect before a batch norm; it stays because the published parameter counts include it.
        convolution = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        layers += [convolution, nn.BatchNorm2d(channels_out), nn.ReLU()]
        channels_in = channels_out
    return nn.Sequential(*layers)
