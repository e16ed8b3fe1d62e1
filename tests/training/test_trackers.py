"""Trackers: the services' own files, in offline mode, read back; and what is told twice, or never."""

import importlib.util
import sqlite3
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.tracking import GeneralTracker

import distilens
from distilens.core import Batch
from distilens.foundation.errors import UserError
from distilens.foundation.files import read_json
from distilens.training import trackers
from distilens.training.history import numbers_of
from distilens.training.log import Log, Metrics
from distilens.training.settings import Training
from distilens.training.trackers import Trackers, flattened


class Recorder(GeneralTracker):
    """A service that keeps what it is told."""

    name, requires_logging_directory = "recorder", False

    def __init__(self):
        super().__init__()
        self.rows, self.settings, self.finished = [], None, 0

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        self.settings = values

    def log(self, values, step=None):
        self.rows.append((step, values))

    def finish(self):
        self.finished += 1


@pytest.fixture
def services(monkeypatch) -> list[Recorder]:
    """TensorBoard's starts, in order; it is none."""
    begun = []

    def start(folder, name, identity, known):
        begun.append(Recorder())
        begun[-1].identity = identity
        return begun[-1]

    monkeypatch.setitem(trackers.STARTED, "tensorboard", start)
    return begun


def needs(*modules: str):
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def steps(log: Log, upto: int, at: int = 0) -> None:
    """A training of 4 steps, an epoch each two, from a checkpoint at a step to another step."""
    log.start(epochs=2, steps=2, images=4, at=at, epoch=at // 2)
    with log:
        for step in range(at, upto):
            batch = Batch(torch.zeros(1, 3, 2, 2), torch.zeros(1).long(), torch.arange(1), epoch=step // 2)
            log.step(batch, {"kd": torch.tensor(0.5 + step)}, 0.1, every=1)
            if step % 2:
                log.epoch(step // 2, {"accuracy": 0.25, "loss": 1.5, "n": 8}, {"map/empty": 0.125})


def log_in(folder, *names: str, stage: str = "student") -> tuple[Log, Trackers]:
    made = Trackers(names, folder, name="mine", settings={"train": {"epochs": 2}, "data": "shapes"})
    return Log(Metrics(folder / "metrics.jsonl"), stage, trackers=made), made


def test_rows_have_clear_names(services, tmp_path):
    log, made = log_in(tmp_path, "tensorboard")
    steps(log, 2)
    made.close()
    (service,) = services
    assert service.settings == {"train.epochs": 2, "data": "shapes"}
    assert service.finished == 1
    (first, loss), _, (last, scores) = service.rows
    assert (first, last) == (1, 2)
    assert loss["student/kd"] == 0.5
    assert loss["student/learning rate"] == 0.1
    assert set(loss) == {
        f"student/{name}" for name in ("kd", "total loss", "learning rate", "images per second", "epoch")
    }
    assert scores == {
        "student/validation accuracy": 0.25,
        "student/validation loss": 1.5,
        "student/map/empty": 0.125,
        "student/epoch": 1,
    }


def test_what_was_told_before_a_stop_is_not_told_again(services, tmp_path):
    log, made = log_in(tmp_path, "tensorboard")
    steps(log, 3)
    made.close()
    log, made = log_in(tmp_path, "tensorboard")
    steps(log, 4, at=2)  # from the checkpoint behind the first epoch: step 3 is gone through again
    first, second = services
    assert [step for step, _ in first.rows] == [1, 2, 2, 3]
    assert [step for step, _ in second.rows] == [4, 4]
    assert first.identity == second.identity
    assert second.settings is None  # they stand there already
    assert [row["step"] for row in log.rows] == [1, 2, 2, 3, 4, 4]


def test_all_stages_are_one_run_of_a_service(services, tmp_path):
    made = Trackers(["tensorboard"], tmp_path)
    for stage in ("teacher", "student"):
        steps(Log(Metrics(tmp_path / "metrics.jsonl"), stage, trackers=made), 2)
    assert len(services) == 1
    assert {name.split("/")[0] for _, values in services[0].rows for name in values} == {"teacher", "student"}


def test_a_stage_that_is_trained_anew_is_another_run(services, tmp_path):
    steps(log_in(tmp_path, "tensorboard")[0], 2)
    (tmp_path / "metrics.jsonl").unlink()
    steps(log_in(tmp_path, "tensorboard")[0], 2)
    first, second = services
    assert first.identity != second.identity
    assert second.settings is not None


def test_a_service_that_fails_stops_no_training(services, tmp_path):
    log, made = log_in(tmp_path, "tensorboard")
    log.start(epochs=1, steps=1, images=1, at=0, epoch=0)
    services[0].log = lambda *_, **__: 1 / 0
    with pytest.warns(UserWarning, match="tensorboard failed and gets no more rows: division by zero"):
        made.log("student", {"step": 1, "epoch": 0, "terms": {"kd": 1.0}})
    made.log("student", {"step": 2, "epoch": 0, "terms": {"kd": 1.0}})
    assert made.open == {}


def test_a_service_that_cannot_be_started_is_said(tmp_path, monkeypatch):
    def refuse(*given):
        raise RuntimeError("the server does not answer")

    monkeypatch.setitem(trackers.STARTED, "tensorboard", refuse)
    made = Trackers(["tensorboard"], tmp_path)
    with pytest.raises(UserError, match="tracker=tensorboard cannot be started: the server does not answer"):
        made.begin("student", resumed=False)
    assert made.open == {}
    assert not (tmp_path / "trackers.json").exists()


@pytest.fixture
def mlflow(monkeypatch) -> list[tuple]:
    """What MLflow is asked; its stand-in keeps nothing."""
    asked = []

    class Tracker(Recorder):
        def __init__(self, experiment, artifacts, *, run_id, run_name):
            super().__init__()
            asked.append((experiment, artifacts, run_id, run_name))
            self.info = SimpleNamespace(run_id=run_id or "of-mlflow")

        def start(self):
            asked.append("started")

    monkeypatch.setitem(trackers.NEEDED, "mlflow", ())
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(set_tracking_uri=asked.append))
    monkeypatch.setattr(trackers, "MLflowTracker", Tracker)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return asked


def test_mlflow_writes_into_the_folder_and_a_resumed_run_goes_on(mlflow, tmp_path):
    log, made = log_in(tmp_path, "mlflow")
    steps(log, 1)
    made.close()
    place, files = f"sqlite:///{tmp_path}/mlflow.db", f"file://{tmp_path}/mlflow"
    assert mlflow == [place, ("distilens", files, None, "mine"), "started"]
    assert read_json(tmp_path / "trackers.json")["runs"] == {"mlflow": "of-mlflow"}
    del mlflow[:]
    log_in(tmp_path, "mlflow")[1].begin("student", resumed=True)
    assert mlflow == [place, ("distilens", files, "of-mlflow", "mine"), "started"]


def test_mlflow_writes_where_the_environment_says(mlflow, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example")
    log_in(tmp_path, "mlflow")[1].begin("student", resumed=False)
    assert mlflow == [("distilens", None, None, "mine"), "started"]


def test_settings_and_rows_as_plain_names():
    assert flattened({"a": {"b": 1, "c": [1, "x"]}, "d": None, "e": True}) == {
        "a.b": 1,
        "a.c": '[1, "x"]',
        "d": "null",
        "e": True,
    }
    assert numbers_of({"step": 3, "epoch": 0, "validation": {"accuracy": 0.5, "n": 9}}) == {
        "validation accuracy": 0.5,
        "epoch": 1,
    }


def test_the_recipe_takes_one_or_several_and_older_recipes():
    assert Training().tracker == ()
    assert Training(tracker="wandb").tracker == ("wandb",)
    assert Training(tracker="[wandb,mlflow]").tracker == ("wandb", "mlflow")
    assert Training(tracker=["mlflow", "tensorboard"]).tracker == ("mlflow", "tensorboard")
    assert Training(tensorboard=True).tracker == ("tensorboard",)
    assert Training(tensorboard=True, tracker="wandb").tracker == ("wandb", "tensorboard")
    assert Training(tensorboard=False).tracker == ()
    assert Training(tracker="wandb").decisive() == Training().decisive()
    with pytest.raises(ValueError, match="wandb"):
        Training(tracker="wandbb")


def test_a_service_that_is_missing_is_said_before_training(tmp_path, monkeypatch):
    monkeypatch.setitem(trackers.NEEDED, "wandb", ("no_such_module",))
    data = distilens.from_arrays(np.zeros((12, 8, 8, 3), dtype=np.uint8), np.arange(12) % 3)
    settings = {"epochs": 1, "tracker": ["wandb"]}
    with pytest.raises(UserError, match=r"tracker=wandb is not installed: pip install 'distilens\[wandb\]'"):
        distilens.distill("resnet8", None, data, ["ce"], settings=settings, folder=tmp_path)
    with pytest.raises(UserError, match="writes into a folder"):
        distilens.distill("resnet8", None, data, ["ce"], settings={"epochs": 1, "tracker": "tensorboard"})


@needs("tensorboard")
def test_tensorboard_has_the_rows_of_a_stopped_run_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for upto, at in ((3, 0), (4, 2)):
        log, made = log_in(tmp_path, "tensorboard")
        steps(log, upto, at)
        made.close()
    (folder,) = (tmp_path / "tensorboard").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("student/kd")] == [(s, s - 0.5) for s in (1, 2, 3, 4)]
    assert [event.step for event in events.Scalars("student/validation accuracy")] == [2, 4]
    assert any("settings" in tag for tag in events.Tags()["tensors"])


@needs("wandb")
@pytest.mark.slow
def test_wandb_keeps_the_rows_in_the_folder_when_offline(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_DIR", "WANDB_PROJECT", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    log, made = log_in(tmp_path, "wandb")
    steps(log, 2)
    made.close()
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert file.stem == f"run-{read_json(tmp_path / 'trackers.json')['id']}"
    wanted = [b"student/kd", b"student/validation accuracy", b"student/step", b"train.epochs", b"mine"]
    for _ in range(100):  # its own process writes the file
        content = file.read_bytes()
        if all(name in content for name in wanted):
            break
        time.sleep(0.1)
    assert [name for name in wanted if name not in content] == []


@needs("mlflow", "sqlalchemy", "alembic")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_the_rows_of_a_stopped_run_once(tmp_path, monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    for upto, at in ((3, 0), (4, 2)):
        log, made = log_in(tmp_path, "mlflow")
        steps(log, upto, at)
        made.close()
    store = sqlite3.connect(tmp_path / "mlflow.db")
    assert store.execute("select name, status from runs").fetchall() == [("mine", "FINISHED")]
    rows = store.execute("select step, value from metrics where key = 'student/kd' order by step").fetchall()
    assert rows == [(1, 0.5), (2, 1.5), (3, 2.5), (4, 3.5)]
    assert ("train.epochs", "2") in store.execute("select key, value from params").fetchall()
