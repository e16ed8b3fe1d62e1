"""Devices and processes: fast number formats, copies to a device, and values gathered over the processes of a launch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import PartialState


@cache
def profits_from_bfloat16() -> bool:
    """Whether the processor computes in bfloat16 natively, not through float32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def to_device(values: Tensor | np.ndarray, device: torch.device) -> Tensor:
    """Host values on a device. Copies to a GPU are asynchronous, from pinned memory."""
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def now(device: torch.device) -> float:
    """The time in seconds, after a device has finished its work. The differences of two times have a meaning."""
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None and accelerator.type == device.type:
        torch.accelerator.synchronize(device)
    return time.perf_counter()


@contextlib.contextmanager
def fastest_convolutions() -> Iterator[None]:
    """Within, cuDNN times its algorithms for each new shape and uses the fastest, unless the user asked for determinism."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or not torch.backends.cudnn.deterministic
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def processes() -> PartialState:
    """This process among the processes of one launch, and its device. Without a GPU, accelerate must be set to the CPU."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())


def has_several_processes() -> bool:
    """Whether the launch has more than one process."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def gather(values: Tensor) -> Tensor:
    """The values of all processes, concatenated; all processes must give the same number."""
    if not has_several_processes():
        return values
    shards = [torch.empty_like(values) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(shards, values.contiguous())
    return torch.cat(shards)


def mean_of_processes(values: Tensor) -> Tensor:
    """The mean over the processes of a launch; every process gets the same."""
    if not has_several_processes():
        return values
    torch.distributed.all_reduce(values)
    return values / torch.distributed.get_world_size()
