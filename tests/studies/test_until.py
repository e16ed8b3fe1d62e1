"""Seeds that are added until questions are decided: which rows get them, when they stop, and what a stopped study does."""

import json

import numpy as np
import pytest

from distilens.foundation.errors import UserError
from distilens.studies import until
from distilens.studies.enough_seeds import repeated_interval
from distilens.studies.study import RESULT, Question, Row, Study, Until, continue_study, read_study
from distilens.studies.until import train_until, undecided
from distilens.studies.verdict import judge_study
from distilens.studies.work import missing

ACCURACY = {"name": "accuracy", "unit": "%", "higher_is_better": True}
RECIPE = {"data": "digits", "student": {"model": "resnet8", "methods": ["ce"]}}
BASE = 0.5 + 0.05 * np.random.default_rng(0).standard_normal(40)
SPREAD = np.random.default_rng(1).standard_normal(40)
ROWS = {
    "base": BASE,
    "clear": BASE + 0.04 + 0.001 * SPREAD,
    "same": BASE + 0.0002 * SPREAD,
    "noisy": BASE + 0.05 * SPREAD,
}


def make(folder, names=("clear", "same", "noisy"), seeds=3, rule=Until(0.5, 8)) -> Study:  # noqa: B008  # frozen
    rows = tuple(Row(name, RECIPE) for name in ("base", *names))
    questions = tuple(Question(name, "base", f"what {name} adds") for name in names)
    return Study(folder, "seeds", rows, tuple(range(seeds)), questions, "distilens seeds", until=rule)


def train(study, *, only=None, metric=ACCURACY, **_options):
    """In place of the training: what is missing gets its known score."""
    study.save()
    for name, seed in missing(study)[:only]:
        place = study.place(study.row(name), seed)
        place.mkdir(parents=True)
        value = float(ROWS[name][seed])
        result = {"metric": metric, "validation": {metric["name"]: value}, "curve": [value], "seconds": 1.0}
        (place / RESULT).write_text(json.dumps(result))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(until, "train_study", train)


def test_only_undecided_rows_get_seeds(tmp_path):
    study = train_until(make(tmp_path))
    counts = {row.name: len(study.seeds_of(row)) for row in study.rows}
    assert counts["clear"] < counts["noisy"] == counts["base"] == 8
    assert counts["same"] < 8
    assert [question.row for question in undecided(study)] == ["noisy"]
    decisions = {entry["row"]: entry["decision"] for entry in judge_study(study)["questions"]}
    assert decisions == {"clear": "better", "same": "no difference of that size", "noisy": "undecided"}


def test_the_interval_is_the_repeated_one_of_all_looks(tmp_path):
    study = train_until(make(tmp_path))
    verdict = judge_study(study)
    for entry in verdict["questions"]:
        n = entry["seeds"][0]
        differences = ROWS[entry["row"]][:n] - BASE[:n]
        expected = repeated_interval(differences, looks=range(3, n), maximum=8, level=0.05 / 3)
        assert (entry["low"], entry["high"]) == pytest.approx(expected.ends)
        assert (entry["p"], entry["p by Holm"]) == (None, None)
    assert verdict["total"] == verdict["done"] == 12 + len(study.more)


def test_a_lower_error_is_better(tmp_path, monkeypatch):
    lux = {"name": "error", "unit": "lux", "higher_is_better": False}
    monkeypatch.setattr(until, "train_study", lambda study, **_: train(study, metric=lux))
    study = train_until(make(tmp_path, ("clear",), rule=Until(0.01, 8)))
    (entry,) = judge_study(study)["questions"]
    assert entry["decision"] == "worse"
    assert entry["mean"] == pytest.approx(-0.04, abs=0.002)


def test_a_stopped_study_ends_as_an_unstopped_one(tmp_path, monkeypatch):
    whole = train_until(make(tmp_path / "whole"))

    def stop(study, **_):
        train(study, only=5)
        if missing(study):
            raise KeyboardInterrupt

    monkeypatch.setattr(until, "train_study", stop)
    for _ in range(40):
        try:
            stopped = train_until(continue_study(make(tmp_path / "stopped")))
            break
        except KeyboardInterrupt:
            continue
    assert stopped.jobs == whole.jobs
    assert read_study(tmp_path / "stopped").more == whole.more
    strip = ("name", "command")
    ours, theirs = (json.dumps({**judge_study(each), **dict.fromkeys(strip)}) for each in (stopped, whole))
    assert ours == theirs


def test_a_row_that_cannot_be_trained_gets_no_seeds(tmp_path, monkeypatch):
    def fail(study, **_):
        train(study)
        for path in study.folder.glob(f"runs/noisy-*/{RESULT}"):
            path.write_text('{"failed": "no such layer"}')

    monkeypatch.setattr(until, "train_study", fail)
    study = train_until(make(tmp_path, ("noisy",)))
    assert study.more == ()


def test_a_study_without_the_rule_gets_no_seeds(tmp_path):
    study = train_until(make(tmp_path, rule=None))
    assert study.more == ()
    assert [entry["decision"] for entry in judge_study(study)["questions"]] == [None] * 3


@pytest.mark.parametrize("changes", [{"seeds": 5}, {"rule": Until(0.5, 20)}, {"rule": Until(1.0, 8)}])
def test_a_rule_stays_as_it_was_when_the_first_look_was_taken(tmp_path, changes):
    """Another maximum, size or first number of seeds would make the intervals too narrow."""
    train_until(make(tmp_path, ("clear",)))
    continue_study(make(tmp_path, ("clear",)))
    continue_study(make(tmp_path, ("clear",), rule=None))
    with pytest.raises(UserError, match="they hold only if these stay as they were"):
        continue_study(make(tmp_path, ("clear",), **changes))


@pytest.mark.parametrize(
    ("points", "most", "seeds", "text"),
    [
        (0.0, 8, 3, "--until is above 0, and --most from 2 to 1000; given 0 and 8"),
        (0.5, 1, 1, "given 0.5 and 1"),
        (0.5, 4, 5, "--most 4 is less than the 5 seeds that every row has"),
    ],
)
def test_wrong_rules(tmp_path, points, most, seeds, text):
    with pytest.raises(UserError, match=text):
        make(tmp_path, seeds=seeds, rule=Until(points, most))
