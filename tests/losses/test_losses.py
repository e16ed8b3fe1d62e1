"""The losses as plain functions: the same as the methods', 0 at equality, a gradient in the student alone, clear mistakes."""

import math

import pytest
import torch
from jaxtyping import config
from torch.nn import functional

import distilens
from distilens import losses
from distilens.core import Answer, Batch, Output
from distilens.explain.attention import attention
from distilens.foundation.errors import UserError
from distilens.losses.checks import reduced
from distilens.methods import build_methods

LABELS = torch.arange(6) % 4


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def logits(seed: int) -> torch.Tensor:
    return normal(6, 4, seed=seed)


def features(seed: int, channels: int = 5, side: int = 4) -> torch.Tensor:
    return normal(6, channels, side, side, seed=seed)


def maps(seed: int, side: int = 4) -> torch.Tensor:
    return normal(6, side, side, seed=seed).relu()


def of_method(part: str, output: Output, answer: Answer) -> torch.Tensor:
    (method,) = build_methods([part]).values()
    return method.loss(Batch(torch.rand(6, 3, 8, 8), LABELS, torch.arange(6)), output, answer)


ANSWERS = {
    "kd": ("kd:temperature=3", lambda s, t, **how: losses.kd(s, t, temperature=3, **how)),
    "standardised": ("kd:standardise=true", lambda s, t, **how: losses.kd(s, t, standardise=True, **how)),
    "dkd": (
        "dkd:temperature=3,alpha=2,beta=6",
        lambda s, t, **how: losses.dkd(s, t, LABELS, temperature=3, alpha=2, beta=6, **how),
    ),
    "dist": ("dist:beta=2,gamma=3", lambda s, t, **how: losses.dist(s, t, beta=2, gamma=3, **how)),
    "mlkd": (
        "mlkd:temperatures=[2,5],instance=3,images=2,classes=7",
        lambda s, t, **how: losses.mlkd(s, t, temperatures=[2, 5], instance=3, images=2, classes=7, **how),
    ),
    "r2kd": (
        "r2kd:rank=2,softness=0.3,pruned=0",
        lambda s, t, **how: losses.r2kd(s, t, rank=2, softness=0.3, **how),
    ),
}
FEATURES = {
    "nst": ("nst", losses.nst),
    "sp": ("sp", losses.sp),
    "rkd": ("rkd:distance=2,angle=3", lambda s, t, **how: losses.rkd(s, t, distance=2, angle=3, **how)),
    "pkt": ("pkt", losses.pkt),
}
OTHERS = {
    "ce": lambda s, t, **how: losses.ce(s, LABELS, **how),
    "fitnet": losses.fitnet,
    "hierarchical": losses.hierarchical,
    "at": losses.at,
    "map_match": losses.map_match,
    "crd": lambda s, t, **how: losses.crd(s, t, normal(9, 4, seed=7), **how),
}
DENSE = ("cwd", "pairwise", "ifvd", "cross_image", "dice", "lovasz")
"""See test_dense.py and test_regions.py."""
EVERY = {**{name: loss for name, (_, loss) in {**ANSWERS, **FEATURES}.items()}, **OTHERS}


def inputs(name: str, seed: int) -> torch.Tensor:
    if name in ANSWERS or name in ("ce", "crd"):
        return logits(seed)
    return maps(seed) if name == "map_match" else features(seed)


@pytest.mark.parametrize("name", ANSWERS)
def test_losses_of_answers_are_the_methods(name):
    part, loss = ANSWERS[name]
    expected = of_method(part, Output(logits(0)), Answer(logits(1)))
    assert torch.equal(loss(logits(0), logits(1), reduction="none"), expected)


@pytest.mark.parametrize("name", FEATURES)
def test_losses_of_features_are_the_methods(name):
    part, loss = FEATURES[name]
    ours, theirs = features(0), features(1, channels=7, side=2)
    output = Output(logits(0), {"last": ours}, size=(8, 8))
    expected = of_method(part, output, Answer(features={"last": theirs}))
    assert torch.equal(loss(ours, theirs, reduction="none"), expected)


def test_attention_transfer_is_the_methods():
    ours, theirs = features(0), features(1, channels=7, side=2)
    output = Output(logits(0), {"last": ours}, size=(8, 8))
    (method,) = build_methods(["at:taps=[last],power=3"]).values()
    answer = Answer(maps={method.needs[0]: attention(theirs, 3)}, targets={method.needs[0]: LABELS})
    found = method.loss(Batch(torch.rand(6, 3, 8, 8), LABELS, torch.arange(6)), output, answer)
    assert torch.allclose(losses.at(ours, theirs, power=3, reduction="none"), found)


