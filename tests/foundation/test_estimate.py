import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from distilens.foundation.estimate import Estimate, mcnemar, mean_of, median_of, share_apart, share_of

WHOLE = Estimate(-0.0123, -0.1, 0.0754, 1200)


def outcomes(both: int, first: int, second: int, neither: int) -> tuple[torch.Tensor, torch.Tensor]:
    one = [True] * (both + first) + [False] * (second + neither)
    other = [True] * both + [False] * first + [True] * second + [False] * neither
    return torch.tensor(one), torch.tensor(other)


@pytest.mark.parametrize("name", ["accuracy", "mean", "value"])
@pytest.mark.parametrize("estimate", [WHOLE, Estimate(0.5), Estimate(2.0, 1.0, 3.0), Estimate(1.0, n=1, empty=3)])
def test_plain_data_is_read_back(estimate: Estimate, name: str):
    assert Estimate.read(json.loads(json.dumps(estimate.plain(name)))) == estimate


def test_the_keys_are_in_the_order_of_existing_files():
    assert list(WHOLE.plain()) == ["mean", "low", "high", "n"]
    assert list(WHOLE.plain("accuracy")) == ["accuracy", "n", "low", "high"]
    assert list(Estimate(1.0, 0.0, 2.0).plain("value")) == ["value", "low", "high"]
    assert list(mean_of([1.0]).plain()) == ["mean", "low", "high", "n", "empty"]


def test_what_has_no_number_is_read_as_none():
    for entry in (None, {}, {"mean": None, "low": None, "high": None, "n": 0, "empty": 4}, {"n": 3}):
        assert Estimate.read(entry) is None
    assert Estimate.read({"median": 3.0, "low": 2.0, "high": 4.0}, "median") == Estimate(3.0, 2.0, 4.0)
    assert Estimate.read({"median": 3.0}) is None


def test_the_text_has_true_minus_signs():
    assert str(WHOLE) == "−0.012 [−0.100 to 0.075], n = 1,200"
    assert WHOLE.written(lambda value: f"{100 * value:.1f} %") == "−1.2 % [−10.0 % to 7.5 %], n = 1,200"
    assert WHOLE.with_interval() == "−0.012 [−0.100 to 0.075]"
    assert WHOLE.half == pytest.approx(0.0877)
    assert Estimate(1.5).half is None
    assert WHOLE.with_half() == "−0.012 ±0.088"
    assert str(Estimate(1.5)) == "1.500" == Estimate(1.5).with_half()
    assert str(Estimate(None, n=0)) == "–, n = 0"


def test_intervals_hold_numbers_and_overlap():
    assert WHOLE.holds(0)
    assert WHOLE.holds(-0.1)
    assert WHOLE.holds(0.0754)
    assert not WHOLE.holds(0.08)
    assert not WHOLE.holds(-0.2)
    assert not Estimate(0.0).holds(0)
    assert WHOLE.overlaps(Estimate(0.1, 0.0754, 0.2))
    assert WHOLE.overlaps(Estimate(-0.2, -0.3, -0.1))
    assert not WHOLE.overlaps(Estimate(0.1, 0.076, 0.2))
    assert not WHOLE.overlaps(Estimate(-0.2, -0.3, -0.11))
    assert not WHOLE.overlaps(Estimate(0.0))
    assert not Estimate(0.0).overlaps(WHOLE)


def test_intervals_are_above_and_below_numbers():
    assert WHOLE.above(-0.11)
    assert not WHOLE.above(-0.1)
    assert WHOLE.below(0.08)
    assert not WHOLE.below(0.0754)
    assert not Estimate(0.0).above(-1)
    assert not Estimate(0.0).below(1)
    assert Estimate(0.1).positive
    assert not any(estimate.positive for estimate in (WHOLE, Estimate(0.0), Estimate(None)))


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 29, 0.0061, 0.1718), (81, 263, 0.2553, 0.3662)],
)
def test_wilsons_interval_is_newcombes(count: int, n: int, low: float, high: float):
    """Newcombe 1998 (Statistics in Medicine 17: 857-872), table I, method 3."""
    found = share_of(np.arange(n) < count)
    assert (found.value, found.n) == (count / n, n)
    assert found.ends == pytest.approx((low, high), abs=1e-4)


