"""Muon for convolutional networks: the step of each convolution is a matrix whose singular values are all about 1."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn, optim

from distilens.foundation.devices import profits_from_bfloat16
from distilens.training.optimizers import Fraction, NotNegative, Positive

STEM_CHANNELS = 3
LARGE = 256
"""A matrix is large if its smaller side has at least this length; measured on a processor with AVX-512."""


class Muon(optim.Optimizer):
    """Orthogonalised momentum for convolutions, SGD with Nesterov's momentum for everything else.

    For a convolution `W`, seen as a matrix `[out, in·h·w]`, with gradient `G`:

        M <- momentum M + G;   W <- W sqrt(out) / |W|;   W <- W - lr · NS(G + momentum M)

    where `NS` brings all singular values near 1 by three steps of a fifth-order Newton-Schulz iteration. The fixed norm of `W`
    replaces weight decay: the normalisation layer after the convolution makes the network independent of this norm. A
    convolution with a bias is assumed to have no normalisation after it (as in a plain VGG, or where a method translates
    features), so its norm is free. SGD trains the stem, transposed convolutions, linear layers, norms and biases.

    torch.optim.Muon takes matrices only and does not fix the norm.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; the coefficients and the norm are those of
    airbench94_muon.
    """

    def __init__(self, module: nn.Module, *, lr: float, momentum: float, rest: dict[str, float]):
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        transposed = parameters_of(module, lambda layer: isinstance(layer, nn.ConvTranspose2d))
        free = parameters_of(module, lambda layer: isinstance(layer, nn.Conv2d) and layer.bias is not None)
        seen = (p for p in parameters if p.ndim == 4 and p.shape[1] > STEM_CHANNELS)
        convolutions = [p for p in seen if id(p) not in transposed]
        chosen = {id(parameter) for parameter in convolutions}
        turned = {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "orthogonal": True}
        groups = [
            {"params": [p for p in convolutions if id(p) not in free], "held": True, **turned},
            {"params": [p for p in convolutions if id(p) in free], "held": False, **turned},
            {"params": [p for p in parameters if id(p) not in chosen], "held": False, "orthogonal": False, **rest},
        ]
        super().__init__([group for group in groups if group["params"]], {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.move(parameter, parameter.grad, group)

    def move(self, parameter: Tensor, gradient: Tensor, group: dict) -> None:
        """One step of one parameter."""
        if group["weight_decay"]:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].mul_(group["momentum"]).add_(gradient)
        direction = gradient.add(state["momentum"], alpha=group["momentum"])
        if group["held"]:
            parameter.mul_(len(parameter) ** 0.5 / parameter.norm().clamp_min(1e-12))
        if group["orthogonal"]:
            direction = orthogonalised(direction.reshape(len(parameter), -1)).reshape(parameter.shape)
        parameter.add_(direction, alpha=-group["lr"])


def parameters_of(module: nn.Module, chosen: Callable[[nn.Module], bool]) -> set[int]:
    """The `id`s of the parameters of all chosen modules inside a module."""
    return {id(parameter) for inner in module.modules() if chosen(inner) for parameter in inner.parameters()}


def orthogonalised(matrix: Tensor, steps: int = 3) -> Tensor:
    """A matrix with the same singular vectors and all singular values near 1 (0.7 to 1.2), by Newton-Schulz iteration.

    Large matrices are computed in bfloat16, as published, if the processor supports it: two to three times as fast.
    """
    x = matrix / matrix.norm().clamp_min(1e-7)
    x = x.bfloat16() if min(x.shape) >= LARGE and profits_from_bfloat16() else x
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)


def muon(
    module: nn.Module,
    *,
    lr: Positive = 0.08,
    momentum: Fraction = 0.6,
    rest_lr: Positive = 0.1,
    rest_momentum: Fraction = 0.9,
    weight_decay: NotNegative = 5e-4,
) -> optim.Optimizer:
    """Orthogonalised momentum for convolutions, SGD for the rest (`rest_lr`, `weight_decay`): fast when epochs are few.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon, in the form of airbench94_muon.
    """
    rest = {"lr": rest_lr, "momentum": rest_momentum, "weight_decay": weight_decay}
    return Muon(module, lr=lr, momentum=momentum, rest=rest)
