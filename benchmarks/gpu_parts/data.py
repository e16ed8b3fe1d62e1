"""Data on the device: images made ready a second, by augmentation and batch size, and an epoch of them."""

from __future__ import annotations

from typing import Any

from distilens.data.augment import AUGMENTS
from distilens.data.pipeline import Batches
from gpu_parts.bench import Bench
from gpu_parts.card import Rows

AUGMENTATIONS = ("crop", "none", "resized_crop", "crop:mix=cutmix", "crop:jitter=0.2,erase=0.5")


def rows(bench: Bench) -> Rows:
    for augment in AUGMENTATIONS:
        for size in bench.of((128, 1024), (16,)):
            yield f"{augment} · {size}", lambda augment=augment, size=size: epoch(bench, augment, size)


def epoch(bench: Bench, augment: str, size: int) -> dict[str, Any]:
    batches = Batches(bench.data.train, size, augment=AUGMENTS.build(augment), device=bench.device)

    def once() -> None:
        for _ in batches.epoch(0):
            pass

    seconds = bench.seconds(once, repeats=3, warm_up=1)
    count = len(batches) * size
    return {"images_per_second": round(count / seconds), "seconds_an_epoch": round(seconds, 3), "images": count}
