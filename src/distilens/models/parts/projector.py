"""The part of the method `simkd`: it brings the last feature to the teacher's channels."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

from distilens.foundation.settings import Count
from distilens.models.heads import give_head


class Projector(nn.Module):
    """Brings the last feature to the teacher's channels, `[b c h w]` to `[b t h w]`, by 1×1, 3×3 and 1×1 convolutions.

    Each convolution has a batch norm and a ReLU. The part changes the number of channels, so it gives the model a new head.

    It has about `c m + 9 m^2 + m t` parameters, `m = t / factor`, and takes as many MACs per place.

    Args:
        channels: the channels of the feature, `c`.
        wanted: the teacher's channels, `t`.
        classes: the classes of the new head.
        factor: the middle has `t / factor` channels.
    """

    def __init__(self, *, channels: Count, wanted: Count, classes: Count, factor: Count = 2):
        super().__init__()
        narrow = max(1, wanted // factor)
        self.wanted, self.classes = wanted, classes
        self.layers = nn.Sequential(block(channels, narrow, 1), block(narrow, narrow, 3), block(narrow, wanted, 1))

    def enter(self, network: nn.Module) -> None:
        """Replace the head of the network that it is inserted into."""
        give_head(network, nn.Linear(self.wanted, self.classes))

    def forward(self, feature: Float[Tensor, "b c h w"], inputs: Mapping[str, Tensor]) -> Float[Tensor, "b t h w"]:
        return self.layers(feature)


def block(channels: int, wanted: int, side: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, wanted, side, padding=side // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(wanted), nn.ReLU())
