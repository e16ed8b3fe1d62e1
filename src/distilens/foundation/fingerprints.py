"""Fingerprints: a few hexadecimal digits that identify content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


def key_of(*content: Any) -> str:
    """A short fingerprint of plain data."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_key(paths: Iterable[Path]) -> str:
    """A short fingerprint of the content of files."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def fingerprint_of_state(state: Mapping[str, Any]) -> str:
    """The fingerprint of a model: the same 16 digits on every page and in every file that names the model.

    These are the first 16 hexadecimal digits of the sha256 over name, type, shape and bytes of every tensor in the state of the
    network and its parts, sorted by name. The fingerprint is the same on any device, and for a model in memory and its
    `model.safetensors`. Stages and stored answers use other keys, which no page shows.
    """
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        for part in tree_leaves(value):  # a quantised layer packs its weights together with their type
            digest.update(
                f"{key} {part.dtype} {list(part.shape)}".encode() if isinstance(part, Tensor) else str(part).encode()
            )
            if isinstance(part, Tensor):
                part = part.int_repr() if part.is_quantized else part
                digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
