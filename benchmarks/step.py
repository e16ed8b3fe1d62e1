"""Images a second of a distillation step, end to end, beside its floor and beside others' loops.

The floor is the student's forward, backward and update on one batch that is there: no data, no log. `student alone`, `kd live`,
`kd stored` and `kd + ...` are `distilens.train` with data, augmentation and logging; all but `live` read what was recorded
before. Peers load and augment as they come (benchmarks/peers.py). All take turns in one process, round by round, the floor before
each; a rate is the median of the rounds, and a ratio the median of the rounds' ratios. `--memory` runs each alone for its peak.

    pip install 'distilens[benchmarks]'
    python benchmarks/step.py --data parquet:path=data/cifar10 [--pair resnet56 resnet20] [--steps 20] [--rounds 5]
    python benchmarks/step.py --data 'parquet:path=data/camvid,size=[96,128]' --pair unet:width=32 unet:width=16 --batch-size 8
"""

from __future__ import annotations

import dataclasses
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import tyro
from peers import Task, peers
from torch import Tensor, nn

from distilens.core import Answer, Batch, Model, Objective
from distilens.data import Data, load
from distilens.data.augment import AUGMENTS
from distilens.data.pipeline import Batches
from distilens.foundation.memory import reuse_freed_memory as memory_kept
from distilens.methods import build_methods
from distilens.models import build_model
from distilens.teachers import LiveTeacher, StoredTeacher, nobody
from distilens.training.defaults import kind_of_model, settled
from distilens.training.log import Log
from distilens.training.loop import lays_channels_last, make_accelerator, total, train
from distilens.training.optimizers import OPTIMIZERS
from distilens.training.settings import Training

KD = "kd:temperature=4,weight=0.9"
FIELD = ("fitnet", "vid", "nst", "reviewkd", "rtk", "simkd", "sp", "rkd", "pkt", "crd", "osakd", "opdf", "powerprop")
OURS = {
    "student alone": ["ce"],
    "kd live": ["ce:weight=0.1", KD],
    "kd stored": ["ce:weight=0.1", KD],
    "kd of the three largest": ["ce:weight=0.1", f"{KD},top=3"],
    "kd + overlay": ["ce:weight=0.1", KD, "ig_overlay:explainer=[ig:steps=2,channels=size]"],
    "kd + gradcam": ["ce:weight=0.1", KD, "map_match"],
    "kd + class maps": ["ce:weight=0.1", KD, "map_match:explainer=cam,classes=all,pool=4"],
    "kd + attention": ["ce:weight=0.1", KD, "at"],
    "kd + class maps + attention": ["ce:weight=0.1", KD, "map_match:explainer=cam,classes=all,pool=4", "at"],
    "kd + cam_fusion": ["ce:weight=0.1", KD, "cam_fusion"],
    **{name: ["ce:weight=0.1", name] for name in ("dkd", "dist", "mlkd", "r2kd")},
    **{
        f"kd + {name}": ["ce:weight=0.1", KD, f"{name}:weight=1e-6"] for name in FIELD
    },  # of a teacher that was not trained
    "simkd": ["simkd:weight=1e-6"],
    "kd + fitnet, balanced": ["ce:weight=0.1", KD, "fitnet"],
}
BALANCE = "ratio:0.3"
"""Of those that are `balanced`; what measuring costs is told apart from noise by benchmarks/balance.py."""


