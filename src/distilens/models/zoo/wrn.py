"""The Wide ResNet for small images, as in the tables of distillation papers."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from distilens.foundation.errors import UserError
from distilens.models.zoo.resnet import blocks_per_stage, initialise_convolutions


def wrn(classes: int, *, depth: int = 16, width: int = 2, dropout: float = 0.0) -> nn.Module:
    """Wide ResNet for small images: shallower and wider than `resnet`, and a common teacher (`wrn:depth=40,width=2`).

    `depth = 6n + 4`: a 3x3 stem of 16 channels and three stages of `n` pre-activation blocks with `width` times
    16, 32, 64 channels; stages 2 and 3 halve the image. `dropout` is the probability between a block's convolutions.

    Source: Zagoruyko and Komodakis 2016 (arXiv 1605.07146), table 1; dropout section 2.4; as in RepDistiller.
    Taps: `layer1`, `layer2`, `layer3` are sums of residuals, of either sign; `relu` is the last feature after its ReLU.
    Raises: UserError if the depth is not 6n + 4, the width is below 1, or the dropout is outside [0, 1).
    """
    if width < 1:
        raise UserError(f"the width of a wrn multiplies its channels and must be at least 1; it was {width}.")
    if not 0 <= dropout < 1:
        raise UserError(f"the dropout of a wrn is a probability in [0, 1); it was {dropout}.")
    return WideResNet(classes, blocks_per_stage("wrn", depth, extra_layers=4), width, dropout)


class PreactivationBlock(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU, and a shortcut that adds the block's input.

    If the channels change, the shortcut is a 1x1 convolution of the *activated* input: `bn1` and `relu1` are shared.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, dropout: float):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.relu2 = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        activated = self.relu1(self.bn1(features))
        branch = self.relu2(self.bn2(self.conv1(activated)))
        branch = self.conv2(self.dropout(branch))
        return branch + (features if self.downsample is None else self.downsample(activated))


class WideResNet(nn.Module):
    """Stem, three stages, batch norm and ReLU, average over the image, linear classifier. Built by `wrn`."""

    def __init__(self, classes: int, blocks: int, width: int, dropout: float):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.layer1 = _stage(blocks, 16, 16 * width, stride=1, dropout=dropout)
        self.layer2 = _stage(blocks, 16 * width, 32 * width, stride=2, dropout=dropout)
        self.layer3 = _stage(blocks, 32 * width, 64 * width, stride=2, dropout=dropout)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64 * width, classes)
        initialise_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        features = self.layer3(self.layer2(self.layer1(self.conv1(images))))
        features = self.relu(self.bn1(features))
        return self.fc(torch.flatten(self.avgpool(features), 1))


def _stage(blocks: int, channels_in: int, channels_out: int, *, stride: int, dropout: float) -> nn.Sequential:
    first = PreactivationBlock(channels_in, channels_out, stride, dropout)
    rest = (PreactivationBlock(channels_out, channels_out, 1, dropout) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)
