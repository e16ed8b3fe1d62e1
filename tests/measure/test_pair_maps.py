"""Maps of pairs: against a set that is drawn once, of images inside and outside it; how stable they are, and how true."""

import numpy as np
import pytest
import torch

from distilens.data import load
from distilens.explain import build_explainer
from distilens.measure.faithfulness import insertion
from distilens.measure.levels import Pair, levels_of
from distilens.measure.likeness import pearson
from distilens.measure.localisation import energy_in_mask
from distilens.measure.pair_maps import FLOOR, pair_maps, pixels_of, put_to_test, reference_set, stability
from distilens.measure.unicam import UniCAM
from distilens.models import build_model


@pytest.fixture(scope="module")
def world():
    data = load("shapes:shots=12")
    networks = {}
    for seed, name in enumerate(("base", "student")):
        torch.manual_seed(seed)
        networks[name] = build_model("resnet8", data.classes, data.size).eval()
    return data, networks


def task_of(labels: torch.Tensor) -> torch.Tensor:
    return torch.eye(8)[labels]


def test_the_reference_set_is_balanced_and_drawn_once(world):
    data, _ = world
    found = reference_set(data.test, task_of, 60)
    assert len(found.positions) == 64  # as many of each of 8 classes, 60 at least
    assert np.bincount(data.test.labels[found.positions]).tolist() == [8] * 8
    assert np.array_equal(found.positions, reference_set(data.test, task_of, 60).positions)
    assert not np.array_equal(found.positions, reference_set(data.test, task_of, 60, seed=1).positions)
    assert torch.equal(found.images, data.test.pixels(found.positions)[0])
    assert torch.equal(found.task.argmax(1), torch.from_numpy(data.test.labels[found.positions]))
    inside = int(found.positions[5])
    outside = next(place for place in range(len(data.test)) if place not in set(found.positions.tolist()))
    assert found.among(torch.tensor([outside, inside])).tolist() == [-1, 5]


def test_maps_of_a_pair_are_unicam(world, monkeypatch):
    data, networks = world
    level = levels_of(networks, ["layer2"])[0]
    reference = reference_set(data.test, task_of, 32)
    positions = torch.tensor([int(reference.positions[3]), 0, 1, 2])
    batch = pixels_of(data.test, positions)
    heard = []
    pair = Pair("student", "base")
    maps = pair_maps(
        pair, networks, level, reference, batch.images, task_of(batch.labels), positions, done=heard.append
    )
    explain = UniCAM(
        networks["student"], networks["base"], reference.images, reference.task, tap="layer2", other_tap="layer2"
    )
    expected = explain(batch.images, task_of(batch.labels), among=reference.among(positions))
    assert torch.allclose(maps, expected)
    assert maps.any()
    assert heard == [32, 4]
    monkeypatch.setattr("distilens.measure.pair_maps.CHUNK", 3)
    again = pair_maps(pair, networks, level, reference, batch.images, task_of(batch.labels), positions)
    assert torch.allclose(again, maps, rtol=1e-4, atol=1e-7 * float(maps.max()))


def test_stability_is_the_mean_correlation():
    generator = torch.Generator().manual_seed(0)
    maps, other = torch.rand(5, 4, 4, generator=generator), torch.rand(5, 4, 4, generator=generator)
    found = stability(maps, [maps, other])
    assert found["mean"] == pytest.approx(float((1 + pearson(maps, other)).mean() / 2))
    assert (found["sets"], found["n"]) == (2, 5)
    assert stability(torch.zeros(5, 4, 4), [maps])["mean"] is None


def test_maps_are_put_to_the_test_of_their_model(world):
    data, networks = world
    batch = pixels_of(data.test, torch.arange(6))
    maps = torch.rand(6, 8, 8, generator=torch.Generator().manual_seed(0))
    maps[2] = 0
    heard = []
    means, values = put_to_test(networks["student"], batch, maps, done=heard.append)
    with torch.no_grad():
        first = networks["student"].logits(batch.images).argmax(1)
    assert torch.equal(
        values["insertion"].nan_to_num(-1), insertion(networks["student"], batch.images, maps, first).nan_to_num(-1)
    )
    noise = build_explainer(FLOOR)(networks["student"], batch.images, first).maps
    assert torch.equal(values["floor"], insertion(networks["student"], batch.images, noise, first))
    assert torch.equal(values["energy_in_mask"].nan_to_num(-1), energy_in_mask(maps, batch.mask).nan_to_num(-1))
    assert means["above_floor"]["mean"] == pytest.approx(float((values["insertion"] - values["floor"]).nanmean()))
    assert (means["empty"], means["n"], means["insertion"]["n"]) == (1, 6, 5)
    assert means["mask_share"]["mean"] == pytest.approx(float(batch.mask.mean()))
    assert heard == [6]
