"""The cost of a model: parameters, multiply-accumulates, latency."""

from __future__ import annotations

import statistics

import torch
from torch.utils.flop_counter import FlopCounterMode

from distilens.foundation.devices import now
from distilens.models.model import Model
from distilens.models.objects import takes_modules
from distilens.models.taps import evaluating

BUSY = 3
"""The machine counts as busy if the upper end of the latencies is at least this many times the median."""


@takes_modules
def parameters(model: Model) -> int:
    """The number of parameters of the shipped model: the network and its inserted parts."""
    return sum(parameter.numel() for parameter in model.parameters())


@takes_modules
def macs(model: Model) -> int:
    """Multiply-accumulates per image at the model's own input size: half of the FLOPs of torch's FlopCounterMode.

    Convolutions, matrix products and attention are counted; additions, activations and normalisation are not, as in papers. If a
    student runs with its teacher (`core.accompany`), only the student is counted; `latency` includes both.
    """
    images = model.example()
    with evaluating(model), torch.no_grad():
        inputs = model.companion(images) if model.companion is not None else {}
        with FlopCounterMode(display=False) as counter:
            model(images, inputs)
    return counter.get_total_flops() // 2


@takes_modules
def latency(model: Model, *, batch: int = 1, repeats: int = 50, warm_up: int = 10) -> dict[str, float | int | str]:
    """Milliseconds per forward pass in float32: median and middle 80 %, after a warm-up.

    `busy`: the upper end is three times the median or more, so the machine was probably busy with other work.
    """
    device = model.device
    images = model.example(batch)

    times = []
    with evaluating(model), torch.inference_mode():
        for trial in range(warm_up + repeats):
            start = now(device)
            model(images)
            if trial >= warm_up:
                times.append(1000 * (now(device) - start))
    tenths = statistics.quantiles(times, n=10)
    return {
        "median": statistics.median(times),
        "low": tenths[0],
        "high": tenths[-1],
        "busy": tenths[-1] >= BUSY * statistics.median(times),
        "batch": batch,
        "device": device.type,
    }
