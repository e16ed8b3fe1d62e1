"""All that is to be measured on a GPU, in one command that fits into a quarter of an hour.

    python benchmarks/gpu.py --minutes 12 [--device cuda|cpu] [--data parquet:path=data/cifar10] [--out runs/gpu]
    python benchmarks/gpu.py --section    # writes the section of docs/results.md from benchmarks/results/*/gpu.json

The parts stand in order of worth, and each has a share of the time; what one leaves over goes to the next. Each runs in a
process of its own, and each row is written to OUT/gpu.json as soon as it is measured: a cut, a crash or a full card loses
one row. The same command goes on with the rows that are missing. With `--device cpu` everything runs in a tiny form, which
shows that it works and measures nothing.

`benchmarks/gpu_bundle.sh` packs what a machine without a network needs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from gpu_parts.results import Results
from gpu_parts.tables import tables, write_section

PARTS = {  # part: its share of the time
    "card": 0.03,
    "step": 0.27,
    "data": 0.03,
    "accuracy": 0.22,
    "answers": 0.06,
    "explainers": 0.07,
    "combinations": 0.32,
}
GRACE = 5.0
"""Seconds beyond a part's limit after which its process is ended."""


def main() -> None:
    options = parsed()
    if options.section:
        print(write_section())
    else:
        measure(options)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=12.0, help="time for all parts together")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--data", default="", help="notation of the data; CIFAR-10 in parquet is expected on a GPU")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run")
    parser.add_argument("--section", action="store_true", help="write the section of docs/results.md, and end")
    return parser.parse_args()


def measure(options: argparse.Namespace) -> None:
    """Run the parts one after the other, and print the tables."""
    results = Results(options.out / "gpu.json")
    begun, total = time.monotonic(), 60 * options.minutes
    shares, budget = sum(PARTS[name] for name in options.only), 0.0
    for name in options.only:
        budget += total * PARTS[name] / shares
        started = time.monotonic()
        limit = begun + budget - started  # with what the parts before left over
        print(f"{name}: at most {limit:.0f} s", flush=True)
        ended = run_apart(name, options, results, limit)
        results.end_part(name, ended, time.monotonic() - started)
        print(f"{name}: {ended}, {time.monotonic() - started:.0f} s", flush=True)
        if not results.rows(name) and "code" in ended:
            raise SystemExit(1)  # no GPU, or rows of another card: the process has said so
        (options.out / "gpu.md").write_text(tables(results.read()), encoding="utf-8")
    print(tables(results.read()))
    print(f"{results.path}: {time.monotonic() - begun:.0f} s in all")


def run_apart(name: str, options: argparse.Namespace, results: Results, limit: float) -> str:
    """Run a part in a process of its own, once more behind a row that crashed it; returns how it ended.

    All processes are forked from one that has imported everything and has not touched the card.
    """
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # asking whether there is a card must not open it before the fork
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gpu_parts.process"])
    from gpu_parts.process import run_part

    end, skip = time.monotonic() + limit, []
    while True:
        left = end - time.monotonic()
        process = context.Process(target=run_part, args=(name, options, left, skip))
        process.start()
        process.join(max(left, 0.0) + GRACE)
        if process.exitcode is None:
            end_all(process)
            return "stopped at its limit"
        cut = [key for key in results.open_rows(name) if key not in skip]
        if process.exitcode == 0 or not cut or end < time.monotonic():
            return "ended" if process.exitcode == 0 else f"ended with code {process.exitcode}"
        skip += cut


def end_all(process: BaseProcess) -> None:
    """End a process and those that it started: they are one group."""
    assert process.pid is not None
    os.killpg(process.pid, signal.SIGKILL)
    process.join()


if __name__ == "__main__":
    sys.exit(main())
