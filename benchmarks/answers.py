"""How fast answers are recorded and read, beside the teacher's own forwards, and how many bytes they take.

Recording is all of it: images read, moved, asked of the teacher, encoded, written; not the first question, of one image, which
tells how large records are. The floor of a Grad-CAM map is the teacher's plain forward (unprepared, as it is loaded); that of
Integrated Gradients its forwards and backwards on the prepared model.

    python benchmarks/answers.py --data parquet:path=data/cifar10 [--teacher resnet56] [--images 512] [--rounds 5]
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import tyro

from distilens.data import load
from distilens.data.augment import crop
from distilens.data.pipeline import Batches
from distilens.explain.path import rows_at_once
from distilens.foundation.memory import reuse_freed_memory as memory_kept
from distilens.models import build_model
from distilens.teachers import LiveTeacher, StoredTeacher
from distilens.teachers.needs import Need
from distilens.teachers.stored import as_shown

STEPS = 32


def main(
    data: str = "shapes:train=3000,val_fraction=0.1",
    teacher: str = "resnet56",
    images: int = 512,
    rounds: int = 5,
    batch: int = 128,
) -> None:
    found = load(data)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    split = dataclasses.replace(found.train, index=found.train.index[:images])
    model = build_model(teacher, found.classes, found.size).to(device).eval()
    live = LiveTeacher(build_model(teacher, found.classes, found.size).to(device))
    still = Batches(split, batch, device=device)
    moving = Batches(split, batch, augment=crop(), ordered=True, device=device)
    there = [one.images for one in still]

    def forwards(of) -> None:
        with torch.no_grad():
            for pixels in there:
                of.logits(pixels)

    def gradients() -> None:
        for pixels in there[: max(1, len(there) // 8)]:  # an eighth of the images: this is slow
            rows = rows_at_once(pixels, None)
            for _ in range(len(pixels) * STEPS // rows):
                point = pixels[:1].expand(rows, -1, -1, -1).clone().requires_grad_()
                torch.autograd.grad(live.exact.logits(point)[:, 0].sum(), point)

    def record(need: str, batches: Batches, share: int = 1) -> Callable[[], float]:
        def once() -> float:
            with tempfile.TemporaryDirectory() as folder:
                stored, one = StoredTeacher(Path(folder), live), next(iter(batches))
                assert one.variant is not None
                stored.place(one, as_shown(one, Need.parse(need)), one.variant)
                start = time.perf_counter()
                for number, one in enumerate(batches):
                    if number % share == 0:
                        stored(one, [need])
                return time.perf_counter() - start

        return once

    folder = Path(tempfile.mkdtemp())
    full = StoredTeacher(folder, live)
    for batches, needs in ((still, ["maps:gradcam"]), (moving, ["logits"])):
        for one in batches:
            full(one, needs)

    def read() -> None:
        for one in moving:
            full(one, ["logits", "maps:gradcam:of=canonical"])

    def batches_alone() -> None:
        for _ in moving:
            pass

    ig = f"maps:ig:steps={STEPS}"
    contenders = {
        "plain forward": (lambda: forwards(model), images),
        "prepared forward": (lambda: forwards(live.exact), images),
        "record logits": (record("logits", moving), images),
        "record Grad-CAM": (record("maps:gradcam", still), images),
        "IG floor": (gradients, min(images, batch * max(1, len(there) // 8))),
        "record IG": (record(ig, still, 8), batch * -(-len(there) // 8)),
        "batches alone": (batches_alone, images),
        "read logits and maps": (read, images),
    }
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    with memory_kept():
        for number in range(rounds + 1):
            for name, (run, count) in contenders.items():
                start = time.perf_counter()
                own = run()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if number:
                    rates[name].append(count / (own or time.perf_counter() - start))
    print(
        f"{teacher}, {device}, {torch.get_num_threads()} threads, float32, batch {batch}, {rounds} rounds of {images} images"
    )
    for name, values in rates.items():
        print(f"{name:>22}  {statistics.median(values):>10,.1f} images/s")
    for name, base, goal in (("record Grad-CAM", "plain forward", 0.85), ("record IG", "IG floor", 0.9)):
        share = statistics.median(np.divide(rates[name], rates[base]))
        print(f"{name}: {share:.3f} of the rate of {base} (goal {goal})")
    extra = statistics.median(1 / np.array(rates["read logits and maps"]) - 1 / np.array(rates["batches alone"]))
    print(f"reading logits and moved maps: {1e6 * extra:.1f} µs an image beside making the batch")
    for path in sorted(folder.glob("*.bin")):
        print(
            f"{path.stem}: {next(place.shelf.dtype.itemsize for place in full.opened.values() if place.shelf.path == path)} bytes"
        )


if __name__ == "__main__":
    tyro.cli(main)
