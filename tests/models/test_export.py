"""A model leaves the house: torch.export and ONNX take it as it is, pixels and all."""

import pytest
import torch

import distilens

BATCH = {"images": {0: torch.export.Dim("batch", min=1, max=64)}}


@pytest.mark.parametrize("tapped", [False, True])
def test_a_model_is_exported_with_its_features(tmp_path, tapped):
    model = distilens.build_model("resnet8", ("a", "b", "c"), (32, 32)).eval()
    if tapped:
        model.tap("last")
    program = torch.export.export(model, (torch.rand(2, 3, 48, 40),), dynamic_shapes=BATCH)
    torch.export.save(program, tmp_path / "model.pt2")
    images = torch.rand(5, 3, 48, 40)
    given, wanted = torch.export.load(tmp_path / "model.pt2").module()(images), model(images)
    assert type(given) is distilens.Output
    assert torch.allclose(given.logits, wanted.logits, atol=1e-6)
    assert list(given.features) == list(wanted.features) == (["layer3", "last"] if tapped else [])
    assert all(torch.allclose(given.features[path], wanted.features[path], atol=1e-6) for path in given.features)


@pytest.mark.slow  # the exporter has tests of its own
@pytest.mark.filterwarnings("ignore")
def test_onnx_runtime_answers_as_the_model_does(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network = distilens.build_model("resnet8", ("a", "b", "c"), (32, 32)).network
    model = distilens.Model(network, "abc", size=(32, 32), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)).eval()
    file = tmp_path / "model.onnx"
    torch.onnx.export(model, (torch.rand(2, 3, 32, 32),), file, dynamo=True, verbose=False, dynamic_shapes=BATCH)
    images = torch.rand(3, 3, 32, 32)
    logits = onnxruntime.InferenceSession(file).run(None, {"images": images.numpy()})[0]
    assert torch.allclose(torch.from_numpy(logits), model.logits(images), atol=1e-5)
