"""`.pte` files for phones: the same answers, and INT8 in a third of the size. Slow, for ExecuTorch starts slowly."""

import numpy as np
import pytest
import torch

import segments
from distilens import UserError
from distilens.deploy.exporting import export_model
from distilens.deploy.plan import Plan

pytest.importorskip("executorch")
pytest.importorskip("torchao")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_float_and_int8_are_verified(student, data, tmp_path):
    found = export_model(student, tmp_path, Plan(("executorch",), "int8", tolerance=20, images=2), data)
    whole, small = found.files
    assert [entry["file"] for entry in found.files] == ["student.pte", "student-int8.pte"]
    assert whole["answers"]["test"]["different"] == 0 and whole["batch"] == 1
    assert small["bytes"] < 0.5 * whole["bytes"] and small["answers"]["test"]["largest"] > 1e-4
    from distilens.deploy.predict import open_model

    model = open_model(tmp_path / "student.pte")
    assert model.about["classes"] == ["above", "below"]
    images = torch.rand(1, 3, 16, 16)
    assert np.allclose(model(images.numpy())[0], student.logits(images).detach(), atol=1e-4)


def test_a_segmentation_gives_its_mask_in_float_and_in_int8(segmenter, tmp_path):
    found = export_model(
        segmenter, tmp_path, Plan(("executorch",), "int8", tolerance=10, images=2), segments.pictures()
    )
    whole, small = found.files
    assert whole["answers"]["test"]["different"] == 0 and whole["answers"]["test"]["same mask"]["share"] > 0.999
    assert not small["refused"] and small["answers"]["test"]["same mask"]["share"] > 0.95
    from distilens.deploy.predict import open_model

    logits, mask = open_model(tmp_path / "student-int8.pte")(segments.squares(1)[0].numpy())
    assert mask.dtype == np.uint8 and mask.shape == (1, 24, 32) and (mask == logits.argmax(1)).all()


def test_another_file_is_refused(tmp_path):
    from distilens.deploy.exporters import EXPORTERS

    (tmp_path / "x.pte").write_bytes(b"nothing")
    with pytest.raises(UserError, match="is not an ExecuTorch file"):
        EXPORTERS.build("executorch").open(tmp_path / "x.pte")
