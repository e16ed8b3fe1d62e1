"""An export writes what it names, verifies it, and leaves nothing else."""

import copy
import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

import distilens
from distilens import Model, UserError
from distilens.deploy import exporting, verification
from distilens.deploy.exported import Refused, read_exported
from distilens.deploy.exporting import export_model
from distilens.deploy.plan import Plan
from distilens.deploy.to_pt2 import Pt2, Pt2Runtime

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def exported(student, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    plan = Plan(("onnx", "pt2", "safetensors"), "int8", tolerance=50, images=4)
    return export_model(student, folder, plan, data, about={"recipe": "abc"})


def test_the_files_are_there_with_their_verification(exported):
    assert {path.name for path in exported.paths()} == {"student.onnx", "student-int8.onnx", "student.pt2", "hub"}
    assert all(path.exists() for path in exported.paths())
    assert not [path for path in exported.folder.iterdir() if path.name.startswith(".")]
    for entry in exported.files:
        test = entry["answers"]["test"]
        assert test["n"] == 20 and entry["bytes"] > 1000 and entry["refused"] is None
        if entry["precision"] == "float32":
            assert test["different"] == 0 and test["same top-1"]["share"] == 1 and 0 <= test["largest"] < 1e-4
        else:
            assert test["largest"] > 1e-4, "INT8 rounds"
            assert entry["maps"]["explainers"]["gradcam"]["cosine"]["mean"] > 0.9


def test_export_json_is_read_again(exported):
    assert read_exported(exported.folder).plain() == exported.plain()
    content = json.loads((exported.folder / "export.json").read_text())
    assert content["student"]["recipe"] == "abc" and content["student"]["classes"] == ["above", "below"]


def test_int8_is_a_fraction_of_the_size(exported):
    size = {path.name: path.stat().st_size for path in exported.paths() if path.is_file()}
    assert size["student-int8.onnx"] < 0.5 * size["student.onnx"]


def test_the_predictor_lies_beside_the_files(exported):
    assert (exported.folder / "predict.py").read_text() == Path(exporting.predictor.__file__).read_text()


@pytest.fixture
def quick_int8(monkeypatch):
    """pt2 files stand in for INT8: what happens to a file does not depend on its format."""
    monkeypatch.setattr(Pt2, "quantizes", True)


def test_an_int8_file_that_loses_too_much_is_refused_and_not_left(student, data, tmp_path, monkeypatch, quick_int8):
    monkeypatch.setattr(exporting.Job, "loss", lambda self, found: 3.25)
    found = export_model(student, tmp_path, Plan(("pt2",), "int8", tolerance=1, images=0), data)
    assert "loses 3.25 points of accuracy, and 1 are allowed" in found.refused[0]["refused"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "export.json",
        "predict.py",
        "student.pt2",
    ]


def test_an_int8_file_that_its_runtime_does_not_take_is_refused_and_the_float_file_stays(
    student, data, tmp_path, monkeypatch, quick_int8
):
    from distilens.deploy.to_onnx import Onnx
    from distilens.report.deployment_section import refusals, table

    real = Onnx.open

    def open_file(self, path):
        if "int8" in path.name:
            raise UserError(f"{path} is damaged: error 0x1")
        return real(self, path)

    monkeypatch.setattr(Onnx, "open", open_file)
    found = export_model(student, tmp_path, Plan(("onnx",), "int8", images=0), data)
    assert [entry["file"] for entry in found.refused] == ["student-int8.onnx"]
    assert found.refused[0]["refused"] == "the file is damaged: error 0x1"
    assert [path.name for path in found.paths()] == ["student.onnx"]
    assert sorted(path.name for path in tmp_path.iterdir() if "onnx" in path.name) == ["student.onnx"]
    assert read_exported(tmp_path).plain() == found.plain()
    assert "student-int8.onnx (not kept)" in str(table(found.plain())) and "0x1" in str(refusals(found.plain()))


def test_a_file_that_answers_differently_is_refused_and_an_old_one_removed(student, data, tmp_path, monkeypatch):
    monkeypatch.setattr(verification, "EXPLAINERS_OF_FILES", ("occlusion",))
    (tmp_path / "student.pt2").write_text("of an earlier export")
    call = Pt2Runtime.__call__
    monkeypatch.setattr(Pt2Runtime, "__call__", lambda self, images: [-output for output in call(self, images)])
    with pytest.raises(Refused, match=r"student.pt2 is not kept: its top class differs .* on \d+ of \d+ images"):
        distilens.export(student, tmp_path / "student.pt2", data=data)
    assert not list(tmp_path.iterdir())


def test_fine_tuning_is_tried_if_int8_loses_too_much(student, data, tmp_path, monkeypatch, quick_int8):
    lost = iter([5.0, 0.0])
    monkeypatch.setattr(exporting.Job, "loss", lambda self, found: next(lost))
    calls = []

    def finetune(model, calibration):
        calls.append(len(calibration))
        return model

    found = export_model(
        student, tmp_path, Plan(("pt2",), "int8", finetune=2, images=0), data, finetune=finetune, only_int8=True
    )
    assert calls == [len(data.validation)] and found.files[0]["finetuned"] == 2 and not found.refused
    assert found.files[0]["before finetuning"]["test"]["n"] == 20


def test_any_module_is_exported_with_its_size(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    found = distilens.export(network, tmp_path / "own.pt2", classes=["a", "b"], size=(8, 8))
    assert found.paths() == [tmp_path / "own.pt2"] and list(tmp_path.iterdir()) == [tmp_path / "own.pt2"]
    program = torch.export.load(tmp_path / "own.pt2").module()
    assert program(torch.rand(3, 3, 8, 8))[0].shape == (3, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "student.xyz"}, "unknown ending '.xyz'; known: .onnx, .pte, .pt2"),
        ({"out": "student.pt2", "formats": ["onnx"]}, "names its format by its ending"),
        ({"out": "student.onnx", "quantize": "int8"}, "INT8 needs images"),
        ({"out": "folder", "formats": ["pt2"], "quantize": "int8"}, "pt2 cannot hold INT8: name a format that can"),
        ({"out": "folder", "formats": ["onxx"]}, "onnx"),
        ({"out": "student.onnx", "tolerance": -1}, "at least 0"),
    ],
)
def test_mistakes_are_named_before_any_work(student, tmp_path, options, message):
    out = tmp_path / options.pop("out")
    with pytest.raises(UserError, match=message):
        distilens.export(student, out, **options)
    assert not list(tmp_path.iterdir())


