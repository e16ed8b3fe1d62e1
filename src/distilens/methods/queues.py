"""Queues of features by class, for methods that compare places with those of earlier images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psutil
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from distilens.foundation.devices import gather
from distilens.foundation.errors import UserError
from distilens.foundation.files import readable


class Queues(nn.Module):
    """One queue of feature vectors per class: a full queue drops its oldest entries. Empty places are never read.

    As in `Bank`, the entries are no buffer, which launchers would broadcast at every step: each push gathers from all processes.
    They are saved with the method.

    Args:
        classes: the number of queues.
        size: the number of entries of a full queue.
        width: the numbers of an entry.
        name: the method that uses the queues, for messages.
        device: where the entries are.

    Raises:
        UserError: the entries do not fit into memory.
    """

    def __init__(self, classes: int, size: int, width: int, *, name: str, device: torch.device):
        super().__init__()
        needed = 4 * classes * (size + 1) * width
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
        if needed > free:
            raise UserError(
                f"{name} stores {size:,} × {width} numbers for each of {classes} classes. This takes {readable(needed)}, but "
                f"only {readable(free)} of memory are free: use shorter queues"
            )
        self.size = size
        self.entries = torch.zeros(classes, size + 1, width, device=device)  # the last place takes what is not stored
        self.pushed = torch.zeros(classes, dtype=torch.int64, device=device)  # entries ever, per class

    @property
    def filled(self) -> Int[Tensor, " classes"]:
        """The number of entries of each queue."""
        return self.pushed.clamp_max(self.size)

    @torch.no_grad()
    def push(self, vectors: Float[Tensor, "b classes k width"], there: Bool[Tensor, "b classes k"]) -> None:
        """Add the vectors that are there, in the order of the images, for the batches of all processes."""
        vectors, there = (gather(values).transpose(0, 1).flatten(1, 2) for values in (vectors, there))
        rank = there.cumsum(1)
        count = rank[:, -1:]
        stored = there & (rank > count - self.size)  # of more vectors than places, the last
        places = ((self.pushed[:, None] + rank - 1) % self.size).where(stored, self.size)
        self.entries.scatter_(1, places[..., None].expand_as(vectors), vectors.to(self.entries.dtype))
        self.pushed += count[:, 0]

    def draw(
        self, count: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "classes count width"], Bool[Tensor, "classes count"]]:
        """Random entries of each queue, with replacement, and whether they are there: those of an empty queue are not."""
        classes, _, width = self.entries.shape
        draws = torch.rand(classes, count, generator=generator, dtype=torch.float64).to(self.pushed.device)
        places = (draws * self.filled[:, None]).long()
        drawn = self.entries.gather(1, places[..., None].expand(-1, -1, width))
        return drawn, (self.filled > 0)[:, None].expand(-1, count)

    def get_extra_state(self) -> dict[str, Tensor]:
        return {"entries": self.entries, "pushed": self.pushed}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        self.entries.copy_(state["entries"])
        self.pushed.copy_(state["pushed"])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.entries, self.pushed = fn(self.entries), fn(self.pushed)
        return super()._apply(fn, recurse)


def pixels_of_classes(
    vectors: Float[Tensor, "b width n"], own: Int[Tensor, "b n"], draws: Float[Tensor, "b n"], classes: int, count: int
) -> tuple[Float[Tensor, "b classes k width"], Bool[Tensor, "b classes k"]]:
    """Up to `count` random places of each class in each image, and whether they are there.

    Args:
        vectors: one per place.
        own: the class of each place; -1 for none.
        draws: random numbers in [0, 1): the places with the largest are chosen.
        classes: the number of classes.
        count: per image and class.
    """
    of_class = own[:, None] == torch.arange(classes, device=own.device)[:, None]
    largest = torch.where(of_class, draws[:, None], -1.0).topk(min(count, own.shape[1]), dim=2)
    rows = vectors.transpose(1, 2)[:, None].expand(-1, classes, -1, -1)
    chosen = largest.indices[..., None].expand(*largest.indices.shape, rows.shape[-1])
    return rows.gather(2, chosen), largest.values >= 0


def regions_of_classes(
    vectors: Float[Tensor, "b width n"], own: Int[Tensor, "b n"], classes: int
) -> tuple[Float[Tensor, "b classes 1 width"], Bool[Tensor, "b classes 1"]]:
    """The mean of the vectors of each class in each image, with length 1, and whether the class is there."""
    of_class = own[:, :, None] == torch.arange(classes, device=own.device)
    sums = vectors @ of_class.to(vectors.dtype)
    return functional.normalize(sums, dim=1).transpose(1, 2)[:, :, None], of_class.any(1)[..., None]
