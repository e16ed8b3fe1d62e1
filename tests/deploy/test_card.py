"""The model card: metadata that the hub reads, text that hostile names cannot break, snippets that run."""

import copy
import re

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

import distilens
from distilens.deploy.card import card, metadata, write_cards
from distilens.deploy.exporting import export_model
from distilens.deploy.markdown import code, escape
from distilens.deploy.plan import Plan

HOSTILE = ["cat", "a: b #\n---\n- c", "<script>alert(1)</script>", "| *x* `y` [z](http://evil) |", "x ](y) \\"]


def answers(share: float = 0.7) -> dict:
    measured = {"accuracy": share, "n": 100, "low": share - 0.1, "high": share + 0.1}
    return {
        "n": 100,
        "largest": 1e-7,
        "mean": 1e-8,
        "same top-1": {"share": 1.0, "n": 100, "low": 0.96, "high": 1.0},
        "different": 0,
        "metric": "accuracy",
        "student": measured,
        "file": measured,
        "apart": {"mean": 0.0, "low": -0.01, "high": 0.01, "n": 100},
    }


def file(name: str, form: str, precision: str = "float32", **more) -> dict:
    entry = {"file": name, "format": form, "precision": precision, "bytes": 1234, "refused": None, "batch": None}
    return {**entry, "answers": {"test": answers()}, "maps": {}, **more}


def exported(*files: dict, classes=("cat", "dog"), data="folder:path=/home/me/pets", **student) -> dict:
    about = {
        "network": "resnet8",
        "fingerprint": "f00",
        "task": "classification",
        "classes": list(classes),
        "input": {"name": "images", "type": "float32", "range": [0, 1], "channels": 3, "size": [32, 48]},
        "outputs": ["logits", "probabilities"],
    }
    return {"student": {**about, **student}, "data": data, "tolerance": 0.5, "files": list(files)}


def scores(classes=("cat", "dog"), fingerprint="f00") -> dict:
    def model(share: float) -> dict:
        return {"model": "resnet8", "test": answers(share)["file"], "parameters": 77_850, "macs": 12_501_504}

    student = model(0.72) | {
        "fingerprint": fingerprint,
        "by class": {name: answers(0.5)["file"] if at else None for at, name in enumerate(classes)},
        "more than base": {"test": {"mean": 0.05, "low": 0.01, "high": 0.09, "n": 100}},
    }
    data = {"name": "pets", "classes": list(classes), "train": 800, "remarks": ["3 pictures are grey"]}
    return {"data": data, "models": {"teacher": model(0.9), "base": model(0.67), "student": student}}


