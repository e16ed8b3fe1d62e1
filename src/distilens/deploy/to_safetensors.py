"""A folder in the layout of the Hugging Face hub: `model.safetensors`, `config.json`, `model.json`, and the card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distilens.deploy.exporters import Exporter, Runtime
from distilens.deploy.shipped import Shipped
from distilens.foundation.files import read_json, write_json
from distilens.foundation.notation import Spec
from distilens.models.saved import load_model, save_model


class Safetensors(Exporter):
    """Weights and descriptions for `distilens.load_model`, for `timm` if the network is timm's, and for the hub."""

    def write(self, shipped: Shipped, path: Path, about: Mapping[str, Any], calibration: Tensor | None = None) -> None:
        save_model(shipped.source, path)
        write_json(path / "config.json", config_of(shipped, about))

    def open(self, path: Path) -> Runtime:
        return Folder(path)


class Folder:
    """A folder of weights, run by distilens."""

    batch = None

    def __init__(self, path: Path):
        self.model = load_model(path)
        self.about: Mapping[str, Any] = (read_json(path / "config.json") or {})["distilens"]

    def __call__(self, images: np.ndarray) -> Sequence[np.ndarray]:
        with torch.no_grad():
            logits = self.model.logits(torch.from_numpy(images))
        return [logits.numpy(), logits.softmax(1).numpy()]


def config_of(shipped: Shipped, about: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `config.json`: the keys that timm reads if the network is timm's, and our own under `distilens`."""
    model = shipped.source
    spec = Spec.parse(model.name)
    is_timm = spec.name == "timm" and not model.parts
    pixels = {
        "input_size": [model.mean.shape[1], *model.size],
        "fixed_input_size": False,
        "interpolation": model.interpolation,
        "crop_pct": 1.0,
        "mean": model.mean.flatten().tolist(),
        "std": model.std.flatten().tolist(),
    }
    known = getattr(model.network, "pretrained_cfg", None) or {}
    kept = {key: known[key] for key in ("first_conv", "classifier", "pool_size", "fixed_input_size") if key in known}
    timm = {
        "architecture": spec.argument,
        "num_classes": model.task.outputs,
        "num_features": getattr(model.network, "num_features", None),
        "label_names": list(model.classes),
        "pretrained_cfg": {**pixels, **kept, "num_classes": model.task.outputs},
    }
    return {
        **(timm if is_timm else {"architecture": model.name}),
        "library_name": "timm" if is_timm else "distilens",
        "distilens": {**about, "input": {**about["input"], "type": "float32", "range": [0, 1]}},
    }
