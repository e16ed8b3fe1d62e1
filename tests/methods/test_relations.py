"""dkd, dist, sp, rkd, pkt: their published formulas written out in NumPy, their limits, and what they do not depend on."""

import numpy as np
import pytest
import torch

from distilens.core import Answer, Batch, Output
from distilens.methods import build_methods
from distilens.methods.kd import KD

FEATURES = ("sp", "rkd", "pkt")
LOGITS = ("dkd", "dist")


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch_of(count: int = 6, progress: float = 1.0) -> Batch:
    labels = torch.arange(count) % 4
    return Batch(torch.rand(count, 3, 8, 8), labels, torch.arange(count), progress=progress)


def loss_of(part: str, ours: torch.Tensor, theirs: torch.Tensor, batch: Batch | None = None) -> torch.Tensor:
    (method,) = build_methods([part]).values()
    size = (8, 8)
    if part.split(":")[0] in FEATURES:
        output = Output(torch.zeros(len(ours), 4), {"last": ours}, size=size)
        return method.loss(batch or batch_of(len(ours)), output, Answer(features={"last": theirs}))
    return method.loss(batch or batch_of(len(ours)), Output(ours, {}, size=size), Answer(logits=theirs))


def soft(z: np.ndarray) -> np.ndarray:
    z = np.exp(z - z.max(1, keepdims=True))
    return z / z.sum(1, keepdims=True)


def test_dkd_is_its_two_divergences():
    ours, theirs = normal(6, 4, seed=0), normal(6, 4, seed=1)
    p, q = (soft(logits.numpy() / 3) for logits in (theirs, ours))
    expected = []
    for i, c in enumerate([0, 1, 2, 3, 0, 1]):
        binary = sum(a * np.log(a / b) for a, b in ((p[i, c], q[i, c]), (1 - p[i, c], 1 - q[i, c])))
        rest = [k for k in range(4) if k != c]
        a, b = p[i, rest] / p[i, rest].sum(), q[i, rest] / q[i, rest].sum()
        expected.append(9 * (1.5 * binary + 6 * (a * np.log(a / b)).sum()))
    found = loss_of("dkd:temperature=3,alpha=1.5,beta=6", ours, theirs)
    assert np.allclose(found.numpy(), expected, atol=1e-5)


def test_dkd_with_the_teachers_own_factor_is_kd():
    ours, theirs = normal(6, 4, seed=0), normal(6, 4, seed=1)
    whole = KD(temperature=3.0).loss(batch_of(), Output(ours, {}, size=(8, 8)), Answer(logits=theirs))
    binary = loss_of("dkd:temperature=3,alpha=1,beta=0", ours, theirs)
    rest = loss_of("dkd:temperature=3,alpha=0,beta=1", ours, theirs)
    others = 1 - (theirs / 3).softmax(1)[torch.arange(6), torch.arange(6) % 4]
    assert torch.allclose(binary + others * rest, whole, atol=1e-5)


def test_dkd_takes_the_teachers_class_where_there_is_no_label():
    ours, theirs = normal(6, 4, seed=0), normal(6, 4, seed=1)
    unlabelled = batch_of().replaced(targets=torch.full((6,), -1))
    named = batch_of().replaced(targets=theirs.argmax(1))
    pair = (loss_of("dkd", ours, theirs, one) for one in (unlabelled, named))
    assert torch.equal(*pair)


def test_dkd_is_finite_where_the_teacher_is_certain():
    ours = normal(6, 4, seed=0).requires_grad_()
    found = loss_of("dkd:temperature=1", ours, 200 * normal(6, 4, seed=1)).sum()
    found.backward()
    assert found.isfinite()
    assert ours.grad.isfinite().all()


def test_dist_is_its_two_correlations():
    ours, theirs = normal(6, 4, seed=0), normal(6, 4, seed=1)
    p, q = (soft(logits.numpy() / 2) for logits in (ours, theirs))
    rows = np.array([1 - np.corrcoef(p[i], q[i])[0, 1] for i in range(6)])
    columns = np.mean([1 - np.corrcoef(p[:, c], q[:, c])[0, 1] for c in range(4)])
    found = loss_of("dist:temperature=2,beta=3,gamma=2", ours, theirs)
    assert np.allclose(found.numpy(), 4 * (3 * rows + 2 * columns), atol=1e-4)
    assert loss_of("dist", ours[:1], theirs[:1]).isfinite().all()