def test_data_of_other_classes_are_refused(student, tmp_path):
    with pytest.raises(UserError, match="has 2 outputs, but the data"):
        distilens.export(student, tmp_path / "student.pt2", data="shapes:limit=64")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_said(student, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(UserError, match="may not be written"):
        distilens.export(student, tmp_path / "closed" / "student.pt2")


def test_a_full_disk_is_said_and_nothing_is_left(student, tmp_path, monkeypatch):
    def fails(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("distilens.deploy.to_pt2.torch.export.save", fails)
    with pytest.raises(UserError, match="the disk is full"):
        distilens.export(student, tmp_path / "student.pt2")
    assert not list(tmp_path.iterdir())


def test_ctrl_c_leaves_no_half_file(student, tmp_path, monkeypatch):
    def stopped(self, exporter, path, shipped):
        assert path.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting.Job, "check", stopped)
    with pytest.raises(KeyboardInterrupt):
        distilens.export(student, tmp_path / "student.pt2")
    assert not list(tmp_path.iterdir())


def test_a_network_of_another_task_has_only_its_outputs(tmp_path):
    from brightness import Brightness

    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 1))
    model = Model(network, Brightness(), size=(2, 2)).eval()
    found = distilens.export(model, tmp_path / "own.pt2")
    assert found.about["outputs"] == ["logits"] and found.files[0]["answers"]["examples"]["different"] == 0


def test_a_second_export_keeps_the_files_of_the_first_unless_the_student_is_another(student, data, tmp_path):
    first = export_model(student, tmp_path, Plan(("pt2",), images=0), data)
    both = export_model(student, tmp_path, Plan(("safetensors",), images=0), data)
    assert [entry["file"] for entry in both.files] == ["student.pt2", "hub"] and first.paths()[0].exists()
    other = copy.deepcopy(student)
    with torch.no_grad():
        next(other.network.parameters()).mul_(1.5)
    again = export_model(other, tmp_path, Plan(("safetensors",), images=0), data)
    assert [entry["file"] for entry in again.files] == ["hub"] and not first.paths()[0].exists()


def test_a_file_that_resizes_is_compared_on_the_pictures_that_it_gets(student, data, tmp_path):
    found = export_model(student, tmp_path, Plan(("pt2",), size=(24, 20), images=2), data)
    test = found.files[0]["answers"]["test"]
    assert test["different"] == 0 and test["largest"] < 1e-4
    assert found.files[0]["maps"]["explainers"]["occlusion"]["cosine"]["mean"] == pytest.approx(1, abs=1e-3)


def test_the_users_model_keeps_its_mode_and_its_weights(student, tmp_path):
    model = copy.deepcopy(student).train()
    before = {key: value.clone() for key, value in model.bare_state().items()}
    distilens.export(model, tmp_path / "student.pt2")
    assert model.training and all(torch.equal(before[key], value) for key, value in model.bare_state().items())


@pytest.mark.parametrize("name", ["../own.pt2", "notes.txt", "deep/own.pt2"])
def test_a_list_of_someone_else_removes_nothing_of_yours(student, data, tmp_path, name):
    folder = tmp_path / "export"
    export_model(student, folder, Plan(("pt2",), images=0), data)
    own = folder / name
    own.parent.mkdir(exist_ok=True)
    own.write_text("mine")
    content = json.loads((folder / "export.json").read_text())
    content["files"].append({**content["files"][0], "file": name})
    content["student"]["fingerprint"] = "another"
    (folder / "export.json").write_text(json.dumps(content))
    export_model(student, folder, Plan(("pt2",), images=0), data)
    assert own.read_text() == "mine"
