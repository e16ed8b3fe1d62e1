"""Values of all processes of one launch."""

from __future__ import annotations

import torch
from torch import Tensor


def several() -> bool:
    """Whether there is more than this process."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def gathered(values: Tensor) -> Tensor:
    """The values of all processes, one after the other; as many of each."""
    if not several():
        return values
    each = [torch.empty_like(values) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(each, values.contiguous())
    return torch.cat(each)


def mean_of_processes(values: Tensor) -> Tensor:
    """The mean over processes of a launch, the same in all of them."""
    if not several():
        return values
    torch.distributed.all_reduce(values)
    return values / torch.distributed.get_world_size()
