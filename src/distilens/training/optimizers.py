"""Optimizers and learning-rate schedules, by name."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field
from torch import nn, optim

from distilens.foundation.notation import Registry

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Decay = Literal["all", "weights"]
Schedule = Callable[[int, int], float]  # schedule(step, steps) -> factor of the learning rate


def groups(module: nn.Module, weight_decay: float, decay: Decay) -> list[dict]:
    """Parameter groups. With `decay="weights"`, norms and biases (parameters of one dimension) have no weight decay."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if decay == "all":
        return [{"params": trained, "weight_decay": weight_decay}]
    wide = [parameter for parameter in trained if parameter.ndim > 1]
    narrow = [parameter for parameter in trained if parameter.ndim <= 1]
    parts = [{"params": wide, "weight_decay": weight_decay}, {"params": narrow, "weight_decay": 0.0}]
    return [part for part in parts if part["params"]]


def auto(module: nn.Module, *, lr: Positive | None = None) -> optim.Optimizer:
    """The default for the network's family and weights; `lr` changes only the learning rate. See `training/defaults.py`."""
    raise TypeError("call `defaults.settled` first: it chooses the optimizer")


def sgd(
    module: nn.Module,
    *,
    lr: Positive = 0.1,
    momentum: Fraction = 0.9,
    nesterov: bool = True,
    weight_decay: NotNegative = 5e-4,
    decay: Decay = "all",
) -> optim.Optimizer:
    """Stochastic gradient descent with momentum.

    Source: Sutskever et al. 2013, for Nesterov's momentum.
    """
    parameters = groups(module, weight_decay, decay)
    return optim.SGD(parameters, lr=lr, momentum=momentum, nesterov=nesterov and momentum > 0, fused=True)


def adam(
    module: nn.Module, *, lr: Positive = 1e-3, weight_decay: NotNegative = 0.0, decay: Decay = "all"
) -> optim.Optimizer:
    """Adam; its weight decay is added to the gradient.

    Source: Kingma and Ba 2015 (arXiv 1412.6980).
    """
    return optim.Adam(groups(module, weight_decay, decay), lr=lr, fused=True)


def adamw(
    module: nn.Module, *, lr: Positive = 1e-3, weight_decay: NotNegative = 0.05, decay: Decay = "weights"
) -> optim.Optimizer:
    """Adam with decoupled weight decay.

    Source: Loshchilov and Hutter 2019 (arXiv 1711.05101).
    """
    return optim.AdamW(groups(module, weight_decay, decay), lr=lr, fused=True)


OPTIMIZERS = Registry(
    "optimizer",
    {
        "auto": "distilens.training.optimizers:auto",
        "sgd": "distilens.training.optimizers:sgd",
        "adam": "distilens.training.optimizers:adam",
        "adamw": "distilens.training.optimizers:adamw",
        "muon": "distilens.training.muon:muon",
    },
)


def one_cycle(*, warmup: Fraction = 0.2, shape: Literal["linear", "cosine"] = "linear") -> Schedule:
    """Rise from zero to the learning rate during the first `warmup` share of the steps, then fall to zero.

    Source: Smith and Topin 2018 (arXiv 1708.07120).
    """

    def factor(step: int, steps: int) -> float:
        done = (step + 1) / (steps + 1)
        rising = done < warmup
        part = done / warmup if rising else (1 - done) / (1 - warmup)
        return part if shape == "linear" else (1 - math.cos(math.pi * part)) / 2

    return factor


def cosine(*, warmup: Fraction = 0.0) -> Schedule:
    """Fall to zero along half a cosine, after a linear warm-up during the first `warmup` share of the steps.

    Source: Loshchilov and Hutter 2017 (arXiv 1608.03983), without restarts.
    """

    def factor(step: int, steps: int) -> float:
        done = step / steps
        if done < warmup:
            return (step + 1) / (warmup * steps + 1)
        return (1 + math.cos(math.pi * (done - warmup) / (1 - warmup))) / 2

    return factor


def multi_step(
    *, milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.625, 0.75, 0.875), gamma: Positive = 0.1
) -> Schedule:
    """Multiply the learning rate by `gamma` at each milestone, a share of the steps; the default is epochs 150, 180, 210 of 240.

    Source: Tian et al. 2020 (arXiv 1910.10699), whose CIFAR-100 tables all use it.
    """

    def factor(step: int, steps: int) -> float:
        return gamma ** bisect(milestones, step / steps)

    return factor


def constant(*, warmup: Fraction = 0.0) -> Schedule:
    """A constant learning rate, after a linear warm-up during the first `warmup` share of the steps."""

    def factor(step: int, steps: int) -> float:
        return min(1.0, (step + 1) / (warmup * steps + 1))

    return factor


SCHEDULES = Registry(
    "schedule",
    {name: f"distilens.training.optimizers:{name}" for name in ("one_cycle", "cosine", "multi_step", "constant")},
)