@pytest.mark.parametrize("distance", ["cosine", "at", "kl", "l2"])
def test_the_match_of_maps_is_the_methods(distance):
    output = Output(logits(0), {"last": features(0)}, size=(8, 8))
    (method,) = build_methods([f"map_match:explainer=attention,distance={distance},temperature=0.3"]).values()
    theirs = maps(1, side=2) + 0.1
    theirs[2] = 0  # says nothing
    answer = Answer(maps={method.needs[0]: theirs}, targets={method.needs[0]: LABELS})
    expected = method.loss(Batch(torch.rand(6, 3, 8, 8), LABELS, torch.arange(6)), output, answer)
    given = {"distance": distance, "temperature": 0.3, "reduction": "none"}
    found = losses.map_match(attention(features(0)), theirs, **given)
    assert torch.equal(found, expected)
    assert found[2] == 0
    assert (found[[0, 1, 3, 4, 5]] > 0).all()


def test_maps_of_all_classes_count_by_their_mean():
    ours, theirs = normal(6, 3, 4, 4, seed=0), normal(6, 3, 4, 4, seed=1)
    each = [losses.map_match(ours[:, c], theirs[:, c], reduction="none") for c in range(3)]
    assert torch.allclose(losses.map_match(ours, theirs, reduction="none"), torch.stack(each).mean(0))


def test_known_values():
    """Of torch's own functions, and by hand."""
    ours, theirs = logits(0), logits(1)
    divergence = functional.kl_div((ours / 4).log_softmax(1), (theirs / 4).softmax(1), reduction="batchmean")
    assert torch.allclose(losses.kd(ours, theirs), 16 * divergence)
    smooth = functional.cross_entropy(ours, LABELS, label_smoothing=0.2)
    assert torch.allclose(losses.ce(ours, LABELS, smoothing=0.2), smooth)
    assert losses.ce(ours, torch.full((6,), -1)) == 0
    assert torch.allclose(losses.fitnet(features(0), features(1)), functional.mse_loss(features(0), features(1)))
    flat, other = torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 3.0)
    assert losses.hierarchical(flat, other) == 9


def test_crd_is_its_contrast():
    """One image, one other, all embeddings by hand: `h = exp(u . m / tau) / Z`."""
    own, same, other = (torch.tensor([row]) for row in ([1.0, 0.0], [0.6, 0.8], [0.0, 2.0]))
    near, far = math.exp(0.6 / 0.5), math.exp(0.0)
    partition = 10 * (near + far) / 2
    h, g, noise = near / partition, far / partition, 1 / 10
    expected = -math.log(h / (h + noise)) - math.log(noise / (g + noise))
    found = losses.crd(own, same, other, images=10, temperature=0.5)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    nothing = losses.crd(own, same, other, negative=torch.tensor([[False]]), images=10, temperature=0.5)
    assert nothing.item() == pytest.approx(0, abs=1e-5)  # no negative, so no noise to tell it from


@pytest.mark.parametrize("name", EVERY)
def test_a_mean_and_a_sum_over_images(name):
    ours, theirs = inputs(name, 0), inputs(name, 1)
    each = EVERY[name](ours, theirs, reduction="none")
    assert each.shape == (6,)
    assert torch.allclose(EVERY[name](ours, theirs), each.mean())
    assert torch.allclose(EVERY[name](ours, theirs, reduction="sum"), each.sum())


@pytest.mark.parametrize("name", sorted(set(EVERY) - {"ce", "r2kd", "crd"}))
def test_nothing_is_lost_where_both_agree(name):
    assert EVERY[name](inputs(name, 0), inputs(name, 0)).item() == pytest.approx(0, abs=2e-6)
    assert EVERY[name](inputs(name, 0), inputs(name, 1)).item() > 1e-5


def test_hard_ranks_that_agree_lose_nothing():
    assert losses.r2kd(logits(0), logits(0), softness=1e-5).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_the_student_alone_has_a_gradient(name):
    ours, theirs = inputs(name, 0).requires_grad_(), inputs(name, 1).requires_grad_()
    EVERY[name](ours, theirs).backward()
    assert ours.grad.abs().sum() > 0
    assert ours.grad.isfinite().all()
    assert theirs.grad is None


