"""What all formats share: an exported file as a model, and errors that name the place."""

import numpy as np
import pytest
import torch
from torch import nn

from distilens import Model, UserError
from distilens.deploy.exporters import EXPORTERS, Exporter, as_model, run_batches
from distilens.deploy.shipped import Shipped


class Recorded:
    """A runtime that notes what it gets and answers with sums."""

    def __init__(self, batch=None, kind="float32"):
        self.batch, self.given = batch, []
        self.about = {"input": {"size": [4, 4], "type": kind}, "outputs": ["logits"]}

    def __call__(self, images):
        self.given.append(images)
        return [images.reshape(len(images), -1).astype(np.float32).sum(1, keepdims=True).repeat(2, 1)]


def test_images_come_in_batches_of_the_files_size_and_type():
    images = torch.linspace(0, 1, 5 * 48).view(5, 3, 4, 4)
    runtime = Recorded(batch=1, kind="uint8")
    outputs = run_batches(runtime, images)[0]
    assert [len(given) for given in runtime.given] == [1] * 5 and runtime.given[0].dtype == np.uint8
    assert outputs.shape == (5, 2)
    assert np.array_equal(np.concatenate(runtime.given), (images * 255).round().byte().numpy())


def test_a_file_as_a_model_resizes_but_does_not_normalise():
    model = Model(nn.Identity(), "ab", size=(4, 4), mean=(0.1, 0.2, 0.3), std=(2.0, 2.0, 2.0))
    made, images = as_model(Recorded(), model), torch.rand(2, 3, 4, 4)
    assert torch.allclose(made.logits(images)[:, 0], images.flatten(1).sum(1))
    assert torch.equal(made.mean, model.mean), "explainers fill with the student's mean colour"
    assert made.logits(torch.rand(1, 3, 8, 8)).shape == (1, 2)


def test_a_format_whose_package_is_missing_names_the_extra():
    class Missing(Exporter):
        extra, packages = "mobile", ("no_such_package",)

    with pytest.raises(UserError, match=r"no_such_package is not installed: pip install 'distilens\[mobile\]'"):
        Missing().check_installed()


class Deciding(nn.Module):
    def forward(self, values):
        return values * 2 if values.sum() > 0 else values


class Unusual(nn.Module):
    def forward(self, values):
        return torch.linalg.svdvals(values.flatten(1)[:, None])[:, :1] + values.flatten(1)[:, :2]


def test_control_flow_by_values_is_named(tmp_path):
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2), Deciding())
    shipped = Shipped(Model(network, "ab", size=(2, 2)).eval())
    with pytest.raises(UserError, match=r"cannot be exported to pt2: .*data-dependent control flow.*at the module 2"):
        EXPORTERS.build("pt2").write(shipped, tmp_path / "x.pt2", shipped.about())


def test_an_operation_that_onnx_does_not_have_is_named(tmp_path):
    pytest.importorskip("onnxscript")
    network = nn.Sequential(nn.Identity(), Unusual())
    shipped = Shipped(Model(network, "ab", size=(2, 2)).eval())
    with pytest.raises(UserError, match=r"cannot be exported to ONNX: .*svd.*at the module 1"):
        EXPORTERS.build("onnx").write(shipped, tmp_path / "x.onnx", shipped.about())
    assert not (tmp_path / "x.onnx").exists()
