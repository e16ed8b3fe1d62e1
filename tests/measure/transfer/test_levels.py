"""Models compared level by level: which levels, which images, and scores that are those of the functions."""

import json

import numpy as np
import pytest
import torch

from distilens.core import Batch
from distilens.data import load
from distilens.data.pipeline import Batches
from distilens.explain import build_explainer
from distilens.foundation.errors import UserError
from distilens.measure.transfer.dependence import contrast
from distilens.measure.transfer.distance_correlation import Distances
from distilens.measure.transfer.levels import (
    balanced,
    choose_images,
    features_at,
    level_scores,
    levels_of,
    pairs_of,
    pictured,
)
from distilens.measure.transfer.relevant import most_relevant
from distilens.measure.transfer.similarity import cka, fss, rs
from distilens.models import build_model


@pytest.fixture(scope="module")
def world():
    """Three models and a split of generated shapes."""
    data = load("shapes:shots=12")
    networks = {}
    for seed, (name, kind) in enumerate((("teacher", "resnet14"), ("base", "resnet8"), ("student", "resnet8"))):
        torch.manual_seed(seed)
        networks[name] = build_model(kind, data.classes, data.size).eval()
    return data, networks


def test_pairs_are_all_and_those_with_a_name_come_first():
    assert [one.called for one in pairs_of(["teacher", "base", "student"])] == [
        "distilled",
        "residual",
        "missed",
        "teacher without base",
        "base without teacher",
        "student without teacher",
    ]
    assert [one.called for one in pictured(["student", "base", "c"])] == ["distilled", "residual"]
    assert [one.called for one in pictured(["a", "b"])] == ["a without b", "b without a"]


def test_levels_by_default_are_what_all_models_have(world):
    _, networks = world
    assert [level.name for level in levels_of(networks)] == ["layer1", "layer2", "layer3", "logits"]
    small = build_model("mobilenetv2", ("a", "b"), (32, 32))
    mixed = levels_of({"student": networks["student"], "other": small})
    assert [level.name for level in mixed] == ["last-2", "last-1", "last", "logits"]
    assert mixed[2].taps["student"] == "layer3"
    assert mixed[2].taps["other"] == small.path_of("last")
    assert [level.has_grid for level in mixed] == [True, True, True, False]


def test_levels_are_named_by_taps_of_all_or_of_one(world):
    _, networks = world
    found = levels_of(networks, ["layer2", "last", "teacher=layer1", "teacher=layer3.0"])
    assert [dict(level.taps) for level in found] == [
        {"teacher": "layer1", "base": "layer2", "student": "layer2"},
        {"teacher": "layer3.0", "base": "layer3", "student": "layer3"},
    ]
    assert [level.name for level in found] == ["layer1 / layer2", "layer3.0 / last"]
    with pytest.raises(
        UserError, match="the same number of taps; given teacher: layer1; base: last, logits; student: last, "
    ):
        levels_of(networks, ["teacher=layer1", "last", "logits"])
    with pytest.raises(UserError, match="there is no model 'pupil'; given teacher, base, student"):
        levels_of(networks, ["pupil=layer1"])
    with pytest.raises(UserError, match="logits can only be compared with logits; given logits, last, last"):
        levels_of(networks, ["last", "teacher=logits"])
    with pytest.raises(UserError, match="two levels are called 'layer3': name each once"):
        levels_of(networks, ["last", "layer3"])
    with pytest.raises(UserError, match="layer9"):
        levels_of(networks, ["layer9"])


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


def test_explained_images_keep_what_the_model_finds_strong(world):
    data, networks = world
    images, _ = data.train.pixels(np.arange(4))
    labels = torch.from_numpy(data.train.labels[:4])
    shown = most_relevant(networks["teacher"], images, labels)
    kept = (shown == images).all(1)
    assert kept.flatten(1).sum(1).tolist() == [512] * 4
    assert float(shown.min()) > -0.1
    assert float(shown.max()) < 1.1
    maps = build_explainer("hirescam")(networks["teacher"], images, labels).maps
    fine = torch.nn.functional.interpolate(maps[:, None], size=(32, 32), mode="bilinear")[:, 0]
    for place, map_, there in zip(range(4), fine, kept, strict=True):
        if map_.any():
            assert map_[there].min() >= map_[~there].max() - 1e-6, place
    batch = [Batch(images, labels, torch.arange(4))]
    again = features_at(networks["teacher"], iter(batch), ["last"], explained=True)["last"]
    assert torch.allclose(again, features_at(networks["teacher"], [Batch(shown, labels, labels)], ["last"])["last"])
    with pytest.raises(UserError, match="explained for their labels, -1 to"):
        most_relevant(networks["teacher"], images, labels - 1 - labels.min())


