"""A row for each image of the training set, kept by its index: what was last said of images that are not in the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psutil
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from distilens.core import Batch
from distilens.data.cached import readable
from distilens.errors import UserError
from distilens.gathering import gathered


class Bank(nn.Module):
    """Rows of numbers by the index of images, saved with the method, the same in all processes.

    Nothing of it is a buffer, which launchers would send around at every step; rows are gathered as they are written.

    Args:
        batch: any batch of the training set, which says which images there are.
        tables: how many rows an image has.
        width: of a row.
        name: whose bank it is, for messages.

    Raises:
        UserError: a batch that does not say of which set it is; or more rows than there is memory.
    """

    def __init__(self, batch: Batch, *, tables: int, width: int, name: str):
        super().__init__()
        if batch.variant is None:
            raise UserError(
                f"{name} keeps a row for each image of the training set, and this batch does not say of which set its images "
                "are. Batches of distilens.data do; build yours with Batch(variant=...)"
            )
        split = batch.variant.split
        device = batch.images.device
        check_memory(name, len(split), tables, width, device)
        self.index = torch.from_numpy(split.index).to(device)
        self.labels = torch.from_numpy(split.labels).long().to(device)
        self.rows = torch.zeros(tables, len(split), width, device=device)

    def __len__(self) -> int:
        return len(self.index)

    def places(self, batch: Batch) -> Int[Tensor, " b"]:
        """The rows of a batch's images."""
        return torch.searchsorted(self.index, batch.index)

    @torch.no_grad()
    def write(self, places: Int[Tensor, " b"], values: Float[Tensor, "tables b width"]) -> None:
        """Replace rows, with those of all processes."""
        places, values = gathered(places), gathered(values.transpose(0, 1).contiguous()).transpose(0, 1)
        self.rows[:, places] = values.to(self.rows.dtype)

    def get_extra_state(self) -> Tensor:
        return self.rows

    def set_extra_state(self, state: Tensor) -> None:
        self.rows.copy_(state)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.rows, self.index, self.labels = fn(self.rows), fn(self.index), fn(self.labels)
        return super()._apply(fn, recurse)


def check_memory(name: str, images: int, tables: int, width: int, device: torch.device) -> None:
    """Raise a `UserError` where a bank does not fit into the memory that is free."""
    needed = 4 * images * tables * width
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > free:
        raise UserError(
            f"{name} keeps {tables} × {width} numbers for each of {images:,} images: {readable(needed)}, and "
            f"{readable(free)} of memory are free: take a smaller width, or fewer images"
        )
