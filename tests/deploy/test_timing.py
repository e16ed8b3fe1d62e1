"""The process that times models: it does what a job says and answers in JSON."""

import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest

from distilens.deploy.processor import EnergyMeter
from distilens.deploy.timing import Entry, answers_to, bind_to_cores, make_images, open_entries
from distilens.models import build_model
from distilens.models.saved import save_model


def test_images_are_of_the_models_type_and_size():
    floats = make_images({"shape": [3, 4, 5], "type": "float32"}, 2)
    bytes_ = make_images({"shape": [1, 4, 5], "type": "uint8"}, 1)
    assert (floats.shape, floats.dtype) == ((2, 3, 4, 5), np.float32)
    assert (bytes_.shape, bytes_.dtype) == ((1, 1, 4, 5), np.uint8)
    assert 0 <= floats.min() < floats.max() <= 1
    assert bytes_.max() > 200


def test_a_turn_times_every_call_but_the_first(tmp_path):
    calls = []
    entry = Entry("key", 4, lambda: calls.append(1), pace=1e-9)
    entry.warm_up()
    assert len(calls) == 3
    turn = entry.take_turn(EnergyMeter(tmp_path / "none"))
    assert len(calls) == 5
    assert len(turn["times"]) == 1
    assert turn["joules"] is None


def test_a_model_that_cannot_be_opened_is_named_and_the_others_go_on(tmp_path):
    save_model(build_model("resnet8", ["a", "b"], (16, 16)), tmp_path / "good")
    models = [
        {"key": name, "path": str(tmp_path / name), "shape": [3, 16, 16], "type": "float32", "batches": [1, 2]}
        for name in ("bad", "good")
    ]
    entries, failed = open_entries({"runtime": "eager", "threads": 1, "pace": 1e-6, "models": models})
    assert [(entry.key, entry.batch) for entry in entries] == [("good", 1), ("good", 2)]
    assert list(failed) == ["bad"]


def ask(job: dict, *lines: str) -> list:
    """The answers of a process to a job and further lines."""
    text = "\n".join([json.dumps(job), *lines]) + "\n"
    command = [sys.executable, "-m", "distilens.deploy.timing"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def job_for(path, **changes) -> dict:
    """A job for one model."""
    model = {"key": "m", "path": str(path), "shape": [3, 16, 16], "type": "float32", "batches": [1, 2]}
    return {"runtime": "eager", "threads": 1, "pace": 1e-6, "memory": False, "models": [model], **changes}


def answers(job: dict, *lines: str) -> list:
    """The answers of this process."""
    return json.loads(json.dumps(list(answers_to([json.dumps(job), *lines]))))


@pytest.fixture
def saved(tmp_path):
    save_model(build_model("resnet8", ["a", "b"], (16, 16)), tmp_path / "model")
    return tmp_path / "model"


def test_every_line_is_answered_with_a_round(saved):
    ready, *rounds = answers(job_for(saved), "", "")
    assert ready == {"failed": {}}
    assert len(rounds) == 2
    for turns in rounds:
        assert sorted(turn["batch"] for turn in turns) == [1, 2]
        assert all(time > 0 for turn in turns for time in turn["times"])


def test_memory_is_measured_by_batch(saved, tmp_path):
    (answer,) = answers(job_for(saved, memory=True))
    assert set(answer) == {"memory"}
    assert set(answer["memory"]) == {"1", "2"}
    (answer,) = answers(job_for(tmp_path / "none", memory=True))
    assert answer["memory"] == {}
    assert "none" in answer["failed"]


def test_a_runtime_that_is_not_there_is_named(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    (answer,) = answers(job_for(saved, runtime="openvino"), "")
    assert "openvino" in answer["unusable"]


def test_an_onnx_file_and_a_pt2_file_are_timed(onnx_file):
    from distilens.deploy import export

    model = build_model("resnet8", ["a", "b"], (16, 16)).eval()
    export(model, onnx_file.parent / "net.pt2")
    for runtime, path, side in (("onnx", onnx_file, 32), ("pt2", onnx_file.parent / "net.pt2", 16)):
        job = job_for(path, runtime=runtime)
        job["models"][0]["shape"] = [3, side, side]
        ready, turns = answers(job, "")
        assert ready == {"failed": {}}
        assert [len(turn["times"]) for turn in turns] == [1, 1]


def test_openvino_is_asked_for_short_answer_times(monkeypatch):
    """OpenVINO is not a dependency: a stand-in records what it is asked."""
    asked = []

    class Core:
        def compile_model(self, path, device, settings):
            asked.append((path, device, settings))
            return lambda inputs: [inputs[0].sum()]

    monkeypatch.setitem(sys.modules, "openvino", types.SimpleNamespace(Core=Core))
    job = job_for("net.onnx", runtime="openvino", threads=2)
    ready, turns = answers(job, "")
    assert ready == {"failed": {}}
    assert len(turns) == 2
    assert asked == [("net.onnx", "CPU", {"INFERENCE_NUM_THREADS": 2, "PERFORMANCE_HINT": "LATENCY"})]


def test_a_process_is_bound_to_as_many_cores_as_it_has_threads(monkeypatch):
    bound = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5, 3, 9}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: bound.append(cores), raising=False)
    bind_to_cores(2)
    assert bound == [[3, 5]]


def test_memory_grows_with_the_batch_and_onnx_runtime_needs_no_torch(tmp_path, onnx_file):
    model = {"key": "m", "path": str(onnx_file), "shape": [3, 32, 32], "type": "float32", "batches": [1, 256]}
    (answer,) = ask({"runtime": "onnx", "threads": 1, "pace": 1e-6, "memory": True, "models": [model]})
    memory = {int(batch): count for batch, count in answer["memory"].items()}
    assert 0 < memory[1] < memory[256]
    assert memory[1] < 100e6  # torch alone would take more


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    from distilens.deploy import export

    folder = tmp_path_factory.mktemp("onnx")
    export(build_model("resnet8", ["a", "b"], (32, 32)).eval(), folder / "net.onnx")
    return folder / "net.onnx"
