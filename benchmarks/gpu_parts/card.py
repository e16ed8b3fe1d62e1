"""The card, the versions, and the card's own limits: a matrix product, a copy, a launch, and what comes over from the host."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from typing import Any

import torch

from gpu_parts.bench import Bench

Rows = Iterator[tuple[str, Callable[[], dict[str, Any]]]]


def rows(bench: Bench) -> Rows:
    yield "versions", lambda: versions(bench)
    yield "matrix product", lambda: product(bench)
    yield "copy", lambda: copy(bench)
    yield "launch", lambda: launch(bench)
    yield "from the host", lambda: from_host(bench)


def versions(bench: Bench) -> dict[str, Any]:
    found = {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    if bench.device.type != "cuda":
        return found
    card = torch.cuda.get_device_properties(0)
    return found | {
        "card": card.name,
        "memory_gib": round(card.total_memory / 2**30, 1),
        "multiprocessors": card.multi_processor_count,
        "capability": f"{card.major}.{card.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def product(bench: Bench) -> dict[str, Any]:
    """A square product in bfloat16, of random numbers."""
    side = bench.of(8192, 256)
    left, right = (torch.randn(side, side, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = bench.seconds(lambda: left @ right, repeats=10, warm_up=3)
    return {"side": side, "tflops": round(2 * side**3 / seconds / 1e12, 2)}


def copy(bench: Bench) -> dict[str, Any]:
    """From the device's memory to itself; bytes read and written both count."""
    count = bench.of(2**32, 2**22)
    source = torch.empty(count, dtype=torch.uint8, device=bench.device).random_(0, 256)
    target = torch.empty_like(source)
    seconds = bench.seconds(lambda: target.copy_(source), repeats=10, warm_up=3)
    return {"bytes": count, "gb_per_second": round(2 * count / seconds / 1e9, 1)}


def launch(bench: Bench) -> dict[str, Any]:
    """One tiny operation among many: what a network of small layers pays for each, at least."""
    values, count = torch.zeros(32, device=bench.device), bench.of(2000, 200)

    def many() -> None:
        for _ in range(count):
            values.add_(1)

    return {"microseconds": round(1e6 * bench.seconds(many) / count, 2)}


def from_host(bench: Bench) -> dict[str, Any]:
    """From pinned memory of the host to the device."""
    count = bench.of(2**28, 2**20)
    source = torch.empty(count, dtype=torch.uint8)
    source = source.pin_memory() if bench.device.type == "cuda" else source
    target = torch.empty_like(source, device=bench.device)
    seconds = bench.seconds(lambda: target.copy_(source, non_blocking=True))
    return {"bytes": count, "gb_per_second": round(count / seconds / 1e9, 1)}
