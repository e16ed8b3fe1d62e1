"""Calibration against scikit-learn, by hand, and on models whose calibration is known."""

import math

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from distilens.measure.reliability import (
    Confidence,
    calibration,
    calibration_apart,
    fitted_temperature,
    is_at_limit,
    negative_log_likelihood,
    with_temperature,
)


def sampled(n: int, temperature: float = 1.0, classes: int = 4, seed: int = 0):
    """Logits, and labels drawn from the probabilities that they would have at a temperature."""
    source = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, classes, generator=source)
    labels = torch.multinomial((logits / temperature).softmax(1), 1, generator=source)[:, 0]
    return logits, labels


def test_the_error_by_hand():
    # two bins: (0.0, 0.5] holds 0.4, 0.5; (0.5, 1.0] holds 0.6, 0.9, 1.0
    found = Confidence(np.array([0.4, 0.5, 0.6, 0.9, 1.0]), np.array([True, False, False, True, True]), bins=2)
    assert found.bin.tolist() == [0, 0, 1, 1, 1]
    assert found.error() == pytest.approx((abs(1 - 0.9) + abs(2 - 2.5)) / 5)
    assert found.reliability() == [
        {"low": 0.0, "high": 0.5, "count": 2, "confidence": pytest.approx(0.45), "accuracy": 0.5},
        {"low": 0.5, "high": 1.0, "count": 3, "confidence": pytest.approx(2.5 / 3), "accuracy": pytest.approx(2 / 3)},
    ]


def test_reliability_is_scikit_learns():
    logits, labels = sampled(3000, temperature=2)
    found = Confidence.of(logits, labels)
    right, sure = calibration_curve(found.right, found.sure, n_bins=15)
    filled = [one for one in found.reliability() if one["count"]]
    np.testing.assert_allclose([one["accuracy"] for one in filled], right)
    np.testing.assert_allclose([one["confidence"] for one in filled], sure)
    gaps = [one["count"] * abs(one["accuracy"] - one["confidence"]) for one in filled]
    assert found.error() == pytest.approx(sum(gaps) / 3000)


def test_the_likelihood_is_scikit_learns_and_guessing_gives_log_classes():
    logits, labels = sampled(200)
    expected = log_loss(labels.numpy(), logits.double().softmax(1).numpy(), labels=range(4))
    assert negative_log_likelihood(logits, labels).mean().item() == pytest.approx(expected)
    assert negative_log_likelihood(torch.zeros(1, 4), torch.tensor([2])).item() == pytest.approx(math.log(4))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_the_labels_is_found(temperature):
    logits, labels = sampled(20_000, temperature)
    found = fitted_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.05)
    least = negative_log_likelihood(logits / found, labels).mean()
    assert all(negative_log_likelihood(logits / (found * factor), labels).mean() > least for factor in (0.98, 1.02))


def test_after_its_temperature_a_model_that_was_too_sure_is_calibrated():
    test, validation = sampled(4000, 2, seed=1), sampled(4000, 2, seed=2)
    before, after = calibration(*test), with_temperature(test, validation)
    assert before["ece"]["low"] > before["ece"]["floor high"]
    assert after["ece"]["value"] < after["ece"]["floor high"] < before["ece"]["value"]
    assert after["nll"]["high"] < before["nll"]["low"]
    assert (after["n"], after["at limit"]) == (4000, False)


def test_a_calibrated_model_shows_no_more_than_the_floor_and_intervals_repeat():
    found = calibration(*sampled(500))
    assert found["ece"]["floor"] / 3 < found["ece"]["value"] < found["ece"]["floor high"]
    assert 0 <= found["ece"]["low"] <= found["ece"]["value"] <= found["ece"]["high"]
    assert found["nll"]["low"] < found["nll"]["value"] < found["nll"]["high"]
    assert found == calibration(*sampled(500))
    wider = calibration(*sampled(100))["nll"]
    assert wider["high"] - wider["low"] > 1.5 * (found["nll"]["high"] - found["nll"]["low"])


def test_where_all_images_are_right_no_temperature_is_best():
    logits = 5 * torch.eye(4)
    assert is_at_limit(fitted_temperature(logits, torch.arange(4)))


def test_images_without_label_or_finite_logits_are_left_out_and_counted():
    logits, labels = sampled(50)
    with_more = torch.cat([logits, torch.tensor([[math.nan] * 4, [math.inf, 0, 0, 0], [1.0, 2, 3, 4]])])
    found = calibration(with_more, torch.cat([labels, torch.tensor([0, 0, -1])]))
    assert found == calibration(logits, labels) | {"not finite": 2}
    nothing = calibration(torch.full((3, 4), math.nan), torch.zeros(3, dtype=torch.long))
    assert (nothing["ece"], nothing["n"], nothing["not finite"]) == (None, 0, 3)
    unlabelled = torch.full((2,), -1)
    assert with_temperature((logits, labels), (torch.zeros(2, 4), unlabelled)) is None


def test_one_image():
    found = calibration(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
    assert found["n"] == 1
    assert found["ece"]["value"] == pytest.approx(1 - torch.tensor([2.0, 0.0]).softmax(0)[0].item())


def test_differences_of_the_same_images():
    logits, labels = sampled(2000)
    same = calibration_apart(logits, logits, labels)
    assert (same["ece"]["mean"], same["ece"]["low"], same["nll"]["high"]) == (0, 0, 0)
    surer = calibration_apart(3 * logits, logits, labels)
    assert surer["ece"]["low"] > 0 and surer["nll"]["low"] > 0
    other = calibration_apart(logits, 3 * logits, labels)
    assert other["nll"]["mean"] == pytest.approx(-surer["nll"]["mean"])
    assert calibration_apart(logits[:1], logits[:1], labels[:1]) == {"ece": None, "nll": None}
