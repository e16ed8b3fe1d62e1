"""Every loss agrees with finite differences, is a term per sample, and asks nothing of images it does not know."""

import pytest
import torch
from torch.nn import functional

from distilens.core import Answer, Batch, Method, Mixed, Output
from distilens.methods import METHODS, build_methods
from distilens.methods.ce import CE
from distilens.methods.kd import KD
from distilens.methods.labels import DENSE

COUNT, CLASSES = 5, 7


@pytest.fixture
def logits():
    return torch.randn(COUNT, CLASSES, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def answer():
    return Answer(logits=torch.randn(COUNT, CLASSES, dtype=torch.float64))


def batch(**changes) -> Batch:
    labels = changes.pop("targets", torch.tensor([0, 6, -1, 2, 2]))
    return Batch(torch.rand(COUNT, 3, 4, 4), labels, torch.arange(COUNT), **changes)


MIXED = Mixed(torch.tensor([1, 1, 0, -1, 5]), torch.tensor([0.2, 1.0, 0.5, 0.7, 0.0]))


@pytest.mark.parametrize("part", ["ce", "ce:smoothing=0.2", "kd:temperature=1", "kd:temperature=4"])
@pytest.mark.parametrize("mixed", [None, MIXED], ids=["plain", "mixed"])
def test_the_gradient_agrees_with_finite_differences(part, mixed, logits, answer):
    """Losses are computed in float32: central differences over a step large enough for that."""
    (method,) = build_methods([part]).values()
    given = batch(mixed=mixed)

    def loss(z):
        return method.loss(given, Output(z), answer).double().sum()

    (gradient,) = torch.autograd.grad(loss(logits), logits)
    direction = torch.randn(logits.shape, dtype=torch.float64)
    step = 0.02
    difference = (loss(logits + step * direction) - loss(logits - step * direction)).item() / (2 * step)
    assert gradient.abs().max() > 0
    assert (gradient * direction).sum().item() == pytest.approx(difference, rel=2e-3)


BUILT = {name: METHODS.build(name) for name in METHODS}
WITH_LOSS = [  # of logits alone; what is made ready on a batch, or reads features and maps, has tests of its own
    name for name, method in BUILT.items()
    if type(method).loss is not Method.loss and set(method.needs) <= {"logits"} and type(method).prepare is Method.prepare
    and method.tasks != DENSE
]  # fmt: skip


OF_THE_BATCH = {"dist": "dist:gamma=0", "mlkd": "mlkd:images=0,classes=0"}
"""Methods with a part that is of the whole batch, and says so: without it."""


@pytest.mark.parametrize("part", WITH_LOSS)
def test_a_term_is_per_sample_and_a_sample_does_not_know_the_others(part, logits, answer):
    (method,) = build_methods([OF_THE_BATCH.get(part, part)]).values()
    whole = method.loss(batch(), Output(logits), answer)
    assert whole.shape == (COUNT,)
    for number in range(COUNT):
        one = slice(number, number + 1)
        given = Batch(torch.rand(1, 3, 4, 4), batch().labels[one], torch.arange(1))
        alone = method.loss(given, Output(logits[one]), Answer(logits=answer.logits[one]))
        assert alone.item() == pytest.approx(whole[number].item(), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_ce_is_torchs_and_zero_without_a_label(smoothing, logits):
    found = CE(smoothing=smoothing).loss(batch(), Output(logits), Answer())
    known = batch().labels >= 0
    expected = functional.cross_entropy(
        logits[known].float(), batch().labels[known], label_smoothing=smoothing, reduction="none"
    )
    assert torch.allclose(found[known], expected)
    assert found[~known].item() == 0
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert not gradient[~known].any()
    assert gradient[known].any(1).all()


def test_ce_of_mixed_images_is_linear_in_the_share(logits):
    own, other = (
        CE().loss(batch(targets=labels), Output(logits), Answer()) for labels in (batch().labels, MIXED.targets)
    )
    found = CE().loss(batch(mixed=MIXED), Output(logits), Answer())
    assert torch.allclose(found, MIXED.share * own + (1 - MIXED.share) * other)


def test_kd_knows_only_differences_of_logits_and_is_asymmetric(logits, answer):
    method = KD(temperature=3.0)
    base = method.loss(batch(), Output(logits), answer)
    shifted = method.loss(batch(), Output(logits + 10), Answer(logits=answer.logits - 7))
    assert torch.allclose(base, shifted, rtol=1e-4)
    order = torch.randperm(CLASSES)
    permuted = method.loss(batch(), Output(logits[:, order]), Answer(logits=answer.logits[:, order]))
    assert torch.allclose(base, permuted, rtol=1e-4)
    swapped = method.loss(batch(), Output(answer.logits), Answer(logits=logits.detach()))
    assert not torch.allclose(base, swapped, rtol=1e-2)


def test_kd_in_bfloat16_autocast_is_computed_in_float32(logits, answer):
    expected = KD().loss(batch(), Output(logits), answer)
    with torch.autocast("cpu", torch.bfloat16):
        found = KD().loss(batch(), Output(logits), answer)
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, rtol=1e-5)


def test_kd_moves_the_students_logits_and_not_their_mean(logits):
    KD().loss(batch(), Output(logits), Answer(logits=torch.randn(COUNT, CLASSES))).sum().backward()
    assert logits.grad.abs().sum() > 0
    assert logits.grad.sum(1).abs().max() < 1e-5  # softmax: shifts have no gradient


def test_very_confident_teachers_and_students_give_finite_losses():
    hard = torch.zeros(COUNT, CLASSES)
    hard[:, 0] = 1e4
    far = torch.zeros(COUNT, CLASSES)
    far[:, 1] = 1e4
    far.requires_grad_()
    loss = KD(temperature=1.0).loss(batch(), Output(far), Answer(logits=hard))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert far.grad.isfinite().all()
