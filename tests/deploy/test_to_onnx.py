"""ONNX files: any number of images, our metadata, INT8 by QDQ per channel."""

import json

import numpy as np
import pytest
import torch

from distilens import UserError
from distilens.data.pipeline import batch_at
from distilens.deploy.exporters import EXPORTERS
from distilens.deploy.shipped import Shipped

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def files(student, data, tmp_path_factory):
    """A float file with maps and bytes as input, and an INT8 file of it."""
    folder, shipped = tmp_path_factory.mktemp("onnx"), Shipped(student, pixels="uint8", maps=True)
    made = {}
    images = (batch_at(data.train, torch.arange(16)).images * 255).round().byte()
    for name, calibration in (("float", None), ("int8", images)):
        made[name] = folder / f"{name}.onnx"
        EXPORTERS.build("onnx").write(shipped, made[name], shipped.about(), calibration)
    return shipped, made


def test_it_answers_for_any_number_of_images_in_bytes(files):
    shipped, made = files
    runtime = EXPORTERS.build("onnx").open(made["float"])
    assert runtime.batch is None and runtime.about == json.loads(json.dumps(shipped.about()))
    for count in (1, 5):
        images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8)
        logits, probabilities, maps = runtime(images.numpy())
        expected = shipped(images)
        assert np.allclose(logits, expected[0].detach(), atol=1e-4)
        assert np.allclose(probabilities, expected[1].detach(), atol=1e-5)
        assert np.allclose(maps, expected[2].detach(), atol=1e-4) and maps.shape[:2] == (count, 2)


def test_int8_has_signed_weights_per_channel_and_a_softmax_in_float(files):
    graph = onnx.load(files[1]["int8"]).graph
    weights = {entry.name: entry for entry in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in weights]
    kernels = [node for node in nodes if len(weights[node.input[0]].dims) == 4]
    assert len(kernels) >= 8
    for node in kernels:
        assert weights[node.input[0]].data_type == onnx.TensorProto.INT8
        assert list(weights[node.input[1]].dims) == [weights[node.input[0]].dims[0]], "one scale per output channel"
    softmax = next(node for node in graph.node if node.op_type == "Softmax")
    assert softmax.output[0] in {output.name for output in graph.output}


def test_a_file_of_someone_else_is_refused(files, tmp_path):
    model = onnx.load(files[1]["float"])
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(UserError, match="was not written by distilens export"):
        EXPORTERS.build("onnx").open(tmp_path / "other.onnx")
