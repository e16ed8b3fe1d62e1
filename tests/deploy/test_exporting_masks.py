"""A segmentation is exported with its masks, in float and INT8, and the card and the table say mIoU."""

import json

import numpy as np
import pytest
import torch

import distilens
import segments
from distilens import UserError
from distilens.deploy import verification
from distilens.deploy.card import card
from distilens.deploy.exported import Refused
from distilens.deploy.exporters import EXPORTERS, named_outputs
from distilens.deploy.exporting import Job, export_model
from distilens.deploy.plan import Plan
from distilens.deploy.shipped import Shipped
from distilens.deploy.to_pt2 import Pt2Runtime
from distilens.report.deployment_section import table

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def exported(segmenter, tmp_path_factory):
    plan = Plan(("onnx", "pt2", "safetensors"), "int8", tolerance=10, images=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verification, "EXPLAINERS_OF_FILES", ("occlusion",))
        return export_model(segmenter, tmp_path_factory.mktemp("masks"), plan, segments.pictures())


def test_every_file_gives_the_students_mask_for_any_number_of_images(exported, segmenter):
    images = segments.squares(5, seed=3)[0]
    expected = segmenter.logits(images).detach()
    for name, file in (("onnx", "student.onnx"), ("pt2", "student.pt2"), ("safetensors", "hub")):
        runtime = EXPORTERS.build(name).open(exported.folder / file)
        assert runtime.batch is None and list(runtime.about["outputs"]) == ["logits", "mask"]
        outputs = named_outputs(runtime, images)
        assert torch.allclose(outputs["logits"], expected, atol=1e-4)
        assert outputs["mask"].dtype == torch.uint8 and torch.equal(outputs["mask"], expected.argmax(1).byte())


def test_the_verification_says_masks_and_miou(exported):
    entries = {entry["file"]: entry for entry in exported.files}
    assert entries.keys() == {"student.onnx", "student-int8.onnx", "student.pt2", "hub"} and not exported.refused
    for file, entry in entries.items():
        test = entry["answers"]["test"]
        assert test["metric"] == "mIoU" and 0.5 < test["student"]["mIoU"] < 1 and test["apart"]["n"] == test["n"] == 16
        if file != "student-int8.onnx":
            assert test["different"] == 0 and test["same mask"]["share"] > 0.999
    small = entries["student-int8.onnx"]
    assert 0.95 < small["answers"]["test"]["same mask"]["share"] < 1 and small["answers"]["test"]["largest"] > 1e-3
    assert small["maps"]["explainers"]["gradcam"]["cosine"]["mean"] > 0.9
    assert small["maps"]["explainers"]["occlusion"]["cosine"]["mean"] > 0.9


def test_int8_has_a_scale_per_output_channel_also_where_the_convolution_is_transposed(exported):
    import onnx

    graph = onnx.load(exported.folder / "student-int8.onnx").graph
    weights = {entry.name: entry for entry in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    kernels = [(node.op_type, made_by[node.input[1]].input) for node in graph.node if "Conv" in node.op_type]
    assert {kind for kind, _ in kernels} == {"Conv", "ConvTranspose"}
    for kind, (weight, scale, *_) in kernels:
        assert weights[weight].data_type == onnx.TensorProto.INT8
        assert list(weights[scale].dims) == [weights[weight].dims[kind == "ConvTranspose"]]
        assert np.abs(onnx.numpy_helper.to_array(weights[weight])).max() <= 64, "7 bits"


def test_the_range_of_int8_weights_is_an_option():
    made = [EXPORTERS.build(f"onnx:reduce_range={value}").reduce_range for value in ("true", "false")]
    assert made == [True, False] and EXPORTERS.build("onnx").reduce_range is None


def test_a_last_resize_stays_in_float(tmp_path):
    import onnx

    shipped = Shipped(segments.model().eval())
    images = segments.squares(4)[0]
    EXPORTERS.build("onnx").write(shipped, tmp_path / "small.onnx", shipped.about(), images)
    graph = onnx.load(tmp_path / "small.onnx").graph
    resize = next(node for node in graph.node if "logits" in node.output)
    largest = next(node for node in graph.node if node.op_type == "ArgMax")
    assert resize.op_type == "Resize" and largest.input[0] == "logits"


def test_table_and_card_say_mask_and_miou_and_nothing_of_top_1(exported):
    header, rows = table(exported.plain())
    assert header[2:5] == ["same mask", "largest difference of logits", "mIoU"]
    assert rows[0][2] == "100.00 [100.00 to 100.00] %" and rows[0][5].endswith("points")
    text = card(exported.plain())
    assert "pipeline_tag: image-segmentation" in text and "type: mean_iou" in text
    assert "gives each pixel of an image one of 3 classes: ground, green, blue" in text
    assert "--out masks" in text and "The mIoU on other images can be lower" in text
    assert not any(word in text for word in ("top-1", "accuracy", "probabilit", "classifies"))
    json.dumps(exported.plain())


def test_a_file_with_other_masks_is_refused(segmenter, tmp_path, monkeypatch):
    call = Pt2Runtime.__call__

    def turned(self, images):
        logits, mask = call(self, images)
        return [logits, 2 - mask]

    monkeypatch.setattr(Pt2Runtime, "__call__", turned)
    with pytest.raises(Refused, match=r"its mask differs from the student's on \d+ of \d+ images"):
        distilens.export(segmenter, tmp_path / "student.pt2")
    assert not list(tmp_path.iterdir())


def test_a_file_of_bytes_and_of_another_size_is_compared_on_the_rounded_pictures(segmenter, tmp_path):
    plan = Plan(("pt2",), pixels="uint8", size=(48, 64), images=0)
    test = export_model(segmenter, tmp_path, plan, segments.pictures()).files[0]["answers"]["test"]
    assert test["different"] == 0 and test["largest"] < 1e-4 and test["places"] == 48 * 64 * test["n"]


def test_an_int8_file_that_loses_too_much_says_points_of_miou(segmenter, tmp_path, monkeypatch):
    monkeypatch.setattr(type(EXPORTERS.build("pt2")), "quantizes", True)
    monkeypatch.setattr(Job, "loss", lambda self, found: 3.25)
    found = export_model(segmenter, tmp_path, Plan(("pt2",), "int8", tolerance=1, images=0), segments.pictures())
    assert "loses 3.25 points of mIoU, and 1 are allowed" in found.refused[0]["refused"]


def test_data_of_another_kind_are_refused(segmenter, student, data, tmp_path):
    with pytest.raises(UserError, match=r"gives a class for each place, but the data .* have one answer per image"):
        distilens.export(segmenter, tmp_path / "student.pt2", data=data)
    with pytest.raises(UserError, match=r"gives one answer per image, but the data .* have a class for each place"):
        distilens.export(student, tmp_path / "student.pt2", data=segments.pictures())


def test_calibration_takes_fewer_large_images(segmenter, tmp_path, monkeypatch):
    from distilens.deploy import job
    from distilens.deploy.verification import Student

    made = Job(tmp_path, "student", Plan(), {}, Student(segmenter, segments.pictures(), images=0), None, print)
    monkeypatch.setattr(job, "MOST_PIXELS", 3 * 24 * 32)
    monkeypatch.setattr(job, "FEWEST", 2)
    assert len(made.images()) == 3
