"""ExecuTorch files (`.pte`) for phones and small devices, lowered to XNNPACK. INT8 by PT2E quantisation of torchao."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distilens.deploy.exporters import Exporter, Runtime, explain_failures
from distilens.deploy.predict import KEY, BadFile, PteFile, quiet_stderr
from distilens.deploy.shipped import Shipped
from distilens.foundation.errors import UserError


class ExecuTorch(Exporter):
    """ExecuTorch with XNNPACK, for Android, iOS and embedded Linux. One image per call."""

    suffix = ".pte"
    extra, packages = "mobile", ("executorch", "torchao")
    quantizes = True

    def write(self, shipped: Shipped, path: Path, about: Mapping[str, Any], calibration: Tensor | None = None) -> None:
        self.check_installed()
        with explain_failures(shipped, "ExecuTorch"), silence():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            module: nn.Module = shipped
            if calibration is not None:
                module = quantize(shipped, calibration)
            program = torch.export.export(module, (shipped.example(),), strict=False)
            lowered = to_edge_transform_and_lower(
                program,
                partitioner=[XnnpackPartitioner()],
                constant_methods={KEY: json.dumps(about, ensure_ascii=False)},
            ).to_executorch()
            path.write_bytes(lowered.buffer)

    def open(self, path: Path) -> Runtime:
        self.check_installed()
        try:
            return PteFile(path)
        except BadFile as error:
            raise UserError(str(error)) from None


def quantize(shipped: Shipped, calibration: Tensor) -> nn.Module:
    """The student in INT8 for XNNPACK: symmetric, weights per channel; ranges by the calibration images."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    program = torch.export.export(shipped, (shipped.example(),), strict=False).module()
    prepared = prepare_pt2e(program, quantizer)
    with torch.no_grad():
        for image in calibration:
            prepared(image[None])
    return convert_pt2e(prepared)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep ExecuTorch's own log lines from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), quiet_stderr():
            yield
    finally:
        logging.disable(before)
