"""Fake quantisation: a student that rounds weights and activations to INT8, in float, so that it can be trained and explained.

The rounding is that of the exported INT8 files: weights symmetric per output channel, inputs of convolutions and linear layers
affine per tensor, with the extremes of the calibration images as their range.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization

from distilens.deploy.shipped import make_bare, set_plain
from distilens.models.model import Model
from distilens.models.taps import evaluating

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear, *TRANSPOSED)
LEVELS = 255
SMALLEST = 1e-8
"""The smallest scale: an input or a channel that is 0 everywhere."""


class RoundWeight(nn.Module):
    """Round a weight to INT8, symmetric per output channel; the gradient passes unchanged.

    Args:
        axis: that of the output channels: 1 for a transposed convolution.
    """

    def __init__(self, axis: int = 0):
        super().__init__()
        self.axis = axis

    def forward(self, weight: Tensor) -> Tensor:
        largest = weight.detach().abs().transpose(0, self.axis).flatten(1).amax(1)
        scale = (largest / 127).clamp_min(SMALLEST)
        zeros = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale, zeros, self.axis, -127, 127)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


class RoundInput(nn.Module):
    """Round a layer's input to INT8, affine per tensor. While `watching`, it only widens its range."""

    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.watching = True
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    def forward(self, values: Tensor) -> Tensor:
        if self.watching:
            self.low = torch.minimum(self.low, values.detach().amin())
            self.high = torch.maximum(self.high, values.detach().amax())
            return values
        scale = ((self.high - self.low) / LEVELS).clamp_min(SMALLEST)
        zero = (-128 - self.low / scale).round().clamp(-128, 127).to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(values, scale, zero, -128, 127)


def before(rounding: RoundInput) -> Callable[[nn.Module, tuple], tuple]:
    """A hook that rounds the input of a layer."""

    def hook(module: nn.Module, inputs: tuple) -> tuple:
        return (rounding(inputs[0]), *inputs[1:])

    hook.rounds = True  # type: ignore[attr-defined]  # so that it is found again
    return hook


def fake_quantize(model: Model, calibration: Tensor) -> Model:
    """A copy of a student with fake quantisation, on the student's device; its batch norms are folded.

    Args:
        model: the finished student; it is not changed.
        calibration: images `[n 3 h w]` in [0, 1].
    """
    made = make_bare(model).to(model.device)
    roundings = []
    for module in list(made.modules()):
        if isinstance(module, LAYERS) and not is_parametrized(module):
            rounding = RoundInput().to(model.device)
            module.register_module("round_input", rounding)
            module.register_forward_pre_hook(before(rounding))
            register_parametrization(module, "weight", RoundWeight(1 if isinstance(module, TRANSPOSED) else 0))
            roundings.append(rounding)
    with evaluating(made), torch.no_grad():
        for images in calibration.to(model.device).split(64):
            made(images)
    for rounding in roundings:
        rounding.watching = False
    return made


def remove_rounding(model: Model) -> Model:
    """The same student in float again, with its weights before rounding, in place."""
    for module in list(model.modules()):
        if isinstance(getattr(module, "round_input", None), RoundInput):
            for key, hook in list(module._forward_pre_hooks.items()):
                if getattr(hook, "rounds", False):
                    del module._forward_pre_hooks[key]
            del module._modules["round_input"]
            set_plain(module, {"weight": module.parametrizations["weight"].original})  # type: ignore[index, union-attr]
    return model
