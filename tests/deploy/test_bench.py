"""The cost of models: what a row holds, fair ratios, and what is said where something could not be measured."""

import json
import queue

import pytest

from distilens.deploy import bench as module
from distilens.deploy.bench import Bench, Process, Settings, bench, job_of, measure
from distilens.deploy.processor import usable_cores
from distilens.deploy.targets import Candidate
from distilens.deploy.timing import answers_to
from distilens.foundation.errors import UserError
from distilens.foundation.progress import Work
from distilens.models import build_model
from distilens.models.saved import save_model
from distilens.report.deployment_section import latency_table


@pytest.fixture
def without_memory(monkeypatch):
    """Skip the processes that measure memory: each starts a runtime."""
    monkeypatch.setattr(module, "measure_memory", lambda *arguments: {})


class Here(Process):
    """Answers in this process, which is quicker than another one."""

    def __init__(self, runtime, threads, models, settings, *, memory):
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.answers = answers_to(iter(self.lines.get, None))
        self.ready = self.ask(json.dumps(job_of(runtime, threads, models, settings, memory=memory)))

    def ask(self, line=""):
        self.lines.put(line)
        return json.loads(json.dumps(next(self.answers)))

    def stop(self):
        self.answers.close()


@pytest.fixture(scope="module")
def in_this_process():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Process", Here)
        yield


QUICK = {"threads": (1,), "rounds": 2, "pace": 1e-3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("bench")
    save_model(build_model("resnet8", ["a", "b"], (16, 16)).eval(), place / "small")
    save_model(build_model("resnet14", ["a", "b"], (16, 16)).eval(), place / "large")
    return place


@pytest.fixture(scope="module")
def made(folder, in_this_process) -> Bench:
    return bench([folder / "small", folder / "large"], batches=(1, 3), runtimes=("eager",), **QUICK)


def test_every_model_and_batch_has_a_row_with_its_cost(made):
    assert [(row["name"], row["batch"]) for row in made.rows] == [
        ("small", 1),
        ("small", 3),
        ("large", 1),
        ("large", 3),
    ]
    for row in made.rows:
        assert (row["runtime"], row["threads"], row["precision"]) == ("PyTorch eager", 1, "float32")
        assert 0 < row["median"] <= row["p95"]
        assert row["images_per_second"] == pytest.approx(1000 * row["batch"] / row["median"])
        assert row["memory"] >= 0
        assert row["bytes"] > 4 * row["parameters"]
        assert row["calls"] >= 2
        assert row["faster"] is None  # it is what the others are compared to
    assert made.rows[0]["macs"] < made.rows[2]["macs"]
    assert made.rows[0]["to_first"] is None
    assert made.rows[2]["to_first"]["n"] == 2


def test_it_is_written_and_shown(made, tmp_path):
    made.write(tmp_path / "bench.json")
    content = json.loads((tmp_path / "bench.json").read_text())
    assert content == json.loads(json.dumps(made.plain()))
    assert content["versions"]["torch"]
    assert content["processor"]["name"]
    header, rows = latency_table(content)
    assert header[:2] == ["model", "runtime"]
    assert "× first model" in header
    assert "× PyTorch eager" not in header  # no row has it
    assert [row[0] for row in rows] == ["small", "small", "large", "large"]
    assert all(len(row) == len(header) for row in rows)


def test_what_was_not_measured_is_said(made):
    text = "\n".join(made.remarks)
    assert "no interval" in text
    assert "above the runtime alone" in text
    assert made.processor.remark in text


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"threads": (0,)}, "threads must be"),
        ({"batches": ()}, "batches must be"),
        ({"rounds": 0}, "rounds must be"),
        ({"pace": 0}, "pace must be"),
        ({"runtimes": ("tensorflow",)}, "unknown runtime tensorflow"),
        ({"threads": (usable_cores() + 1,)}, "more than"),
    ],
)
def test_wrong_settings_are_refused(settings, text):
    with pytest.raises(UserError, match=text):
        Settings(**settings)