def test_sp_is_its_matrices():
    ours, theirs = normal(6, 3, 4, 4, seed=0), normal(6, 5, 2, 2, seed=1)
    matrices = []
    for features in (ours, theirs):
        f = features.flatten(1).numpy()
        g = f @ f.T
        matrices.append(g / np.linalg.norm(g, axis=1, keepdims=True))
    expected = ((matrices[0] - matrices[1]) ** 2).sum() / 36
    assert float(loss_of("sp", ours, theirs).mean()) == pytest.approx(expected, rel=1e-4)


def test_rkd_is_its_distances_and_angles():
    ours, theirs = normal(6, 3, 4, 4, seed=0), normal(6, 5, 2, 2, seed=1)

    def huber(x):
        return np.where(np.abs(x) < 1, x**2 / 2, np.abs(x) - 0.5)

    far, turned = [], []
    for features in (ours, theirs):
        f = features.mean((2, 3)).numpy().astype(np.float64)
        d = np.array([[np.linalg.norm(a - b) for b in f] for a in f])
        far.append(d / d[d > 0].mean())
        angle = np.zeros((6, 6, 6))
        for i in range(6):
            for j in range(6):
                for k in range(6):
                    a, b = f[j] - f[i], f[k] - f[i]
                    if j != i and k != i:
                        angle[i, j, k] = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        turned.append(angle)
    expected = 25 * huber(far[0] - far[1]).mean() + 50 * huber(turned[0] - turned[1]).mean()
    assert float(loss_of("rkd", ours, theirs).mean()) == pytest.approx(expected, rel=1e-4)


def test_pkt_is_its_divergence():
    ours, theirs = normal(6, 3, 4, 4, seed=0), normal(6, 5, 2, 2, seed=1)
    chances = []
    for features in (ours, theirs):
        f = features.mean((2, 3)).numpy().astype(np.float64)
        f /= np.linalg.norm(f, axis=1, keepdims=True)
        k = (f @ f.T + 1) / 2
        chances.append(k / k.sum(1, keepdims=True))
    expected = (chances[1] * np.log((chances[1] + 1e-7) / (chances[0] + 1e-7))).mean()
    assert float(loss_of("pkt", ours, theirs).mean()) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("part", FEATURES)
def test_relations_do_not_depend_on_scale_and_turning(part):
    """0 for features that are the teacher's turned and scaled; positive for others; not of how many channels there are."""
    theirs = normal(6, 5, 2, 2, seed=1)
    turn = torch.linalg.qr(normal(5, 5, seed=2))[0]
    same = 3 * torch.einsum("bkij,kl->blij", theirs, turn)
    assert loss_of(part, same, theirs).abs().max() < 1e-5
    other = loss_of(part, normal(6, 7, 2, 2, seed=3), theirs)
    assert other.shape == (6,)
    assert (other.mean() if part == "pkt" else other.min()) > 0


@pytest.mark.parametrize("part", LOGITS)
def test_answers_that_agree_cost_nothing(part):
    theirs = normal(6, 4, seed=1)
    assert loss_of(part, theirs + 5, theirs).abs().max() < 1e-5
    assert (loss_of(part, normal(6, 4, seed=3), theirs) > 0).all()


@pytest.mark.parametrize("part", FEATURES)
def test_equal_images_and_single_ones_have_a_finite_gradient(part):
    for count in (1, 2, 4):
        ours = normal(1, 3, 2, 2, seed=0).repeat(count, 1, 1, 1).requires_grad_()
        loss_of(part, ours, normal(1, 5, 2, 2, seed=1).repeat(count, 1, 1, 1)).sum().backward()
        assert ours.grad.isfinite().all()


@pytest.mark.parametrize("part", FEATURES)
def test_the_teachers_tap_may_be_called_otherwise(part):
    (method,) = build_methods([f"{part}:tap=last-1,teacher_tap=layer2"]).values()
    assert method.needs == ("features:layer2",)
    assert method.taps == ("last-1",)
