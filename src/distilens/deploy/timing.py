"""A process that times models in one runtime: `python -m distilens.deploy.timing`. `bench` starts it.

It reads a job, a line of JSON, and opens and warms up the models. For each further line it does a round: every model and batch
has its turn. It answers each line with a line of JSON. Only the runtime is imported, so that its memory is the runtime's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distilens.deploy.predict import OnnxFile, PteFile
from distilens.deploy.processor import EnergyMeter

Call = Callable[[], object]
Open = Callable[[Path, int], Callable[[np.ndarray], object]]


# ---------------------------------------------------------------------------------------------------------------- runtimes


def set_torch_threads(threads: int) -> None:
    """Import PyTorch and the libraries that build networks, which count as the runtime, and set the threads."""
    import timm  # noqa: F401
    import torch
    import torchvision.models  # noqa: F401

    import distilens.deploy.to_pt2
    import distilens.models.saved  # noqa: F401

    torch.set_num_threads(threads)


def open_eager(path: Path, threads: int) -> Callable[[np.ndarray], object]:
    """A saved model as `load_model` returns it: its batch norms are not folded."""
    import torch

    from distilens.models.saved import load_model

    model = load_model(path).cpu().eval()
    return torch.inference_mode()(lambda images: model.logits(torch.from_numpy(images)))


def open_compiled(path: Path, threads: int) -> Callable[[np.ndarray], object]:
    """A saved model, compiled for each batch size."""
    import torch

    from distilens.models.saved import load_model

    model = load_model(path).cpu().eval()
    compiled = torch.compile(model.logits, dynamic=False)
    return torch.inference_mode()(lambda images: compiled(torch.from_numpy(images)))


def open_pt2(path: Path, threads: int) -> Callable[[np.ndarray], object]:
    """An exported program, run by PyTorch."""
    from distilens.deploy.to_pt2 import Pt2Runtime

    return Pt2Runtime(path)


def open_onnx(path: Path, threads: int) -> Callable[[np.ndarray], object]:
    """An ONNX file in ONNX Runtime."""
    return OnnxFile(path, threads)


def open_executorch(path: Path, threads: int) -> Callable[[np.ndarray], object]:
    """An ExecuTorch file."""
    return PteFile(path)


def set_executorch_threads(threads: int) -> None:
    """Import ExecuTorch and set the threads of XNNPACK's pool; if this version cannot, bind the process to as many cores."""
    import executorch.runtime  # noqa: F401

    try:
        from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    except ImportError:
        bind_to_cores(threads)
    else:
        _unsafe_reset_threadpool(threads)


def open_openvino(path: Path, threads: int) -> Callable[[np.ndarray], object]:
    """An ONNX file in OpenVINO, for short answer times."""
    import openvino  # pyright: ignore[reportMissingImports]  # not a dependency

    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    return lambda images: compiled([images])


def import_openvino(threads: int) -> None:
    import openvino  # noqa: F401  # pyright: ignore[reportMissingImports]


def import_onnxruntime(threads: int) -> None:
    import onnxruntime  # noqa: F401


OPENERS: Mapping[str, tuple[Callable[[int], None], Open]] = {
    "eager": (set_torch_threads, open_eager),
    "compiled": (set_torch_threads, open_compiled),
    "pt2": (set_torch_threads, open_pt2),
    "onnx": (import_onnxruntime, open_onnx),
    "executorch": (set_executorch_threads, open_executorch),
    "openvino": (import_openvino, open_openvino),
}
"""For each runtime: what loads it and sets its threads, and what opens a model in it."""


def bind_to_cores(count: int) -> None:
    """Bind this process to its first cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


# ------------------------------------------------------------------------------------------------------------------ memory


def reset_peak() -> None:
    """Let the peak of the resident set start again at its present value, where the kernel can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """The largest resident set of this process, in bytes."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


# ------------------------------------------------------------------------------------------------------------------ timing


def make_images(model: Mapping[str, Any], batch: int) -> np.ndarray:
    """Random images of the type and size that a model takes."""
    shape, source = (batch, *model["shape"]), np.random.default_rng(0)
    if model["type"] == "uint8":
        return source.integers(0, 256, shape, dtype=np.uint8)
    return source.random(shape, dtype=np.float32)


class Entry:
    """A model at one batch size.

    Args:
        key: the model's key in the job.
        call: one forward pass.
        pace: how long a turn takes, in seconds.
    """

    def __init__(self, key: str, batch: int, call: Call, pace: float):
        self.key, self.batch, self.call, self.pace = key, batch, call, pace

    def warm_up(self) -> None:
        """Call it for the time of a turn, at least three times: the first calls plan, compile and allocate."""
        stop, calls = time.perf_counter() + self.pace, 0
        while calls < 3 or time.perf_counter() < stop:
            self.call()
            calls += 1

    def take_turn(self, meter: EnergyMeter) -> dict[str, Any]:
        """Time calls for the time of a turn, at least one. An untimed call before brings the weights into the caches."""
        self.call()
        times, before, stop = [], meter.read(), time.perf_counter() + self.pace
        while not times or time.perf_counter() < stop:
            start = time.perf_counter()
            self.call()
            times.append(1000 * (time.perf_counter() - start))
        joules = meter.joules_since(before) / (self.batch * len(times)) if meter.readable else None
        return {"key": self.key, "batch": self.batch, "times": times, "joules": joules}


def open_entries(job: Mapping[str, Any]) -> tuple[list[Entry], dict[str, str]]:
    """The models of a job at each batch size, warmed up; and why the others cannot be run, by key."""
    entries: list[Entry] = []
    failed: dict[str, str] = {}
    for model in job["models"]:
        made = []
        try:
            run = OPENERS[job["runtime"]][1](Path(model["path"]), job["threads"])
            for batch in model["batches"]:
                images = make_images(model, batch)
                made.append(Entry(model["key"], batch, lambda run=run, images=images: run(images), job["pace"]))
                made[-1].warm_up()
        except Exception as error:
            failed[model["key"]] = explain(error)
        else:
            entries += made
    return entries, failed


def explain(error: Exception) -> str:
    """An error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def measure_memory(job: Mapping[str, Any]) -> dict[str, Any]:
    """The peak of the resident set above the runtime alone for the one model of a job, in bytes by batch size."""
    reset_peak()
    alone, (model,), found = peak_memory(), job["models"], {}
    try:
        run = OPENERS[job["runtime"]][1](Path(model["path"]), job["threads"])
        for batch in sorted(model["batches"]):
            images = make_images(model, batch)
            for _ in range(3):
                run(images)
            found[batch] = peak_memory() - alone
    except Exception as error:
        return {"memory": found, "failed": explain(error)}
    return {"memory": found}


def answers_to(lines: Iterable[str]) -> Iterator[Any]:
    """The answers to a job, the first line, and to each further line."""
    rest = iter(lines)
    job = json.loads(next(rest))
    try:
        OPENERS[job["runtime"]][0](job["threads"])
    except Exception as error:
        yield {"unusable": explain(error)}
        return
    if job["memory"]:
        yield measure_memory(job)
        return
    entries, failed = open_entries(job)
    yield {"failed": failed}
    meter = EnergyMeter()
    for number, _ in enumerate(rest):
        random.Random(number).shuffle(entries)
        yield [entry.take_turn(meter) for entry in entries]


def main() -> None:
    """Answer lines from stdin on stdout. What libraries print goes to stderr."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for answer in answers_to(sys.stdin):
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