def rows_of(world, tap: str, count: int = 40):
    data, networks = world
    some = choose_images(data.train, count)
    rows = {name: features_at(model, Batches(some, 500), [tap])[tap] for name, model in networks.items()}
    return rows, torch.from_numpy(some.labels)


def test_scores_are_what_the_functions_say(world):
    rows, labels = rows_of(world, "layer2", 80)
    heard = []
    found = level_scores(rows, Distances(torch.eye(8)[labels]), permutations=20, done=heard.append)
    assert json.loads(json.dumps(found)) == found
    assert [(one["of"], one["to"]) for one in found["fss"]] == [
        ("teacher", "base"),
        ("teacher", "student"),
        ("base", "student"),
    ]
    likeness = fss(rows["teacher"], rows["base"], permutations=20)
    assert (found["fss"][0]["value"], found["fss"][0]["p"]) == (likeness.value, likeness.p)
    assert found["fss"][0]["cka"] == cka(rows["teacher"], rows["base"])
    assert [one["of"] for one in found["rs"]] == ["teacher", "base", "student"]
    given = {one["called"]: one for one in found["given"]}
    assert len(given) == 6
    assert given["distilled"]["value"] == rs(rows["student"], labels, rows["base"]).value
    assert given["missed"]["value"] == rs(rows["teacher"], labels, rows["student"]).value
    for one in [*found["fss"], *found["rs"], *found["given"]]:
        assert -1 <= one["low"] <= one["value"] <= one["high"] <= 1
        assert one["n"] == 80
    assert [(one["what"], one["of"], one["than"]) for one in found["apart"]] == [
        ("rs", "student", "base"),
        ("given", "distilled", "residual"),
        ("fss", "student", "base"),
    ]
    task = torch.eye(8)[labels]
    apart = contrast((rows["student"], task, rows["base"]), (rows["base"], task, rows["student"]))
    assert found["apart"][1]["value"] == pytest.approx(apart.value, abs=1e-9)
    assert found["apart"][1]["low"] == pytest.approx(apart.low, abs=1e-9)
    assert sum(heard) == len(heard) == 3 + 3 + 3 + 6 + 1


def test_the_task_can_lose_the_other_model_too(world):
    rows, labels = rows_of(world, "layer2")
    two = {name: rows[name] for name in ("base", "student")}
    found = level_scores(two, Distances(torch.eye(8)[labels]), full=True)
    distilled = next(one for one in found["given"] if one["called"] == "distilled")
    assert distilled["value"] == rs(rows["student"], labels, rows["base"], full=True).value
    assert [one["what"] for one in found["apart"]] == ["rs", "given"]


def test_the_same_model_twice_has_nothing_left(world):
    rows, labels = rows_of(world, "last")
    twice = {"student": rows["student"], "base": rows["student"]}
    found = level_scores(twice, Distances(torch.eye(8)[labels]))
    assert found["fss"][0]["value"] == pytest.approx(1)
    assert [one["value"] for one in found["given"]] == [0, 0]
    assert [one["value"] for one in found["apart"]] == [0, 0]


def test_the_biased_scores_are_those_of_the_released_code(world):
    rows, labels = rows_of(world, "last")
    found = level_scores(rows, Distances(torch.eye(8)[labels]), biased=True)
    assert found["fss"][0]["value"] == pytest.approx(fss(rows["teacher"], rows["base"], biased=True).value)
    assert found["rs"][0]["value"] == pytest.approx(rs(rows["teacher"], labels, biased=True).value)
    assert (found["given"], found["apart"]) == ([], [])
    assert found["fss"][0]["low"] is None
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_rows_of_other_images_are_not_compared(world):
    rows, labels = rows_of(world, "last")
    task = Distances(torch.eye(8)[labels], torch.arange(40))
    with pytest.raises(UserError, match="in the same order; at place 0 one has sample"):
        level_scores(rows, task, index=torch.arange(40).flip(0))
    rows["base"][3] = torch.nan
    with pytest.raises(UserError, match="the features of samples 3 are NaN or infinite"):
        level_scores(rows, task)


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
