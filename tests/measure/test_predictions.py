"""The file of predictions: whole, exact where it is small, bounded where it is large; and what is scored from it."""

import json
import math

import numpy as np
import pytest
import torch

from distilens.foundation.errors import UserError
from distilens.measure import predictions
from distilens.measure.answers import errors_of, score_answers
from distilens.measure.predictions import Predictions, SplitPredictions, read_predictions
from distilens.tasks import as_task

CLASSES = ("cat", "dog, wolf", "ship")


def split(count: int, *, classes: int = 3, names: bool = True, seed: int = 0) -> SplitPredictions:
    random = np.random.default_rng(seed)
    logits = {role: random.normal(size=(count, classes)).astype(np.float32) for role in ("teacher", "base", "student")}
    files = tuple(f"cat/Bild {at} ä.png" for at in range(count)) if names else None
    return SplitPredictions(random.integers(0, classes, count), np.arange(count) * 3, logits, files, count)


def test_what_is_read_is_what_was_written(tmp_path):
    written = Predictions(as_task(CLASSES), split(20), split(5, names=False, seed=1))
    written.save(tmp_path / "predictions.npz")
    found = read_predictions(tmp_path / "predictions.npz")
    assert found.classes == CLASSES
    for one, other in ((found.test, written.test), (found.validation, written.validation)):
        assert (one.names, one.total, len(one)) == (other.names, other.total, len(other))
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.index, other.index)
        for role in ("teacher", "base", "student"):
            np.testing.assert_array_equal(one.logits[role], other.logits[role])
    assert found.test.logits["student"].dtype == np.float32
    assert repr(found) == "Predictions(teacher, base, student; 20 test, 5 validation images)"
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.npz"]
    np.testing.assert_allclose(found.test.probabilities("base").sum(1), 1)
    assert found.test.predicted("base").tolist() == written.test.logits["base"].argmax(1).tolist()
    assert (found.test.name(2), found.validation.name(2)) == ("cat/Bild 2 ä.png", "image 6")


def test_many_logits_are_halved_and_very_many_bounded(tmp_path, monkeypatch):
    written = Predictions(as_task(CLASSES), split(40), split(20))
    written.test.logits["student"][0] = [1e6, -1e6, math.nan]
    monkeypatch.setattr(predictions, "EXACT", 100)
    written.save(tmp_path / "half.npz")
    half = read_predictions(tmp_path / "half.npz").test
    assert half.logits["student"].dtype == np.float16
    assert half.logits["student"][0, :2].tolist() == [65504, -65504]
    assert np.isnan(half.logits["student"][0, 2])
    np.testing.assert_allclose(half.logits["base"], written.test.logits["base"], rtol=1e-3)
    monkeypatch.setattr(predictions, "MOST", 270)
    written.save(tmp_path / "part.npz")
    part = read_predictions(tmp_path / "part.npz").test
    assert (len(part), part.total) == (20, 40)
    assert (np.diff(part.index) > 0).all()
    for row, index in enumerate(part.index.tolist()):
        assert part.names[row] == written.test.names[index // 3]
        assert part.labels[row] == written.test.labels[index // 3]


def test_no_file_and_a_damaged_one(tmp_path):
    with pytest.raises(UserError, match=r"an earlier version measured it.*distilens measure"):
        read_predictions(tmp_path / "predictions.npz")
    Predictions(as_task(CLASSES), split(20), split(5)).save(tmp_path / "predictions.npz")
    whole = (tmp_path / "predictions.npz").read_bytes()
    (tmp_path / "predictions.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="is damaged"):
        read_predictions(tmp_path / "predictions.npz")


def test_scores_of_answers_are_plain_and_compare_the_student_with_the_base():
    found = Predictions(as_task(CLASSES), split(60), split(30, seed=1))
    scores = score_answers(found)
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores
    student, base = scores["student"], scores["base"]
    more = student["more than base"]
    for key in ("test", "validation", "agreement"):
        assert more[key]["mean"] == pytest.approx(student[key]["accuracy"] - base[key]["accuracy"])
    for key in ("ece", "nll"):
        apart = student["calibration"][key]["value"] - base["calibration"][key]["value"]
        assert more[key]["mean"] == pytest.approx(apart)
    assert (student["top5"], scores["teacher"]["agreement"]) == (None, None)
    assert "more than base" not in base
    assert sum(map(sum, student["confusion"]["matrix"])) == 60
    six = score_answers(Predictions(as_task("abcdef"), split(60, classes=6), split(30, classes=6)))["student"]
    assert six["top5"]["accuracy"] > six["test"]["accuracy"]
    assert six["more than base"]["top5"]["n"] == 60


@pytest.mark.parametrize("count", [1, 3])
def test_scores_of_single_images_and_of_models_that_answer_nothing(count):
    found = Predictions(as_task(CLASSES), split(count), split(count))
    found.test.logits["base"][:] = math.nan
    scores = score_answers(found)
    json.dumps(scores, allow_nan=False)
    assert scores["base"]["test"]["accuracy"] == 0
    assert scores["base"]["calibration"]["ece"] is None
    assert scores["student"]["more than base"]["ece"] is None


def test_a_class_that_the_test_split_lacks():
    found = Predictions(as_task(CLASSES), split(40), split(40))
    found.test.labels[found.test.labels == 1] = 0
    scores = score_answers(found)
    assert scores["student"]["by class"]["dog, wolf"] is None
    assert scores["student"]["confusion"]["matrix"][1] == [0, 0, 0]


def test_errors_name_the_files():
    test = split(30)
    found = errors_of(Predictions(as_task(CLASSES), test, test))
    assert found[0]["name"] == test.names[found[0]["row"]]
    assert found[0]["index"] == 3 * found[0]["row"]
    assert all(not one["right"]["student"] for one in found)
    assert [one["confidence"] for one in found] == sorted((one["confidence"] for one in found), reverse=True)
    alone = SplitPredictions(test.labels, test.index, {"base": test.logits["base"]}, None, 30)
    assert errors_of(Predictions(as_task(CLASSES), alone, alone))[0]["name"].startswith("image ")
    certain = torch.nn.functional.one_hot(torch.from_numpy(test.labels), 3).float().numpy()
    right = SplitPredictions(test.labels, test.index, {"base": certain}, None, 30)
    assert errors_of(Predictions(as_task(CLASSES), right, right)) == []
