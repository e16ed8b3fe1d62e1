"""Numbers that are known beforehand: shares and their intervals, likeness of maps, cost."""

import numpy as np
import pytest
import torch
from torch import nn

from distilens.core import Model
from distilens.data import from_arrays
from distilens.data.pipeline import Batches
from distilens.explain import build_explainer
from distilens.measure import (
    accuracy,
    agreement,
    cosine,
    energy_in_mask,
    latency,
    macs,
    parameters,
    predict,
)
from distilens.measure.scores import compare_maps, draw_positions, score_models
from distilens.report.table import measures

CLASSES = tuple("abc")


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5)
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


def small(seed: int = 0, size: int = 8) -> Model:
    torch.manual_seed(seed)
    return Model(Small(), CLASSES, size=(size, size), name=f"small{seed}")


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    return from_arrays(generator.integers(0, 256, (120, 8, 8, 3), dtype=np.uint8), np.arange(120) % 3, classes=CLASSES)


def test_accuracy_leaves_out_what_has_no_label_and_agreement_does_not_ask_for_any():
    logits = torch.eye(4)
    found = accuracy(logits, torch.tensor([0, 1, 0, -1]))
    assert found["n"] == 3
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert accuracy(logits, torch.full((4,), -1)) is None
    assert agreement(logits, 5 * logits + 1)["accuracy"] == 1
    assert agreement(logits, logits.flip(0))["accuracy"] == 0


def test_prediction_is_in_order_and_leaves_modes_and_statistics(data):
    net = small().train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    found = predict(net, Batches(data.test, 7))
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    net.eval()
    whole = torch.from_numpy(data.test.rows.images[data.test.index]).permute(0, 3, 1, 2) / 255
    assert torch.allclose(found, net.logits(whole), atol=1e-5)
    assert not found.requires_grad


def test_cosine_compares_on_the_coarser_grid_and_does_not_invent_numbers():
    fine = torch.rand(4, 8, 8)
    coarse = torch.nn.functional.avg_pool2d(fine[:, None], 2)[:, 0]
    assert torch.allclose(cosine(fine, coarse), torch.ones(4), atol=1e-6)
    assert torch.allclose(cosine(coarse, 3 * fine), torch.ones(4), atol=1e-6)
    left, right = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)
    left[0, :, :2], right[0, :, 2:] = 1, 1
    assert cosine(left, right).item() == 0
    assert cosine(torch.zeros(1, 4, 4), torch.ones(1, 4, 4)).isnan().all()
    tiny = 1e-20 * torch.rand(1, 4, 4, dtype=torch.float64)  # small is not empty
    assert cosine(tiny, 2e20 * tiny).item() == pytest.approx(1)
    generic = cosine(torch.randn(500, 8, 8), torch.randn(500, 8, 8))
    assert (generic.abs() < 0.6).all()


def test_the_energy_of_a_map_without_knowledge_is_the_masks_share():
    masks = torch.zeros(3, 16, 16)
    masks[0, :3], masks[1, :, :10], masks[2, 4:8, 4:8] = 1, 1, 1
    expected = masks.mean((1, 2))
    for side in (4, 16):
        assert torch.allclose(energy_in_mask(torch.full((3, side, side), 0.3), masks), expected, atol=1e-6)
        assert torch.allclose(energy_in_mask(torch.full((3, side, side), -2.0), masks), expected, atol=1e-6)
    assert torch.allclose(energy_in_mask(masks, masks), torch.ones(3))
    assert torch.allclose(energy_in_mask(1 - masks, masks), torch.zeros(3))
    assert energy_in_mask(torch.zeros(3, 16, 16), masks).isnan().all()


def test_cost_is_counted_at_the_models_own_size():
    assert macs(small()) == 8 * 8 * 4 * 27 + 4 * 3
    assert macs(small(size=16)) == 16 * 16 * 4 * 27 + 4 * 3
    assert parameters(small()) == 4 * 27 + 8 + 15
    net = small().train()
    net.insert("features", Behind(), name="extra")
    assert parameters(net) == 4 * 27 + 8 + 15 + 20  # what is shipped has its parts
    assert macs(net) == 8 * 8 * 4 * 27 + 4 * 3 + 8 * 8 * 16
    assert net.training


