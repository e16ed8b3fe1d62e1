"""Likeness of maps against scipy and a window-by-window SSIM; places on the evidence; sparsity."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr

from distilens.measure import (
    complexity,
    cosine,
    energy_in_mask,
    mean_interval,
    pearson,
    pointing_game,
    sparseness,
    spearman,
    ssim,
    top_intersection,
)

LIKENESSES = [cosine, pearson, spearman, ssim, top_intersection]


def maps(seed: int, count: int = 5, side: int = 14) -> torch.Tensor:
    return torch.randn(count, side, side, generator=torch.Generator().manual_seed(seed))


def test_correlations_agree_with_scipy_ties_included():
    first = (3 * maps(1)).round()  # many ties
    second = first + 2 * maps(2).round()
    for ours, peer in ((pearson, pearsonr), (spearman, spearmanr)):
        expected = [
            peer(a.flatten().numpy(), b.flatten().numpy()).statistic for a, b in zip(first, second, strict=True)
        ]
        assert np.allclose(ours(first, second), expected, atol=1e-6)
        assert min(expected) > 0.1


def test_ssim_agrees_with_a_loop_over_windows():
    first, second = maps(1), maps(1) + 0.7 * maps(2)
    at = np.arange(11) - 5
    window = np.exp(-(at**2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2
    for number, found in enumerate(ssim(first, second).tolist()):
        a, b = (each[number].double().numpy() for each in (first, second))
        a, b = ((each - each.min()) / (each.max() - each.min()) for each in (a, b))
        values = []
        for top in range(4):
            for left in range(4):
                x, y = a[top : top + 11, left : left + 11], b[top : top + 11, left : left + 11]
                m, n = (window * x).sum(), (window * y).sum()
                v, w = (window * (x - m) ** 2).sum(), (window * (y - n) ** 2).sum()
                c = (window * (x - m) * (y - n)).sum()
                values.append((2 * m * n + 1e-4) * (2 * c + 9e-4) / ((m * m + n * n + 1e-4) * (v + w + 9e-4)))
        assert found == pytest.approx(np.mean(values), abs=1e-5)
        assert 0.1 < found < 0.95


@pytest.mark.parametrize("likeness", LIKENESSES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("side", [4, 14])
def test_a_map_is_most_like_itself_and_an_empty_one_like_nothing(likeness, side):
    first = maps(1, side=side)
    second = maps(2, side=side)
    same, other = likeness(first, 3 * first), likeness(first, second)
    assert torch.allclose(same, torch.ones(5), atol=1e-5)
    assert (other < 0.9).all()
    assert torch.allclose(other, likeness(second, first), atol=1e-6)
    copies = first.clone()
    first[1] = 0
    found = likeness(first, second)
    assert found.isnan().tolist() == [False, True, False, False, False]
    assert torch.equal(found[[0, 2, 3, 4]], other[[0, 2, 3, 4]])
    assert torch.equal(first[0], copies[0])  # nothing of the caller's is changed


@pytest.mark.parametrize("likeness", [pearson, spearman, ssim], ids=lambda f: f.__name__)
def test_a_constant_map_has_no_correlation(likeness):
    assert likeness(torch.full((2, 12, 12), 0.3), maps(1, 2, 12)).isnan().all()
    assert torch.allclose(likeness(maps(1, 2, 12) + 5, maps(1, 2, 12)), torch.ones(2), atol=1e-4)


@pytest.mark.parametrize("likeness", LIKENESSES, ids=lambda f: f.__name__)
def test_maps_are_compared_on_the_coarser_grid(likeness):
    coarse = maps(1, side=7)
    fine = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.allclose(likeness(fine, coarse), torch.ones(5), atol=1e-5)
    assert torch.allclose(likeness(coarse, fine), torch.ones(5), atol=1e-5)


def test_the_strongest_places():
    first = torch.arange(100.0).view(1, 10, 10)
    assert top_intersection(first, -first, share=0.5).item() == 0
    shifted = first.roll(1, 1)
    assert top_intersection(first, shifted, share=0.2).item() == pytest.approx(10 / 30)
    many = [top_intersection(maps(seed), maps(seed + 100), share=0.2).mean().item() for seed in range(20)]
    assert np.mean(many) == pytest.approx(0.2 / 1.8, abs=0.02)  # what the docstring says of unrelated maps


def test_the_pointing_game():
    found = torch.zeros(4, 4, 4)
    found[:, 0, 0] = 1
    found[2] = 0
    masks = torch.zeros(4, 8, 8)
    masks[0, :4, :4] = 1
    masks[1, 4:, 4:] = 1
    masks[2, :4] = 1
    values = pointing_game(found, masks)
    assert values[:2].tolist() == [1, 0]
    assert values[2:].isnan().all()  # an empty map, an empty mask
    against = -3 * found[:1]
    against[0, 3, 3] = 1
    assert pointing_game(against, masks[:1]).item() == 0  # signed: the largest value, not the strongest
    assert energy_in_mask(found[:2], masks[:2])[0] > 0.9
    assert energy_in_mask(torch.ones(1, 4, 4), masks[:1]).item() == pytest.approx(0.25)
    assert energy_in_mask(found[2:3], masks[2:3]).isnan().all()


def test_a_mean_leaves_empty_maps_out_and_counts_them():
    first = maps(1, count=3).abs() + 0.1
    first[1] = 0
    found = mean_interval(cosine(first, 7 * first))
    assert (found["n"], found["empty"]) == (2, 1)
    assert found["mean"] == pytest.approx(1)
    assert torch.allclose(cosine(first, -first)[[0, 2]], -torch.ones(2))


def test_sparseness_and_complexity():
    one = torch.zeros(1, 4, 4)
    one[0, 1, 2] = -3
    flat = torch.full((1, 4, 4), 0.2)
    assert sparseness(one).item() == pytest.approx(15 / 16)
    assert sparseness(flat).item() == pytest.approx(0, abs=1e-6)
    assert complexity(one).item() == pytest.approx(0)
    assert complexity(flat).item() == pytest.approx(1)
    drawn = maps(3).abs()
    values = drawn.flatten(1).double().numpy()
    pairs = [
        np.abs(row[:, None] - row[None]).sum() / (2 * len(row) * row.sum()) for row in values
    ]  # another definition
    assert np.allclose(sparseness(drawn), pairs, atol=1e-5)
    shares = values / values.sum(1, keepdims=True)
    assert np.allclose(complexity(drawn), -(shares * np.log(shares)).sum(1) / math.log(196), atol=1e-5)
    assert torch.allclose(sparseness(7 * drawn), sparseness(-drawn), atol=1e-6)
    for measure in (sparseness, complexity):
        assert measure(torch.zeros(1, 4, 4)).isnan().all()
