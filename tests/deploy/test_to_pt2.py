"""`.pt2` files: PyTorch loads them without distilens."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from distilens import Model, UserError
from distilens.deploy.exporters import EXPORTERS
from distilens.deploy.shipped import Shipped


def test_torch_loads_it_with_its_metadata(student, tmp_path):
    shipped, path = Shipped(student), tmp_path / "student.pt2"
    EXPORTERS.build("pt2").write(shipped, path, shipped.about())
    files = {"distilens.json": ""}
    program = torch.export.load(path, extra_files=files).module()
    images = torch.rand(3, 3, 16, 16)
    assert torch.allclose(program(images)[0], student.logits(images), atol=1e-4)
    assert json.loads(files["distilens.json"])["classes"] == ["above", "below"]
    runtime = EXPORTERS.build("pt2").open(path)
    assert runtime.batch is None
    assert np.allclose(runtime(images.numpy())[0], student.logits(images).detach(), atol=1e-4)


class OneAtATime(nn.Module):
    def forward(self, images):
        return images.reshape(1, 12)[:, :2]


def test_a_network_of_one_image_per_call_says_so(tmp_path):
    shipped = Shipped(Model(OneAtATime(), "ab", size=(2, 2)).eval())
    EXPORTERS.build("pt2").write(shipped, tmp_path / "one.pt2", shipped.about())
    assert EXPORTERS.build("pt2").open(tmp_path / "one.pt2").batch == 1


def test_another_file_is_refused(tmp_path):
    (tmp_path / "x.pt2").write_bytes(b"nothing")
    with pytest.raises(UserError, match="is not an exported program"):
        EXPORTERS.build("pt2").open(tmp_path / "x.pt2")