def test_a_runtime_that_cannot_run_is_left_out_with_the_reason(folder, without_memory, in_this_process):
    candidates = [
        Candidate(name, "eager", path, (3, 16, 16))
        for name, path in (("good", folder / "small"), ("bad", folder / "missing"))
    ]
    skipped: list[str] = []
    rows = measure(candidates, 1, Settings((1,), (1,), 2, 1e-3), Work(None, "bench"), skipped)
    assert [row["name"] for row in rows] == ["good"]
    assert len(skipped) == 1
    assert "bad is not measured in PyTorch eager" in skipped[0]


@pytest.mark.slow
def test_a_process_that_dies_is_said_and_nothing_is_left(folder, monkeypatch, without_memory):
    started = []
    real = Process.__init__

    def dying(self, *arguments, **options):
        real(self, *arguments, **options)
        started.append(self.process)
        if not options["memory"]:
            self.process.kill()
            self.process.wait()

    monkeypatch.setattr(Process, "__init__", dying)
    with pytest.raises(UserError, match="PyTorch eager stopped in round 1: its process ended with -9"):
        bench(folder / "small", batches=(1,), runtimes=("eager",), **QUICK)
    assert all(process.poll() is not None for process in started)


@pytest.mark.slow
def test_ctrl_c_ends_all_processes(folder, monkeypatch, without_memory):
    started = []
    real = Process.ask

    def stopped(self, line=""):
        started.append(self.process)
        if not line:
            raise KeyboardInterrupt
        return real(self, line)

    monkeypatch.setattr(Process, "ask", stopped)
    with pytest.raises(KeyboardInterrupt):
        bench(folder / "small", batches=(1,), runtimes=("eager",), **QUICK)
    assert all(process.poll() is not None for process in started)


def test_nothing_to_measure_is_refused(folder):
    with pytest.raises(UserError, match="nothing to measure"):
        bench(folder / "small", runtimes=("onnx",), **QUICK)


@pytest.mark.slow
def test_the_command_measures_every_runtime_and_keeps_the_result_beside_the_files(
    folder, tmp_path, monkeypatch, capsys
):
    for package in ("onnx", "onnxscript", "onnxruntime", "executorch", "torchao"):
        pytest.importorskip(package)
    import sys

    from distilens.cli import commands
    from distilens.data import load
    from distilens.deploy.exporting import Plan, export_model

    data = load("shapes:train=64,test=40,size=16")
    model = build_model("resnet8", data.classes, (16, 16)).eval()
    save_model(model, tmp_path / "run" / "student")
    (tmp_path / "run" / "recipe.toml").write_text("")
    plan = Plan(formats=("onnx", "executorch"), quantize="int8", tolerance=100)
    export_model(model, tmp_path / "run" / "export", plan, data)
    words = ["bench", str(tmp_path / "run"), "--threads", "1", "--batch", "1", "2", "--rounds", "2", "--json"]
    monkeypatch.setattr(sys, "argv", ["distilens", *words])
    commands.main()
    content = json.loads(capsys.readouterr().out)
    assert content == json.loads((tmp_path / "run" / "export" / "bench.json").read_text())
    assert (
        "| ONNX Runtime INT8 |" in (tmp_path / "run" / "export" / "README.md").read_text()
    )  # the card has the latencies
    assert all(row["memory"] > 1e5 for row in content["rows"] if row["runtime"] != "PyTorch compiled")
    found = {(row["runtime"], row["batch"]) for row in content["rows"]}
    names = ("PyTorch eager", "ONNX Runtime", "ONNX Runtime INT8")
    assert {(name, batch) for name in names for batch in (1, 2)} <= found
    assert {("ExecuTorch", 1), ("ExecuTorch INT8", 1)} <= found
    assert ("ExecuTorch", 2) not in found
    assert any("ExecuTorch INT8: one image per call" in line for line in content["remarks"])
    compiled = ("PyTorch compiled", 1) in found
    assert compiled or any("PyTorch compiled" in line for line in content["remarks"])  # there may be no compiler
