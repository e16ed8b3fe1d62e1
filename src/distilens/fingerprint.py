"""The fingerprint of a model: the same 16 digits on every page and in every file that speaks of it.

It is of the weights as they are shipped: the first 16 hexadecimal digits of the sha256 over name, type, shape and bytes of every
tensor of the network's state and of its parts, in the order of their names. It is the same on any device, and for a model in
memory and its `model.safetensors`. What stages and stored answers are found again by are other keys, which nobody is shown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from distilens.core import Model


def fingerprint_of(model: Model) -> str:
    """That of a model in memory."""
    return fingerprint_of_state(model.bare_state())


def fingerprint_of_file(path: Path) -> str:
    """That of a model in a `model.safetensors` that `save_model` wrote."""
    from safetensors.torch import load

    return fingerprint_of_state(load(path.read_bytes()))


def fingerprint_of_state(state: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        for part in tree_leaves(value):  # a quantised layer keeps its weights packed with its type
            digest.update(
                f"{key} {part.dtype} {list(part.shape)}".encode() if isinstance(part, Tensor) else str(part).encode()
            )
            if isinstance(part, Tensor):
                part = part.int_repr() if part.is_quantized else part
                digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
