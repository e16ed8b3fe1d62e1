"""Stored answers: how fast they are recorded, beside the teacher's own forward, and how long a batch takes to be read."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from distilens.data.augment import AUGMENTS
from distilens.data.pipeline import Batches
from distilens.teachers import LiveTeacher, StoredTeacher
from distilens.training.loop import make_accelerator
from distilens.training.settings import Training
from gpu_parts.bench import Bench
from gpu_parts.card import Rows

NEEDS = {
    "logits": ["logits"],
    "Grad-CAM": ["maps:gradcam:of=canonical"],
    "both": ["logits", "maps:gradcam:of=canonical"],
}


def rows(bench: Bench) -> Rows:
    teacher = bench.of("resnet56", "resnet14")
    for name in NEEDS:
        for size in bench.of((1024, 128), (16,)):
            yield (
                f"{teacher} · {name} · {size}",
                lambda name=name, size=size: recorded(bench, teacher, NEEDS[name], size),
            )


def recorded(bench: Bench, notation: str, needs: list[str], size: int) -> dict[str, Any]:
    accelerator = make_accelerator(Training())
    teacher = LiveTeacher(bench.model(notation))
    some = bench.some(bench.of(8192, 64)).train
    batches = Batches(some, size, augment=AUGMENTS.build("crop"), ordered=True, device=bench.device)

    def ask(of: Any, asked: list[str]) -> None:
        with accelerator.autocast():
            for batch in batches:
                of(batch, asked)

    forward = bench.seconds(lambda: ask(teacher, ["logits"]), repeats=3)
    alone = bench.seconds(lambda: ask(lambda batch, asked: None, needs), repeats=3)
    with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
        times = []
        for number in range(3):  # each into a folder of its own: what is there is not recorded again
            fresh = StoredTeacher(Path(folder) / str(number), teacher)
            ask_one = next(iter(batches))
            with accelerator.autocast():
                fresh.place(ask_one, *_shelf(fresh, ask_one, needs[0]))
            times.append(bench.seconds(lambda fresh=fresh: ask(fresh, needs), repeats=1, warm_up=0))
        stored = StoredTeacher(Path(folder) / "0", teacher)
        read = bench.seconds(lambda: ask(stored, needs), repeats=3)
        assert stored.recorded == 0, "all of it was there"
    record = sorted(times)[1]
    return {
        "images": len(some),
        "record_images_per_second": round(len(some) / record),
        "forward_images_per_second": round(len(some) / forward),
        "record_of_forward": round(forward / record, 3),
        "read_milliseconds_a_batch": round(1000 * (read - alone) / len(batches), 3),
        "batch_alone_milliseconds": round(1000 * alone / len(batches), 3),
    }


def _shelf(teacher: StoredTeacher, batch: Any, need: str) -> tuple[Any, Any]:
    """What opens a shelf: the first question, of one image, tells how large records are, and is not timed."""
    from distilens.teachers.needs import Need
    from distilens.teachers.stored import as_shown

    return as_shown(batch, Need.parse(need)), batch.variant
