"""Images a second of the data pipeline against torchvision's PIL transforms in a DataLoader, on one core, interleaved.

Both crop with 4 pixels of reflected padding, flip, and give float batches of 128 in the model's normalisation.

    python benchmarks/data.py [--data parquet:path=data/cifar10] [--images 12800] [--rounds 5]
"""

from __future__ import annotations

import statistics
import time

import torch
import tyro
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from distilens.data import load
from distilens.data.augment import crop
from distilens.data.pipeline import Batches


class Pictures(Dataset):
    """What most scripts do: a PIL image a sample, transformed one by one."""

    def __init__(self, images, labels, count):
        self.images, self.labels, self.count = images, labels, count
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(images.shape[1], padding=4, padding_mode="reflect"),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.5,) * 3, (0.25,) * 3),
            ]
        )

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def main(data: str = "shapes:train=12800,val_fraction=0.01", images: int = 12800, rounds: int = 5) -> None:
    torch.set_num_threads(1)
    split = load(data).train
    images = min(images, len(split)) // 128 * 128
    ours = Batches(split, 128, augment=crop())
    pillow = DataLoader(Pictures(split.rows.images[split.index], split.labels, images), 128, shuffle=True)
    mean, std = 0.5, 0.25

    def run_ours(epoch: int) -> None:
        for number, batch in enumerate(ours.epoch(epoch)):
            batch.images.sub(mean).div_(std)
            if (number + 1) * 128 >= images:
                return

    def run_pillow(epoch: int) -> None:
        for _ in pillow:
            pass

    rates: dict[str, list[float]] = {"distilens": [], "torchvision PIL": []}
    for epoch in range(rounds):
        for name, function in (("distilens", run_ours), ("torchvision PIL", run_pillow)):
            start = time.perf_counter()
            function(epoch)
            rates[name].append(images / (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(
        f"one thread, {images:,} images of {split.rows.images.shape[1]} pixels, median of {rounds} interleaved rounds"
    )
    for name, rate in medians.items():
        print(f"{name:>16}  {rate:>9,.0f} images/s")
    print(f"           ratio  {medians['distilens'] / medians['torchvision PIL']:.1f}")


if __name__ == "__main__":
    tyro.cli(main)
