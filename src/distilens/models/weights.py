"""Weight files: our own, and those that other people's training scripts leave."""

from __future__ import annotations

import argparse
import pickle
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distilens.errors import UserError

AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "params_ema")
"""Under which scripts keep the mean of the weights, which they evaluate."""
WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "network", "params", "weights", "student", "teacher")
HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.ndarray,
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
    np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"},
]
"""What scripts save beside the weights (an accuracy, the options): reading it runs no code of the file's."""


@dataclass(frozen=True)
class Found:
    """A state dict, and where in the file it was."""

    state: dict[str, Tensor]
    under: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def load_state(path: Path) -> dict[str, Tensor]:
    """The tensors in a weights file, on the CPU; see `found_state`."""
    return found_state(path).state


def found_state(path: Path) -> Found:
    """The tensors in a weights file, on the CPU, and where they were. Files that need code to be read are refused.

    Raises:
        UserError: no such file, not a weights file, or a pickle with code.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not path.is_file():
        raise UserError(f"no weights at {path}: " + ("it is a folder" if path.is_dir() else "there is no such file"))
    try:
        if is_safetensors(path):
            return Found(load(path.read_bytes()))
        with warnings.catch_warnings(), torch.serialization.safe_globals(HARMLESS):
            warnings.simplefilter("ignore")  # about pickle protocols: it is refused or read, and either is said here
            with open(path, "rb") as file:  # by its path, torch would go by the suffix
                content = torch.load(file, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}") from None
    except pickle.UnpicklingError:
        if path.read_bytes()[:2] not in (b"PK", *(bytes([0x80, protocol]) for protocol in range(2, 6))):
            raise UserError(
                f"{path} is not a weights file: it is neither safetensors nor written by torch.save"
            ) from None
        raise UserError(
            f"{path} is refused: reading it would run code that it brings. Whoever has the model can save its tensors only: "
            "safetensors.torch.save_file(model.state_dict(), 'model.safetensors'). If you trust the file, load it in a "
            "function of your own and name that: python:module:function"
        ) from None
    except Exception as error:  # whatever a broken file does to its reader
        raise UserError(f"{path} is not a weights file: {error}") from None
    return unwrapped(content, path)


def is_safetensors(path: Path) -> bool:
    """By the first bytes, which are the length of a table in JSON; by the suffix, where there are not so many."""
    with open(path, "rb") as file:
        start = file.read(9)
    if start[:2] == b"PK":  # a zip file, as torch.save writes
        return False
    return start[8:] == b"{" or (path.suffix == ".safetensors" and start[:1] != b"\x80")  # which is how a pickle begins


def unwrapped(content: Any, path: Path) -> Found:
    """The state dict inside the dictionaries that scripts put around it; of two, the mean of the weights."""
    under: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    while isinstance(content, Mapping) and not is_state(content):
        there = [name for name in (*AVERAGES, *WRAPPERS) if isinstance(content.get(name), Mapping) and content[name]]
        if not there:
            break
        beside = [name for name in there[1:] if is_state(content[name])]
        if there[0] in AVERAGES and beside:
            notes = (f"{path}: the mean of the weights, {there[0]!r}, is taken, and {beside[0]!r} is not",)
        content, under = content[there[0]], (*under, there[0])
    if not is_state(content):
        inside = f": it has {', '.join(map(str, list(content)[:6]))}" if isinstance(content, Mapping) else ""
        raise UserError(f"{path} holds no state dict: expected names with tensors{inside}")
    return Found(dict(content), under, notes)


def is_state(content: Any) -> bool:
    return isinstance(content, Mapping) and all(isinstance(value, Tensor) for value in content.values())


def matched(found: Found, network: nn.Module) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A state dict under the network's own names, and what has to be said of it.

    The prefix is taken off under which most of the network's names are. Counters of old batch norms, which nothing depends on,
    may be missing; tensors under other names are left out.
    """
    own = network.state_dict()
    prefix = common_prefix(found.state, own)
    state = {key.removeprefix(prefix): value for key, value in found.state.items() if key.startswith(prefix)}
    left = [key for key in found.state if not key.startswith(prefix) or key.removeprefix(prefix) not in own]
    if len(left) == len(found.state):  # nothing fits: the error names what there is
        return found.state, found.notes
    notes = list(found.notes)
    if prefix:
        notes.append(f"the prefix {prefix!r} of its weights' names was taken off")
    if left and all(key in state for key in own if not key.endswith("num_batches_tracked")):
        notes.append(f"{len(left)} tensors of the file are not the network's and were left out: {', '.join(left[:4])}")
        state = {key: value for key, value in state.items() if key in own}
    counters = {key: value for key, value in own.items() if key.endswith("num_batches_tracked") and key not in state}
    return {**state, **counters}, tuple(notes)


def common_prefix(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """The prefix under which a state dict has most of a network's names; none where several have as many."""
    counts: Counter[str] = Counter()
    for name in own:
        for key in state:
            if key.endswith(name) and (key == name or key[: -len(name)].endswith(".")):
                counts[key[: -len(name)]] += 1
    return max(counts, key=lambda prefix: (counts[prefix], -len(prefix)), default="")


def fit(network: nn.Module, state: Mapping[str, Tensor], *, where: str, architecture: str) -> None:
    """Load a state dict, or say in one message what does not fit."""
    own = network.state_dict()
    missing, extra = [key for key in own if key not in state], [key for key in state if key not in own]
    shapes = [
        f"{key}: {list(state[key].shape)} in the file, {list(own[key].shape)} in the model"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    problems = [f"missing: {', '.join(missing[:4])}"] * bool(missing) + [f"unknown: {', '.join(extra[:4])}"] * bool(
        extra
    )
    if problems or shapes:
        raise UserError(
            f"the weights in {where} are not those of {architecture}: {'; '.join([*problems, *shapes[:4]])}"
        )
    network.load_state_dict(state)
