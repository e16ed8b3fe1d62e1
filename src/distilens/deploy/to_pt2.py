"""PyTorch's own exported programs (`.pt2`): `torch.export.load(file).module()(images)` answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distilens.deploy.exporters import Exporter, Runtime, explain_failures
from distilens.deploy.shipped import Shipped
from distilens.foundation.errors import UserError

METADATA = "distilens.json"


class Pt2(Exporter):
    """`torch.export` for PyTorch itself, AOTInductor and further compilers."""

    suffix = ".pt2"

    def write(self, shipped: Shipped, path: Path, about: Mapping[str, Any], calibration: Tensor | None = None) -> None:
        with explain_failures(shipped, "pt2"):
            torch.export.save(capture(shipped), path, extra_files={METADATA: json.dumps(about, ensure_ascii=False)})

    def open(self, path: Path) -> Runtime:
        return Pt2Runtime(path)


def capture(shipped: Shipped) -> torch.export.ExportedProgram:
    """The program with any number of images per call if the network allows it, else with one."""
    shapes = {"images": {0: torch.export.Dim("batch", min=1)}}
    try:
        return torch.export.export(shipped, (shipped.example(2),), dynamic_shapes=shapes)
    except Exception:  # one number of images, or not at all: the second export says why
        return torch.export.export(shipped, (shipped.example(1),))


class Pt2Runtime:
    """A `.pt2` file, run by PyTorch."""

    def __init__(self, path: Path):
        files = {METADATA: ""}
        try:
            program = torch.export.load(path, extra_files=files)
            self.about: Mapping[str, Any] = json.loads(files[METADATA])
        except Exception as error:
            raise UserError(f"{path} is not an exported program: {str(error).splitlines()[0]}") from None
        self.module = program.module()
        placeholder = next(node for node in program.graph.nodes if node.name == "images")
        count = placeholder.meta["val"].shape[0]
        self.batch: int | None = count if isinstance(count, int) else None

    def __call__(self, images: np.ndarray) -> Sequence[np.ndarray]:
        with torch.no_grad():
            return [output.numpy() for output in self.module(torch.from_numpy(images))]