class Behind(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(4, 4, 1)

    def forward(self, feature, inputs):
        return self.mix(feature)


def test_latency_says_what_was_measured():
    net = small().train()
    found = latency(net, batch=2, repeats=8, warm_up=1)
    assert 0 < found["low"] <= found["median"] <= found["high"]
    assert (found["batch"], found["device"]) == (2, "cpu")
    assert found["busy"] == (found["high"] >= 3 * found["median"])
    assert net.training


def test_a_model_is_its_own_best_likeness_and_maps_are_of_the_same_images(data):
    net = small().eval()
    positions = draw_positions(data.test, 10)
    assert torch.equal(positions, draw_positions(data.test, 10))
    assert positions.tolist() == sorted(set(positions.tolist()))
    assert set(draw_positions(data.test, 5).tolist()) < set(positions.tolist())
    target = predict(net, Batches(data.test, 50)).argmax(1)[positions]
    models = {"teacher": net, "base": small(1).eval(), "student": net}
    for explainer in ("gradcam", "ig:steps=4"):
        found = compare_maps(models, data.test, positions, build_explainer(explainer), target)
        assert found["teacher"]["similarity"] is None
        assert found["student"]["n"] == 10
        if found["student"]["empty"] < 10:
            assert found["student"]["similarity"] == pytest.approx(1)
            assert found["base"]["similarity"] is None or found["base"]["similarity"] < 0.999
        more = found["student"]["more_than_base"]
        if more["n"] == 10 - found["base"]["empty"] == 10 - found["student"]["empty"] > 0:
            assert more["mean"] == pytest.approx(found["student"]["similarity"] - found["base"]["similarity"], abs=1e-6)


def test_without_images_there_is_nothing_to_compare(data):
    none = torch.zeros(0, dtype=torch.long)
    assert compare_maps({"student": small().eval()}, data.test, none, build_explainer("gradcam"), none) == {}


def test_energy_on_the_evidence_is_compared_image_by_image():
    random = np.random.default_rng(0)
    images, masks = random.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8), np.zeros((40, 8, 8))
    masks[:, 2:5, 2:6] = 1
    masked = from_arrays(images, np.arange(40) % 3, classes=CLASSES, masks=masks)
    models = {"teacher": small().eval(), "base": small(1).eval(), "student": small(2).eval()}
    found = compare_maps(
        models, masked.test, torch.arange(6), build_explainer("ig:steps=2"), torch.zeros(6, dtype=torch.long)
    )
    more = found["student"]["energy_more_than_base"]
    assert more["n"] == 6
    assert more["mean"] == pytest.approx(found["student"]["energy_in_mask"] - found["base"]["energy_in_mask"], abs=1e-6)
    assert found["base"]["energy"]["low"] < found["base"]["energy_in_mask"] < found["base"]["energy"]["high"]
    assert found["base"]["masks"]
    plain = from_arrays(images, np.arange(40) % 3, classes=CLASSES)
    without = compare_maps(
        models, plain.test, torch.arange(6), build_explainer("ig:steps=2"), torch.zeros(6, dtype=torch.long)
    )
    assert without["student"]["energy_more_than_base"] is None
    assert not without["student"]["masks"]


def test_scores_say_split_n_and_interval_for_every_role(data):
    net = small().eval()
    scores = score_models({"teacher": net, "student": net}, data, ["ig:steps=2"], measured=6)
    assert scores["data"]["test"] == len(data.test)
    student = scores["models"]["student"]
    assert student["agreement"]["accuracy"] == 1
    assert scores["models"]["teacher"]["agreement"] is None
    assert student["test"]["n"] == len(data.test)
    assert student["test"]["low"] <= student["test"]["accuracy"] <= student["test"]["high"]
    assert student["maps"]["ig"]["n"] == 6
    assert student["maps"]["ig"]["explainer"] == "ig:steps=2"
    alone = score_models({"student": net}, data, [], measured=6)["models"]["student"]
    assert alone["agreement"] is None


def test_models_are_also_scored_on_corrupted_images(data):
    net = small()
    scores = score_models(
        {"student": net}, data, [], measured=2, corruptions=["contrast:factor=1", "noise:deviation=9"]
    )
    student = scores["models"]["student"]
    assert list(student["shift"]) == ["contrast:factor=1", "noise:deviation=9"]
    assert student["shift"]["contrast:factor=1"] == student["test"]  # the factor 1 changes nothing
    assert student["shift"]["noise:deviation=9"]["n"] == student["test"]["n"]
    titles = [row.title for row in measures(scores)]
    assert "accuracy, test, noise:deviation=9" in titles
    assert "shift" not in score_models({"student": net}, data, [], measured=2)["models"]["student"]
