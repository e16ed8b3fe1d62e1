"""Read weight files: our own, and those of other training scripts."""

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

from distilens.foundation.errors import UserError
from distilens.models.heads import head_of

AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "params_ema")
"""Keys of averaged weights (EMA), which training scripts evaluate."""
COUNTER = "num_batches_tracked"
"""How the names of batch norms' counters end."""
ENDS = ("weight", "bias", "running_mean", "running_var")
"""How the names of other tensors usually end."""
WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "network", "params", "weights", "student", "teacher")
HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.ndarray,
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
    np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"},
]
"""Types that scripts save beside the weights (an accuracy, the options). Reading them runs no code from the file."""


@dataclass(frozen=True)
class StateFile:
    """A state dict, its keys in the file, and remarks."""

    state: dict[str, Tensor]
    under: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def load_state(path: Path) -> dict[str, Tensor]:
    """The tensors in a weights file, on the CPU; see `read_state`."""
    return read_state(path).state


def read_state(path: Path) -> StateFile:
    """Read the tensors in a weights file to the CPU, with their keys in the file. Files that need code are refused.

    Raises:
        UserError: the file does not exist, is not a weights file, or is a pickle with code.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not path.is_file():
        raise UserError(f"no weights at {path}: " + ("it is a folder" if path.is_dir() else "there is no such file"))
    try:
        if is_safetensors(path):
            return StateFile(load(path.read_bytes()))
        with warnings.catch_warnings(), torch.serialization.safe_globals(HARMLESS):
            warnings.simplefilter("ignore")  # about pickle protocols: we refuse or read the file ourselves
            with open(path, "rb") as file:  # given a path, torch would decide by the suffix
                content = torch.load(file, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}") from None
    except pickle.UnpicklingError:
        if path.read_bytes()[:2] not in (b"PK", *(bytes([0x80, protocol]) for protocol in range(2, 6))):
            raise UserError(
                f"{path} is not a weights file: it is neither safetensors nor written by torch.save"
            ) from None
        raise UserError(
            f"{path} is refused: reading it would run code from the file. Its author can save only the tensors: "
            "safetensors.torch.save_file(model.state_dict(), 'model.safetensors'). If you trust the file, load it in a "
            "function of your own and name that: python:module:function"
        ) from None
    except Exception as error:  # a broken file can raise errors of any kind
        raise UserError(f"{path} is not a weights file: {error}") from None
    return unwrap_state(content, path)


def is_safetensors(path: Path) -> bool:
    """Whether a file is safetensors, by its first nine bytes (a length, then JSON); by the suffix if it is shorter or unclear."""
    with open(path, "rb") as file:
        start = file.read(9)
    if start[:2] == b"PK":  # a zip file, as torch.save writes
        return False
    return start[8:] == b"{" or (path.suffix == ".safetensors" and start[:1] != b"\x80")  # a pickle begins with \x80


def unwrap_state(content: Any, path: Path) -> StateFile:
    """The state dict inside the dictionaries that scripts wrap around it; averaged weights come first."""
    under: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    while isinstance(content, Mapping) and not is_state(content):
        there = [name for name in (*AVERAGES, *WRAPPERS) if isinstance(content.get(name), Mapping) and content[name]]
        if not there:
            break
        beside = [name for name in there[1:] if is_state(content[name])]
        if there[0] in AVERAGES and beside:
            notes = (f"{path}: the averaged weights {there[0]!r} are used, not {beside[0]!r}",)
        content, under = content[there[0]], (*under, there[0])
    if not is_state(content):
        inside = f": it has {', '.join(map(str, list(content)[:6]))}" if isinstance(content, Mapping) else ""
        raise UserError(f"{path} has no state dict: expected names with tensors{inside}")
    return StateFile(dict(content), under, notes)


def is_state(content: Any) -> bool:
    return isinstance(content, Mapping) and all(isinstance(value, Tensor) for value in content.values())


def match_state(content: StateFile, network: nn.Module) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A state dict under the network's own names, and remarks about it.

    The prefix shared by most of the network's names is removed. Counters of old batch norms may be missing, because nothing
    depends on them. Tensors with other names are left out.
    """
    own = network.state_dict()
    prefix = common_prefix(content.state, own)
    state = {key.removeprefix(prefix): value for key, value in content.state.items() if key.startswith(prefix)}
    left = [key for key in content.state if not key.startswith(prefix) or key.removeprefix(prefix) not in own]
    if len(left) == len(content.state):  # nothing fits: the error lists the names in the file
        return content.state, content.notes
    notes = list(content.notes)
    if prefix:
        notes.append(f"the prefix {prefix!r} of its weights' names was removed")
    if left and all(key in state for key in own if not key.endswith(COUNTER)):
        notes.append(
            f"{len(left)} tensors in the file do not belong to the network and were left out: {', '.join(left[:4])}"
        )
        state = {key: value for key, value in state.items() if key in own}
    counters = {key: value for key, value in own.items() if key.endswith(COUNTER) and key not in state}
    return {**state, **counters}, tuple(notes)


