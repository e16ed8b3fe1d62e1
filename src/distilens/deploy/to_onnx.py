"""ONNX files, through `torch.export`; run in ONNX Runtime. INT8 by its static quantisation (QDQ, per channel)."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distilens.deploy.exporters import Exporter, Runtime, explain_failures
from distilens.deploy.predict import KEY, BadFile, OnnxFile
from distilens.deploy.shipped import Shipped
from distilens.foundation.errors import UserError

CALIBRATION_BATCH = 32


class Onnx(Exporter):
    """ONNX, for ONNX Runtime on servers, desktops and phones, in browsers, and for most other runtimes.

    Args:
        opset: the version of the operator set; by default torch's own choice.
    """

    suffix = ".onnx"
    extra, packages = "export", ("onnx", "onnxscript", "onnxruntime")
    quantizes = True

    def __init__(self, opset: int | None = None):
        self.opset = opset

    def write(self, shipped: Shipped, path: Path, about: Mapping[str, Any], calibration: Tensor | None = None) -> None:
        import onnx

        self.check_installed()
        with explain_failures(shipped, "ONNX"):
            model = self.convert(shipped)
            if calibration is not None:
                model = quantize(model, calibration)
            set_metadata(model, about)
            onnx.checker.check_model(model, full_check=True)
            onnx.save(model, path)

    def convert(self, shipped: Shipped) -> Any:
        """The ONNX model in float, with any number of images per call if the network allows it."""
        for dynamic in (True, False):
            images = shipped.example(2 if dynamic else 1)
            shapes = {"images": {0: torch.export.Dim("batch", min=1)}} if dynamic else None
            try:
                program = torch.onnx.export(
                    shipped,
                    (images,),
                    dynamo=True,
                    dynamic_shapes=shapes,
                    input_names=["images"],
                    output_names=list(shipped.outputs),
                    opset_version=self.opset,
                    external_data=False,
                    verbose=False,
                )
            except Exception:
                if not dynamic:
                    raise
            else:
                assert program is not None
                return program.model_proto
        raise AssertionError

    def open(self, path: Path) -> Runtime:
        try:
            return OnnxFile(path)
        except BadFile as error:
            raise UserError(str(error)) from None


class Calibration:
    """Images for ONNX Runtime's calibration, a batch at a time."""

    def __init__(self, images: Tensor, batch: int):
        self.batches: Iterator[np.ndarray] = iter([part.numpy() for part in images.split(batch)])

    def get_next(self) -> Any:  # a dict, or None at the end; onnxruntime's own annotation lacks None
        images = next(self.batches, None)
        return None if images is None else {"images": images}


def quantize(model: Any, calibration: Tensor) -> Any:
    """The model in INT8: signed, weights per channel; ranges by the extremes of the calibration images.

    The last softmax stays in float, so that small probabilities do not all become 0.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(Calibration, CalibrationDataReader):
        pass

    with tempfile.TemporaryDirectory() as folder:
        plain, ready, made = (Path(folder) / f"{name}.onnx" for name in ("plain", "ready", "made"))
        onnx.save(model, plain)
        quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
        prepared = onnx.load(ready)
        ends = [node.name for node in prepared.graph.node if node.op_type == "Softmax" and is_output(prepared, node)]
        quantize_static(
            str(ready),
            str(made),
            Reader(calibration, 1 if has_fixed_batch(model) else CALIBRATION_BATCH),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=ends,
        )
        return onnx.load(made)


def has_fixed_batch(model: Any) -> bool:
    """Whether the input has a fixed number of images."""
    return not model.graph.input[0].type.tensor_type.shape.dim[0].dim_param


def is_output(model: Any, node: Any) -> bool:
    """Whether a node makes an output of the graph."""
    return bool(set(node.output) & {output.name for output in model.graph.output})


def set_metadata(model: Any, about: Mapping[str, Any]) -> None:
    """Write the metadata into the model, under one key."""
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, json.dumps(about, ensure_ascii=False)
    model.producer_name, model.producer_version = "distilens", str(about["distilens"])
