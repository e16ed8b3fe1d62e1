"""From a split to batches: resident on the device if the images fit, else streamed through workers.

Images stay uint8 until they are on the device. There they are augmented as one batch. The order of an epoch depends on
(seed, epoch), the augmentation of an image on (variant seed, variant, index).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distilens.data.augment import Augment
from distilens.data.batch import Batch
from distilens.data.geometry import Geometry
from distilens.data.splits import Split
from distilens.data.variant import Variant
from distilens.foundation import randomness
from distilens.foundation.devices import to_device


class Batches:
    """The batches of a split.

    Args:
        split: which rows of which source.
        size: images per batch, over all processes together.
        augment: the augmentation; None for evaluation: unchanged images, in order.
        seed: of the order.
        variant_seed: of the augmentation; by default `seed`.
        variants: number of augmentations per image; epoch e shows variant `e % variants`. 0: always a new one.
        ordered: all images in the order of the split, although they are augmented: for recording.
        balanced: an epoch shows equally many images per class; images of a rare class come several times.
        device: where batches are made.
        rank, world: this process gets every `world`-th image of each batch, starting at `rank`.
        workers: number of processes that read images that are not resident.
        resident: whether the images stay on the device; None decides by the free memory.
    """

    def __init__(
        self,
        split: Split,
        size: int,
        *,
        augment: Augment | None = None,
        seed: int = 0,
        variant_seed: int | None = None,
        variants: int = 0,
        ordered: bool = False,
        balanced: bool = False,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world: int = 1,
        workers: int = 2,
        resident: bool | None = None,
    ):
        self.split = split
        self.size = min(size, len(split))
        self.augment, self.seed, self.variants, self.ordered = augment, seed, variants, ordered
        self.balanced = balanced
        self.variant_seed = seed if variant_seed is None else variant_seed
        self.device = torch.device(device)
        self.rank, self.world, self.workers = rank, world, workers
        rows = split.rows
        self.source = (int(rows.images.shape[1]), int(rows.images.shape[2]))
        self.index = torch.from_numpy(split.index).to(self.device)
        self.task = split.task
        needed = len(split) * int(np.prod(rows.images.shape[1:]))
        self.resident = needed < free_memory(self.device) // 2 if resident is None else resident
        self.images = torch.from_numpy(rows.images[split.index]).to(self.device) if self.resident else None
        held = self.resident or not self.task.dense  # masks of classes stay where the images are
        self.targets = torch.from_numpy(rows.targets[split.index]).to(self.device) if held else None
        self.masks = None if rows.masks is None else torch.from_numpy(rows.masks[split.index]).to(self.device)

    @property
    def training(self) -> bool:
        return self.augment is not None and not self.ordered

    def __len__(self) -> int:
        """Batches per epoch. Training drops the last, partial batch of an epoch; evaluation does not."""
        return len(self.split) // self.size if self.training else -(-len(self.split) // self.size)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def order(self, epoch: int) -> Tensor:
        """Positions in the split, in the order of this epoch."""
        if not self.training:
            return torch.arange(len(self.split))
        generator = randomness.generator("order", self.seed, epoch)
        if self.balanced:
            return balanced_order(torch.from_numpy(self.split.strata), generator)
        return torch.randperm(len(self.split), generator=generator)

    def epoch(self, epoch: int, *, start: int = 0, epochs: int = 1) -> Iterator[Batch]:
        """The batches of an epoch, starting with number `start`."""
        order = self.order(epoch)[: len(self) * self.size]
        parts = [part[self.rank :: self.world] for part in order.split(self.size)][start:]
        for number, (positions, images) in enumerate(self.read(parts), start):
            progress = (epoch + number / len(self)) / epochs
            yield self.batch(positions, images, epoch, progress, epoch * len(self) + number)

    def read(self, parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Positions, and the raw uint8 images if the set is not resident."""
        if self.resident:
            yield from ((part, None) for part in parts)
            return
        loader = DataLoader(
            Streamed(self.split.rows.images),
            sampler=[self.split.index[part.numpy()] for part in parts],  # type: ignore[arg-type]  # one "index" is a batch
            batch_size=None,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
        )
        for part, images in zip(parts, loader, strict=True):
            yield part, images.to(self.device, non_blocking=True)

    def batch(self, positions: Tensor, raw: Tensor | None, epoch: int, progress: float, step: int = 0) -> Batch:
        """The batch at the given positions in the split; `raw` are the source images `[b h w 3]` if they were streamed."""
        shown = self.variant(positions, epoch)
        raw = self.raw(positions) if raw is None else raw
        positions = to_device(positions, self.device)
        index, variant = self.index[positions], shown.number or 0
        augment = self.augment or Augment()
        draw = partial(draw_numbers, index, self.variant_seed, variant)
        moved = None if self.augment is None else augment.geometry(draw, variant, self.source)
        images = augment.colour(self.pixels(positions, raw, moved), draw)
        batch = Batch(
            images,
            self.task.moved(self.targets_at(positions), moved),
            index,
            mask=self.evidence(positions, moved),
            geometry=moved,
            variant=shown,
            source=partial(self.pixels, positions, raw, None),
            epoch=epoch,
            step=step,
            progress=progress,
            seed=self.seed,
        )
        if augment.mix != "none":
            batch = augment.mixed(batch, self.partners(shown, augment), draw, self.task)
        return augment.erased(batch, draw, self.task)

    def variant(self, positions: Tensor, epoch: int) -> Variant:
        """The variant that an epoch shows at the given positions."""
        number = None
        if self.augment is not None:
            number = 0 if self.augment.still else epoch % self.variants if self.variants else epoch
        return Variant(number, self.split, self.split.index[positions.numpy()], self.augment, self.variant_seed)

    def partners(self, shown: Variant, augment: Augment) -> Batch:
        """The images to mix in: per image another one of the split, with the same kind of augmentation."""
        variant = shown.number or 0
        chance = draw_numbers(torch.from_numpy(shown.index), self.variant_seed, variant, "partner")[:, 0]
        positions = (chance * len(self.split)).long()  # on the host, which may have to read these images
        raw = self.raw(positions)
        positions = to_device(positions, self.device)
        moved = augment.geometry(
            partial(draw_numbers, self.index[positions], self.variant_seed, variant), variant, self.source
        )
        images = self.pixels(positions, raw, moved)
        targets = self.task.moved(self.targets_at(positions), moved)
        return Batch(images, targets, self.index[positions], mask=self.evidence(positions, moved))

    def raw(self, positions: Tensor) -> Tensor | None:
        """The source images `[b h w 3]` at positions given on the host; None if all are resident."""
        if self.resident:
            return None
        return to_device(Streamed(self.split.rows.images)[self.split.index[positions.numpy()]], self.device)

    def pixels(self, positions: Tensor, raw: Tensor | None, geometry: Geometry | None) -> Tensor:
        """Images `[b 3 h w]` in [0, 1], channels last in memory."""
        if raw is None:
            assert self.images is not None, "images that are not resident must be read first"
            images, rows = self.images, positions
        else:
            images, rows = raw, torch.arange(len(raw), device=self.device)
        if geometry is None or geometry.whole:
            images = images[rows] if geometry is None else geometry.gather(images, rows)
            return images.permute(0, 3, 1, 2).float().div_(255)
        return geometry.cut(images, rows).float().div_(255)

    def targets_at(self, positions: Tensor) -> Tensor:
        """The targets of the untransformed images."""
        if self.targets is not None:
            return self.targets[positions]
        return to_device(self.split.rows.targets[self.split.index[positions.cpu().numpy()]], self.device)

    def evidence(self, positions: Tensor, geometry: Geometry | None) -> Tensor | None:
        """Evidence masks in [0, 1], moved like the images."""
        if self.masks is None:
            return None
        masks = self.masks[positions]
        return (masks if geometry is None else geometry.move(masks, geometry.size)).float() / 255


