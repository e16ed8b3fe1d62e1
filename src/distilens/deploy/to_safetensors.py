"""A folder in the layout of the Hugging Face hub: `model.safetensors`, `config.json`, `model.json`, and the card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distilens.deploy.exporters import Exporter, Runtime
from distilens.deploy.shipped import Shipped, at_size, mask_of
from distilens.foundation.errors import UserError
from distilens.foundation.files import read_json, write_json
from distilens.models.model import Model
from distilens.models.saved import architecture, is_own_module, load_model, save_model
from distilens.tasks import Classification

KNOWN_TO_TIMM = ("first_conv", "classifier", "pool_size", "fixed_input_size")
"""The keys of timm's description of a network that do not depend on its weights."""


class Safetensors(Exporter):
    """Weights and descriptions for `distilens.load_model`, for `timm` if the network is timm's, and for the hub."""

    def write(self, shipped: Shipped, path: Path, about: Mapping[str, Any], calibration: Tensor | None = None) -> None:
        if is_own_module(shipped.source.name):
            raise UserError(
                f"{shipped.source.name} cannot be exported to safetensors: load_model cannot build a module of your own again. "
                "Give the model name='python:module:callable', or use another format"
            )
        save_model(shipped.source, path)
        write_json(path / "config.json", config_of(shipped.source, about))

    def open(self, path: Path) -> Runtime:
        return Folder(path)


class Folder:
    """A folder of weights, run by distilens."""

    batch: int | None = None

    def __init__(self, path: Path):
        self.model = load_model(path)
        self.about: Mapping[str, Any] = (read_json(path / "config.json") or {})["distilens"]

    def __call__(self, images: np.ndarray) -> Sequence[np.ndarray]:
        with torch.no_grad():
            logits = self.model.logits(torch.from_numpy(images))
        outputs = self.about["outputs"]
        if "mask" in outputs:
            logits = at_size(logits, self.model.size)
        made = {"logits": lambda: logits, "probabilities": lambda: logits.softmax(1), "mask": lambda: mask_of(logits)}
        return [made[name]().numpy() for name in outputs]


def config_of(model: Model, about: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `config.json`: the keys that timm reads if the network is timm's, and our own under `distilens`."""
    spec = architecture(model.name, model.size)
    is_timm = spec.name == "timm" and not model.parts and isinstance(model.task, Classification)
    described = timm_config(model, str(spec.argument).partition(".")[0]) if is_timm else {"architecture": model.name}
    outputs = [name for name in about["outputs"] if name != "maps"]
    pixels = {**about["input"], "type": "float32", "range": [0, 1], "size": list(model.size)}
    return {
        **described,
        "library_name": "timm" if is_timm else "distilens",
        "distilens": {**about, "outputs": outputs, "input": pixels},
    }


def timm_config(model: Model, name: str) -> dict[str, Any]:
    """What `timm.create_model("local-dir:FOLDER", pretrained=True)` reads: the network, its pixels and its classes."""
    known = getattr(model.network, "pretrained_cfg", None) or {}
    is_fixed = bool(known.get("fixed_input_size"))
    return {
        "architecture": name,
        "num_classes": model.task.outputs,
        "num_features": getattr(model.network, "num_features", None),
        "label_names": list(model.classes),
        **({"model_args": {"img_size": list(model.size)}} if is_fixed else {}),
        "pretrained_cfg": {
            **{key: known[key] for key in KNOWN_TO_TIMM if key in known},
            "input_size": [3, *model.size],
            "interpolation": model.interpolation,
            "crop_pct": 1.0,
            "mean": model.mean.flatten().tolist(),
            "std": model.std.flatten().tolist(),
            "num_classes": model.task.outputs,
        },
    }
