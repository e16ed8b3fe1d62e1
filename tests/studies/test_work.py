"""Training a study: once, resumed after any stop, shared among processes, with failed and diverged rows."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from rich.console import Console

from distilens.foundation.errors import UserError
from distilens.foundation.files import lock_folder
from distilens.runs.inspection import inspect_recipe
from distilens.studies import teachers, trial, work
from distilens.studies.study import RESULT, Row, Study, without_teacher
from distilens.studies.work import failures, missing, train_study

COUNTED = ("row", "seed", "validation", "fingerprint", "curve", "agreement")


def make(folder, content, *more: Row, seeds=(0, 1), kind="seeds") -> Study:
    hot = {**content, "student": {**content["student"], "methods": ["ce", "kd:temperature=8"]}}
    rows = (Row("base", without_teacher(content, ["ce"])), Row("warm", content), Row("hot", hot), *more)
    return Study(folder, kind, rows, seeds)


def results(study) -> list:
    return [{key: (study.result(row, seed) or {}).get(key) for key in COUNTED} for row, seed in study.jobs]


@pytest.fixture(scope="module")
def whole(place, content):
    """A study that was not stopped, and how many images its teacher was shown in each training."""
    import study_nets

    study, asked = make(place / "whole", content), {}
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((work, "train_row"), (teachers, "train_teacher")):
            counted(patch, module, name, study_nets.CALLS, asked)
        train_study(study)
    return study, asked


def counted(patch, module, name, calls, asked):
    before = getattr(module, name)

    def call(*arguments, **options):
        begun = len(calls)
        try:
            return before(*arguments, **options)
        finally:
            which = (arguments[1].name, arguments[2]) if name == "train_row" else (arguments[0].folder.name, "teacher")
            asked.setdefault(which, []).append([count for count in calls[begun:] if count > 8])

    patch.setattr(module, name, call)


def test_the_teacher_is_trained_once_and_answers_once(whole):
    study, asked = whole
    assert len(asked["teacher", "teacher"]) == 1
    assert asked["warm", 0] != [[]]
    assert asked["base", 0] == asked["base", 1] == asked["hot", 0] == asked["warm", 1] == asked["hot", 1] == [[]]
    assert not missing(study)
    assert all(result["validation"]["n"] == 16 for result in results(study))
    assert study.result(study.row("base"), 0).get("agreement") is None
    assert study.result(study.row("warm"), 0)["agreement"]["n"] == 16


def test_the_same_command_repeats_nothing(whole, monkeypatch):
    study, _ = whole
    before = {path: path.stat().st_mtime_ns for path in study.folder.rglob("*") if path.is_file()}

    def refuse(*_arguments, **_options):
        raise AssertionError("trained again")

    monkeypatch.setattr(work, "train_row", refuse)
    train_study(study)
    after = {path: path.stat().st_mtime_ns for path in study.folder.rglob("*") if path.is_file()}
    changed = {path.relative_to(study.folder).parts[:2] for path in after if after[path] != before.get(path)}
    assert changed <= {("study.json",), ("runs", "teacher")}


def test_runs_are_small_and_the_teacher_is_stored_once(whole):
    study, _ = whole
    weights = {
        (study.place(row, seed) / "teacher" / "model.safetensors") for row, seed in study.jobs if row.name != "base"
    }
    assert len({path.stat().st_ino for path in weights}) == 1
    assert next(iter(weights)).samefile(study.folder / "runs" / "teacher" / "teacher" / "model.safetensors")
    assert not list(study.folder.rglob("*.pt"))


class Stop:
    """Ctrl-C at one of the rows of the log."""

    def __init__(self, after):
        self.left = after

    def __call__(self, *_arguments, **_options):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [0, 2])
def test_a_stopped_study_ends_as_an_unstopped_one(whole, place, content, monkeypatch, after):
    study, _ = whole
    stopped = make(place / f"stopped-{after}", content)
    with monkeypatch.context() as patch:
        real, stop = trial.train_stage, Stop(after)

        def train_stage(run, **options):
            real(run, **options)
            stop()  # trained, but its result is not written

        patch.setattr(trial, "train_stage", train_stage)
        with pytest.raises(KeyboardInterrupt):
            train_study(stopped)
    assert len(missing(stopped)) == len(stopped.jobs) - after
    train_study(stopped)
    assert results(stopped) == results(study)


def test_a_locked_run_is_left_to_the_other_process(place, content, monkeypatch):
    study = make(place / "locked", content, seeds=(0,))
    study.save()
    monkeypatch.setattr(work, "PAUSE", 0.05)
    order = []
    real = work.train_row

    def train_row(study, row, seed, *arguments, **options):
        result = real(study, row, seed, *arguments, **options)
        order.append(row.name)
        return result

    monkeypatch.setattr(work, "train_row", train_row)
    held = study.place(study.row("base"), 0)
    release = threading.Event()

    def other():
        with lock_folder(held):
            release.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    watcher = threading.Thread(target=lambda: (until(lambda: "hot" in order), time.sleep(0.2), release.set()))
    watcher.start()
    train_study(study)
    thread.join()
    watcher.join()
    assert order == ["warm", "hot", "base"]
    assert not missing(study)


def test_what_was_trained_from_a_changed_file_is_trained_again(place, content):
    """The module of one row changes: its result and its scores are forgotten, those of the other row are not."""
    (place / "other_nets.py").write_text((place / "study_nets.py").read_text())
    other = {**content, "student": {**content["student"], "model": "python:other_nets:tiny"}}
    study = Study(place / "changed", "seeds", (Row("a", content), Row("b", other)), (0,))
    train_study(study)
    places = [study.place(row, 0) for row in study.rows]
    for folder in places:
        (folder / "scores.json").write_text("{}")
    before = [(folder / RESULT).stat().st_mtime_ns for folder in places]
    with open(place / "other_nets.py", "a") as file:
        file.write("# another network\n")
    said = io.StringIO()
    train_study(study, console=Console(file=said, width=300))
    assert "b, seed 0: its data or models have changed since: it is trained again" in said.getvalue()
    assert [(folder / RESULT).stat().st_mtime_ns == mtime for folder, mtime in zip(places, before, strict=True)] == [
        True,
        False,
    ]
    assert [(folder / "scores.json").is_file() for folder in places] == [True, False]


def until(found, seconds=120):
    start = time.monotonic()
    while not found() and time.monotonic() - start < seconds:
        time.sleep(0.05)


def test_failed_and_diverged_rows(place, content):
    """A row that cannot be trained is left out; a student whose loss is not finite counts as it began."""
    wrong = Row("wrong", {**content, "student": {**content["student"], "model": "python:study_nets:nothing"}})
    broken = Row("broken", {**content, "student": {"model": "python:study_nets:diverging", "methods": ["ce"]}})
    study = Study(place / "bad", "seeds", (Row("warm", content), wrong, broken), (0,))
    said = io.StringIO()
    train_study(study, console=Console(file=said, width=300))
    assert list(failures(study)) == ["wrong"]
    assert "wrong: left out: " in said.getvalue()
    assert study.results(wrong) == {}
    assert not missing(study)
    result = study.result(broken, 0)
    assert "finite" in result["diverged"]
    assert result["validation"]["n"] == 16
    assert (study.place(broken, 0) / "student" / "model.safetensors").is_file()
    assert study.result(study.row("warm"), 0).keys() >= {"validation", "seconds", "parameters", "macs"}


def test_a_failed_row_is_tried_again_and_all_failed_is_an_error(place, content, monkeypatch):
    study = Study(place / "failed", "seeds", (Row("a", content), Row("b", {**content, "note": "b"})), (0,))
    real = trial.train_stage

    def fail(run, **options):
        raise UserError("no such thing")

    monkeypatch.setattr(trial, "train_stage", fail)
    with pytest.raises(UserError, match="no row of the study can be trained: no such thing"):
        train_study(study)
    monkeypatch.setattr(trial, "train_stage", real)
    train_study(study)
    assert failures(study) == {}
    assert len(study.results(study.row("a"))) == 1


def test_a_full_disk_is_not_the_recipes_fault(place, content, monkeypatch):
    study = Study(place / "full", "seeds", (Row("a", content),), (0,))

    def full(run, **options):
        raise UserError("the disk is full") from OSError(28, "no space")

    monkeypatch.setattr(trial, "train_stage", full)
    with pytest.raises(UserError, match=r"^the disk is full"):
        train_study(study)
    assert missing(study) == [("a", 0)]


def test_jobs_fit_into_memory(whole, place, content, monkeypatch):
    study = make(place / "jobs", content)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(work, "memory_of_a_step", lambda _study: 300e6)
    free = type("Memory", (), {"available": 3.1e9})
    monkeypatch.setattr(work.psutil, "virtual_memory", lambda: free)
    said = io.StringIO()
    assert work.fitting_jobs(study, 8, Console(file=said, width=200)) == 3
    assert "a run needs about 1.0 GB: 3 instead of 8 at once" in said.getvalue()
    assert work.fitting_jobs(study, 2, None) == 2
    free.available = 1e6
    assert work.fitting_jobs(study, 8, None) == 1
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert work.fitting_jobs(study, 8, None) == 1


def test_a_row_that_cannot_be_inspected_does_not_stop_a_study(place, content, monkeypatch):
    wrong = {**content, "student": {"model": "python:study_nets:nothing", "methods": ["ce", "kd", "dkd"]}}
    study = Study(place / "inspected", "seeds", (Row("warm", content), Row("wrong", wrong)), (0,))
    with pytest.raises(UserError):
        inspect_recipe(work.make_recipe(wrong))
    assert work.memory_of_a_step(study) > 0


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(place, content, monkeypatch):
    """Two processes; one is killed with SIGKILL while it trains. The reference is trained by such processes, too.

    In the process of the tests the last digits may differ: it has loaded other libraries.
    """
    monkeypatch.setattr(work, "fitting_jobs", lambda study, jobs, console: jobs)
    monkeypatch.setattr(work.os, "cpu_count", lambda: 2)  # one thread a process
    undisturbed, shared = make(place / "undisturbed", content), make(place / "killed", content)
    train_study(undisturbed, jobs=2)
    real, begun = subprocess.Popen, []

    def popen(*arguments, **options):
        begun.append(real(*arguments, **options))
        return begun[-1]

    monkeypatch.setattr(work.subprocess, "Popen", popen)

    def kill():
        until(lambda: len(begun) == 2 and (shared.folder / "runs" / "base-0").is_dir())
        begun[0].send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    train_study(shared, jobs=2)
    killer.join()
    assert begun[0].returncode == -signal.SIGKILL
    assert results(shared) == results(undisturbed)


def test_processes_that_end_early_are_an_error(place, content, monkeypatch):
    study = Study(place / "early", "seeds", (Row("a", content), Row("b", {**content, "note": "b"})), (0,))
    study.save()
    monkeypatch.setattr(work, "PAUSE", 0.05)
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(UserError, match=r"ended early: it was killed. The same command continues the study"):
        work.work_together(study, 2, work.Work(None, "seeds", 2))


def test_a_result_is_whole(whole):
    study, _ = whole
    result = json.loads((study.place(study.row("hot"), 1) / RESULT).read_text())
    assert result["metric"]["name"] == "accuracy"
    assert result["curve"] == [result["validation"]["accuracy"]]
