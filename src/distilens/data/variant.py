"""Variants: which images of which set a batch shows, under which augmentation. Stored answers use this as their key."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from distilens.data.source import digest
from distilens.foundation.devices import to_device

if TYPE_CHECKING:
    from torch import Tensor

    from distilens.data.augment import Augment
    from distilens.data.splits import Split


@dataclass(frozen=True, eq=False)
class Variant:
    """One random augmentation of some images of a set. The same number gives the same picture in every run.

    Attributes:
        number: k of variant k; None for untransformed images.
        split: where the images come from.
        index: int64, their rows in the source set, on the host.
        augment: the augmentation; None for untransformed images.
        seed: of the augmentation.
    """

    number: int | None
    split: Split
    index: np.ndarray
    augment: Augment | None
    seed: int

    def select(self, positions: Tensor | np.ndarray) -> Variant:
        """The variant of some of the images, by position in the batch."""
        rows = positions if isinstance(positions, np.ndarray) else positions.cpu().numpy()
        return replace(self, index=self.index[rows])

    def masks(self, device: torch.device) -> Tensor | None:
        """The evidence masks of the untransformed images, in [0, 1]; None if the data set has none."""
        masks = self.split.rows.masks
        return None if masks is None else to_device(masks[self.index], device).float() / 255

    def targets(self, device: torch.device) -> Tensor:
        """The targets of the untransformed images."""
        return to_device(self.split.rows.targets[self.index], device)

    @property
    def count(self) -> int:
        """The number of images in the set that `index` refers to."""
        return len(self.split.rows)

    def set(self) -> dict[str, Any]:
        """The set that `index` refers to, as plain data."""
        shape = self.split.rows.images.shape[1:3]
        return {"set": self.split.origin or digest(self.split.rows.images), "size": list(map(int, shape))}

    def labels(self) -> dict[str, Any]:
        """A hash of the labels, for answers that depend on them."""
        return {"labels": digest(self.split.rows.targets)}

    def evidence(self) -> dict[str, Any]:
        """A hash of the evidence masks, for answers that depend on them."""
        masks = self.split.rows.masks
        return {"masks": None if masks is None else digest(masks)}

    def drawing(self) -> dict[str, Any]:
        """How the variants are drawn, as plain data. Images that are mixed in come from the split's own rows."""
        if self.augment is None:
            return {}
        mixed = {"mixed from": digest(self.split.index)} if self.augment.mix != "none" else {}
        boxes = {"boxes": "whole pixels"} if self.augment.area is not None else {}  # once they were not
        return {"augment": asdict(self.augment), "variant seed": self.seed, **boxes, **mixed}
