"""ResNet for small images, as in the tables of distillation papers."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from distilens.foundation.errors import UserError


def resnet(classes: int, *, depth: int = 20, width: int = 1) -> nn.Module:
    """ResNet for small images: the usual teacher and student of CIFAR distillation tables.

    `depth = 6n + 2`: a 3x3 stem and three stages of `n` blocks of two convolutions; stages 2 and 3 halve the image.
    `width` multiplies the stages' 16, 32, 64 channels. The stem has 16 channels, or 32 if `width > 1`: resnet8x4 and
    resnet32x4 of the tables are `width=4`, with channels 32 | 64, 128, 256.

    Source: He et al. 2016 (arXiv 1512.03385), section 4.2; widths as in RepDistiller, mdistiller and CRD, and also the 1x1
    shortcut with batch norm if the shape changes (option B; the paper's CIFAR models pad with zeros).
    Taps: `layer1`, `layer2`, `layer3` (after the last ReLU of the stage), `fc`; parameter names are RepDistiller's.
    Raises: UserError if the depth is not 6n + 2, or the width is below 1.
    """
    if width < 1:
        raise UserError(f"the width of a resnet multiplies its channels and must be at least 1; it was {width}.")
    return ResNet(classes, blocks_per_stage("resnet", depth, extra_layers=2), width)


def blocks_per_stage(family: str, depth: int, *, extra_layers: int) -> int:
    """`n` in `depth = 6n + extra_layers`: three stages of n blocks with two convolutions each, plus the layers outside.

    Raises: UserError if there is no such n; the message names the nearest valid depths.
    """
    blocks, remainder = divmod(depth - extra_layers, 6)
    if blocks >= 1 and remainder == 0:
        return blocks
    below = 6 * blocks + extra_layers
    nearest = f"{below} and {below + 6}" if blocks >= 1 else f"{6 + extra_layers}"
    raise UserError(
        f"the depth of a {family} is 6n + {extra_layers} (n = 1, 2, ...); it was {depth}. Nearest valid: {nearest}."
    )


def initialise_convolutions(model: nn.Module) -> None:
    """Initialise every convolution from Kaiming's normal distribution, fan out: variance 2 / (kernel area * out channels).

    Source: He et al. 2015 (arXiv 1502.01852), equation 14.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: `relu(bn(conv(relu(bn(conv(x))))) + shortcut(x))`."""

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False), nn.BatchNorm2d(channels_out)
            )
        self.relu2 = nn.ReLU()

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        branch = self.relu1(self.bn1(self.conv1(features)))
        branch = self.bn2(self.conv2(branch))
        return self.relu2(branch + self.downsample(features))


class ResNet(nn.Module):
    """Stem, three stages, average over the image, linear classifier. Built by `resnet`."""

    def __init__(self, classes: int, blocks: int, width: int):
        super().__init__()
        stem = 16 if width == 1 else 32
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        self.layer1 = _stage(blocks, stem, 16 * width, stride=1)
        self.layer2 = _stage(blocks, 16 * width, 32 * width, stride=2)
        self.layer3 = _stage(blocks, 32 * width, 64 * width, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64 * width, classes)
        initialise_convolutions(self)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        features = self.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        return self.fc(torch.flatten(self.avgpool(features), 1))


def _stage(blocks: int, channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    first = BasicBlock(channels_in, channels_out, stride)
    return nn.Sequential(first, *(BasicBlock(channels_out, channels_out, 1) for _ in range(blocks - 1)))