def draw_numbers(index: Tensor, seed: int, variant: int, name: str, count: int = 1, *, fixed: bool = False) -> Tensor:
    """The random numbers of the augmentation, per image: by variant, or the same in all variants if `fixed`."""
    return randomness.uniform(name, index, seed, *([] if fixed else [variant]), count=count)


def balanced_order(strata: Tensor, generator: torch.Generator) -> Tensor:
    """Positions for one epoch: equally many per class, and every image without a label once.

    The images of a class take turns: an image is repeated only after all others of its class.
    """
    known = strata.unique()
    known = known[known >= 0]
    free = torch.nonzero(strata < 0)[:, 0]
    count = len(strata) - len(free)
    more = torch.randperm(len(known), generator=generator)[: count % max(1, len(known))]
    shares = torch.full((len(known),), count // max(1, len(known))).index_fill_(
        0, more, count // max(1, len(known)) + 1
    )
    chosen = [free]
    for stratum, share in zip(known, shares.tolist(), strict=True):
        members = torch.nonzero(strata == stratum)[:, 0]
        rounds = torch.rand(-(-share // len(members)), len(members), generator=generator).argsort(1)
        chosen.append(members[rounds.flatten()[:share]])
    every = torch.cat(chosen)
    return every[torch.randperm(len(every), generator=generator)]


class Streamed(Dataset):
    """Source images by row, read by a worker one batch at a time.

    Spawned workers (macOS, Windows) receive a pickle of it, which must be small: otherwise a script without
    `if __name__ == "__main__":` waits forever for a dead worker. A memory map is sent as its path, and an array in shared
    memory.
    """

    def __init__(self, images: np.ndarray):
        self.images: np.ndarray | Tensor = images if isinstance(images, np.memmap) else torch.from_numpy(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: np.ndarray) -> Tensor:
        if isinstance(self.images, Tensor):
            return self.images[torch.from_numpy(rows)]
        return torch.from_numpy(self.images[rows])

    def __getstate__(self) -> dict[str, Any]:
        if not isinstance(self.images, np.memmap) or self.images.filename is None:
            return {"images": self.images}
        held = self.images
        return {"map": (str(held.filename), held.dtype.str, held.shape, held.offset)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "map" in state:
            path, dtype, shape, offset = state["map"]
            state = {"images": np.memmap(path, dtype, "r", offset, shape)}
        self.__dict__.update(state)


def free_memory(device: torch.device) -> int:
    """The free memory of a device in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def batch_at(split: Split, positions: Tensor) -> Batch:
    """The unchanged images at the given positions of a split, on the host; only these images are read."""
    return Batches(split, len(split), resident=False).batch(positions, None, 0, 0.0)
