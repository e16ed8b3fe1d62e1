"""What was passed on: scores of likeness and of relevance, and the features that they are of."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from distilens.core import Batch
from distilens.data import load
from distilens.data.batches import Batches
from distilens.errors import UserError
from distilens.measure.distance_correlation import Distances, dependence, distance_correlation
from distilens.measure.transfer import balanced, cka, compare_models, features_at, fss, rs
from distilens.models import build_model

LABELS = torch.arange(40) % 4


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clusters(spread: float, seed: int = 0) -> torch.Tensor:
    """Features in which the classes lie apart, the more so the smaller the spread."""
    return torch.eye(4, 30).double()[LABELS] + spread * normal(40, 30, seed=seed)


def test_likeness_is_1_of_the_same_and_0_of_nothing():
    x = normal(40, 30)
    assert fss(x, 2 * x + 1).value == pytest.approx(1)
    assert abs(fss(x, normal(40, 50, seed=1)).value) < 0.1
    assert fss(x, x[:, :10]) == dependence(x, x[:, :10])


def test_relevance_grows_with_how_well_classes_lie_apart():
    values = [rs(clusters(spread), LABELS).value for spread in (1.0, 0.3, 0.1, 0.0)]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(1)
    assert abs(rs(normal(40, 30), LABELS).value) < 0.1
    assert rs(clusters(0.3), one_hot(LABELS).double()) == rs(clusters(0.3), LABELS)


def test_relevance_given_another_model_is_of_what_that_one_does_not_know():
    weak, strong = clusters(1.0, seed=1), clusters(0.1, seed=2)
    alone, left = rs(strong, LABELS), rs(strong, LABELS, weak)
    assert 0.2 < left.value < alone.value
    assert rs(strong, LABELS, strong).value == 0
    assert rs(weak, LABELS, strong).value < rs(weak, LABELS).value
    assert rs(strong, LABELS, weak, full=True).value != left.value


def test_the_biased_statistic_is_the_released_code_and_says_so():
    x, y = normal(5, 500), normal(5, 500, seed=1)
    found = fss(x, y, biased=True)
    assert found.value == float(distance_correlation(x, y, biased=True)) > 0.99
    assert math.isnan(found.p)
    assert "biased" in found.notes[0]
    assert rs(x, LABELS[:5], biased=True).value > 0.5
    with pytest.raises(UserError, match="no partial form"):
        rs(x, LABELS[:5], y, biased=True)


def test_cka_is_its_definition_and_invariant():
    """Unbiased: the sum over distinct i, j, q, r of Song et al. 2012, here by brute force."""
    x, y = normal(7, 3), normal(7, 4, seed=1)

    def brute(k, other):
        n, total = len(k), 0.0
        for i in range(n):
            for j in range(n):
                for q in range(n):
                    for r in range(n):
                        if len({i, j, q, r}) == 4:
                            total += float(k[i, j] * (other[i, j] + other[q, r] - 2 * other[i, q]))
        return total / (n * (n - 1) * (n - 2) * (n - 3))

    grams = [each @ each.T for each in (x, y)]
    expected = brute(*grams) / math.sqrt(brute(grams[0], grams[0]) * brute(grams[1], grams[1]))
    assert cka(x, y) == pytest.approx(expected, abs=1e-10)
    turn = torch.linalg.qr(normal(30, 30, seed=1))[0]
    wide = normal(40, 30)
    assert cka(wide, 3 * wide @ turn + 5) == pytest.approx(1)
    assert abs(cka(wide, normal(40, 500, seed=2))) < 0.2
    assert cka(torch.ones(40, 3), wide) == 0


def test_features_are_those_at_the_taps():
    torch.manual_seed(0)
    model = build_model("resnet8", tuple("abcd"), (32, 32)).train()
    pixels = torch.rand(6, 3, 32, 32)
    batches = [Batch(part, torch.arange(len(part)), torch.arange(len(part))) for part in pixels.split(4)]
    found = features_at(model, iter(batches), ["layer1", "last", "logits"])
    model.eval()
    model.tap("layer1"), model.tap("last")
    with torch.no_grad():
        output = model(pixels)
    assert torch.allclose(found["logits"], output.logits, atol=1e-5)
    assert torch.allclose(found["layer1"], output.features["layer1"].mean((2, 3)), atol=1e-5)
    assert torch.allclose(found["last"], output.features["last"].mean((2, 3)), atol=1e-5)
    flat = features_at(model, iter(batches), ["layer1"], "flat")["layer1"]
    assert torch.allclose(flat, output.features["layer1"].flatten(1), atol=1e-5)
    assert Distances(flat).n == 6


@pytest.fixture(scope="module")
def world():
    """Three models and a split of generated shapes."""
    data = load("shapes:shots=12")
    networks = {}
    for seed, (name, kind) in enumerate((("teacher", "resnet14"), ("base", "resnet8"), ("student", "resnet8"))):
        torch.manual_seed(seed)
        networks[name] = build_model(kind, data.classes, data.size).eval()
    return data, networks


def taps_of(networks, *taps: str) -> dict:
    return {name: list(taps) for name in networks}


def test_models_are_compared_at_each_level(world):
    data, networks = world
    found = compare_models(networks, data.train, taps_of(networks, "last-1", "last", "logits"), samples=80)
    assert json.loads(json.dumps(found)) == found
    assert found["n"] == 80
    assert [level["taps"]["teacher"] for level in found["levels"]] == ["last-1", "last", "logits"]
    for level in found["levels"]:
        assert [(each["of"], each["to"]) for each in level["fss"]] == [
            ("teacher", "base"),
            ("teacher", "student"),
            ("base", "student"),
        ]
        assert [each["of"] for each in level["rs"]] == ["teacher", "base", "student"]
        called = {each["called"]: (each["of"], each["given"]) for each in level["given"] if each["called"]}
        assert called == {
            "distilled": ("student", "base"),
            "residual": ("base", "student"),
            "missed": ("teacher", "student"),
        }
        for each in [*level["fss"], *level["rs"], *level["given"]]:
            assert -1 <= each["low"] <= each["value"] <= each["high"] <= 1
            assert each["n"] == 80
        assert all(0 < each["cka"] <= 1 for each in level["fss"])


def test_what_is_compared_is_what_the_functions_say(world):
    data, networks = world
    two = {name: networks[name] for name in ("base", "student")}
    (level,) = compare_models(two, data.train, taps_of(two, "layer2"), samples=40, full=True, permutations=20)["levels"]
    some = dataclasses.replace(data.train, index=data.train.index[balanced(data.train.labels, 40)])
    rows = {name: features_at(model, iter(Batches(some, 500)), ["layer2"])["layer2"] for name, model in two.items()}
    labels = torch.from_numpy(some.labels)
    likeness = fss(rows["base"], rows["student"], permutations=20)
    assert level["fss"][0]["value"] == likeness.value
    assert level["fss"][0]["p"] == likeness.p
    assert level["fss"][0]["cka"] == cka(rows["base"], rows["student"])
    distilled = next(each for each in level["given"] if each["called"] == "distilled")
    assert distilled["value"] == rs(rows["student"], labels, rows["base"], full=True).value


def test_the_same_model_twice_has_nothing_left(world):
    data, networks = world
    twice = {"student": networks["student"], "base": networks["student"]}
    (level,) = compare_models(twice, data.train, taps_of(twice, "last"), samples=40)["levels"]
    assert level["fss"][0]["value"] == pytest.approx(1)
    assert [each["value"] for each in level["given"]] == [0, 0]


def test_the_task_can_be_said_by_embeddings(world):
    data, networks = world
    two = {name: networks[name] for name in ("base", "student")}
    plain = compare_models(two, data.train, taps_of(two, "last"), samples=40)
    same = compare_models(two, data.train, taps_of(two, "last"), samples=40, embeddings=7 * torch.eye(8) + 1)
    other = compare_models(two, data.train, taps_of(two, "last"), samples=40, embeddings=torch.arange(8.0)[:, None])
    values = [found["levels"][0]["rs"][0]["value"] for found in (plain, same, other)]
    assert values[1] == pytest.approx(values[0])
    assert values[2] != pytest.approx(values[0], abs=1e-3)
    assert (plain["task"], same["task"]) == ("one-hot", "embeddings")


def test_what_cannot_be_compared_is_said(world):
    data, networks = world
    taps = taps_of(networks, "last")
    with pytest.raises(UserError, match="two models or more are compared; given student"):
        compare_models({"student": networks["student"]}, data.train, taps)
    with pytest.raises(UserError, match="each has as many; given teacher: last; base: last, logits"):
        compare_models(networks, data.train, taps | {"base": ["last", "logits"]})
    with pytest.raises(UserError, match="embeddings of 3 classes, and the data have 8"):
        compare_models(networks, data.train, taps, embeddings=torch.eye(3))
    with pytest.raises(UserError, match="8 images of 8 classes: take 16 or more"):
        compare_models(networks, data.train, taps, samples=8)


def test_positions_are_balanced_and_drawn_once():
    labels = np.array([0] * 50 + [1] * 7 + [2] * 30 + [-1] * 20)
    found = balanced(labels, 60)
    assert np.bincount(labels[found]).tolist() == [7, 7, 7]
    assert (np.diff(found) > 0).all()
    assert np.array_equal(found, balanced(labels, 60))
    assert not np.array_equal(found, balanced(labels, 60, seed=1))
    assert np.bincount(labels[balanced(labels, 12)]).tolist() == [4, 4, 4]
    with pytest.raises(UserError, match="the images have 1 class:"):
        balanced(np.zeros(9, int), 6)
    with pytest.raises(UserError, match="the images have 0 classes:"):
        balanced(np.full(9, -1), 6)
