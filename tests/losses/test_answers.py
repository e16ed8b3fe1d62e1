"""Losses of logits are their formulas, written out with NumPy."""

import numpy as np
import pytest
import torch
from jaxtyping import config
from scipy.special import log_softmax, softmax

from distilens.foundation.errors import UserError
from distilens.losses import answers
from distilens.losses.answers import ce, dkd, kd, mlkd, standardised

LABELS = torch.tensor([2, 0, -1, 1, 3])


def logits(seed: int) -> torch.Tensor:
    return 3 * torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))


def divergence(theirs: np.ndarray, ours: np.ndarray) -> np.ndarray:
    return (theirs * (np.log(theirs) - np.log(ours))).sum(-1)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_ce_is_the_cross_entropy_with_a_smoothed_label(smoothing):
    ours = logits(0)
    wanted = (1 - smoothing) * np.eye(4)[LABELS] + smoothing / 4
    expected = -(wanted * log_softmax(ours.double().numpy(), 1)).sum(1)
    expected[2] = 0  # no label
    assert np.allclose(ce(ours, LABELS, smoothing=smoothing, reduction="none"), expected, atol=1e-5)


def test_without_options_ce_is_not_smoothed_and_kd_and_dkd_have_the_papers_factors():
    ours, theirs = logits(0), logits(1)
    assert torch.equal(ce(ours, LABELS), ce(ours, LABELS, smoothing=0.0, reduction="mean"))
    assert torch.equal(kd(ours, theirs), kd(ours, theirs, temperature=4.0, standardise=False))
    assert torch.equal(dkd(ours, theirs, LABELS), dkd(ours, theirs, LABELS, temperature=4.0, alpha=1.0, beta=2.0))
    given = {"temperatures": (2, 3, 4, 5, 6), "instance": 1, "images": 1, "classes": 1}
    assert torch.equal(mlkd(ours, theirs), mlkd(ours, theirs, **given))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("standard", [False, True])
def test_kd_is_the_softened_divergence_times_the_squared_temperature(temperature, standard):
    ours, theirs = logits(0).double().numpy(), logits(1).double().numpy()
    if standard:
        ours, theirs = ((z - z.mean(1, keepdims=True)) / z.std(1, keepdims=True, ddof=1) for z in (ours, theirs))
    expected = temperature**2 * divergence(softmax(theirs / temperature, 1), softmax(ours / temperature, 1))
    found = kd(logits(0), logits(1), temperature=temperature, standardise=standard, reduction="none")
    assert np.allclose(found, expected, rtol=1e-4)


def test_standardised_logits_have_mean_0_and_deviation_1_but_a_small_deviation_counts_as_a_hundredth():
    found = standardised(logits(0))
    assert torch.allclose(found.mean(1), torch.zeros(5), atol=1e-6)
    assert torch.allclose(found.std(1), torch.ones(5), atol=1e-5)
    small = torch.tensor([[0.001, -0.001, 0.0, 0.0]])
    assert torch.allclose(standardised(small), small / 0.01)


@pytest.mark.parametrize(("temperature", "alpha", "beta"), [(1.0, 1.0, 0.0), (2.0, 0.0, 3.0), (3.0, 2.0, 5.0)])
def test_dkd_is_the_labels_part_and_that_of_the_others(temperature, alpha, beta):
    ours, theirs = (softmax(logits(seed).double().numpy() / temperature, 1) for seed in (0, 1))
    expected = []
    for p, q, label in zip(ours, theirs, LABELS.tolist(), strict=True):
        label = int(q.argmax()) if label < 0 else label
        whole = divergence(*(np.array([each[label], 1 - each[label]]) for each in (q, p)))
        rest = divergence(*(np.delete(each, label) / (1 - each[label]) for each in (q, p)))
        expected.append(temperature**2 * (alpha * whole + beta * rest))
    options = {"temperature": temperature, "alpha": alpha, "beta": beta, "reduction": "none"}
    assert np.allclose(dkd(logits(0), logits(1), LABELS, **options), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("instance", "images", "classes"), [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (2.0, 3.0, 5.0)]
)
def test_mlkd_is_its_three_levels_at_all_temperatures(instance, images, classes):
    expected = np.zeros(5)
    for temperature in (2.0, 5.0):
        p, q = (softmax(logits(seed).double().numpy() / temperature, 1) for seed in (0, 1))
        expected += instance * temperature**2 * divergence(q, p)
        expected += images * ((p @ p.T - q @ q.T) ** 2).sum(1)
        expected += classes * ((p.T @ p - q.T @ q) ** 2).sum() / 4
    factors = {"instance": instance, "images": images, "classes": classes, "reduction": "none"}
    assert np.allclose(mlkd(logits(0), logits(1), temperatures=[2, 5], **factors), expected, rtol=1e-4)


def test_a_class_that_is_impossible_for_both_counts_nothing():
    both = torch.log_softmax(torch.tensor([[0.3, 1.0, -torch.inf]]), 1)
    other = torch.log_softmax(torch.tensor([[1.0, 0.3, -torch.inf]]), 1)
    assert answers.divergence(both, both).item() == 0
    expected = divergence(both[:, :2].exp().numpy(), other[:, :2].exp().numpy())
    assert np.allclose(answers.divergence(both, other), expected, rtol=1e-5)


@pytest.fixture
def unchecked():
    """Without the checks of shapes in annotations, which a user does not have."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("loss", [kd, mlkd, lambda ours, theirs: dkd(ours, theirs, LABELS[: len(ours)])])
def test_logits_of_other_images_or_classes_are_refused(loss, unchecked):
    with pytest.raises(UserError, match="number of images"):
        loss(logits(0), logits(1)[:4])
    with pytest.raises(UserError, match="number of classes"):
        loss(logits(0), logits(1)[:, :3])


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, 1.5])
def test_a_smoothing_that_is_no_share_is_refused(smoothing):
    with pytest.raises(UserError, match=r"smoothing must be in \[0, 1\)"):
        ce(logits(0), LABELS, smoothing=smoothing)
