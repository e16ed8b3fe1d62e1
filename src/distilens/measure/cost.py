"""What a model costs to keep and to run."""

from __future__ import annotations

import statistics
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from distilens.core import Model
from distilens.models.objects import takes_modules
from distilens.taps import evaluating

BUSY = 3
"""How many times the median the upper end of the latencies is on a machine that does other things."""


@takes_modules
def parameters(model: Model) -> int:
    """The number of parameters of the model as it is shipped: the network and its parts."""
    return sum(parameter.numel() for parameter in model.parameters())


@takes_modules
def macs(model: Model) -> int:
    """Multiply-accumulates for one image at the model's own input size: half of what torch's FlopCounterMode counts.

    Convolutions, matrix products and attention are counted; additions, activations and normalisation are not, as in papers. Of
    a student that its teacher accompanies (`core.accompany`) the student alone is counted; its `latency` is of both.
    """
    images = model.example()
    with evaluating(model), torch.no_grad():
        inputs = model.companion(images) if model.companion is not None else {}
        with FlopCounterMode(display=False) as counter:
            model(images, inputs)
    return counter.get_total_flops() // 2


@takes_modules
def latency(model: Model, *, batch: int = 1, repeats: int = 50, warm_up: int = 10) -> dict[str, float | int | str]:
    """Milliseconds of a forward in float32: median and the middle 80 %, after warm-up (a cold start is not latency).

    `busy`: the upper end is three times the median or more, so that the machine had other things to do.
    """
    device = model.device
    images = model.example(batch)

    def synchronise() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times = []
    with evaluating(model), torch.inference_mode():
        for trial in range(warm_up + repeats):
            synchronise()
            start = time.perf_counter()
            model(images)
            synchronise()
            if trial >= warm_up:
                times.append(1000 * (time.perf_counter() - start))
    tenths = statistics.quantiles(times, n=10)
    return {
        "median": statistics.median(times),
        "low": tenths[0],
        "high": tenths[-1],
        "busy": tenths[-1] >= BUSY * statistics.median(times),
        "batch": batch,
        "device": device.type,
    }