class Bench:
    """A pair of networks, some data, and everyone who trains the one under the other.

    Args:
        pair: teacher and student, in notation; their weights do not matter to the time.
        data: its first `steps` batches of training images are an epoch.
        settings: of our own training; peers come with theirs.
    """

    def __init__(
        self, pair: tuple[str, str], data: Data, steps: int, settings: Training, folder: Path, workers: int | None
    ):
        size = settings.batch_size
        few = dataclasses.replace(data.train, index=data.train.index[: steps * size])
        tiny = dataclasses.replace(data.validation, index=data.validation.index[:8])
        self.data = dataclasses.replace(data, train=few, validation=tiny)
        self.pair, self.settings, self.folder, self.steps, self.workers = pair, settings, folder, steps, workers
        self.accelerator = make_accelerator(settings)
        self.device = self.accelerator.device
        torch.backends.cudnn.benchmark = True
        torch.manual_seed(0)
        self.teacher = LiveTeacher(self.model(pair[0]))
        self.stored = StoredTeacher(folder / "answers", self.teacher)
        self.fixed: dict[str, Callable[[], float]] = {}  # what is built once

    def model(self, part: str) -> Model:
        model = build_model(part, self.data.task, self.data.size).to(self.device)
        if lays_channels_last(self.settings, self.device):
            model.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model

    def contenders(self) -> dict[str, Callable[[], float]]:
        """By name, what runs one round and returns images a second."""
        ours = {name: partial(self.trained, name) for name in OURS}
        classes = not self.data.task.dense  # peers train classifiers only
        theirs = {name: partial(self.peer, name) for name in peers(self.folder)} if classes else {}
        return {"floor": self.floor, "teacher's forward": self.forward, **ours, **theirs}

    def first(self) -> Batch:
        return next(
            Batches(
                self.data.train, self.settings.batch_size, augment=AUGMENTS.build("crop"), device=self.device
            ).epoch(0)
        )

    def timed(self, step: Callable[[], object], steps: int) -> float:
        synchronise = torch.cuda.synchronize if self.device.type == "cuda" else int
        with memory_kept():  # as in `train`
            synchronise()
            start = time.perf_counter()
            for _ in range(steps):
                step()
            synchronise()
            return steps * self.settings.batch_size / (time.perf_counter() - start)

    def floor(self) -> float:
        """The student's step on a batch that is there, in the same precision, memory layout and optimizer."""
        if "floor" not in self.fixed:
            model, batch = self.model(self.pair[1]), self.first()
            objective = Objective(model, build_methods(["ce"])).train()
            if self.settings.compile:
                model.network.compile()
            optimizer = OPTIMIZERS.build(settled(self.settings, kind_of_model(model)).optimizer, objective)

            def step() -> None:
                with self.accelerator.autocast():
                    loss = total(objective(batch, Answer()))
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()

            self.fixed["floor"] = step  # type: ignore[assignment]
            self.timed(step, 3)
        return self.timed(self.fixed["floor"], self.steps)

    def forward(self) -> float:
        """The unprepared teacher's forward alone, in the same precision: what a live teacher costs at least elsewhere."""
        if "forward" not in self.fixed:
            model, batch = self.model(self.pair[0]).eval(), self.first()

            def step() -> Tensor:
                with torch.no_grad(), self.accelerator.autocast():
                    return model.logits(batch.images)

            self.fixed["forward"] = step  # type: ignore[assignment]
            self.timed(step, 3)
        return self.timed(self.fixed["forward"], self.steps)

    def trained(self, name: str) -> float:
        """An epoch of `distilens.train`; the rate is what its log says, over all steps."""
        teacher = nobody if name == "student alone" else self.teacher if name == "kd live" else self.stored
        log = Log()
        methods = build_methods(OURS[name])
        balance = {"balance": BALANCE} if name.endswith("balanced") else {}
        train(
            build_model(self.pair[1], self.data.task, self.data.size),
            methods,
            self.data,
            self.settings.model_copy(update=balance),
            teacher=teacher,
            log=log,
        )
        rows = [row for row in log.rows if "images_per_second" in row]
        return len(rows) / sum(1 / row["images_per_second"] for row in rows)

    def peer(self, name: str) -> float:
        if name not in self.fixed:
            networks: list[nn.Module] = [
                build_model(part, self.data.task, self.data.size).network for part in self.pair
            ]
            split = self.data.train
            images, labels = split.rows.images[split.index], split.labels
            folder = Path(tempfile.mkdtemp(dir=self.folder))
            task = Task(*networks, images, labels, self.settings.batch_size, self.device, self.workers)
            self.fixed[name] = partial(peers(folder)[name](task).images_per_second, self.steps, warm_up=2)
        return self.fixed[name]()


def main(
    pair: tuple[str, str] = ("resnet56", "resnet20"),
    data: str = "shapes:train=15000,val_fraction=0.01",
    steps: int = 20,
    rounds: int = 5,
    batch_size: int = 128,
    precision: str = "auto",
    compile: bool = False,
    workers: int | None = None,
    only: tuple[str, ...] = (),
    memory: bool = False,
) -> None:
    """Take turns and print a table.

    Args:
        workers: DataLoader processes of the peers; by default each one's own number.
        only: contenders to run; by default all.
        memory: also run each alone, for its peak of resident memory.
    """
    settings = Training(
        epochs=1, batch_size=batch_size, optimizer="sgd:lr=0.01", precision=precision, compile=compile, log_every=5, workers=0
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(pair, load(data), steps, settings, Path(folder), workers)
        contenders = bench.contenders()
        if bench.accelerator.mixed_precision != "bf16":
            contenders.pop("torchdistill bfloat16")  # only emulated here
        contenders = {name: run for name, run in contenders.items() if not only or name in only}
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for name, run in contenders.items():
            if name in OURS:
                run()  # records what is to be read, and is not counted
        floors: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, run in contenders.items():
                if name != "floor" and "floor" in contenders:  # machines change their speed within a round
                    floors[name].append(contenders["floor"]())
                rates[name].append(run())
        floors["floor"] = rates.get("floor", [])
        print(
            f"{' → '.join(pair)}, batch {batch_size}, {bench.device}, {torch.get_num_threads()} threads, precision "
            f"{bench.accelerator.mixed_precision}, {rounds} rounds of {steps} steps{', compiled' if compile else ''}"
        )
    peaks = {name: peak_of(name) for name in rates} if memory else {}
    for name, values in rates.items():
        parts = [f"{name:>22}  {statistics.median(values):>8,.0f} images/s"]
        for base in ("floor", "torchdistill", "torchdistill bfloat16"):
            if base in rates:
                theirs = floors[name] if base == "floor" else rates[base]
                ratio = statistics.median(a / b for a, b in zip(values, theirs, strict=True))
                parts.append(
                    f"{1 / ratio:.3f} of the floor's time" if base == "floor" else f"{ratio:.2f} × {base}'s rate"
                )
        print("  ".join(parts) + (f"  {peaks[name]:,} MiB" if peaks else ""))
    if {"floor", "teacher's forward", "kd live"} <= rates.keys():
        three = zip(rates["floor"], rates["teacher's forward"], rates["kd live"], strict=True)
        share = statistics.median((1 / live) / (1 / step + 1 / forward) for step, forward, live in three)
        print(f"kd live takes {share:.3f} of the floor and the teacher's plain forward together (goal 1.05)")
    if only and len(only) == 1:
        print("peak MiB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def peak_of(name: str) -> int:
    """The peak resident memory of a contender alone, in MiB, torch itself included."""
    arguments = [a for a in sys.argv[1:] if a != "--memory"]
    command = [sys.executable, __file__, *arguments, "--only", name, "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


if __name__ == "__main__":
    tyro.cli(main)
