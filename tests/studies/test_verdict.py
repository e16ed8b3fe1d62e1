"""The verdict of a study: paired differences, signs, Holm, one seed, unfinished studies."""

import json

import pytest

from distilens.studies.study import RESULT, Question, Row, Study
from distilens.studies.verdict import judge_study, mean_curve

ACCURACY = {"name": "accuracy", "unit": "%", "higher_is_better": True}
LUX = {"name": "mean absolute error", "unit": "lux", "higher_is_better": False}
BASE = [0.50, 0.60, 0.55, 0.65]


def make(folder, seeds=4, names=("base", "kd", "at")) -> Study:
    rows = tuple(Row(name, {"data": "digits", "student": {"model": "resnet8", "methods": ["ce"]}}) for name in names)
    questions = tuple(Question(name, names[0], f"what {name} adds") for name in names[1:])
    return Study(folder, "ablation", rows, tuple(range(seeds)), questions, "distilens ablate")


def finish(study, row, values, metric=ACCURACY, **more):
    for seed, value in enumerate(values):
        place = study.place(study.row(row), seed)
        place.mkdir(parents=True, exist_ok=True)
        result = {"metric": metric, "validation": {metric["name"]: value}, "curve": [0.1, value], "seconds": 2.0 + seed}
        (place / RESULT).write_text(json.dumps({**result, **more}))


def test_differences_are_paired_and_corrected(tmp_path):
    study = make(tmp_path)
    finish(study, "base", BASE)
    finish(study, "kd", [value + gain for value, gain in zip(BASE, (0.019, 0.020, 0.021, 0.020), strict=True)])
    finish(study, "at", [value + gain for value, gain in zip(BASE, (-0.02, 0.02, 0.01, -0.01), strict=True)])
    verdict = judge_study(study)
    kd, at = verdict["questions"]
    assert kd["mean"] == pytest.approx(0.02)
    assert kd["test"] == "paired t"
    assert kd["p"] < 0.001  # unpaired, the spread of the base would hide it
    assert kd["p by Holm"] == pytest.approx(2 * kd["p"])
    assert at["p by Holm"] == pytest.approx(at["p"])
    assert at["more seeds"] > 0
    assert verdict["rows"][0]["value"]["mean"] == pytest.approx(0.575)
    assert verdict["rows"][0]["seconds"] == 3.5
    assert [point["n"] for point in verdict["rows"][0]["curve"]] == [4, 4]


def test_a_lower_error_is_a_gain(tmp_path):
    study = make(tmp_path, names=("base", "kd"))
    finish(study, "base", [0.30, 0.31, 0.32, 0.30], LUX)
    finish(study, "kd", [0.20, 0.22, 0.21, 0.21], LUX)
    verdict = judge_study(study)
    (question,) = verdict["questions"]
    assert question["mean"] == pytest.approx(0.0975)
    assert question["more seeds"] is None
    assert verdict["metric"] == LUX


def test_one_seed_is_not_tested(tmp_path):
    study = make(tmp_path, seeds=1)
    for name in ("base", "kd", "at"):
        finish(study, name, [0.5])
    for question in judge_study(study)["questions"]:
        assert question["p"] is None
        assert question["p by Holm"] is None
        assert question["low"] is None


def test_an_unfinished_study_is_judged_by_what_is_there(tmp_path):
    study = make(tmp_path)
    empty = judge_study(study)
    assert (empty["done"], empty["total"], empty["split"]) == (0, 12, "validation")
    assert all(question["mean"] is None and question["p by Holm"] is None for question in empty["questions"])
    finish(study, "base", BASE)
    finish(study, "kd", [0.6, 0.7])
    verdict = judge_study(study)
    assert verdict["done"] == 6
    assert verdict["questions"][0]["seeds"] == [2, 2]
    assert verdict["questions"][0]["mean"] == pytest.approx(0.1)
    assert verdict["rows"][2]["value"]["mean"] is None
    json.dumps(verdict, allow_nan=False)


def test_failed_and_diverged_rows_are_named(tmp_path):
    study = make(tmp_path)
    finish(study, "base", BASE, diverged="the loss is nan")
    for seed in range(4):
        place = study.place(study.row("kd"), seed)
        place.mkdir(parents=True)
        (place / RESULT).write_text('{"failed": "no such layer"}')
    verdict = judge_study(study)
    assert verdict["rows"][0]["diverged"] == [0, 1, 2, 3]
    assert verdict["rows"][1]["failed"] == "no such layer"
    assert verdict["rows"][1]["runs"] == {}
    assert verdict["done"] == 8


def test_a_curve_has_the_epochs_of_all_seeds():
    assert [(point["mean"], point["n"]) for point in mean_curve([[0.0, 0.5, 1.0], [1.0, 1.0]])] == [(0.5, 2), (0.75, 2)]
    assert mean_curve([]) == []


def test_learning_is_judged_by_the_means_of_the_curves(tmp_path):
    study = make(tmp_path, names=("base", "kd"))
    finish(study, "base", BASE)
    finish(study, "kd", [value + gain for value, gain in zip(BASE, (0.02, 0.04, 0.06, 0.04), strict=True)])
    verdict = judge_study(study)
    assert verdict["rows"][0]["learning"]["mean"] == pytest.approx((0.1 + 0.575) / 2)
    (question,) = verdict["learning"]
    assert (question["row"], question["against"]) == ("kd", "base")
    assert question["mean"] == pytest.approx(0.02)  # half of the gain at the end: the first epochs are alike
    assert question["p"] == pytest.approx(verdict["questions"][0]["p"])
    finish(study, "kd", [0.6], curve=[])
    assert judge_study(study)["learning"][0]["n"] == 3


def test_maps_and_agreement_are_those_of_the_split(tmp_path):
    study = make(tmp_path, seeds=2, names=("kd",))
    finish(study, "kd", [0.6, 0.7], agreement={"accuracy": 0.5, "n": 10})
    (before,) = judge_study(study)["rows"]
    assert (before["agreement"]["mean"], before["energy"], before["maps"]) == (0.5, {}, {})
    for seed, energy in enumerate((0.3, 0.5)):
        maps = {"gradcam": {"similarity": None, "energy_in_mask": energy}}
        student = {"test": {"accuracy": 0.6}, "agreement": {"accuracy": 0.8, "n": 10}, "maps": maps}
        (study.place(study.row("kd"), seed) / "scores.json").write_text(json.dumps({"models": {"student": student}}))
    (after,) = judge_study(study)["rows"]
    assert after["agreement"]["mean"] == 0.8
    assert after["energy"]["gradcam"]["mean"] == pytest.approx(0.4)
    assert after["maps"] == {}
