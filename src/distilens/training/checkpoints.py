"""Checkpoints: the state of a training. A killed training loses at most the steps since the last save."""

from __future__ import annotations

import contextlib
import io
import math
import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from distilens.foundation.errors import UserError
from distilens.foundation.files import write_atomically

SAVE_EVERY = 600.0  # seconds, within an epoch that lasts longer


@dataclass
class Place:
    """The position in a training: the epoch, the steps done in it, all steps done, and the best validation score so far.

    A score is higher if the epoch is better.
    """

    epoch: int = 0
    within: int = 0
    step: int = 0
    best: float = -math.inf

    def advance(self) -> None:
        self.within += 1
        self.step += 1

    def next_epoch(self) -> None:
        self.epoch, self.within = self.epoch + 1, 0


class Interrupted(KeyboardInterrupt):
    """Training was interrupted, and its state was saved."""

    def __init__(self, number: int, folder: Path | None):
        super().__init__(f"stopped; the same command continues from here ({folder})" if folder else "stopped")
        self.code = 128 + number


class Checkpoints:
    """Saves and restores everything that training changes: student, methods, optimizer, mean weights, random states.

    It writes `last.pt` after every epoch, `best.pt` when the validation score is the best so far, and `epoch-0005.pt` if every
    n-th epoch is kept. The files contain tensors and plain data only, and never the teacher.

    Args:
        plan: the key of the training. A checkpoint with another plan is refused.
        main: True on the main process. The others read but do not write.
    """

    def __init__(
        self,
        folder: Path | None,
        objective: nn.Module,
        optimizer: Any,
        average: nn.Module | None,
        *,
        plan: str = "",
        main: bool = True,
    ):
        self.folder, self.plan = folder, plan
        self.objective, self.optimizer, self.average, self.main = objective, optimizer, average, main
        self.saved_at = time.monotonic()
        self.best: dict[str, Any] | None = None  # kept in memory if there is no folder

    def weights(self) -> dict[str, Any]:
        return {
            "objective": self.objective.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
        }

    def load_weights(self, state: dict[str, Any]) -> None:
        self.objective.load_state_dict(state["objective"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    def save(self, place: Place, *, score: float | None = None, keep: int = 0) -> None:
        """Save the state. At the end of an epoch give its `score` (higher is better): the best epoch so far is also saved as
        the best one.
        """
        improved = score is not None and score > place.best
        if score is not None and improved:
            place.best = score
            if self.folder is None:
                self.best = {
                    kind: {key: value.clone() for key, value in tensors.items()} if tensors else None
                    for kind, tensors in self.weights().items()
                }
        if self.folder is None or not self.main:
            return
        state = {
            "place": asdict(place),
            "plan": self.plan,
            **self.weights(),
            "optimizer": self.optimizer.state_dict(),
            "random": random_state(),
        }
        names, buffer = ["last.pt"], io.BytesIO()
        torch.save(state, buffer)  # through memory: torch's own writer hides the error of a full disk
        # `last` is written last: after a kill before it, training resumes from the older one and writes the others again
        if score is not None and keep and place.epoch % keep == 0:
            names.insert(0, f"epoch-{place.epoch:04d}.pt")
        if improved:
            names.insert(0, "best.pt")
        for name in names:
            write_atomically(self.folder / name, lambda path: path.write_bytes(buffer.getbuffer()))
        self.saved_at = time.monotonic()

    def due(self) -> bool:
        """Whether the last save is more than `SAVE_EVERY` seconds ago."""
        return self.folder is not None and time.monotonic() - self.saved_at > SAVE_EVERY

    def resume(self) -> Place:
        """Restore the last state. Without one, the place is the start of training."""
        if self.folder is None or not (self.folder / "last.pt").is_file():
            return Place()
        state = read(self.folder / "last.pt")
        if state.get("plan") != self.plan:
            raise self.refusal("another training (other data, settings, methods or seed)")
        try:
            self.load_weights(state)
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, KeyError, ValueError):
            raise self.refusal("another network") from None
        if self.main:  # the state is the main process's; the others keep their own random numbers
            set_random_state(state["random"])
        return Place(**state["place"])

    def refusal(self, other: str) -> UserError:
        return UserError(f"the checkpoint in {self.folder} is of {other}. Give another folder, or delete this one")

    def restore_best(self) -> None:
        """Load the weights of the best epoch on validation. If no epoch was scored, the last weights stay."""
        if self.folder is None:
            if self.best is not None:
                self.load_weights(self.best)
        elif (self.folder / "best.pt").is_file():
            self.load_weights(read(self.folder / "best.pt"))


def read(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def random_state() -> dict[str, Any]:
    """The random states of torch, its accelerators, numpy and Python, as tensors and plain data."""
    _, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [keys.tolist(), int(position), int(has_gauss), float(gauss)],  # type: ignore[union-attr]
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


class Stop:
    """Whether a stop was requested, and by which signal."""

    def __init__(self) -> None:
        self.requested, self.signal = False, signal.SIGINT

    def __call__(self, number: int, frame: object) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C stops at once, without saving
        self.requested, self.signal = True, signal.Signals(number)


@contextlib.contextmanager
def interruptible() -> Iterator[Stop]:
    """A context in which Ctrl-C and SIGTERM only set a flag: the loop stops between two steps, where the state is complete."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
