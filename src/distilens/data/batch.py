"""A batch: images with their targets, masks and augmentation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from distilens.foundation import randomness
from distilens.foundation.devices import to_device

if TYPE_CHECKING:
    from distilens.data.geometry import Geometry
    from distilens.data.variant import Variant


@dataclass(frozen=True)
class Mixed:
    """Mixup or cutmix of a batch: per image the target of the other image, and the remaining share of its own, in [0, 1]."""

    targets: Shaped[Tensor, "b ..."]
    share: Float[Tensor, " b"]


@dataclass(frozen=True)
class Batch:
    """Images with their targets, masks and augmentation.

    Attributes:
        images: pixels in [0, 1], as teachers see them. Methods never change them.
        targets: what the model must answer: the class of each image, -1 = none; other tasks have others.
        index: the row of each image in the *source* data set, before `limit`, `shots` and splits.
        view: what the student sees; starts as `images`, and only methods change it.
        inputs: named extra inputs of the student, such as a map.
        mask: evidence in [0, 1], if the data set has it.
        mixed: targets and share of mixup or cutmix, if the augmentation mixes.
        geometry: the source box and flip that were drawn for each image; None for untransformed images.
        variant: which augmentation of which set the images are, and `index` on the host: the key of stored answers.
        source: makes the untransformed images; read them as `canonical`.
        epoch, step, progress, seed: the position in the run (`step` counts from its start, `progress` is in [0, 1]), and the
            data seed.
    """

    images: Float[Tensor, "b c h w"]
    targets: Shaped[Tensor, "b ..."]
    index: Int[Tensor, " b"]
    view: Float[Tensor, "b c h w"] = None  # type: ignore[assignment]  # set to `images` below
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    mask: Float[Tensor, "b h w"] | None = None
    mixed: Mixed | None = None
    geometry: Geometry | None = None
    variant: Variant | None = None
    source: Callable[[], Tensor] | None = None
    epoch: int = 0
    step: int = 0
    progress: float = 0.0
    seed: int = 0

    def __post_init__(self):
        if self.view is None:
            object.__setattr__(self, "view", self.images)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def labels(self) -> Int[Tensor, " b"]:
        """The targets, by their name in classification."""
        return self.targets

    @property
    def canonical(self) -> Float[Tensor, "b c h w"]:
        """The untransformed images, made on demand."""
        return self.images if self.source is None else self.source()

    def untransformed(self) -> Batch:
        """The same images as in the data set, without augmentation."""
        variant = self.variant and dataclasses.replace(self.variant, number=None)
        mask = variant.masks(self.images.device) if variant else self.mask if self.geometry is None else None
        dense = variant and variant.split.task.dense  # such targets were moved with the images
        targets = variant.targets(self.images.device) if variant and dense else self.targets
        return Batch(
            self.canonical, targets, self.index, mask=mask, variant=variant,
            epoch=self.epoch, step=self.step, progress=self.progress, seed=self.seed,
        )  # fmt: skip

    def select(self, positions: Int[Tensor, " n"] | np.ndarray) -> Batch:
        """Some of the images, by position in the batch. Positions on the host do not wait for a GPU."""
        rows = to_device(positions, self.images.device) if isinstance(positions, np.ndarray) else positions
        changes: dict[str, object] = {
            name: value[rows] for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        changes["inputs"] = {name: value[rows] for name, value in self.inputs.items()}
        changes["mixed"] = self.mixed and Mixed(self.mixed.targets[rows], self.mixed.share[rows])
        changes["geometry"] = self.geometry and self.geometry.select(rows)
        changes["variant"] = self.variant and self.variant.select(positions)
        changes["source"] = None if self.source is None else lambda: self.canonical[rows]
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def draw(self, name: str, count: int = 1) -> Float[Tensor, "b count"]:
        """Random numbers in [0, 1) that depend only on (seed, epoch, index, name), not on the order or the batch."""
        return randomness.uniform(name, self.index, self.seed, self.epoch, count=count)

    def replaced(self, **changes: object) -> Batch:
        """A copy with some fields changed, as `transform` returns it."""
        return dataclasses.replace(self, **changes)
