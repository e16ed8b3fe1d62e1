"""How long a batch of stored answers takes that is not in memory: `Shelf.read` beside a plain memory map.

Features of a fine grid are tens of KiB a record, scattered over a file that is mostly holes: what is asked for is a record or,
the first time, a hole. Before each round the system is asked to forget the file.

    python benchmarks/reading.py [--shape 16 32 32] [--images 50000] [--variants 16] [--records 2000] [--rounds 5]
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tyro

from distilens.teachers.records import Shelf


def main(
    shape: tuple[int, ...] = (16, 32, 32),
    images: int = 50_000,
    variants: int = 16,
    records: int = 2_000,
    batch: int = 32,
    rounds: int = 5,
    folder: Path | None = None,
) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        shelf = Shelf(Path(place), "features:last-2", {}, [("values", "<f2", shape)], images, shape)
        rng = np.random.default_rng(0)
        rows = rng.choice(images * (variants + 1), 2 * records, replace=False)
        full, empty = np.sort(rows[:records]), rows[records:]
        for some in np.array_split(full, max(1, records // 256)):
            written = np.zeros(len(some), shelf.dtype)
            written["values"] = rng.standard_normal((len(some), *shape))
            shelf.write(some, written)
        shelf.write(np.array([images * (variants + 1) - 1]), np.zeros(1, shelf.dtype))  # as long as it will be
        rng.shuffle(full)

        def afresh() -> Callable[[np.ndarray], object]:
            return Shelf(Path(place), "features:last-2", {}, [("values", "<f2", shape)], images, shape).read

        def plain() -> Callable[[np.ndarray], object]:
            return np.memmap(shelf.path, shelf.dtype, "r").__getitem__

        readers = {"shelf": afresh, "plain map": plain}
        found: dict[str, list[float]] = {}
        for _ in range(rounds):
            for name, opened in readers.items():
                for what, some in (("records", full), ("holes", empty)):
                    forget(shelf.path)  # what is mapped anywhere is not forgotten
                    read = opened()
                    found.setdefault(f"{what}, {name}, cold", []).append(timed(read, some, batch))
                    found.setdefault(f"{what}, {name}, in memory", []).append(timed(read, some, batch))
        print(
            f"{records:,} records of {shelf.dtype.itemsize:,} bytes, {batch} at a time, {rounds} rounds; sums are checked"
        )
        for name, values in found.items():
            print(f"{name:>32}  {statistics.median(values):>10.3f} ms a batch")


def timed(read: Callable[[np.ndarray], object], rows: np.ndarray, batch: int) -> float:
    """Milliseconds a batch."""
    start = time.perf_counter()
    for first in range(0, len(rows), batch):
        read(rows[first : first + batch])
    return (time.perf_counter() - start) / -(-len(rows) // batch) * 1e3


def forget(path: Path) -> None:
    """Have the system drop what it holds of a file."""
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


if __name__ == "__main__":
    tyro.cli(main)
