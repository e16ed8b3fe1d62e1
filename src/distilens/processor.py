"""What the processor at hand does well, and how tensors get to a device without anybody waiting for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from torch import Tensor


@cache
def profits_from_bfloat16() -> bool:
    """Whether it computes bfloat16 itself rather than through float32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def to_device(values: Tensor | np.ndarray, device: torch.device) -> Tensor:
    """Values of the host on a device. The host goes on before a GPU has them: they are copied from pinned memory."""
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


@contextlib.contextmanager
def fastest_convolutions() -> Iterator[None]:
    """Within, cuDNN times its algorithms for each new shape and takes the fastest; not where a user asked for determinism."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or not torch.backends.cudnn.deterministic
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
