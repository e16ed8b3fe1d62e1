"""Which pictures a batch shows: of which set, by which augmentation. What a teacher says of them is stored by it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from distilens.data.source import digest
from distilens.processor import to_device

if TYPE_CHECKING:
    from torch import Tensor

    from distilens.data.augment import Augment
    from distilens.data.subset import Split


@dataclass(frozen=True, eq=False)
class Variant:
    """One drawing of the augmentation of some images of a set. The same number is the same picture in every run.

    Attributes:
        number: k of variant k; None for the images as they are.
        split: where the images come from.
        index: int64, their rows in the source set, on the host.
        augment: what is drawn; None for the images as they are.
        seed: of what is drawn.
    """

    number: int | None
    split: Split
    index: np.ndarray
    augment: Augment | None
    seed: int

    def select(self, positions: Tensor | np.ndarray) -> Variant:
        """That of some of the images, by position in the batch."""
        rows = positions if isinstance(positions, np.ndarray) else positions.cpu().numpy()
        return replace(self, index=self.index[rows])

    def masks(self, device: torch.device) -> Tensor | None:
        """Where the evidence is in the untransformed images, in [0, 1]; None where the data set does not say."""
        masks = self.split.rows.masks
        return None if masks is None else to_device(masks[self.index], device).float() / 255

    @property
    def count(self) -> int:
        """How many images the set has: `index` counts in it."""
        return len(self.split.rows)

    def set(self) -> dict[str, Any]:
        """The set that `index` counts in, as plain data."""
        shape = self.split.rows.images.shape[1:3]
        return {"set": self.split.origin or digest(self.split.rows.images), "size": list(map(int, shape))}

    def labels(self) -> dict[str, Any]:
        """The labels, where answers depend on them."""
        return {"labels": digest(self.split.rows.labels)}

    def evidence(self) -> dict[str, Any]:
        """The evidence masks, where answers depend on them."""
        masks = self.split.rows.masks
        return {"masks": None if masks is None else digest(masks)}

    def drawing(self) -> dict[str, Any]:
        """How variants of the images are drawn, as plain data; what is mixed in comes from the split's own rows."""
        if self.augment is None:
            return {}
        mixed = {"mixed from": digest(self.split.index)} if self.augment.mix != "none" else {}
        return {"augment": asdict(self.augment), "variant seed": self.seed, **mixed}
