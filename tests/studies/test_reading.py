"""The test split: read once, at the end, and recorded; with the verdicts before and after."""

import json
import sys

import numpy as np
import pytest

from distilens.foundation.errors import UserError
from distilens.studies import reading
from distilens.studies.reading import is_read, read_test
from distilens.studies.study import Question, Row, Study, continue_study, read_study, without_teacher
from distilens.studies.verdict import judge_study
from distilens.studies.work import train_study


@pytest.fixture(scope="module")
def study(place, content):
    """Two rows over two seeds, trained."""
    rows = (Row("base", without_teacher(content, ["ce"])), Row("all", content, facts={"ratio": 1.0}))
    study = Study(place / "study", "ablation", rows, (0, 1), (Question("all", "base", "what kd adds"),), "made by")
    study.save()
    with pytest.raises(
        UserError, match=r"read at the end, when all rows are trained; 4 runs are missing: base, seed 0"
    ):
        read_test(study, ["base", "all"], "too early")
    assert read_study(study.folder).readings == ()
    train_study(study)
    return study


@pytest.fixture
def counted(monkeypatch):
    """The runs that were measured."""
    measured, real = [], reading.measure_stage

    def measure_stage(run, **options):
        measured.append(run.folder.name)
        real(run, **options)

    monkeypatch.setattr(reading, "measure_stage", measure_stage)
    return measured


def test_the_teacher_of_many_students_is_asked_once(place, content):
    """Its accuracy on clean and on corrupted images is the same for every student."""
    corrupted = {**content, "measure": {"corruptions": ["blur", "contrast"]}}
    row = Row("all", corrupted)
    study = Study(place / "once", "seeds", (row,), (0, 1), (), "made by")
    study.save()
    train_study(study)
    calls = sys.modules["study_nets"].CALLS
    calls.clear()
    read_test(study, ["all"], "the command")
    assert calls.count(40) == 3  # all test images: clean, blurred, with less contrast
    scores = [json.loads((study.place(row, seed) / "scores.json").read_text())["models"] for seed in (0, 1)]
    assert scores[0]["teacher"]["shift"] == scores[1]["teacher"]["shift"]
    assert list(scores[1]["teacher"]["shift"]) == ["blur", "contrast"]
    assert scores[0]["student"]["shift"] != scores[1]["student"]["shift"]
    with (
        np.load(study.place(row, 0) / "predictions.npz") as first,
        np.load(study.place(row, 1) / "predictions.npz") as second,
    ):
        names = [name for name in first.files if "teacher" in name and "test" in name]
        assert names
        assert all(np.array_equal(first[name], second[name]) for name in names)


def test_the_test_split_is_read_once_and_recorded(study, counted, monkeypatch):
    before = judge_study(study)
    assert (before["split"], before["done"], before["total"], before["readings"]) == ("validation", 4, 4, [])
    assert before["rows"][0]["maps"] == {}
    assert before["rows"][0]["read"] == []

    with monkeypatch.context() as patch:  # stopped after the first student

        def stop(run):
            raise KeyboardInterrupt

        patch.setattr(reading, "report_stage", stop)
        with pytest.raises(KeyboardInterrupt):
            read_test(study, ["base", "all"], "the command")
    (entry,) = read_study(study.folder).readings
    assert (entry["command"], entry["rows"], entry["seeds"]) == ("the command", ["base", "all"], [0, 1])
    assert entry["when"].startswith("20")
    assert judge_study(read_study(study.folder))["split"] == "validation"

    read = read_test(read_study(study.folder), ["base", "all"], "again")
    assert read.readings == (entry,)
    assert set(counted) == {"base-0", "base-1", "all-0", "all-1"}
    counted.clear()
    assert read_test(read, ["base", "all"], "and again").readings == (entry,)
    assert counted == []

    after = judge_study(read)
    assert after["split"] == "test"
    assert after["rows"][0]["value"]["n"] == 2
    assert after["rows"][0]["read"] == [0, 1]
    assert after["rows"][0]["validation"] == before["rows"][0]["validation"]
    assert after["rows"][1]["maps"].keys() == {"gradcam"}
    assert after["rows"][1]["values"]["0"] == pytest.approx(reading_of(study, "all-0"))

    # another process with the same command, which has not seen that reading
    assert read_test(study, ["base", "all"], "of a second worker").readings == (entry,)
    assert (counted, read_study(study.folder).readings) == ([], (entry,))

    # more seeds are another reading
    more = continue_study(Study(study.folder, "ablation", read.rows, (2,), read.questions, "more"))
    more.save()
    with pytest.raises(UserError, match="2 runs are missing"):
        read_test(more, ["base", "all"], "early")
    assert judge_study(more)["done"] == 4
    train_study(more)
    last = read_test(more, ["base", "all"], "more seeds")
    assert counted == ["base-2", "all-2"]
    assert [(entry["command"], entry["seeds"]) for entry in last.readings] == [
        ("the command", [0, 1]),
        ("more seeds", [2]),
    ]
    assert read_study(study.folder).readings == last.readings


def reading_of(study, name):
    scores = json.loads((study.folder / "runs" / name / "scores.json").read_text())
    return scores["models"]["student"]["test"]["accuracy"]


def test_a_row_with_one_failed_seed_is_read_where_it_was_trained(tmp_path, monkeypatch, content):
    rows = (Row("a", content), Row("b", content))
    study = Study(tmp_path, "seeds", rows, (0, 1))
    for row, seed in study.jobs:
        place = study.place(row, seed)
        place.mkdir(parents=True)
        failed = (row.name, seed) == ("b", 1)
        (place / "result.json").write_text('{"failed": "no"}' if failed else '{"seconds": 1}')
    monkeypatch.setattr(reading, "run_of", lambda study, row, seed: study.place(row, seed))
    monkeypatch.setattr(reading, "wait_and_lock", lambda run: reading.Work(None, "", 1))
    monkeypatch.setattr(reading, "measure_stage", lambda place, **_: (place / "scores.json").write_text("{}"))
    monkeypatch.setattr(reading, "report_stage", lambda place: None)
    read = read_test(study, ["a", "b"], "c")
    assert [(entry["rows"], entry["seeds"]) for entry in read.readings] == [(["a"], [0, 1]), (["b"], [0])]
    assert not is_read(study, "b", 1)
    (study.place(rows[1], 1) / "result.json").write_text('{"seconds": 1}')
    again = read_test(read, ["a", "b"], "d")
    assert [(entry["command"], entry["rows"], entry["seeds"]) for entry in again.readings[2:]] == [("d", ["b"], [1])]
