"""Maps of pairs: against a set that is drawn once, of images inside and outside it; how stable they are, and how true."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from distilens.core import Batch
from distilens.data import load
from distilens.data.pipeline import batch_at
from distilens.explain import build_explainer
from distilens.foundation.errors import UserError
from distilens.measure.maps.faithfulness import insertion
from distilens.measure.maps.likeness import pearson
from distilens.measure.maps.localisation import energy_in_mask
from distilens.measure.transfer.levels import Pair, features_at, levels_of
from distilens.measure.transfer.pair_maps import (
    FLOOR,
    pair_maps,
    put_to_test,
    reference_positions,
    reference_set,
    sanity,
    seen_at,
    stability,
)
from distilens.measure.transfer.unicam import UniCAM
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
    data, networks = world
    positions = reference_positions(data.test, 60)
    assert len(positions) == 64  # as many of each of 8 classes, 60 at least
    assert np.bincount(data.test.labels[positions]).tolist() == [8] * 8
    assert np.array_equal(positions, reference_positions(data.test, 60))
    assert not np.array_equal(positions, reference_positions(data.test, 60, seed=1))
    assert len(reference_positions(data.test, 10_000)) <= len(data.test) / 2
    heard = []
    levels = levels_of(networks, ["layer2", "last"])
    found = reference_set(
        networks, levels, data.test, task_of, positions, done=lambda name, count: heard.append((name, count))
    )
    assert torch.equal(found.task.argmax(1), torch.from_numpy(data.test.labels[positions]))
    assert heard == [("base", 64), ("student", 64)]
    images, labels = data.test.pixels(positions)[0], found.task.argmax(1)
    expected = features_at(networks["student"], [Batch(images, labels, labels)], ["layer2", "layer3"])
    assert all(torch.allclose(found.rows["student"][tap], rows, atol=1e-5) for tap, rows in expected.items())
    inside = int(positions[5])
    outside = next(place for place in range(len(data.test)) if place not in set(positions.tolist()))
    assert found.among(torch.tensor([outside, inside])).tolist() == [-1, 5]


def ready(world, tap: str, count: int, size: int = 6):
    """A level, a reference set, and what models see of some images, the fourth of the set among them."""
    data, networks = world
    level = levels_of(networks, [tap])[0]
    reference = reference_set(networks, [level], data.test, task_of, reference_positions(data.test, count))
    positions = torch.tensor([int(reference.positions[3]), *range(size - 1)])
    batch = batch_at(data.test, positions)
    seen = seen_at(networks, level, batch.images)
    return level, reference, positions, batch, seen


@pytest.mark.parametrize("features", ["pooled", "flat"])
def test_maps_of_a_pair_are_unicam(world, features, monkeypatch):
    data, networks = world
    monkeypatch.setattr("distilens.measure.transfer.pair_maps.CHUNK", 5)
    level, _, positions, batch, seen = ready(world, "layer2", 32)
    reference = reference_set(
        networks, [level], data.test, task_of, reference_positions(data.test, 32), features=features
    )
    among = reference.among(positions)
    maps = pair_maps(Pair("student", "base"), level, reference, seen, task_of(batch.labels), among, features=features)
    images, _ = data.test.pixels(reference.positions)
    pair = networks["student"], networks["base"]
    explain = UniCAM(*pair, images, reference.task, tap="layer2", other_tap="layer2", features=features)
    expected = explain(batch.images, task_of(batch.labels), among=among)
    assert maps.any()
    assert torch.allclose(maps, expected, rtol=1e-3, atol=1e-5 * float(maps.max()))


def test_stability_is_the_mean_correlation():
    generator = torch.Generator().manual_seed(0)
    maps, other = torch.rand(5, 4, 4, generator=generator), torch.rand(5, 4, 4, generator=generator)
    found = stability(maps, [maps, other])
    assert found["mean"] == pytest.approx(float((1 + pearson(maps, other)).mean() / 2))
    assert (found["sets"], found["n"]) == (2, 5)
    assert stability(torch.zeros(5, 4, 4), [maps])["mean"] is None


def test_sanity_is_the_likeness_to_maps_of_nothing(world, monkeypatch):
    data, networks = world
    level, reference, positions, batch, seen = ready(world, "last", 64, 12)
    pair, task, among = Pair("student", "base"), task_of(batch.labels), reference.among(positions)
    maps = pair_maps(pair, level, reference, seen, task, among)
    before = {key: value.clone() for key, value in networks["student"].state_dict().items()}
    given = (networks["student"], level, reference, data.test, batch.images, seen, task, among, maps)
    found = sanity(pair, *given)
    assert set(found) == {"shuffled_labels", "random_weights"}
    for one in found.values():
        assert -1 <= one["mean"] < 0.9
        assert one["n"] <= 12
    assert found == sanity(pair, *given)
    with monkeypatch.context() as patch:  # nothing is drawn anew: the maps are the same, and the likeness is 1
        patch.setattr("distilens.measure.transfer.pair_maps.randomised", lambda model, calibrate: model)
        same = sanity(pair, *given)["random_weights"]
    assert same["mean"] == pytest.approx(1, abs=1e-3)
    assert found["random_weights"]["mean"] < same["mean"] - 0.1
    assert all(torch.equal(value, before[key]) for key, value in networks["student"].state_dict().items())


def test_maps_are_put_to_the_test_of_their_model(world):
    data, networks = world
    batch = batch_at(data.test, torch.arange(6))
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


def test_a_reference_set_needs_labels(world):
    data, _ = world
    rows = replace(data.test.rows, targets=np.full_like(data.test.rows.targets, -1))
    with pytest.raises(UserError, match="the images have 0 classes: comparing features with a task needs two"):
        reference_positions(replace(data.test, rows=rows), 16)
