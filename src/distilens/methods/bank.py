"""A memory bank: one row per training image, by index, for methods that need images outside the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from distilens.core import Batch
from distilens.foundation.devices import gather
from distilens.foundation.errors import UserError
from distilens.foundation.files import readable
from distilens.tasks import Classification


class Bank(nn.Module):
    """Rows of numbers by image index. They are saved with the method and are the same in all processes.

    The rows are not a buffer: launchers would broadcast a buffer at every step. Instead each write gathers from all processes.

    Args:
        batch: any batch of the training set; it names the images of the set.
        tables: rows per image.
        width: numbers per row.
        name: the method that uses the bank, for messages.

    Attributes:
        labels: the class of each image; -1 if it has none, as in a task that is not a classification.

    Raises:
        UserError: the batch does not name its data set, or the rows do not fit into memory.
    """

    def __init__(self, batch: Batch, *, tables: int, width: int, name: str):
        super().__init__()
        if batch.variant is None:
            raise UserError(
                f"{name} stores a row per image of the training set, but this batch does not say which set its images "
                "are from. Batches of distilens.data do; build yours with Batch(variant=...)"
            )
        split = batch.variant.split
        device = batch.images.device
        check_memory(name, len(split), tables, width, device)
        self.index = torch.from_numpy(split.index).to(device)
        per_image = isinstance(split.task, Classification)
        labels = split.targets.astype(np.int64) if per_image else np.full(len(split), -1)
        self.labels = torch.from_numpy(labels).to(device)
        self.rows = torch.zeros(tables, len(split), width, device=device)

    def __len__(self) -> int:
        return len(self.index)

    def places(self, batch: Batch) -> Int[Tensor, " b"]:
        """The rows of a batch's images."""
        return torch.searchsorted(self.index, batch.index)

    @torch.no_grad()
    def write(self, places: Int[Tensor, " b"], values: Float[Tensor, "tables b width"]) -> None:
        """Replace rows, for the batches of all processes."""
        places, values = gather(places), gather(values.transpose(0, 1).contiguous()).transpose(0, 1)
        self.rows[:, places] = values.to(self.rows.dtype)

    def get_extra_state(self) -> Tensor:
        return self.rows

    def set_extra_state(self, state: Tensor) -> None:
        self.rows.copy_(state)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.rows, self.index, self.labels = fn(self.rows), fn(self.index), fn(self.labels)
        return super()._apply(fn, recurse)


def check_memory(name: str, images: int, tables: int, width: int, device: torch.device) -> None:
    """Raise a `UserError` if a bank does not fit into the free memory."""
    needed = 4 * images * tables * width
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > free:
        raise UserError(
            f"{name} stores {tables} × {width} numbers for each of {images:,} images. This takes {readable(needed)}, but only "
            f"{readable(free)} of memory are free: use a smaller width, or fewer images"
        )
