"""The mean of probabilities, and weights by each teacher's own loss, against NumPy."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import softmax

from distilens.data.augment import AUGMENTS
from distilens.data.pipeline import Batches
from distilens.explain.maps import strength
from distilens.teachers import AdaptiveTeacher, LiveTeacher, MeanProbabilitiesTeacher, MeanTeacher, as_one

sys.path.insert(0, str(Path(__file__).parents[1]))

from segments import model, pictures

GRADCAM = "maps:gradcam:tap=encoder.4"


@pytest.fixture(scope="module")
def data():
    return pictures()


@pytest.fixture(scope="module")
def teachers():
    return [LiveTeacher(model(8, seed)) for seed in range(3)]


@pytest.fixture(scope="module")
def batch(data):
    return next(Batches(data.train, 6, augment=AUGMENTS.build("crop:padding=4,flip=random")).epoch(1))


def logits_of(teachers, batch):
    return np.stack([teacher(batch, ["logits"]).logits.numpy().astype(np.float64) for teacher in teachers])


def test_probabilities_are_averaged(teachers, batch):
    joined = MeanProbabilitiesTeacher(teachers)(batch, ["logits"]).logits
    by_hand = softmax(logits_of(teachers, batch), axis=2).mean(0)
    assert np.allclose(joined.exp().numpy(), by_hand, atol=1e-6)
    of_logits = MeanTeacher(teachers)(batch, ["logits"]).logits.softmax(1)
    assert not np.allclose(of_logits.numpy(), by_hand, atol=1e-3)


@pytest.mark.parametrize("tau", [0.05, 0.5])
def test_weights_follow_each_teachers_own_loss(teachers, batch, data, tau):
    logits = logits_of(teachers, batch)
    losses = np.stack([data.task.loss(torch.from_numpy(own), batch.targets).numpy() for own in logits])
    weights = softmax(-losses / tau, axis=0)
    by_hand = (weights[:, :, None, None, None] * softmax(logits, axis=2)).sum(0)
    joined = AdaptiveTeacher(teachers, tau=tau)(batch, ["logits", "features:encoder.4"])
    assert np.allclose(joined.logits.exp().numpy(), by_hand, atol=1e-5)
    features = torch.stack([teacher(batch, ["features:encoder.4"]).features["encoder.4"] for teacher in teachers])
    expected = torch.einsum("kb,kbchw->bchw", torch.from_numpy(weights).float(), features)
    assert torch.allclose(joined.features["encoder.4"], expected, atol=1e-5)


def test_an_image_without_a_target_weighs_all_alike(teachers, batch):
    unlabelled = batch.replaced(targets=torch.full_like(batch.targets, 255))
    one = AdaptiveTeacher(teachers)(unlabelled, ["logits"]).logits
    assert torch.allclose(one, MeanProbabilitiesTeacher(teachers)(batch, ["logits"]).logits, atol=1e-5)


def test_maps_explain_what_the_joined_logits_say(teachers, batch, data):
    answer = MeanProbabilitiesTeacher(teachers)(batch, [GRADCAM, "logits"])
    assert torch.equal(answer.targets[GRADCAM], data.task.explained(answer.logits))
    each = [strength(teacher(batch, [GRADCAM]).maps[GRADCAM]) for teacher in teachers]
    assert torch.allclose(answer.maps[GRADCAM], torch.stack(each).mean(0), atol=1e-6)


def test_they_are_found_by_name(teachers):
    assert as_one(teachers, "adaptive:tau=0.2").notation == "adaptive:tau=0.2"
    assert as_one(teachers, "mean_probabilities").identity["teacher"] == "mean_probabilities"
    with pytest.raises(Exception, match="tau"):
        as_one(teachers, "adaptive:tau=0")
