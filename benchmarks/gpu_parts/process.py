"""The process of a part: it measures the rows that are missing, as long as there is time."""

from __future__ import annotations

import argparse
import importlib
import os
import time
import traceback
from collections.abc import Collection

import torch

from distilens.foundation.errors import UserError
from gpu_parts.bench import Bench, OutOfTime
from gpu_parts.results import Results


def run_part(name: str, options: argparse.Namespace, seconds: float, skip: Collection[str]) -> None:
    """Measure a part in `seconds`, without the rows to `skip`, which ended a process before."""
    os.setsid()  # so that what it starts can be ended with it
    results = Results(options.out / "gpu.json")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no GPU that this torch can use; --device cpu runs everything in a tiny form")
    results.of_device(torch.cuda.get_device_name() if options.device == "cuda" else "CPU, tiny sizes")
    bench = Bench(options.device, options.data, options.out / "work", seconds)
    for key, measure in importlib.import_module(f"gpu_parts.{name}").rows(bench):
        if results.is_done(name, key) or key in skip:
            continue
        if bench.left <= 0:
            break
        results.put(name, key, {"cut": "the process ended in this row"})
        start = time.monotonic()
        try:
            row = measure()
        except OutOfTime as error:
            row = {"cut": str(error)}
        except UserError as error:
            row = {"failed": str(error)}
        except Exception as error:  # one row that fails must not end the others
            traceback.print_exc()
            row = {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"}
        row["took"] = round(time.monotonic() - start, 1)
        results.put(name, key, row)
        print(f"  {key}: {row}", flush=True)
