"""What a user may name to be measured, and in which runtimes it is."""

import pytest

from distilens.deploy import targets
from distilens.deploy.exporting import Exported
from distilens.deploy.targets import Target, candidates_of, find_targets, place_for
from distilens.foundation.errors import UserError
from distilens.foundation.files import write_json
from distilens.measure import macs, parameters
from distilens.models import build_model
from distilens.models.saved import save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with a student and an export of two files, and a saved model."""
    from distilens.deploy import export

    place = tmp_path_factory.mktemp("targets")
    model = build_model("resnet8", ["a", "b"], (16, 16)).eval()
    save_model(model, place / "run" / "student")
    save_model(model, place / "model")
    (place / "run" / "recipe.toml").write_text("")
    export(model, place / "run" / "export" / "student.pt2")
    entries = ({"file": "student.pt2"}, {"file": "gone.onnx", "refused": "it differs"})
    write_json(place / "run" / "export" / "export.json", Exported(place, {}, entries).plain())
    return place


def find(folder, *given, **options):
    return find_targets(given, folder / "scratch", **options)


def test_a_run_is_its_student_and_its_kept_files(folder):
    (target,) = find(folder, folder / "run")
    model = build_model("resnet8", ["a", "b"], (16, 16))
    assert target.name == "run"
    assert target.files == (folder / "run" / "export" / "student.pt2",)
    assert (target.parameters, target.macs) == (parameters(model), macs(model))


def test_a_notation_takes_its_classes_and_its_size_from_the_data_or_from_the_user(folder, tmp_path):
    (one,) = find(tmp_path, "resnet8", classes=7, size=(24, 24))
    (made,), _ = candidates_of(one, ["eager"])
    assert made.shape == (3, 24, 24)
    assert one.parameters == parameters(build_model("resnet8", list("abcdefg"), (24, 24)))
    (other,) = find_targets(["resnet8"], tmp_path / "data", data="shapes:train=64,test=40,size=16")
    assert candidates_of(other, ["eager"])[0][0].shape == (3, 16, 16)


def test_files_of_one_export_are_one_target(folder, tmp_path):
    for name in ("net.onnx", "net-int8.onnx", "net.pte", "other.onnx"):
        (tmp_path / name).write_bytes(b"x")
    found = find(tmp_path, *(tmp_path / name for name in ("net.onnx", "net-int8.onnx", "net.pte", "other.onnx")))
    assert [(target.name, len(target.files)) for target in found] == [("net", 3), ("other", 1)]


def test_targets_of_one_name_are_named_after_their_folders(folder):
    files = (folder / "one" / "a.onnx", folder / "two" / "a.onnx")
    found = find(folder, *(Target("same", files=(file,)) for file in files))
    assert [target.name for target in found] == [str(file) for file in files]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("missing.onnx", "no file missing.onnx"),
        ("resnet9", "unknown model 'resnet9'"),
        ("resnet8", "number of its classes"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path, given, text):
    with pytest.raises(UserError, match=text):
        find(tmp_path, given)


def test_a_folder_without_a_model_and_a_run_without_a_student_are_refused(tmp_path):
    with pytest.raises(UserError, match="is not a run, a saved model or an export"):
        find(tmp_path, tmp_path)
    (tmp_path / "recipe.toml").write_text("")
    with pytest.raises(UserError, match="no trained student"):
        find(tmp_path, tmp_path)
    with pytest.raises(UserError, match="name what to measure"):
        find(tmp_path)


def test_a_target_is_measured_in_every_runtime_that_is_installed(folder, monkeypatch):
    (target,) = find(folder, folder / "run")
    made, skipped = candidates_of(target, ["eager", "compiled", "pt2", "onnx"])
    assert [each.runtime for each in made] == ["eager", "compiled", "pt2"]
    assert all(each.size > 1000 for each in made)
    assert skipped == []
    monkeypatch.setattr(targets, "PACKAGES", {"onnx": "no_such_package"})
    made, skipped = candidates_of(Target("net", files=(folder / "net.onnx",)), ["onnx"])
    assert made == []
    assert "no_such_package is not installed" in skipped[0]


def test_a_file_that_is_no_export_is_refused(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(UserError, match="not an ONNX file"):
        candidates_of(Target("bad", files=(tmp_path / "bad.onnx",)), ["onnx"])


def test_the_result_lies_beside_the_files(folder):
    run = folder / "run"
    assert place_for([run]) == run / "export" / "bench.json"
    assert place_for([run / "export"]) == run / "export" / "bench.json"
    assert place_for([run / "export" / "a.onnx", run / "export" / "b.pte"]) == run / "export" / "bench.json"
    assert place_for([run, folder / "model"]) is None
    assert place_for(["resnet8"]) is None