def match_by_order(content: StateFile, network: nn.Module, where: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A state dict under the network's own names, and for each module in the file its name in the network.

    The tensors are paired in the order in which both list them. Names may differ. Shapes may not, nor the ends of the names if
    both are usual (`weight`, `bias`, `running_mean`, `running_var`). A head may have another number of classes. Counters of
    batch norms are left out, because nothing depends on them.

    Raises:
        UserError: a pair does not fit, or one side has more tensors; the message names the first place.
    """
    own, theirs = without_counters(network.state_dict()), without_counters(content.state)
    head = head_of(network)
    for number, ((name, ours), (key, value)) in enumerate(zip(own.items(), theirs.items(), strict=False)):
        ends = {name.rpartition(".")[2], key.rpartition(".")[2]}
        if not has_shape(value, ours, of_head=name.startswith(f"{head}.")) or (len(ends) == 2 and ends <= set(ENDS)):
            raise UserError(
                f"match=order: tensor {number + 1} of {where} is {key} {list(value.shape)}, but that of the network is {name} "
                f"{list(ours.shape)}: they are not in the same order, or not of the same network"
            )
    if len(own) != len(theirs):
        longer, key = (where, [*theirs][len(own)]) if len(theirs) > len(own) else ("the network", [*own][len(theirs)])
        raise UserError(
            f"match=order: {where} has {len(theirs)} tensors, the network has {len(own)}; {longer} goes on with {key}"
        )
    modules = {key.rpartition(".")[0]: name.rpartition(".")[0] for key, name in zip(theirs, own, strict=True)}
    counters = {key: value for key, value in network.state_dict().items() if key.endswith(COUNTER)}
    return {**dict(zip(own, theirs.values(), strict=True)), **counters}, modules


def fits_by_order(state: Mapping[str, Tensor], network: nn.Module) -> bool:
    """Whether all tensors of a file have the shapes of the network's, in their order."""
    own, theirs = without_counters(network.state_dict()), without_counters(state)
    head = head_of(network)
    return len(own) == len(theirs) and all(
        has_shape(value, ours, of_head=name.startswith(f"{head}."))
        for value, (name, ours) in zip(theirs.values(), own.items(), strict=True)
    )


def has_shape(value: Tensor, ours: Tensor, *, of_head: bool) -> bool:
    """Whether a tensor has the shape of the network's; a head may have another number of classes."""
    return value.shape[1:] == ours.shape[1:] if of_head else value.shape == ours.shape


def without_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the counters of batch norms."""
    return {key: value for key, value in state.items() if not key.endswith(COUNTER)}


def describe_match(modules: Mapping[str, str], most: int = 4) -> str:
    """A remark on weights that were matched by order."""
    shown = ", ".join(f"{theirs} → {ours}" for theirs, ours in list(modules.items())[:most])
    more = f", … ({len(modules)} modules; validate --json has all)" if len(modules) > most else ""
    return f"its weights were matched by order and shape: {shown}{more}. Check its accuracy on labelled images"


def common_prefix(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """The prefix under which a state dict has most of a network's names; the shortest one if several have equally many."""
    counts: Counter[str] = Counter()
    for name in own:
        for key in state:
            if key.endswith(name) and (key == name or key[: -len(name)].endswith(".")):
                counts[key[: -len(name)]] += 1
    return max(counts, key=lambda prefix: (counts[prefix], -len(prefix)), default="")


def fit(network: nn.Module, state: Mapping[str, Tensor], *, where: str, architecture: str) -> None:
    """Load a state dict, or raise a `UserError` that lists everything that does not fit."""
    own = network.state_dict()
    hint = ". All tensors fit by their order and shape: if it is the same network under other names, match=order takes them so"
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
            + hint * (problems != [] and fits_by_order(state, network))
        )
    network.load_state_dict(state)