def block(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_hub_reads_the_accuracy():
    text = card(exported(file("student.onnx", "onnx"), run="mine"), scores())
    data = ModelCard(text).data
    (result,) = data.eval_results
    assert (data.library_name, data.pipeline_tag) == ("distilens", "image-classification")
    assert data.tags == ["distilens", "knowledge-distillation", "onnx"]
    assert (data.model_name, result.metric_type, result.metric_value) == ("mine", "accuracy", 0.72)
    assert result.dataset_name == "folder:path=pets"
    assert "/home/me" not in text


def test_it_says_what_distillation_added_what_it_cost_and_its_limits():
    text = card(exported(file("student.onnx", "onnx"), recipe="abc"), scores())
    assert "The student is right more often than the base: on the same images of the test split +5.0 points" in text
    assert "| accuracy, test ↑ | 90.0 % [80.0 to 100.0], n = 100 | 67.0 % [57.0 to 77.0], n = 100 | 72.0 %" in text
    assert "| parameters ↓ | 77.9 k |" in text
    assert "There is no test image of cat: the accuracy on them is unknown." in text
    assert "- remark: 3 pictures are grey" in text
    assert "recipe.toml" in text


def test_it_says_what_the_network_costs():
    text = card(exported(file("student.onnx", "onnx"), parameters=77_850, macs=12_501_504))
    assert "- cost: 77,850 parameters; 12.5 million multiply-accumulates per image" in text


def test_scores_of_another_student_are_left_out():
    text = card(exported(file("student.onnx", "onnx")), scores(fingerprint="other"))
    assert "base" not in text
    assert block(text)["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.7  # what the export measured


def test_a_bare_model_says_only_what_is_known():
    answered = {"examples": {key: value for key, value in answers().items() if key not in ("student", "file")}}
    text = card(exported(file("student.onnx", "onnx", answers=answered), data=None))
    assert "model-index" not in block(text)
    assert "recipe" not in text.partition("## Limits")[0]
    assert "## Data" not in text
    assert "example images only" in text


def test_hostile_names_break_neither_the_metadata_nor_the_markdown():
    content = exported(file("student.onnx", "onnx"), classes=HOSTILE, data=HOSTILE[1], run=HOSTILE[1])
    text = card(content, scores(HOSTILE))
    read = ModelCard(text)
    assert read.data.model_name == "a: b # --- - c"
    assert set(read.data.to_dict()) == {"library_name", "tags", "pipeline_tag", "metrics", "model-index"}
    assert "<script" not in re.sub(r"\\<", "", text)
    assert "](http" not in text.replace("\\](", "").replace("](https://docs.pytorch.org", "")
    assert [line for line in text.splitlines() if line == "---"] == ["---", "---"]
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(re.fullmatch(r"\|(---\|)+|\| (?:[^|\\]|\\.)+(?: \| (?:[^|\\]|\\.)+)* \|", line) for line in tables)


@pytest.mark.parametrize("text", HOSTILE)
def test_escaped_text_is_shown_as_it_is(text):
    assert re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", escape(text)) == " ".join(text.split())
    assert "`y`" not in code(text) or code(text).startswith("``")


def test_a_data_set_of_the_hub_is_named():
    assert metadata(exported(data="hf:uoft-cs/cifar10"), {}, timm=False)["datasets"] == ["uoft-cs/cifar10"]
    for own in ("hf:/home/me/cifar", "folder:path=x", "my arrays, 3", None):
        assert "datasets" not in metadata(exported(data=own), {}, timm=False)


def test_a_refused_file_is_named_with_its_reason_and_not_run():
    text = card(exported(file("student-int8.onnx", "onnx", "int8", refused="INT8 loses 3.00 points")))
    assert "student-int8.onnx is not kept: INT8 loses 3.00 points." in text
    assert "InferenceSession" not in text
    assert "onnx" not in block(text)["tags"]


def test_latencies_are_shown_and_foreign_ones_are_not(tmp_path):
    row = {"name": "student.onnx", "runtime": "ONNX Runtime", "fingerprint": "f00", "threads": 1, "batch": 1}
    complete = {**row, "median": 1.234, "p95": 2.0, "images_per_second": 810.0}
    content = exported(file("student.onnx", "onnx"))
    for bench, shown in (
        ({"rows": [complete]}, True),
        ({"rows": [{**complete, "fingerprint": "other"}]}, False),
        ({"rows": [row]}, False),
        ({"rows": 3}, False),
    ):
        distilens.foundation.files.write_json(tmp_path / "bench.json", bench)
        write_cards(tmp_path, content)
        text = (tmp_path / "README.md").read_text()
        assert ("| student.onnx | ONNX Runtime | 1 | 1 | 1.23 | 2.00 | 810 |" in text) is shown


def test_other_tasks_have_no_classes_and_no_accuracy():
    content = exported(file("student.onnx", "onnx", answers={}))
    student = {key: value for key, value in content["student"].items() if key != "classes"}
    text = card({**content, "student": {**student, "task": {"name": "own"}, "outputs": ["logits"]}})
    assert set(block(text)) == {"library_name", "tags"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An export of a network of timm, with a photo beside each card."""
    pytest.importorskip("onnx")
    made = tmp_path_factory.mktemp("export")
    model = distilens.build_model("timm:test_resnet", ["cat", "dog"], (32, 48)).eval()
    export_model(model, made, Plan(("onnx", "pt2", "safetensors")))
    for place in (made, made / "hub"):
        photo(place)
    return made


def photo(place):
    Image.new("RGB", (100, 80), (200, 30, 60)).save(place / "photo.jpg")


def run_snippets(place, monkeypatch) -> dict:
    """The names that the snippets of a card leave, in order; `outputs` of all runtimes."""
    monkeypatch.chdir(place)
    names: dict = {"all outputs": []}
    for snippet in re.findall(r"```python\n(.*?)```", (place / "README.md").read_text(), re.DOTALL):
        exec(snippet, names)
        names["all outputs"] += [names.pop("outputs")] if "outputs" in names else []
    return names


def test_every_snippet_of_the_card_runs(folder, monkeypatch):
    names = run_snippets(folder, monkeypatch)
    onnx, pt2 = names["all outputs"]
    assert onnx[0] == pytest.approx(pt2[0].detach().numpy(), abs=1e-5)
    assert onnx[1].sum() == pytest.approx(1, abs=1e-5)
    assert names["prediction"].probabilities.shape == names["logits"].shape == (1, 2)


def test_every_snippet_of_the_card_beside_the_weights_runs(folder, monkeypatch):
    names = run_snippets(folder / "hub", monkeypatch)
    assert names["all outputs"] == []
    assert names["prediction"].probabilities.shape == names["logits"].shape == (1, 2)


@pytest.mark.slow
def test_the_snippet_of_executorch_runs(tmp_path, monkeypatch):
    pytest.importorskip("executorch")
    model = distilens.build_model("resnet8", ["cat", "dog"], (32, 32)).eval()
    export_model(model, tmp_path, Plan(("executorch",), pixels="uint8"))
    photo(tmp_path)
    (outputs,) = run_snippets(tmp_path, monkeypatch)["all outputs"]
    assert float(outputs[1].sum()) == pytest.approx(1, abs=1e-5)


def test_the_card_beside_the_weights_names_timm(folder):
    assert block((folder / "hub" / "README.md").read_text())["library_name"] == "timm"
    assert "hf-hub:OWNER/NAME" in (folder / "hub" / "README.md").read_text()


def test_the_card_does_not_change_its_data():
    content, measured = exported(file("student.onnx", "onnx")), scores()
    before = copy.deepcopy((content, measured))
    card(content, measured)
    assert (content, measured) == before
