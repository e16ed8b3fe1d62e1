"""What was measured of a study's students, by row and seed, on validation, on test and on corrupted test images."""

import json

import pytest

from distilens.foundation.metric import ACCURACY
from distilens.studies.study import RESULT, Row, Study
from distilens.studies.values import is_complete, means_of_curves, metric_of, shift_values, student_of, values_of

RECIPE = {"data": "digits", "student": {"model": "resnet8", "methods": ["ce"]}}


@pytest.fixture
def study(tmp_path):
    """Two rows and two seeds: one run failed, one is not finished, one was measured on the test split."""
    study = Study(tmp_path, "seeds", (Row("a", RECIPE), Row("b", RECIPE)), (0, 1))
    results = {
        ("a", 0): {"metric": ACCURACY.plain(), "validation": {"accuracy": 0.5}, "curve": [0.1, 0.3, 0.5]},
        ("a", 1): {"metric": ACCURACY.plain(), "validation": {"accuracy": 0.6}, "curve": []},
        ("b", 0): {"failed": "no such layer"},
    }
    for (name, seed), result in results.items():
        place = study.place(study.row(name), seed)
        place.mkdir(parents=True)
        (place / RESULT).write_text(json.dumps(result))
    student = {"test": {"accuracy": 0.45}, "shift": {"blur": {"accuracy": 0.3}}}
    (study.place(study.row("a"), 0) / "scores.json").write_text(json.dumps({"models": {"student": student}}))
    return study


def test_values_by_seed(study):
    a, b = study.rows
    assert values_of(study, a, ACCURACY, "validation") == {0: 0.5, 1: 0.6}
    assert values_of(study, a, ACCURACY, "test") == {0: 0.45, 1: None}
    assert values_of(study, b, ACCURACY, "validation") == {}
    assert means_of_curves(study, a) == {0: pytest.approx(0.3), 1: None}
    assert shift_values(study, a, ACCURACY) == {"blur": {0: 0.3}}
    assert shift_values(study, b, ACCURACY) == {}
    assert student_of(study, a, 1) == {}
    assert metric_of(study) == ACCURACY


def test_a_study_is_complete_when_all_finished_students_were_read(study):
    assert not is_complete(study)
    (study.place(study.row("a"), 1) / "scores.json").write_text("{}")
    assert is_complete(study)


def test_a_study_without_results_has_the_usual_metric_and_is_not_complete(tmp_path):
    empty = Study(tmp_path, "seeds", (Row("a", RECIPE),), (0,))
    assert metric_of(empty) == ACCURACY
    assert not is_complete(empty)
