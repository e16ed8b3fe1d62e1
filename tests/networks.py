"""Small networks that several tests use."""

import pytest
import torch
from torch import Tensor, nn

from distilens.core import Model
from distilens.models import build_model

FOUR = tuple("abcd")


def settled(model: Model) -> Model:
    """In eval mode, with statistics of the batch norms as after training: neither 0 nor 1."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def built(name: str = "resnet8", size: tuple[int, int] = (32, 32)) -> Model:
    """A network with four classes. A vgg has an eighth of its channels: the same form at a fraction of the time."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distilens.models.zoo.vgg.CHANNELS", (8, 16, 32, 64, 64))
        return build_model(name, FOUR, size)


def convolutional(name: str = "resnet8", size: tuple[int, int] = (32, 32)) -> Model:
    return settled(built(name, size))


def transformer(size: tuple[int, int] = (32, 32)) -> Model:
    """A transformer of transformers with four classes and 16 patches."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=48,
        image_size=32,
        patch_size=8,
        num_labels=4,
        initializer_range=0.2,
    )
    return Model(ViTForImageClassification(config), FOUR, size=size).eval()


class Smooth(nn.Module):
    """All derivatives; the features are positive and strong, so that rectified maps are seldom at their kink.

    The head has two layers, so that gradients at the tap depend on the weights before it.
    """

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.features = nn.Sequential(
            nn.Conv2d(3, 5, 3, padding=1), nn.GELU(), nn.Conv2d(5, 4, 3, stride=2), nn.Softplus()
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