@pytest.mark.parametrize("name", sorted(set(EVERY) - {"ce"}))
def test_autocast_changes_nothing(name):
    ours, theirs = inputs(name, 0), inputs(name, 1)
    expected = EVERY[name](ours, theirs)
    with torch.autocast("cpu", torch.bfloat16):
        found = EVERY[name](ours, theirs)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_every_loss_is_public():
    assert distilens.losses is losses
    assert set(losses.__all__) == (set(EVERY) | set(DENSE)) - {"standardised"}


@pytest.fixture
def unchecked():
    """A user has no shape checks of annotations: the messages are those that they see."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


MISTAKES = [
    (lambda: losses.kd(logits(0), normal(6, 9, seed=1)), r"same number of classes .* given \[6, 4\] and \[6, 9\]"),
    (lambda: losses.kd(logits(0), normal(5, 9, seed=1)), r"same number of images and classes"),
    (lambda: losses.kd(logits(0)[0], logits(1)), r"kd needs tensors \[images, classes\]; the student's is \[4\]"),
    (lambda: losses.kd(logits(0), logits(1), temperature=0), r"temperature must be above 0; given 0"),
    (lambda: losses.mlkd(logits(0), logits(1), temperatures=[2, -1]), r"mlkd: temperature must be above 0; given -1"),
    (lambda: losses.kd(logits(0), logits(1).numpy()), r"the teacher's is a ndarray"),
    (lambda: losses.kd(Output(logits(0)), logits(1)), r"the student's is a Output: give its \.logits"),
    (lambda: losses.kd(logits(0).long(), logits(1)), r"floating-point numbers; the student's tensor has torch.int64"),
    (lambda: losses.dkd(logits(0), logits(1), LABELS[:5]), r"one label per image, torch.int64 \[6\]; given .*\[5\]"),
    (lambda: losses.ce(logits(0), LABELS.float()), r"one label per image.*given torch.float32"),
    (lambda: losses.ce(logits(0), LABELS + 100), r"ce: labels go from 0 to \d+, and -1 means no label; given 10\d"),
    (lambda: losses.dkd(logits(0), logits(1), LABELS - 100), r"dkd: labels go from 0 to \d+.*given -\d+"),
    (lambda: losses.ce(logits(0), LABELS, smoothing=1.0), r"smoothing must be in \[0, 1\)"),
    (lambda: losses.dist(logits(0)[:, :2], logits(1)[:, :2], gamma=0), r"at least 3 classes; given 2"),
    (lambda: losses.r2kd(logits(0)[:, :2], logits(1)[:, :2]), r"kd learns from answers of two classes"),
    (lambda: losses.r2kd(logits(0), logits(1), softness=-0.1), r"softness must be above 0"),
    (lambda: losses.fitnet(features(0), features(1, channels=7)), r"given 5 and 7\. .*nn\.Conv2d\(5, 7, 1\)"),
    (lambda: losses.at(features(0), maps(1)), r"at needs tensors \[images, channels, height, width\]"),
    (lambda: losses.at(features(0), features(1), power=0), r"power must be above 0"),
    (lambda: losses.rkd(features(0), features(1)[:5]), r"the same images; given 6 of the student and 5"),
    (lambda: losses.sp(logits(0)[0], logits(1)), r"features \[images, \.\.\.\]; the student's is \[4\]"),
    (lambda: losses.map_match(maps(0), maps(1), distance="cosin"), r"unknown distance 'cosin'. Did you mean 'cosine'"),
    (lambda: losses.map_match(maps(0), features(1)), r"\[images, height, width\]; the teacher's is \[6, 5, 4, 4\]"),
    (lambda: losses.crd(logits(0), logits(1), normal(9, 3, seed=2)), r"others \[number, 4\].*given \[9, 3\]"),
    (
        lambda: losses.crd(logits(0), logits(1), logits(2), negative=torch.ones(6, 5).bool()),
        r"negative \[6, 6\] .*given \[6, 5\]",
    ),
    (lambda: losses.kd(logits(0), logits(1), reduction="avg"), r"one of mean, sum, none; given 'avg'"),
]


@pytest.mark.parametrize(("call", "text"), MISTAKES, ids=range(len(MISTAKES)))
def test_mistakes_are_said(call, text, unchecked):
    with pytest.raises(UserError, match=text):
        call()


def test_reductions():
    assert reduced(torch.tensor([1.0, 3.0]), "mean") == 2
