"""What the model says of what a map names: against torch-cam's and pytorch-grad-cam's metrics, and where the truth is known."""

import contextlib

import numpy as np
import pytest
import torch
from pytorch_grad_cam.metrics.road import NoisyLinearImputer, ROADCombined
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import spsolve
from torch import nn
from torchcam.metrics import ClassificationMetric, DeletionInsertionMetric

from distilens import EXPLAINERS, build_model
from distilens.core import Model
from distilens.explain.maps import empty
from distilens.foundation.errors import UserError
from distilens.measure import (
    average_drop,
    average_gain,
    curves,
    deletion,
    increase_in_confidence,
    insertion,
    masked_confidence,
    noisy_linear,
    road,
)
from distilens.measure.maps.faithfulness import Perturbed
from distilens.measure.maps.imputation import filled, imputed
from distilens.tasks import NOWHERE, Segmentation

CLASSES = tuple("abcd")


def images(count: int = 6, size: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def net(size: int = 16) -> Model:
    torch.manual_seed(0)
    made = build_model("resnet8", CLASSES, (size, size)).train()
    with torch.no_grad():
        for _ in range(3):
            made.logits(images(16, size))
        made.network.fc.weight.mul_(10)
    return made.eval()


class Normalised(nn.Module):
    """A model as the peers take it: of images that are normalised already."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model.network(pixels)


class Given:
    """torch-cam's extractor, with maps that are there already."""

    def __init__(self, model: nn.Module, maps: torch.Tensor):
        self.model, self.maps = model, maps

    def __call__(self, *arguments, **options) -> list[torch.Tensor]:
        return [self.maps]

    def fuse_cams(self, cams: list[torch.Tensor]) -> torch.Tensor:
        return cams[0]

    def _hooks_off(self):
        return contextlib.nullcontext()


def imputed_by_peer(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """pytorch-grad-cam's system of equations, solved: its own call fails with NumPy 2.4 (`np.argwhere` of a tensor)."""
    weights = [(offset, 1 / 6 if 0 in offset else 1 / 12) for offset, _ in self.weighting]
    assert weights == self.weighting
    system, given = NoisyLinearImputer.setup_sparse_system(mask.numpy(), image.numpy(), weights)
    found = image.flatten(1).clone()
    found[:, mask.flatten() == 0] = torch.from_numpy(spsolve(csc_matrix(system), given)).float().T
    return found.view_as(image)


def unit(maps: torch.Tensor) -> torch.Tensor:
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low)


@pytest.mark.parametrize("steps", [1, 2, 7, 20, pytest.param(256, marks=pytest.mark.slow)])
def test_insertion_and_deletion_agree_with_torch_cam(steps):
    model, pixels, target = net(), images(), torch.tensor([0, 1, 2, 3, 1, 0])
    maps = torch.rand(6, 8, 8, generator=torch.Generator().manual_seed(2))
    peer = DeletionInsertionMetric(Given(Normalised(model), maps), lambda z: z.softmax(1), steps=steps)
    peer.update(model.prepare(pixels), target.tolist())
    found = curves(model, pixels, maps, target, steps=steps, fill="mean")
    assert found.insertion_auc.mean().item() == pytest.approx(peer.summary()["insertion_auc"], rel=1e-5)
    assert found.deletion_auc.mean().item() == pytest.approx(peer.summary()["deletion_auc"], rel=1e-5)
    assert found.shares[0] == 0
    assert found.shares[-1] == 1
    assert torch.allclose(found.insertion[:, -1], found.deletion[:, 0])
    assert found.insertion.std() > 0.01


def test_the_drop_agrees_with_torch_cam():
    model, pixels, target = net(), images(), torch.tensor([0, 1, 2, 3, 1, 0])
    maps = unit(torch.rand(6, 8, 8, generator=torch.Generator().manual_seed(2)))
    peer = ClassificationMetric(Given(Normalised(model), maps), lambda z: z.softmax(1))
    peer.update(model.prepare(pixels), target.tolist())
    whole, masked = masked_confidence(model, pixels, maps, target)
    assert average_drop(whole, masked).mean().item() == pytest.approx(peer.summary()["avg_drop"], rel=1e-4)
    assert increase_in_confidence(whole, masked).mean().item() == pytest.approx(peer.summary()["conf_increase"])
    assert 0 < average_drop(whole, masked).mean() < 1
    gain = average_gain(whole, masked)
    assert ((gain > 0) == (masked > whole)).all()
    assert (gain <= 1).all()


def test_road_agrees_with_pytorch_grad_cam(monkeypatch):
    monkeypatch.setattr(NoisyLinearImputer, "__call__", imputed_by_peer)
    model, pixels = net(), images(4)
    maps = unit(torch.rand(4, 16, 16, generator=torch.Generator().manual_seed(2)))
    targets = [lambda z, number=number: z.softmax(-1)[number] for number in (0, 1, 2, 3)]
    peer = ROADCombined()(model.prepare(pixels), maps.numpy(), targets, Normalised(model))
    found = road(model, pixels, maps, torch.arange(4), noise=0.0)
    assert np.abs(peer).max() > 5e-3
    assert np.abs(found.numpy() - peer).max() < 0.1 * np.abs(peer).max()  # its percentiles are one pixel off ours
    assert (found.abs() <= 0.5).all()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_imputation_agrees_with_pytorch_grad_cam(share):
    keep = torch.rand(3, 12, 9, generator=torch.Generator().manual_seed(3)) >= share
    pixels = torch.rand(3, 3, 12, 9, generator=torch.Generator().manual_seed(4))
    found = noisy_linear(pixels, keep, noise=0.0)
    for number in range(3):
        peer = imputed_by_peer(NoisyLinearImputer(), pixels[number], keep[number].float())
        assert torch.allclose(found[number], peer, atol=1e-5)
    assert torch.equal(found.movedim(1, -1)[keep], pixels.movedim(1, -1)[keep])
    assert not torch.equal(found, pixels)


def test_noise_is_the_same_for_every_image_and_leaves_torchs_own_alone():
    pixels, keep = images(2), torch.zeros(2, 16, 16, dtype=torch.bool)
    keep[:, :4] = True
    state = torch.get_rng_state()
    both = noisy_linear(pixels, keep)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(noisy_linear(pixels[1:], keep[1:]), both[1:])
    field = both - noisy_linear(pixels, keep, noise=0.0)
    assert torch.allclose(field[0], field[1], atol=1e-6)
    assert field[0].std() > 0
    nothing = noisy_linear(pixels, torch.zeros_like(keep), noise=0.0)
    assert torch.allclose(nothing, pixels.mean((2, 3), keepdim=True).expand_as(nothing))


class Place(nn.Module):
    """Sees the class in the brightness of one quarter of the image: where the truth is is known."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        score = 8 * self.weight * x[:, :, :8, :8].mean((1, 2, 3))
        return torch.stack([score, -score], 1)


def place() -> Model:
    return Model(Place(), ("yes", "no"), size=(16, 16), mean=(0.0,) * 3, std=(1.0,) * 3).eval()


@pytest.mark.parametrize("fill", ["zero", "blur", "mean", "noisy_linear", 0.1])
def test_a_true_map_is_better_than_noise_and_noise_better_than_its_opposite(fill):
    model, target = place(), torch.zeros(4, dtype=torch.int64)
    pixels = images(4) * 0.2
    pixels[:, :, :8, :8] += 0.7
    truth = torch.zeros(4, 16, 16)
    truth[:, :8, :8] = 1
    noise = torch.rand(4, 16, 16, generator=torch.Generator().manual_seed(5))
    order = [curves(model, pixels, maps, target, fill=fill) for maps in (truth, noise, 1 - truth)]
    inserted, deleted = (
        [getattr(each, name).mean().item() for each in order] for name in ("insertion_auc", "deletion_auc")
    )
    assert inserted[0] > inserted[1] > inserted[2]
    assert deleted[0] < deleted[1] < deleted[2]
    scores = [road(model, pixels, maps, target).mean().item() for maps in (truth, noise, 1 - truth)]
    assert scores[0] > scores[1] > scores[2]
    drops = [average_drop(*masked_confidence(model, pixels, maps, target)).mean() for maps in (truth, noise, 1 - truth)]
    assert drops[0] < drops[1] < drops[2]


def test_known_values_of_a_classifier_that_counts():
    """The probability is the share of five pixels that are seen, in known order."""

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.none = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            share = x[:, 0].sum((1, 2)) / 5 + self.none
            return torch.stack([share, 1 - share], 1).clamp_min(1e-12).log()

    model = Model(Counting(), ("a", "b"), size=(1, 5), mean=(0.0,) * 3, std=(1.0,) * 3).eval()
    pixels, maps = torch.ones(1, 3, 1, 5), torch.tensor([[[5.0, 4, 3, 2, 1]]])
    found = curves(model, pixels, maps, torch.zeros(1, dtype=torch.int64), steps=2, fill="zero")
    assert torch.allclose(found.shares, torch.tensor([0, 0.6, 1]))
    assert torch.allclose(found.insertion, torch.tensor([[0, 0.6, 1]]), atol=1e-6)
    assert torch.allclose(found.deletion, torch.tensor([[1, 0.4, 0]]), atol=1e-6)
    assert found.insertion_auc.item() == pytest.approx(0.5)


def test_one_curve_alone_is_the_same_and_chunks_do_not_matter():
    model, pixels, target = net(), images(), torch.tensor([0, 1, 2, 3, 1, 0])
    maps = EXPLAINERS.build("ig:steps=4")(model, pixels, target).maps
    both = curves(model, pixels, maps, target)
    assert torch.allclose(insertion(model, pixels, maps, target, chunk=7), both.insertion_auc, atol=1e-6)
    assert torch.allclose(deletion(model, pixels, maps, target, chunk=1000), both.deletion_auc, atol=1e-6)
    alone = curves(model, pixels[2:3], maps[2:3], target[2:3], chunk=3)
    assert torch.allclose(alone.insertion[0], both.insertion[2], atol=1e-6)


def test_measuring_leaves_no_trace():
    model, pixels, target = net().train(), images(), torch.tensor([0, 1, 2, 3, 1, 0])
    maps = torch.rand(6, 4, 4)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    copies = pixels.clone(), maps.clone(), torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16):
        cast = curves(model, pixels, maps, target)
    road(model, pixels, maps, target, shares=(0.5,))
    masked_confidence(model, pixels, maps, target)
    assert model.training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(pixels, copies[0])
    assert torch.equal(maps, copies[1])
    assert torch.equal(torch.get_rng_state(), copies[2])
    assert torch.equal(cast.insertion, curves(model, pixels, maps, target).insertion)  # float32 within


def test_an_empty_map_orders_nothing():
    model, pixels, target = net(), images(2), torch.tensor([0, 1])
    maps = torch.rand(2, 4, 4)
    maps[0] = 0
    found = curves(model, pixels, maps, target)
    assert found.insertion_auc.isnan().tolist() == [True, False]
    assert road(model, pixels, maps, target, shares=(0.5,)).isnan().tolist() == [True, False]
    whole, masked = masked_confidence(model, pixels, maps, target)
    assert torch.allclose(masked[0], model.logits(filled(model, pixels[:1], "mean")).softmax(1)[0, 0])
    assert not average_drop(whole, masked).isnan().any()


def test_what_does_not_fit_is_said():
    model, pixels = net(), images(2)
    with pytest.raises(UserError, match="one map and one target per image: 2 images, 3 maps, 2 targets"):
        Perturbed(model, pixels, torch.rand(3, 4, 4), torch.tensor([0, 1]), fill="zero", steps=2, chunk=2)
    with pytest.raises(UserError, match="at least 1; given steps=0"):
        curves(model, pixels, torch.rand(2, 4, 4), torch.tensor([0, 1]), steps=0)


def test_an_image_without_removed_pixels_stays_as_it_is():
    image = images(1)[0]
    assert torch.equal(imputed(image, torch.ones(16, 16, dtype=torch.bool)), image)
    hole = torch.ones(16, 16, dtype=torch.bool)
    hole[5, 5] = False
    filled_in = imputed(image, hole)
    assert torch.allclose(filled_in[:, hole], image[:, hole].to(filled_in))
    assert not torch.allclose(filled_in[:, 5, 5], image[:, 5, 5].to(filled_in))


PLACES = Segmentation(("dark", "bright"))


class Context(nn.Module):
    """On half the grid: a place is bright by its own pixels, by those beside it, and by the mean of the image."""

    def __init__(self):
        super().__init__()
        self.seen: list[torch.Tensor] = []
        self.beside = nn.Conv2d(3, 1, 4, 2, 1, bias=False)
        nn.init.constant_(self.beside.weight, 0.05)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.seen.append(pixels)
        bright = self.beside(pixels) + 3 * pixels.mean((1, 2, 3), keepdim=True)
        return torch.cat([torch.full_like(bright, 2.0), bright], 1)


def dense_net(size: int = 8) -> Model:
    return Model(Context(), PLACES, size=(size, size), mean=(0.0,) * 3, std=(1.0,) * 3).eval()


def aim_at(count: int = 2, grid: int = 4) -> torch.Tensor:
    """Two places of class 1 on half the grid of 8x8 pixels."""
    aim = torch.full((count, grid, grid), NOWHERE)
    aim[:, 1, 1:3] = 1
    return aim


@pytest.mark.parametrize("steps", [5, 7])
def test_in_a_dense_task_the_curves_are_those_of_the_other_pixels(steps):
    """By hand: the order of 56 pixels outside 2 x 4 explained ones, and the mean probability over the aim."""
    model, pixels, aim = dense_net(), images(2, 8), aim_at()
    maps = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(5))
    found = curves(model, pixels, maps, aim, steps=steps, fill="zero")
    inside = np.zeros((8, 8), dtype=bool)
    inside[2:4, 2:6] = True
    assert torch.allclose(found.shares, torch.linspace(0, 1, steps + 1))
    for image, values, rows in zip(pixels, maps.numpy(), range(2), strict=True):
        outside = sorted(np.argwhere(~inside).tolist(), key=lambda at, values=values: -values[tuple(at)])
        for number, share in enumerate(np.linspace(0, 1, steps + 1)):
            chosen = np.zeros((8, 8), dtype=bool)
            for row, column in outside[: round(share * 56)]:
                chosen[row, column] = True
            for curve, kept in ((found.insertion, chosen | inside), (found.deletion, ~chosen)):
                logits = model.network(image[None] * torch.from_numpy(kept)).detach().numpy()
                odds = 1 / (1 + np.exp(logits[0, 0] - logits[0, 1]))  # of class 1 on the coarse grid
                np.testing.assert_allclose(float(curve[rows, number]), odds[1, 1:3].mean(), rtol=1e-5)
    assert torch.equal(insertion(model, pixels, maps, aim, steps=steps, fill="zero", chunk=3), found.insertion_auc)
    assert torch.equal(deletion(model, pixels, maps, aim, steps=steps, fill="zero", chunk=3), found.deletion_auc)
    assert (found.deletion[:, 0] > found.deletion[:, -1]).all()  # the context counts


@pytest.mark.parametrize("fill", ["blur", "mean", "noisy_linear"])
def test_the_explained_places_are_never_changed(fill):
    model, pixels, aim = dense_net(), images(2, 8), aim_at()
    model.network.seen.clear()
    maps = torch.rand(2, 8, 8)
    curves(model, pixels, maps, aim, steps=4, fill=fill, chunk=1)
    masked_confidence(model, pixels, maps, aim)
    if fill == "noisy_linear":
        road(model, pixels, maps, aim, shares=(0.3, 1.0), chunk=1)
    rows = torch.cat(model.network.seen)[..., 2:4, 2:6]
    assert len(rows) > 16
    same = [(row == pixels[:, :, 2:4, 2:6]).flatten(1).all(1).any() for row in rows]
    assert all(same)


def test_the_map_inside_the_explained_places_does_not_count():
    model, pixels, aim = dense_net(), images(2, 8), aim_at()
    maps = torch.rand(2, 8, 8)
    other = maps.clone()
    other[:, 2:4, 2:6] *= 50
    for measure in (curves, road):
        one, two = (measure(model, pixels, given, aim) for given in (maps, other))
        for first, second in zip(
            *((x.insertion, x.deletion) if measure is curves else (x,) for x in (one, two)), strict=True
        ):
            assert torch.equal(first, second)
    assert torch.equal(*(masked_confidence(model, pixels, given, aim)[1] for given in (maps, other)))


def test_the_image_is_weighted_by_its_map_outside_the_explained_places():
    model, pixels, aim = dense_net(), images(1, 8), aim_at(1)
    maps = torch.rand(1, 8, 8) * 2 - 0.5
    inside = np.zeros((8, 8), dtype=bool)
    inside[2:4, 2:6] = True
    weights = np.maximum(maps[0].numpy(), 0)
    low, high = weights[~inside].min(), weights[~inside].max()
    weights = np.where(inside, 1, (weights - low) / (high - low)).astype(np.float32)
    whole, masked = masked_confidence(model, pixels, maps, aim)
    for value, given in ((whole, pixels), (masked, pixels * torch.from_numpy(weights))):
        assert torch.allclose(value, model.network(given).softmax(1)[:, 1, 1, 1:3].mean(1), atol=1e-6)


def test_places_that_are_all_or_none_of_the_image_have_no_number():
    model, pixels = dense_net(), images(4, 8)
    aim, maps = aim_at(4), torch.rand(4, 8, 8)
    aim[0], aim[1] = 1, NOWHERE
    maps[2, :2], maps[2, 4:], maps[2, :, :2], maps[2, :, 6:] = 0, 0, 0, 0  # nothing outside the explained places
    assert not empty(maps).any()
    known = [True, True, True, False]
    assert curves(model, pixels, maps, aim).insertion_auc.isnan().tolist() == known
    assert road(model, pixels, maps, aim, shares=(0.5,)).isnan().tolist() == known
    whole, masked = masked_confidence(model, pixels, maps, aim)
    assert not whole.isnan().any()
    for measure in (average_drop, increase_in_confidence, average_gain):
        # a map that is 0 outside hides all of it, as an empty map does
        assert measure(whole, masked).isnan().tolist() == [True, True, False, False]


def test_a_class_is_not_enough_in_a_dense_task():
    with pytest.raises(UserError, match=r"measured at the places that were explained, \[b h w\] .* given \[2\]"):
        curves(dense_net(), images(2, 8), torch.rand(2, 8, 8), torch.tensor([0, 1]))
