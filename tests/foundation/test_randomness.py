"""Draws are splitmix64 of their keys, whatever the order or the batch."""

import zlib

import numpy as np
import pytest
import torch

from distilens.foundation import randomness

GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1


def splitmix(state: int) -> int:
    """The finaliser in exact integers."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def expected(name: str, index: int, *keys: int, column: int = 0) -> float:
    state = zlib.crc32(name.encode())
    for key in (*keys, index):
        state = splitmix((state + key + GOLDEN) & MASK)
    return (splitmix((state + (column + 1) * GOLDEN) & MASK) >> 40) / (1 << 24)


def test_they_are_splitmix64_in_exact_integers():
    index = torch.tensor([0, 1, 5, 49_999, 2**40])
    found = randomness.uniform("crop", index, 7, 3, count=3)
    assert found.dtype == torch.float32
    for row, number in zip(found, index.tolist(), strict=True):
        assert row.tolist() == [expected("crop", number, 7, 3, column=column) for column in range(3)]


def test_no_number_is_one_and_the_smallest_is_zero():
    largest = torch.tensor([(1 << 24) - 1]).to(torch.float32) / (1 << 24)
    assert largest.item() < 1
    found = randomness.uniform("x", torch.arange(1_000_000))
    assert (found.min() >= 0) & (found.max() < 1)
    assert found.min() < 1e-5  # the whole interval is reached
    assert found.max() > 1 - 1e-5


def test_mean_and_variance_and_their_neighbours():
    found = randomness.uniform("x", torch.arange(100_000), 0, 0, count=2).double()
    assert found.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.004)
    assert found.var(0).tolist() == pytest.approx([1 / 12, 1 / 12], abs=0.001)
    for first, second in (
        (found[:-1, 0], found[1:, 0]),
        (found[:-2, 0], found[2:, 0]),
        (found[:, 0], found[:, 1]),
        (found[:, 0], randomness.uniform("y", torch.arange(100_000), 0, 0)[:, 0].double()),
        (found[:, 0], randomness.uniform("x", torch.arange(100_000), 0, 1)[:, 0].double()),
        (found[:, 0], randomness.uniform("x", torch.arange(100_000), 1, 0)[:, 0].double()),
        # (seed, epoch) are two keys, not a sum
        (found[:, 0], randomness.uniform("x", torch.arange(100_000), 0)[:, 0].double()),
    ):
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.015


def test_one_row_does_not_depend_on_the_others_or_on_how_many_columns_are_asked_for():
    whole = randomness.uniform("x", torch.arange(100), 2, count=4)
    assert torch.equal(randomness.uniform("x", torch.tensor([17, 3]), 2, count=4), whole[[17, 3]])
    assert torch.equal(randomness.uniform("x", torch.arange(100, dtype=torch.int32), 2, count=2), whole[:, :2])


def test_generators_repeat_and_differ_by_name_and_key():
    def order(*keys):
        return torch.randperm(50, generator=randomness.generator(*keys)).tolist()

    assert order("order", 1, 2) == order("order", 1, 2)
    assert (
        len({tuple(order(*keys)) for keys in (("order", 1, 2), ("order", 2, 1), ("order", 1, 3), ("mix", 1, 2))}) == 4
    )


def test_draws_depend_on_their_keys_alone():
    index = torch.arange(1000)
    found = randomness.uniform("crop", index, 3, 5, count=2)
    order = torch.randperm(1000)
    assert torch.equal(randomness.uniform("crop", index[order], 3, 5, count=2), found[order])
    assert found.min() >= 0
    assert found.max() < 1
    for other in (
        randomness.uniform("flip", index, 3, 5),
        randomness.uniform("crop", index, 3, 6),
        randomness.uniform("crop", index, 4, 5),
    ):
        assert abs(float(np.corrcoef(found[:, 0], other[:, 0])[0, 1])) < 0.1
    assert abs(float(np.corrcoef(found[:-1, 0], found[1:, 0])[0, 1])) < 0.1
    assert abs(float(np.corrcoef(found[:, 0], found[:, 1])[0, 1])) < 0.1


def test_draws_are_uniform():
    found = randomness.uniform("x", torch.arange(20000), 1)[:, 0]
    counts = torch.histc(found, 20, 0, 1)
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 50  # chi squared, 19 degrees of freedom: p < 1e-4
