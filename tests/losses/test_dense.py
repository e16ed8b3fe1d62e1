"""Losses between the places of dense answers and features: their formulas in NumPy, and what no dense loss may depend on.

The published code of several of these breaks one of the rules here: it mixes images, divides by the void places, by the classes
or by the size of the image, or takes the logarithm of a probability that is 0.
"""

import numpy as np
import pytest
import torch
from jaxtyping import config
from scipy.special import log_softmax, softmax
from torch.nn import functional

from distilens import losses
from distilens.foundation.errors import UserError
from distilens.tasks import VOID

COUNT, CLASSES, SIDE = 3, 4, 4


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def maps(seed: int, channels: int = CLASSES, side: int = SIDE) -> torch.Tensor:
    return normal(COUNT, channels, side, side, seed=seed)


def masks(void: float = 0.3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    made = torch.randint(0, CLASSES, (COUNT, SIDE, SIDE), generator=generator)
    return made.masked_fill(torch.rand(made.shape, generator=generator) < void, VOID).byte()


LOSSES = {
    "kd": lambda s, t, y, **how: losses.kd(s, t, **how),
    "standardised": lambda s, t, y, **how: losses.kd(s, t, standardise=True, **how),
    "dkd": lambda s, t, y, **how: losses.dkd(s, t, y, **how),
    "dist": lambda s, t, y, **how: losses.dist(s, t, **how),
    "cwd": lambda s, t, y, **how: losses.cwd(s, t, **how),
    "pairwise": lambda s, t, y, **how: losses.pairwise(s, t, pool=1, **how),
    "ifvd": lambda s, t, y, **how: losses.ifvd(s, t, y, **how),
    "cross_image": lambda s, t, y, **how: losses.cross_image(s, t, pool=1, **how),
    "dice": lambda s, t, y, **how: losses.dice(s, y, **how),
    "lovasz": lambda s, t, y, **how: losses.lovasz(s, y, **how),
}
OF_LABELS = ("dice", "lovasz")
LABELLED = (*OF_LABELS, "ifvd")
RESIZING = ("kd", "dkd", "dist", "cwd")
"""They bring the teacher's logits onto the student's grid."""


def each(name: str, *given: torch.Tensor) -> torch.Tensor:
    return LOSSES[name](*given, reduction="none")


# --- formulas


def divergence(theirs: np.ndarray, ours: np.ndarray, axis: int) -> np.ndarray:
    """`KL(softmax(theirs) || softmax(ours))`."""
    theirs, ours = log_softmax(theirs, axis), log_softmax(ours, axis)
    return (np.exp(theirs) * (theirs - ours)).sum(axis)


def test_kd_is_the_mean_over_places_of_the_sum_over_classes():
    ours, theirs = (maps(seed).double().numpy() for seed in (0, 1))
    expected = [[9 * divergence(t[:, i, j] / 3, s[:, i, j] / 3, 0) for i in range(4) for j in range(4)]
                for s, t in zip(ours, theirs, strict=True)]  # fmt: skip
    found = losses.kd(maps(0), maps(1), temperature=3, reduction="none")
    assert np.allclose(found, np.mean(expected, 1), rtol=1e-4)


def test_dkd_is_that_of_classification_at_each_place_and_void_has_no_label():
    ours, theirs, targets = maps(0), maps(1), masks()
    labels = targets.long().masked_fill(targets == VOID, -1)
    rows = [values.permute(0, 2, 3, 1).flatten(0, 2) for values in (ours, theirs)]
    flat = losses.dkd(*rows, labels.flatten(), temperature=2, alpha=1.5, beta=3, reduction="none")
    found = losses.dkd(ours, theirs, targets, temperature=2, alpha=1.5, beta=3, reduction="none")
    assert (labels < 0).any()
    assert torch.allclose(found, flat.view(COUNT, -1).mean(1), rtol=1e-5)


def test_dist_correlates_within_places_and_within_one_image():
    p, q = (softmax(maps(seed).double().numpy() / 2, 1).reshape(COUNT, CLASSES, -1) for seed in (0, 1))
    expected = []
    for s, t in zip(p, q, strict=True):
        inter = np.mean([1 - np.corrcoef(s[:, u], t[:, u])[0, 1] for u in range(SIDE**2)])
        intra = np.mean([1 - np.corrcoef(s[c], t[c])[0, 1] for c in range(CLASSES)])
        expected.append(4 * (3 * inter + 2 * intra))
    found = losses.dist(maps(0), maps(1), temperature=2, beta=3, gamma=2, reduction="none")
    assert np.allclose(found, expected, rtol=1e-4)
    assert losses.dist(maps(0, side=1), maps(1, side=1)).isfinite()


def test_cwd_is_a_divergence_over_places_for_each_channel():
    ours, theirs = (maps(seed).double().numpy().reshape(COUNT, CLASSES, -1) for seed in (0, 1))
    expected = [np.mean([4 * divergence(t[c] / 2, s[c] / 2, 0) for c in range(CLASSES)])
                for s, t in zip(ours, theirs, strict=True)]  # fmt: skip
    assert np.allclose(losses.cwd(maps(0), maps(1), temperature=2, reduction="none"), expected, rtol=1e-4)


def test_cwd_of_a_large_map_with_a_peak_is_finite():
    """`softmax(...).log()`, as published, is minus infinity here."""
    ours, theirs = maps(0, side=40), maps(1, side=40)
    ours[0, 0, 3, 3] = 2000.0
    theirs[0, 0, 5, 5] = 2000.0
    assert (ours.flatten(2) / 4).softmax(2).log().isinf().any()
    ours.requires_grad_()
    found = losses.cwd(ours, theirs, reduction="none")
    found.sum().backward()
    assert found.isfinite().all() and ours.grad is not None and ours.grad.isfinite().all()


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_pairwise_compares_cosines_of_pooled_places():
    """Of an odd grid: the squares at the edge are smaller."""
    ours, theirs = maps(0, side=5), maps(1, channels=7, side=5)
    tables = []
    for feature in (ours.double().numpy(), theirs.double().numpy()):
        pooled = np.stack(
            [feature[:, :, i : i + 2, j : j + 2].max((2, 3)) for i in (0, 2, 4) for j in (0, 2, 4)], axis=1
        )
        tables.append(unit(pooled) @ unit(pooled).transpose(0, 2, 1))
    expected = ((tables[0] - tables[1]) ** 2).mean((1, 2))
    assert np.allclose(losses.pairwise(ours, theirs, pool=2, reduction="none"), expected, rtol=1e-4)


def test_ifvd_compares_cosines_with_the_mean_of_the_own_class():
    ours, theirs, targets = maps(0), maps(1, channels=7), masks()
    expected = []
    for s, t, target in zip(ours.double().numpy(), theirs.double().numpy(), targets.numpy(), strict=True):
        apart = []
        for i in range(SIDE):
            for j in range(SIDE):
                if target[i, j] == VOID:
                    continue
                own = target == target[i, j]
                v = [unit(f[:, i, j]) @ unit(f[:, own].mean(1)) for f in (s, t)]
                apart.append((v[0] - v[1]) ** 2)
        expected.append(np.mean(apart))
    assert np.allclose(losses.ifvd(ours, theirs, targets, reduction="none"), expected, rtol=1e-4)
    few = losses.ifvd(ours, theirs, targets, classes=CLASSES, reduction="none")
    assert torch.allclose(few, losses.ifvd(ours, theirs, targets, reduction="none"))


@pytest.mark.parametrize("pool", [1, 2])
def test_cross_image_relates_each_pair_of_images(pool):
    ours, theirs = maps(0), maps(1, channels=7)
    rows = []
    for feature in (ours, theirs):
        pooled = functional.avg_pool2d(feature.double(), pool).flatten(2).transpose(1, 2).numpy()
        rows.append(unit(pooled))
    s, t = rows
    pairs = [
        [divergence(t[i] @ t[j].T / 0.2, s[i] @ s[j].T / 0.2, 1).mean() for j in range(COUNT)] for i in range(COUNT)
    ]
    found = losses.cross_image(ours, theirs, pool=pool, temperature=0.2, reduction="none")
    assert np.allclose(found, np.mean(pairs, 1), rtol=1e-4)


# --- what no dense loss depends on


@pytest.mark.parametrize("name", sorted(set(LOSSES) - set(OF_LABELS)))
def test_nothing_is_lost_where_both_agree_and_something_where_they_do_not(name):
    assert each(name, maps(0), maps(0), masks()).abs().max() < 2e-6
    assert (each(name, maps(0), maps(1), masks()) > 1e-5).all()


@pytest.mark.parametrize("name", LOSSES)
def test_the_student_alone_has_a_gradient(name):
    ours, theirs = maps(0).requires_grad_(), maps(1).requires_grad_()
    LOSSES[name](ours, theirs, masks()).backward()
    assert ours.grad is not None and ours.grad.isfinite().all() and ours.grad.abs().sum() > 0
    assert theirs.grad is None


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_changes_nothing_and_bfloat16_is_finite(name):
    expected = each(name, maps(0), maps(1), masks())
    with torch.autocast("cpu", torch.bfloat16):
        found = each(name, maps(0), maps(1), masks())
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    rough = each(name, maps(0).bfloat16(), maps(1).bfloat16(), masks())
    assert rough.dtype == torch.float32 and torch.allclose(rough, expected, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_flat_maps_are_finite(name, value):
    flat = torch.full((COUNT, CLASSES, SIDE, SIDE), value)
    for theirs in (maps(1), flat):
        ours = flat.clone().requires_grad_()
        found = each(name, ours, theirs, masks())
        found.sum().backward()
        assert found.isfinite().all() and ours.grad is not None and ours.grad.isfinite().all()
        assert ours.grad.abs().max() < 100


@pytest.mark.parametrize("name", LABELLED)
def test_void_places_change_nothing(name):
    targets = masks()
    void = (targets == VOID)[:, None]
    noise = [torch.where(void, 5 * normal(COUNT, CLASSES, SIDE, SIDE, seed=seed), 0) for seed in (5, 6)]
    expected = each(name, maps(0), maps(1), targets)
    found = each(name, maps(0) + noise[0], maps(1) + noise[1], targets)
    assert torch.allclose(found, expected, rtol=1e-5)
    nothing = torch.full_like(targets, VOID)
    ours = maps(0).requires_grad_()
    found = each(name, ours, maps(1), nothing)
    found.sum().backward()
    assert not found.any() and ours.grad is not None and not ours.grad.any()


def test_ifvd_does_not_shrink_with_the_share_of_void():
    """As published, a void place counts as 0. Here an image with a void half has the loss of the other half."""
    ours, theirs, targets = maps(0), maps(1), masks(void=0)
    wide = [torch.cat([values, values.flip(0)], 3) for values in (ours, theirs)]
    padded = torch.cat([targets, torch.full_like(targets, VOID)], 2)
    assert torch.allclose(each("ifvd", *wide, padded), each("ifvd", ours, theirs, targets), rtol=1e-5)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"cross_image"}))
