"""Images per second of the data pipeline, of torchvision's transforms in a DataLoader, and of decoding alone, interleaved.

Small images are cropped with 4 pixels of reflected padding and flipped; the DataLoader has PIL images in memory. Photographs (of
96 pixels or more) are cut, resized and flipped; the DataLoader decodes JPEG files in memory at each visit, which distilens
does once, before training. Both give float batches in the model's normalisation.

    python benchmarks/data.py [--data parquet:path=data/cifar10] [--images 12800] [--rounds 5]
    python benchmarks/data.py --data parquet:path=data/imagenette --images 512 --batch-size 32 --threads 2
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
import tyro
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from distilens.data import load
from distilens.data.augment import crop, resized_crop
from distilens.data.pipeline import Batches

PHOTOGRAPH = 96
"""From this side on, images count as photographs."""
MEAN, STD = 0.5, 0.25


class Pictures(Dataset):
    """What most scripts do: a PIL image a sample, transformed one by one. Photographs are decoded from JPEG first."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        side = images.shape[1]
        self.images, self.labels = images, labels
        self.files = [as_jpeg(image) for image in images] if side >= PHOTOGRAPH else None
        geometry = v2.RandomCrop(side, padding=4, padding_mode="reflect")
        if self.files:
            geometry = v2.RandomResizedCrop(side, scale=(0.35, 1.0), antialias=True)
        numbers = [v2.ToDtype(torch.float32, scale=True), v2.Normalize((MEAN,) * 3, (STD,) * 3)]
        self.transform = v2.Compose([v2.ToImage(), geometry, v2.RandomHorizontalFlip(), *numbers])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        picture = decode(self.files[index]) if self.files else Image.fromarray(self.images[index])
        return self.transform(picture), int(self.labels[index])


class Files(Dataset):
    """The same files, decoded and nothing else."""

    def __init__(self, files: list[bytes]):
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> int:
        return np.asarray(decode(self.files[index])).shape[0]


def as_jpeg(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=90)
    return file.getvalue()


def decode(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")


def main(
    data: str = "shapes:train=12800,val_fraction=0.01",
    images: int = 12800,
    rounds: int = 5,
    batch_size: int = 128,
    threads: int = 1,
) -> None:
    """Measure and print.

    Args:
        threads: of torch for distilens; the DataLoader has as many workers, or none for one thread.
    """
    torch.set_num_threads(threads)
    split = load(data).train
    images = min(images, len(split)) // batch_size * batch_size
    pictures = Pictures(split.rows.images[split.index[:images]], split.labels[:images])
    ours = Batches(split, batch_size, augment=resized_crop() if pictures.files else crop())
    workers = threads if threads > 1 else 0
    loader = DataLoader(pictures, batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0)

    def run_ours(epoch: int) -> None:
        for number, batch in enumerate(ours.epoch(epoch)):
            batch.images.sub(MEAN).div_(STD)
            if (number + 1) * batch_size >= images:
                return

    runs: dict[str, Callable[[int], None]] = {"distilens": run_ours, "DataLoader": lambda epoch: exhaust(iter(loader))}
    if pictures.files:
        files = DataLoader(Files(pictures.files), batch_size, num_workers=workers, persistent_workers=workers > 0)
        runs["decoding alone"] = lambda epoch: exhaust(iter(files))
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for epoch in range(rounds + 1):
        for name, function in runs.items():
            start = time.perf_counter()
            function(epoch)
            if epoch:  # the first round starts the workers
                rates[name].append(images / (time.perf_counter() - start))
    side = split.rows.images.shape[1]
    print(f"{threads} threads, {images:,} images of {side} pixels, median of {rounds} interleaved rounds")
    first = statistics.median(rates["distilens"])
    for name, values in rates.items():
        rate = statistics.median(values)
        print(f"{name:>16}  {rate:>9,.0f} images/s" + f"  ratio {first / rate:.2f}" * (name != "distilens"))


def exhaust(batches: Iterator) -> None:
    for _ in batches:
        pass


if __name__ == "__main__":
    tyro.cli(main)
