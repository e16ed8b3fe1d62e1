"""The commands of an exported student: what they refuse at once, what they print, and what else they renew."""

import json

import pytest

from distilens.deploy import bench as benching
from distilens.deploy import hub, verification
from distilens.deploy.bench import Bench, Settings
from distilens.deploy.exporting import export_model
from distilens.deploy.plan import Plan
from distilens.deploy.processor import Processor
from distilens.models import build_model
from distilens.models.saved import fingerprint_of, save_model


@pytest.fixture
def model(tmp_path):
    made = build_model("resnet8", ["round", "other"], (16, 16)).eval()
    save_model(made, tmp_path / "saved")
    return made


def row(model) -> dict:
    about = {"name": "run", "runtime": "PyTorch eager", "precision": "float32", "fingerprint": fingerprint_of(model)}
    return {**about, "threads": 1, "batch": 1, "median": 3.25, "p95": 4.0, "images_per_second": 307.7}


@pytest.fixture
def measured(model, monkeypatch):
    """What was asked of `bench`, which answers at once."""
    asked = []

    def quick(targets, **options):
        asked.append((tuple(targets), options))
        return Bench((row(model),), Processor("a processor", 2, ()), Settings((1,), (1,)), ("One remark.",))

    monkeypatch.setattr(benching, "bench", quick)
    return asked


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("saved", "--format", "onxx"), "Did you mean 'onnx'?"),
        (("saved", "--format", "pt2", "--push", "me/it"), "--push uploads the folder of the format safetensors"),
        (("saved", "--format", "safetensors", "--push", "me"), "does not name a repository of the hub"),
        (("saved", "--format", "pt2", "--quantize", "int8"), "pt2 cannot hold INT8"),
        (("saved", "--format", "pt2", "--finetune", "2"), "export the run instead of the model"),
        (("resnet8", "--format", "pt2"), "resnet8 needs the data it was trained on"),
        (("saved", "--format", "pt2", "--tolerance", "-1"), "at least 0"),
    ],
)
def test_export_refuses_what_cannot_be(command, model, monkeypatch, words, text):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "token")
    code, _, error = command("export", *words)
    assert code == 2
    assert text in error.replace("\n", " ")


def test_a_saved_model_is_exported_and_its_table_printed(command, model, tmp_path):
    code, output, error = command("export", "saved", "--format", "pt2")
    assert code == 0, error
    assert "student.pt2" in output
    assert "export/saved" in output
    assert (tmp_path / "export" / "saved" / "student.pt2").is_file()
    code, output, _ = command("export", "saved", "--format", "pt2", "--json", "--quiet")
    assert [entry["file"] for entry in json.loads(output)["files"]] == ["student.pt2"]


@pytest.mark.slow
def test_a_network_by_its_notation_is_exported_with_the_classes_of_the_data(command, monkeypatch):
    monkeypatch.setattr(verification, "EXPLAINERS_OF_FILES", ("occlusion",))
    words = ("--data", "shapes:train=64,test=40,size=16", "--format", "pt2", "--out", "made", "--json", "--quiet")
    code, output, error = command("export", "resnet8", *words)
    assert code == 0, error
    assert json.loads(output)["student"]["input"]["size"] == [16, 16]


def test_a_file_that_differs_is_refused_with_the_table(command, model, monkeypatch):
    from distilens.deploy import job

    whole = job.verify

    def verify(student, file):
        found = whole(student, file)
        next(iter(found["answers"].values()))["different"] = 3
        return found

    monkeypatch.setattr(job, "verify", verify)
    code, output, error = command("export", "saved", "--format", "pt2")
    assert code == 2
    assert "student.pt2 (not kept)" in output
    assert "its top class differs from the student's on 3 of" in error.replace("\n", " ")


def test_an_upload_is_made_after_the_export_and_its_address_printed(command, model, monkeypatch):
    pushed = []

    def push(folder, repo):
        pushed.append((folder, repo))
        return "https://hub/me/it"

    monkeypatch.setattr(hub, "check_push", lambda repo: None)
    monkeypatch.setattr(hub, "push_to_hub", push)
    code, output, error = command("export", "saved", "--format", "safetensors", "--push", "me/it")
    assert code == 0, error
    assert output.rstrip().endswith("https://hub/me/it")
    ((folder, repo),) = pushed
    assert (folder / "model.safetensors").is_file() and repo == "me/it"


def test_bench_prints_its_table_and_says_when_nothing_is_saved(command, measured, model):
    code, output, error = command("bench", "saved")
    assert code == 0, error
    assert "3.25" in output and "One remark." in output
    assert "--out FILE saves it" in output
    assert measured[0][0] == ("saved",)


def test_bench_renews_the_card_and_the_page_of_a_run(command, measured, model, tmp_path):
    run = tmp_path / "run"
    save_model(model, run / "student")
    (run / "recipe.toml").write_text("")
    export_model(model, run / "export", Plan(("pt2",)))
    assert "PyTorch eager" not in (run / "export" / "README.md").read_text()
    (run / "report.html").write_text("old")
    code, output, error = command("bench", "run")
    assert code == 0, error
    assert "run/export/bench.json" in output
    assert "| run | PyTorch eager | 1 | 1 | 3.25 | 4.00 | 308 |" in (run / "export" / "README.md").read_text()
    assert "<td>3.25</td>" in (run / "report.html").read_text()
    code, output, _ = command("bench", "run", "--json")
    assert json.loads(output) == json.loads((run / "export" / "bench.json").read_text())


def test_bench_refuses_a_folder_to_write_to_and_another_device(command, measured, tmp_path):
    code, _, error = command("bench", "saved", "--out", ".")
    assert code == 2
    assert "--out takes a file" in error
    code, _, error = command("bench", "saved", "--device", "cuda")
    assert code == 2
    assert "bench measures on the CPU" in error
    assert measured == []