def test_a_share_has_wilsons_interval():
    count, n, z = 7, 50, 1.959963984540054
    found = share_of(np.arange(n) < count)
    centre = (count / n + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(count / n * (1 - count / n) / n + z * z / (4 * n * n))
    assert (found.value, found.n) == (0.14, 50)
    assert found.ends == pytest.approx((centre - half, centre + half))
    assert share_of([True] * 7 + [False] * 43) == found == share_of(torch.arange(n) < count)
    assert share_of([True] * 3).high == 1.0
    sure = share_of([True] * 7 + [False] * 43, level=0.999)
    assert sure.low < found.low < found.high < sure.high


def test_a_mean_leaves_out_nan():
    values = [1.0, 2, 3, 4, math.nan]
    found = mean_of(values)
    half = 1.96 * np.std([1, 2, 3, 4], ddof=1) / 2
    assert (found.value, found.n, found.empty) == (2.5, 4, 1)
    assert found.ends == pytest.approx((2.5 - half, 2.5 + half))
    assert mean_of(np.array(values)) == found == mean_of(torch.tensor(values))
    assert mean_of([3.0]) == Estimate(3.0, n=1, empty=0)
    assert mean_of([math.nan]) == Estimate(None, n=0, empty=1)


def test_a_list_is_not_rounded_to_float32():
    assert mean_of([0.1]).value == 0.1


def test_a_difference_is_that_of_the_shares_and_turns_its_sign():
    one, other = outcomes(40, 12, 5, 43)
    found, turned = share_apart(one, other), share_apart(other, one)
    assert found is not None and turned is not None
    assert found.value == pytest.approx(0.07)
    assert found.n == 100
    assert found.low < 0.07 < found.high
    assert (found.low, found.high) == pytest.approx((-turned.high, -turned.low))
    assert share_apart(one.tolist(), other.tolist()) == found
    assert share_apart(one[:0], other[:0]) is None


def test_few_images_that_all_say_the_same_are_not_sure():
    found = share_apart(*outcomes(0, 3, 0, 0))
    assert found.value == 1
    assert found.low < 0.6
    same = share_apart(*outcomes(5, 0, 0, 5))
    assert same.low < 0 < same.high


def test_the_interval_holds_the_truth_in_about_95_of_100_samples():
    source = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(400):
        shared = torch.rand(60, generator=source)  # what makes both outcomes go together
        one = (shared + 0.3 * torch.rand(60, generator=source)) < 0.9
        other = (shared + 0.3 * torch.rand(60, generator=source)) < 0.7
        held += share_apart(one, other).holds(0.2)
    assert 0.92 <= held / 400 <= 0.995


def test_to_write_an_estimate_needs_no_torch():
    code = "import sys; from distilens.foundation.estimate import Estimate; print(Estimate(1.0)); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1.000", "False"]


def test_the_interval_of_a_median_is_two_of_the_numbers_and_needs_six():
    values = [float(number) for number in range(20)]
    assert median_of(values) == Estimate(9.5, 5.0, 14.0, 20)  # the 6th and the 15th: binomial(20, 1/2) at 0.95
    assert median_of([1.0, 2.0, 300.0]) == Estimate(2.0, n=3)
    assert median_of(values[:5]).ends is None
    assert median_of(values[:6]).ends == (0.0, 5.0)


def test_mcnemar_counts_the_images_that_only_one_gets_right():
    one = torch.tensor([True] * 9 + [False] * 3 + [True] * 5)
    other = torch.tensor([False] * 9 + [True] * 3 + [True] * 5)
    assert mcnemar(one, other) == {"gained": 9, "lost": 3, "p": pytest.approx(binomtest(9, 12).pvalue)}
    assert mcnemar(one, one)["p"] == 1