def test_an_image_does_not_know_the_others(name):
    ours, theirs, targets = maps(0), maps(1), masks()
    whole = each(name, ours, theirs, targets)
    alone = [each(name, ours[[i]], theirs[[i]], targets[[i]]) for i in range(COUNT)]
    assert torch.allclose(whole, torch.cat(alone), rtol=1e-5)


def test_cross_image_does_not_grow_with_the_batch():
    once = each("cross_image", maps(0), maps(1), masks())
    twice = each("cross_image", maps(0).repeat(2, 1, 1, 1), maps(1).repeat(2, 1, 1, 1), masks())
    assert torch.allclose(twice, once.repeat(2), rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_the_size_of_an_image_makes_no_difference(name):
    """Each place as a square of 3×3 equal ones."""
    given = maps(0), maps(1), masks()
    larger = [values.repeat_interleave(3, -1).repeat_interleave(3, -2) for values in given]
    assert torch.allclose(each(name, *larger), each(name, *given), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", RESIZING)
def test_the_teachers_logits_come_to_the_students_grid(name):
    theirs = maps(1, side=8)
    there = functional.interpolate(theirs, (SIDE, SIDE), mode="bilinear", align_corners=False)
    assert torch.equal(each(name, maps(0), theirs, masks()), each(name, maps(0), there, masks()))


@pytest.mark.parametrize("name", ["pairwise", "ifvd", "cross_image"])
def test_features_are_compared_on_the_smaller_grid(name):
    theirs = maps(1, side=8)
    there = functional.avg_pool2d(theirs, 2)
    assert torch.allclose(each(name, maps(0), theirs, masks()), each(name, maps(0), there, masks()), rtol=1e-5)
    assert torch.allclose(each(name, theirs, maps(0), masks()), each(name, there, maps(0), masks()), rtol=1e-5)


@pytest.fixture
def unchecked():
    """A user has no shape checks of annotations: the messages are those that they see."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


MISTAKES = [
    (
        lambda: losses.kd(maps(0), maps(1, channels=3)),
        r"same number of classes .* given \[3, 4, 4, 4\] and \[3, 3, 4, 4\]",
    ),
    (lambda: losses.kd(maps(0), maps(1)[:, :, 0, 0]), r"\[images, classes, height, width\]; the teacher's is \[3, 4\]"),
    (lambda: losses.mlkd(maps(0), maps(1)), r"mlkd needs tensors \[images, classes\]; the student's is \[3, 4, 4, 4\]"),
    (
        lambda: losses.dkd(maps(0), maps(1), masks().long()),
        r"one mask per image, torch.uint8 \[3 h w\]; given torch.int64",
    ),
    (lambda: losses.cwd(maps(0), maps(1), temperature=0), r"cwd: temperature must be above 0"),
    (lambda: losses.cwd(maps(0), maps(1, channels=7)), r"same number of channels"),
    (lambda: losses.pairwise(maps(0), maps(1), pool=0), r"pairwise: pool must be above 0"),
    (lambda: losses.ifvd(maps(0), maps(1), masks()[0]), r"ifvd needs one mask per image, torch.uint8 \[3 h w\]; given"),
    (lambda: losses.cross_image(maps(0), maps(1), temperature=-1), r"cross_image: temperature must be above 0"),
    (lambda: losses.dice(maps(0)[0], masks()), r"dice needs logits \[images, classes, height, width\]; .* \[4, 4, 4\]"),
    (
        lambda: losses.dice(maps(0), masks()[:2]),
        r"one mask per image, torch.uint8 \[3 h w\]; given torch.uint8 \[2, 4, 4\]",
    ),
]


@pytest.mark.parametrize(("call", "text"), MISTAKES, ids=range(len(MISTAKES)))
def test_mistakes_are_said(call, text, unchecked):
    with pytest.raises(UserError, match=text):
        call()
