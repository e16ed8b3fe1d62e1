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

CALIBRATION_BATCH, CALIBRATION_PIXELS = 32, 2**21
"""The largest number of images per forward pass of the calibration, and of their pixels."""


class Onnx(Exporter):
    """ONNX, for ONNX Runtime on servers, desktops and phones, in browsers, and for most other runtimes.

    Args:
        opset: the version of the operator set; by default torch's own choice.
        reduce_range: INT8 weights have 7 bits. On an x86 processor without VNNI, ONNX Runtime adds products of 8 bits in 16 bits,
            which can overflow: the logits of a small U-Net then differed from the student's by 2.0, with 7 bits by 0.26. By
            default yes for a segmentation and no for other tasks.

    Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html (reduce-range).
    """

    suffix = ".onnx"
    extra, packages = "export", ("onnx", "onnxscript", "onnxruntime")
    quantizes = True

    def __init__(self, *, opset: int | None = None, reduce_range: bool | None = None):
        self.opset, self.reduce_range = opset, reduce_range

    def write(self, shipped: Shipped, path: Path, about: Mapping[str, Any], calibration: Tensor | None = None) -> None:
        import onnx

        self.check_installed()
        with explain_failures(shipped, "ONNX"):
            model = self.convert(shipped)
            if calibration is not None:
                reduced = "mask" in shipped.outputs if self.reduce_range is None else self.reduce_range
                model = quantize(model, calibration, reduce_range=reduced)
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


def quantize(model: Any, calibration: Tensor, *, reduce_range: bool = False) -> Any:
    """The model in INT8: signed, weights per channel; ranges by the extremes of the calibration images.

    The last softmax stays in float, so that small probabilities do not all become 0. So does the last resize of a segmentation's
    logits: rounded, neighbouring classes would tie at many places.
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
        ends = [node.name for node in prepared.graph.node if stays_float(prepared, node)]
        height, width = calibration.shape[2:]
        many = max(1, min(CALIBRATION_BATCH, CALIBRATION_PIXELS // (height * width)))
        quantize_static(
            str(ready),
            str(made),
            Reader(calibration, 1 if has_fixed_batch(model) else many),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=ends,
        )
        return onnx.load(made)


def has_fixed_batch(model: Any) -> bool:
    """Whether the input has a fixed number of images."""
    return not model.graph.input[0].type.tensor_type.shape.dim[0].dim_param


def stays_float(model: Any, node: Any) -> bool:
    """Whether a node is a softmax or a resize that makes an output of the graph, or reads an output (the class of the mask)."""
    outputs = {output.name for output in model.graph.output}
    ends = node.op_type in ("Softmax", "Resize") and bool(outputs & set(node.output))
    return ends or (node.op_type == "ArgMax" and node.input[0] in outputs)


def set_metadata(model: Any, about: Mapping[str, Any]) -> None:
    """Write the metadata into the model, under one key."""
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, json.dumps(about, ensure_ascii=False)
    model.producer_name, model.producer_version = "distilens", str(about["distilens"])
