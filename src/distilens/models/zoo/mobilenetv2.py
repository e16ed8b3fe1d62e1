"""MobileNetV2 for small images."""

from torch import nn
from torchvision.models.mobilenetv2 import MobileNetV2

from distilens.foundation.errors import UserError

STAGES = [
    [1, 16, 1, 1],
    [6, 24, 2, 1],
    [6, 32, 3, 2],
    [6, 64, 4, 2],
    [6, 96, 3, 1],
    [6, 160, 3, 2],
    [6, 320, 1, 1],
]
"""Expansion, channels, blocks and first stride of each stage: the paper's table 2, with stride 1 for 24 channels."""


def mobilenetv2(classes: int, *, width: float = 1.0) -> nn.Module:
    """MobileNetV2 for small images: a student with few multiplications, built for phones.

    This is torchvision's model of 17 inverted residuals, with stride 1 instead of 2 in the first convolution and at
    24 channels, so that a 32x32 image ends at 4x4 instead of 1x1. `width` multiplies the channels, rounded to multiples
    of 8; the last feature has at least 1280 channels. At width 1, 10 classes and 32x32: 2,236,682 parameters, 87.98 M
    multiply-accumulates.

    Source: Sandler et al. 2018 (arXiv 1801.04381), table 2; strides as in kuangliu/pytorch-cifar, without its extra shortcut
    convolutions (2,296,922 parameters). The MobileNetV2 of RepDistiller's tables is another model: half as wide, stride 2
    in the first convolution.
    Taps: `features.0` to `features.18` (the last one is after its ReLU6), `classifier`.
    Raises: UserError if the width is not positive.
    """
    if not width > 0:
        raise UserError(f"the width of a mobilenetv2 multiplies its channels and must be above 0; it was {width}.")
    model = MobileNetV2(classes, width, STAGES)
    first_convolution = model.get_submodule("features.0.0")
    assert isinstance(first_convolution, nn.Conv2d)
    first_convolution.stride = (1, 1)
    return model
