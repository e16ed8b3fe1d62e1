"""A gallery: what may be given, what comes out, what it says, and that it can be written and read again."""

import io
import json
import math
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from jaxtyping import config
from PIL import Image
from rich.console import Console
from torch import nn

import brightness
import distilens
from distilens import measure
from distilens.core import Model
from distilens.explain import EXPLAINERS, Explainer, Explanation
from distilens.explain.expected_gradients import ExpectedGradients
from distilens.explain.from_captum import CaptumExplainer
from distilens.explain.integrated_gradients import IntegratedGradients
from distilens.explain.maps import normalise_maps, overlay
from distilens.foundation import randomness
from distilens.foundation.errors import UserError
from distilens.foundation.notation import safe
from distilens.measure.maps import gallery as galleries
from distilens.measure.maps.columns import FLOORS, named
from distilens.measure.maps.images import draw_images, in_turn
from distilens.report import pictures

FLOOR_LABELS = ["random", "random-grid-7", "centre"]
SHAPES = "shapes:train=64,test=40,val_fraction=0.3,size=16"

NETS = """
from torch import nn

def tiny(classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)
    )
"""


def tiny(classes: int) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, classes),
    ).eval()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return distilens.load(SHAPES, tmp_path_factory.mktemp("data"))


@pytest.fixture
def model(data):
    return Model(tiny(8), data.classes, size=data.size, name="tiny")


@pytest.fixture(scope="module")
def shown(data):
    return Model(tiny(8), data.classes, size=data.size, name="tiny")


@pytest.fixture(scope="module")
def found(data, shown):
    """A gallery with all that there can be."""
    return distilens.gallery(shown, data, ["gradcam", "ig:steps=4", "ig:steps=2,baseline=blur"], images=5)


@pytest.fixture(scope="module")
def saved(found, tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps") / "made"
    found.save(folder)
    return folder


class Tags(HTMLParser):
    def __init__(self, markup: str):
        super().__init__()
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.images: list[dict] = []
        self.feed(markup)

    def handle_starttag(self, tag, attributes):
        self.opened.append(tag)
        if tag == "img":
            self.images.append(dict(attributes))

    def handle_endtag(self, tag):
        self.closed.append(tag)


# ------------------------------------------------------------------------------------------------- what comes out


def test_every_explainer_and_the_floors_are_there_and_fit_the_images(found):
    labels = ["gradcam", "ig-steps-4", "ig-steps-2-baseline-blur", *FLOOR_LABELS]
    assert list(found.explanations) == list(found.parts) == list(found.scores) == labels
    assert [label for label in labels if found.floor(label)] == FLOOR_LABELS
    assert found.images.shape == (5, 3, 16, 16)
    assert found.mask is not None and found.mask.shape == (5, 16, 16)
    assert len(found) == len(found.labels) == len(found.index) == len(found.target) == 5
    assert found.logits.shape == (5, 8)
    for label, explanation in found.explanations.items():
        assert explanation.maps.shape == ((5, 8, 8) if label == "gradcam" else (5, 16, 16))
        assert torch.equal(explanation.target, found.target)
    assert torch.equal(found.target, found.logits.argmax(1))


def test_scores_are_in_their_ranges_and_say_n(found):
    bounds = {
        "insertion": (0, 1),
        "deletion": (0, 1),
        "average_drop": (0, 1),
        "increase": (0, 1),
        "energy_in_mask": (0, 1),
        "pointing_game": (0, 1),
        "sparseness": (0, 1),
        "complexity": (0, 1.0001),
        "randomisation": (-1, 1),
        "stability": (-1, 1.0001),
        "empty": (0, 1),
        "seconds": (0, 60),
        "forwards": (0, 1e5),
    }
    for label, scores in found.scores.items():
        sanity = {"randomisation", "stability"}
        assert set(scores) == set(bounds) - (sanity if found.floor(label) else set())
        for key, score in scores.items():
            assert set(score) == {"mean", "low", "high", "n", "empty"}
            assert score["n"] + score["empty"] == 5
            if score["mean"] is not None:
                assert bounds[key][0] <= score["mean"] <= bounds[key][1], (label, key)
            if score["low"] is not None:
                assert score["low"] <= score["mean"] + 1e-9 and score["mean"] <= score["high"] + 1e-9


def test_each_score_is_the_measure_of_its_name(found, shown):
    """For one explainer, from its maps, by the functions of `distilens.measure`."""
    images, maps, target = found.images, found.explanations["gradcam"].maps, found.target
    expected = {
        "insertion": measure.insertion(shown, images, maps, target, steps=galleries.STEPS),
        "deletion": measure.deletion(shown, images, maps, target, steps=galleries.STEPS),
        "average_drop": measure.average_drop(*measure.masked_confidence(shown, images, maps, target)),
        "increase": measure.increase_in_confidence(*measure.masked_confidence(shown, images, maps, target)),
        "sparseness": measure.sparseness(maps),
        "complexity": measure.complexity(maps),
        "energy_in_mask": measure.energy_in_mask(maps, found.mask),
    }
    for key, values in expected.items():
        assert torch.allclose(found.values["gradcam"][key].float(), values.float(), atol=1e-4, equal_nan=True), key


def test_the_mean_of_the_values_is_the_score(found):
    for label, values in found.values.items():
        for key, value in values.items():
            assert value.shape == (5,)
            kept = value[~value.isnan()].double()
            if len(kept):
                assert found.scores[label][key]["mean"] == pytest.approx(float(kept.mean()), abs=1e-6)


def test_curves_begin_and_end_where_the_whole_image_and_the_empty_one_are(found):
    ends = {(round(curve["insertion"][-1], 4), round(curve["deletion"][0], 4)) for curve in found.curves.values()}
    assert len(ends) == 1  # the whole image, whatever the map
    confidence = found.logits.softmax(1).amax(1).mean()
    assert ends.pop()[0] == pytest.approx(float(confidence), abs=1e-3)
    for curve in found.curves.values():
        assert len(curve["shares"]) == len(curve["insertion"]) == len(curve["deletion"])
        assert curve["shares"][0] == 0 and curve["shares"][-1] == 1


def test_without_sanity_checks_there_are_none(model, data):
    found = distilens.gallery(model, data, "gradcam", images=2, sanity=False)
    assert not {"randomisation", "stability"} & set(found.scores["gradcam"])


def test_the_same_call_gives_the_same_bit_for_bit(model, data, found):
    again = distilens.gallery(
        model,
        data,
        ["gradcam", "ig:steps=4", "ig:steps=2,baseline=blur"],
        images=5,
        console=Console(file=io.StringIO()),
    )
    assert again.fingerprint == found.fingerprint
    assert torch.equal(again.index, found.index)
    for label in found.parts:
        assert torch.equal(again.explanations[label].maps, found.explanations[label].maps)
        for key, value in found.values[label].items():
            assert torch.equal(again.values[label][key].nan_to_num(-9), value.nan_to_num(-9)), (label, key)


def test_a_prepared_copy_says_the_same(model, data, found):
    plain = distilens.gallery(model, data, ["gradcam"], images=5, prepared=False, sanity=False)
    torch.testing.assert_close(
        plain.explanations["gradcam"].maps, found.explanations["gradcam"].maps, rtol=1e-3, atol=1e-5
    )
    assert plain.fingerprint == found.fingerprint


def test_the_model_and_the_random_state_are_left_alone(model, data):
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    distilens.gallery(model, data, ["gradcam", "smoothgrad:samples=2"], images=2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_more_images_begin_with_the_fewer(model, data):
    few = distilens.gallery(model, data, ["gradcam"], images=3, sanity=False)
    more = distilens.gallery(model, data, ["gradcam"], images=9, sanity=False)
    assert more.index[:3].tolist() == few.index.tolist()
    assert sorted(more.labels[:8].tolist()) == list(range(8))  # a class each, before any comes twice
    assert len(distilens.gallery(model, data, ["gradcam"], images=500, sanity=False)) == 40


def test_classes_come_in_turn():
    labels = np.array([0, 0, 0, 0, 1, 2, 2, -1])
    order = torch.randperm(8, generator=randomness.generator("any", 0)).numpy()
    drawn = labels[in_turn(labels, order)].tolist()
    assert sorted(drawn) == sorted(labels.tolist())
    assert sorted(drawn[:4]) == [-1, 0, 1, 2]
    assert sorted(drawn[4:6]) == [0, 2]


def test_repr_is_short_and_the_table_has_a_row_a_measure(found):
    assert len(repr(found)) < 200
    assert repr(found).startswith("Gallery('tiny', 5 images of 'shapes:")
    assert "ig-steps-4 0." in repr(found)
    header, rows = found.table()
    assert header == ["measure", *found.parts]
    titles = [row[0] for row in rows]
    assert titles[:2] == ["insertion AUC ↑", "deletion AUC ↓"]
    assert "random-model likeness →0" in titles
    assert all(len(row) == len(header) for row in rows)
    assert re.fullmatch(r"0\.\d{3} ±0\.\d{3}", rows[0][1])
    assert rows[titles.index("stability ↑")][-1] == "–"


# -------------------------------------------------------------------------------------------------- what it says


def finding(own, **floors) -> str:
    spread = torch.linspace(-0.01, 0.01, 20)
    return galleries.finding("ig", own + spread, {name: value + spread for name, value in floors.items()})


def test_explainers_are_compared_with_the_floors_in_words():
    assert finding(0.6, random=0.2, centre=0.4).startswith(
        "ig is above the floors: insertion AUC 0.600 [0.597 to 0.603]; the best floor, centre, 0.400 [0.397 to 0.403]; image "
        "by image +0.200"
    )
    assert finding(0.4, random=0.2, centre=0.4).startswith(
        "ig is NOT above the floors: its insertion AUC 0.400 [0.397 to 0.403] overlaps with centre (the best floor, centre, "
    )
    assert "overlaps with random and is below centre" in finding(0.2, random=0.2, centre=0.4)
    assert finding(0.402, centre=0.4).startswith("ig is above the floors only image by image: its insertion AUC 0.402 ")
    assert "image by image −0.200 [−0.200 to −0.200]" in finding(0.2, centre=0.4)
    far = torch.linspace(0, 1, 20)
    said = galleries.finding("ig", far + 0.01, {"centre": far, "random": (1 - far) * 0.9})
    assert said.startswith("ig is NOT above the floors")
    assert re.search(r"\(the best floor, centre, .* \+0\.010 .*; random \+0\.\d+ \[−0\.", said)  # the one that stops it
    nothing = galleries.finding("ig", torch.full((3,), math.nan), {"random": torch.rand(3)})
    assert nothing == "ig says nothing: all of its maps are empty."
    one = galleries.finding("ig", torch.tensor([0.5]), {"random": torch.tensor([0.1])})
    assert one == "ig: insertion AUC 0.500. One image is not enough for a comparison with the floors."


def test_the_controls_are_not_above_themselves(model, data):
    found = distilens.gallery(model, data, ["gradcam", "random:seed=3"], images=4, sanity=False)
    assert found.floor("random-seed-3")
    assert [words.split(" ")[0] for words in found.findings()] == ["gradcam"]


class Nothing(Explainer):
    """Empty maps."""

    def explain(self, model, images, target):
        return Explanation(torch.zeros_like(images[:, 0]), model.logits(images), target)


def test_empty_maps_are_counted_and_said(model, data, tmp_path):
    found = distilens.gallery(model, data, [Nothing()], images=3)
    scores = found.scores["Nothing"]
    assert scores["empty"]["mean"] == 1
    assert scores["insertion"] == {"mean": None, "low": None, "high": None, "n": 0, "empty": 3}
    assert found.findings() == ["Nothing says nothing: all of its maps are empty."]
    assert repr(found)
    page = found.save(tmp_path).read_text()
    assert page.count("empty map") >= 3
    json.loads((tmp_path / "scores.json").read_text(), parse_constant=pytest.fail)


def test_random_weights_are_said(data):
    for part, says in (("resnet8", True), ("timm:resnet10t", True)):
        found = distilens.gallery(part, data, ["gradcam"], images=2, sanity=False)
        assert bool(found.remarks) == says
        assert "has random weights" in found.remarks[0]
    again = distilens.gallery("resnet8", data, ["gradcam"], images=2, sanity=False)
    assert again.fingerprint == distilens.gallery("resnet8", data, ["gradcam"], images=2, sanity=False).fingerprint


# ------------------------------------------------------------------------------------------------ what is written


def test_files(saved, found):
    labels = list(found.parts)
    numbers = found.index.tolist()
    assert {path.name for path in saved.iterdir()} == {
        "index.html",
        "scores.json",
        "overlays",
        *(f"{label}.npz" for label in labels),
    }
    assert {path.name for path in (saved / "overlays").iterdir()} == {
        f"{number}-{label}.png" for number in numbers for label in labels
    }
    for path in (saved / "overlays").iterdir():
        with Image.open(path) as image:
            assert (image.size, image.mode) == ((16, 16), "RGB")


def test_a_file_of_maps_says_what_made_them(saved, found):
    with np.load(saved / "ig-steps-4.npz", allow_pickle=False) as stored:
        arrays = {key: stored[key] for key in stored.files}
    assert arrays["maps"].dtype == np.float32
    np.testing.assert_array_equal(arrays["maps"], found.explanations["ig-steps-4"].maps.numpy())
    np.testing.assert_array_equal(arrays["index"], found.index.numpy())
    np.testing.assert_array_equal(arrays["target"], found.target.numpy())
    assert arrays["logits"].shape == (5, 8)
    assert bool(arrays["signed"])
    assert str(arrays["explainer"]) == str(EXPLAINERS.resolve("ig:steps=4"))
    assert "baseline=mean" in str(arrays["explainer"])
    assert str(arrays["model"]) == "tiny"
    assert str(arrays["fingerprint"]) == found.fingerprint
    assert str(arrays["distilens"]) == distilens.__version__
    assert arrays["score_insertion"].shape == (5,)
    again = EXPLAINERS.build(str(arrays["explainer"]))
    assert again.steps == 4


def test_scores_are_json(saved, found):
    content = json.loads((saved / "scores.json").read_text())
    assert content["model"] == "tiny"
    assert list(content["explainers"]) == list(found.parts)
    entry = content["explainers"]["gradcam"]
    assert entry["scores"]["insertion"]["n"] == 5
    assert entry["floor"] is False and content["explainers"]["centre"]["floor"] is True


def test_the_files_of_a_replaced_gallery_go_and_no_others(model, data, tmp_path):
    first = distilens.gallery(model, data, ["gradcam", "ig:steps=2"], images=2, sanity=False)
    first.save(tmp_path)
    (tmp_path / "mine.npz").write_bytes(b"mine")
    (tmp_path / "overlays" / "mine.png").write_bytes(b"mine")
    content = json.loads((tmp_path / "scores.json").read_text())
    content["files"].append("../outside.npz")
    (tmp_path / "scores.json").write_text(json.dumps(content))
    (tmp_path.parent / "outside.npz").write_bytes(b"outside")
    distilens.gallery(model, data, ["gradcam"], images=1, sanity=False).save(tmp_path)
    assert not (tmp_path / "ig.npz").exists()
    assert (tmp_path / "gradcam.npz").exists()
    assert (tmp_path / "mine.npz").exists() and (tmp_path.parent / "outside.npz").exists()
    assert len(list((tmp_path / "overlays").iterdir())) == 4 + 1


def test_a_save_that_fails_leaves_what_was_there(model, data, tmp_path, monkeypatch):
    found = distilens.gallery(model, data, ["gradcam"], images=1, sanity=False)
    found.save(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", fail)
        with pytest.raises(KeyboardInterrupt):
            found.save(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_notebook_shows_the_first_images(found, model, data):
    markup = found._repr_html_()
    tags = Tags(markup)
    assert len(tags.images) == 5 * (1 + 3)
    assert all(image["src"].startswith("data:image/") and image["alt"] for image in tags.images)
    assert sorted(tag for tag in tags.opened if tag != "img" and tag != "br") == sorted(tags.closed)
    assert not re.search(r"https?:|<script", markup)
    many = distilens.gallery(model, data, ["gradcam"], images=12, sanity=False)._repr_html_()
    assert len(Tags(many).images) == 8 * 2
    assert "The first 8 of 12 images" in many


# --------------------------------------------------------------------------------------------------- what is given


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder with a trained student, made by hand."""
    (tmp_path / "gallery_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    from distilens.runs.recipe_file import make_recipe

    content = {
        "name": "small",
        "data": SHAPES,
        "student": {"model": "python:gallery_nets:tiny", "methods": ["ce"]},
    }
    recipe = make_recipe(content)
    folder = tmp_path / "runs" / "small"
    for role in ("student", "base"):
        classes = distilens.load(SHAPES).classes
        distilens.save_model(distilens.build_model("python:gallery_nets:tiny", classes, (16, 16)), folder / role)
    (folder / "recipe.toml").write_text(recipe.to_toml())
    return folder


def test_models_by_every_name(run, data):
    options = {"explainers": ["gradcam"], "images": 2, "sanity": False}
    whole = distilens.gallery(str(run), **options)
    assert whole.model == f"python:gallery_nets:tiny from {run}"
    assert whole.data.startswith("shapes:") and "train=64" in whole.data
    assert not whole.remarks
    by_notation = distilens.gallery(f"run:{run}", **options)
    assert by_notation.fingerprint == whole.fingerprint
    base = distilens.gallery(f"run:{run},part=base", **options)
    assert base.fingerprint != whole.fingerprint
    folder = distilens.gallery(str(run / "student"), SHAPES, **options)
    assert folder.fingerprint == whole.fingerprint
    weights = f"file:{run / 'student' / 'model.safetensors'},model=[python:gallery_nets:tiny]"
    assert distilens.gallery(weights, data, **options).fingerprint == whole.fingerprint
    assert distilens.gallery("python:gallery_nets:tiny", data, **options).classes == data.classes
    # a run on other data, and other weights on images alone
    other = distilens.gallery(str(run), "digits:limit=40", **options)
    assert other.data == "digits:limit=40"
    alone = distilens.gallery(weights, torch.rand(2, 3, 16, 16), ["gradcam"], sanity=False)
    assert alone.classes == tuple("01234567")


def test_images_alone(model):
    images = torch.rand(3, 3, 20, 24)
    found = distilens.gallery(model, images, ["gradcam", "ig:steps=2"], images=1, target=torch.tensor([0, 5, 2]))
    assert len(found) == 3  # taken whole
    assert found.labels.tolist() == [-1] * 3
    assert found.index.tolist() == [0, 1, 2]
    assert found.target.tolist() == [0, 5, 2]
    assert found.mask is None
    assert not {"energy_in_mask", "pointing_game"} & set(found.scores["ig"])
    assert found.explanations["ig"].maps.shape == (3, 20, 24)


def test_labels_can_be_explained(model, data):
    found = distilens.gallery(model, data, ["gradcam"], images=4, target="label", sanity=False)
    assert torch.equal(found.target, found.labels)
    assert "the label" in found.about_images


def test_a_class_can_be_named(model, data):
    found = distilens.gallery(model, data, ["gradcam"], images=4, target=f"class:{data.classes[5]}", sanity=False)
    assert found.target.tolist() == [5] * 4
    assert found.about_images.endswith(f"explained: the class {data.classes[5]}")
    assert found.content().rows[0].target == data.classes[5]


def test_a_model_of_other_classes_explains_its_own_first(data):
    model = Model(tiny(5), [f"kind {number}" for number in range(5)], size=data.size)
    found = distilens.gallery(model, data, ["gradcam"], images=3, sanity=False)
    assert found.target.max() < 5
    rows = found.content().rows
    assert rows[0].prediction.startswith("kind ")
    assert rows[0].label in data.classes
    assert rows[0].right is None


def test_reference_images_are_brought_and_the_given_explainer_stays(model, data):
    given = ExpectedGradients(samples=2)
    found = distilens.gallery(model, data, [given], images=2, sanity=False)
    assert given.reference is None
    used = found.parts["expected_gradients"].explain.reference
    assert used is not None and used.shape[1:] == (3, 16, 16)
    assert len(used) == len(data.train)
    assert found.explanations["expected_gradients"].residual is not None


@pytest.fixture
def unchecked():
    """Without the types that are checked in tests alone: what a user's mistake meets."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


class Grey(Explainer):
    """Of one's own."""

    def explain(self, model, images, target):
        logits = model.logits(images)
        return Explanation(images.mean(1), logits, target)


class Bent(Explainer):
    def explain(self, model, images, target):
        return Explanation(images, model.logits(images), target)


def test_explainers_of_ones_own(model, data):
    found = distilens.gallery(model, data, [Grey()], images=2, sanity=False)
    torch.testing.assert_close(found.explanations["Grey"].maps, found.images.mean(1))


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        (["ig"], ["ig"]),
        (["ig:steps=32", "ig"], ["ig"]),  # the same twice
        (["ig", "ig:steps=64"], ["ig", "ig-steps-64"]),
        (["gradcam:tap=layer1", "gradcam:tap=layer2.0"], ["gradcam-tap-layer1", "gradcam-tap-layer2.0"]),
        (["gradcam++"], ["gradcam++"]),
        (["captum:Saliency", "captum:DeepLift"], ["captum-Saliency", "captum-DeepLift"]),
        ([IntegratedGradients(steps=3), "ig"], ["ig-steps-3", "ig"]),
        ([IntegratedGradients()], ["ig"]),
        ([CaptumExplainer("Saliency"), "captum:Saliency"], ["captum-Saliency"]),
        ([CaptumExplainer("Saliency", abs=False), "captum:Saliency"], ["captum-Saliency-abs-false", "captum-Saliency"]),
        (["random", "centre:spread=0.2"], ["random", "centre-spread-0.2"]),
        (["gradcam:tap=a-b", "gradcam:tap=[a:b]"], ["gradcam-tap-a-b", "gradcam-tap-a-b-2"]),
    ],
)
def test_labels_are_readable_unlike_and_fit_for_files(given, labels):
    found = list(named(given))
    assert found[: len(labels)] == labels
    assert len(found) == len({label.casefold() for label in found})
    assert all(re.fullmatch(r"[\w+.-]+", label) for label in found)
    assert {str(EXPLAINERS.resolve(floor)) for floor in FLOORS} <= {part.notation for part in named(given).values()}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("timm:resnet18,pretrained=true", "timm-resnet18-pretrained-true"),
        ("runs/demo", "runs-demo"),
        ("../../x", "x"),
        ("...", "model"),
    ],
)
def test_names_of_files(text, name):
    assert safe(text) == name


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("resnet8",), {}, "there are no images to explain: name a data set"),
        (("resnet9", "DATA"), {}, "unknown model 'resnet9'.*Did you mean"),
        (("runs/absent", "DATA"), {}, "no run and no model at runs/absent"),
        (("run:absent",), {}, "no run at absent: there is no such folder"),
        ((nn.Linear(2, 2), "DATA"), {}, "Linear fails on an image of 16×16 pixels"),
        ((3, "DATA"), {}, "a model is a Model, a notation or a torch module; given a int"),
        (("resnet8", torch.rand(2, 3, 8, 8)), {}, "neither resnet8 nor a data set names the classes"),
        (("MODEL", 3), {}, "no data in a int. Data are a notation"),
        (("MODEL", torch.rand(3, 8, 8)), {}, r"images to explain are \[b 3 h w\]; given \[3, 8, 8\]"),
        (("MODEL", torch.randn(2, 3, 8, 8)), {}, r"pixels in \[0, 1\], and the model normalises them itself; given -"),
        (("MODEL", torch.ones(2, 3, 8, 8).byte()), {}, "divide them by 255"),
        (("MODEL", torch.full((2, 3, 8, 8), math.nan)), {}, "NaN or infinite"),
        (("MODEL", "DATA", ["gradcan", "igg"]), {}, "unknown explainer 'gradcan'. Did you mean 'gradcam'.*\n.*'ig'"),
        (("MODEL", "DATA", ["ig:step=2"]), {}, "unknown option 'step' of explainer 'ig'. Did you mean 'steps'"),
        (("MODEL", "DATA", [3]), {}, "an explainer is a notation or an Explainer; given a int"),
        (("MODEL", "DATA", []), {}, "there is no explainer: name some"),
        (("MODEL", "DATA", ["gradcam:tap=layer9", "gradcam:tap=5"]), {}, "gradcam-tap-layer9: .*\ngradcam-tap-5: "),
        (("MODEL", "DATA", [Bent()]), {}, r"Bent: maps are \[b h w\]; for one image these are \[1, 3, 16, 16\]"),
        (("MODEL", torch.rand(2, 3, 8, 8), ["expected_gradients"]), {}, "needs reference images"),
        (("MODEL", "DATA"), {"images": 0}, "a gallery needs at least one image; given images=0"),
        (("MODEL", "DATA"), {"split": "tests"}, "split must be train, validation or test; given 'tests'"),
        (("MODEL", "DATA"), {"target": "top5"}, "what to explain is top1, label, class:NAME, .* given 'top5'"),
        (("MODEL", "DATA"), {"target": "class:cyrcle"}, "the model has no class 'cyrcle'"),
        (("MODEL", "DATA"), {"target": "box:2,2,5,5"}, "a box needs an answer for each place.* take class:NAME"),
        (("MODEL", "DATA"), {"target": torch.tensor([1]), "images": 2}, "one target per image: 2 images"),
        (("MODEL", "DATA"), {"target": torch.tensor([1, 9]), "images": 2}, "targets must be classes from 0 to 7"),
        (("MODEL", torch.rand(2, 3, 8, 8)), {"target": "label"}, "some images have no label: use target=top1"),
        (("OTHER", "DATA"), {"target": "label"}, "knows 5 classes, the data has 8. Use target=top1, or other data"),
    ],
)
def test_what_is_wrong_is_said(model, data, arguments, options, message, tmp_path, monkeypatch, unchecked):
    monkeypatch.chdir(tmp_path)
    other = Model(tiny(5), list("abcde"), size=data.size)
    names = {"MODEL": model, "DATA": data, "OTHER": other}
    given = [names.get(part, part) if isinstance(part, str) else part for part in arguments]
    with pytest.raises(UserError, match=message):
        distilens.gallery(*given, **options)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "recipe.toml").write_text("name = "), "is not TOML"),
        (
            lambda run: (run / "recipe.toml").write_text("seed = 3"),
            "has no key data, so the data of the run are unknown",
        ),
        (lambda run: (run / "recipe.toml").unlink(), "has no recipe.toml, so its data set is unknown: name one"),
        (lambda run: (run / "student" / "model.json").write_text("{"), "is not whole JSON"),
        (
            lambda run: (run / "student" / "model.json").write_text("{}"),
            "does not describe a model: the key 'model' is m",
        ),
        (lambda run: (run / "student" / "model.json").unlink(), "model.json is missing"),
        (lambda run: cut(run / "student" / "model.safetensors"), "is not a whole safetensors file"),
    ],
)
def test_a_corrupt_run_is_said(run, damage, message):
    damage(run)
    with pytest.raises(UserError, match=message):
        distilens.gallery(str(run), images=1)


def cut(path):
    path.write_bytes(path.read_bytes()[:200])


def test_a_run_without_models_is_said(run):
    for role in ("student", "base"):
        (run / role / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has no trained model"):
        distilens.gallery(str(run), images=1)


def test_progress_is_said_in_logs_and_drawn_on_terminals(model, data):
    said = io.StringIO()
    distilens.gallery(model, data, ["gradcam"], images=2, sanity=False, console=Console(file=said, width=100))
    assert said.getvalue().splitlines()[0].startswith("explain: gradcam")
    assert "left" in said.getvalue()
    drawn = io.StringIO()
    terminal = Console(file=drawn, width=100, force_terminal=True)
    distilens.gallery(model, data, ["gradcam"], images=2, sanity=False, console=terminal)
    assert "100%" in drawn.getvalue()


# -------------------------------------------------------------------------------------------------- maps as pictures


def test_normalised_maps_agree_with_those_of_the_page():
    torch.manual_seed(0)
    maps = torch.randn(4, 5, 6)
    maps[1] = 0
    maps[2] = 3
    maps[3, 0, 0] = torch.nan
    for signed in (False, True):
        found = normalise_maps(maps, signed=signed)
        expected = pictures.normalise_map(maps[0].numpy(), signed=signed)
        np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-6)
        assert found[0].min() == 0 and found[0].max() == 1
        assert (found[1:] == 0).all()
        assert all(isinstance(pictures.normalise_map(one.numpy(), signed=signed), str) for one in maps[1:])


def test_the_sign_counts_where_maps_have_one():
    maps = torch.tensor([[[-4.0, 0.0], [1.0, 2.0]]])
    torch.testing.assert_close(normalise_maps(maps, signed=False), torch.tensor([[[0.0, 0.0], [0.5, 1.0]]]))
    torch.testing.assert_close(normalise_maps(maps, signed=True), torch.tensor([[[1.0, 0.0], [0.25, 0.5]]]))
    assert (normalise_maps(-maps.abs() - 1, signed=False) == 0).all()


def test_overlays_are_images_whose_colour_is_the_map_alone():
    images = torch.rand(2, 3, 12, 10)
    maps = torch.zeros(2, 3, 3)
    maps[:, 1, 2] = 1
    found = overlay(images, maps, signed=False)
    assert found.shape == (2, 3, 12, 10)
    assert found.min() >= 0 and found.max() <= 1
    # grey images of one brightness give the same picture, whatever their colour
    red = torch.zeros(1, 3, 4, 4)
    red[:, 0] = 1
    grey = torch.full((1, 3, 4, 4), 0.299)
    some = torch.rand(1, 4, 4)
    torch.testing.assert_close(overlay(red, some, signed=False), overlay(grey, some, signed=False))
    # the strongest place is viridis' last colour, the weakest its first, over the grey
    black = overlay(torch.zeros(1, 3, 4, 4), torch.eye(4)[None], signed=True)
    last, first = (torch.from_numpy(pictures.TABLE[at]).float() / 255 * 0.62 for at in (-1, 0))
    torch.testing.assert_close(black[0, :, 0, 0], last)
    torch.testing.assert_close(black[0, :, 0, 3], first)


def test_pictures_in_other_forms(model, tmp_path):
    pictures = [Image.new("RGB", (16, 16), (60 * one, 0, 200)) for one in range(3)]
    expected = torch.stack([torch.from_numpy(np.array(one)).permute(2, 0, 1) for one in pictures]).float() / 255
    pictures[0].save(tmp_path / "one.png")
    for given, count in ((pictures, 3), (np.stack(pictures), 3), (tmp_path / "one.png", 1), (pictures[0], 1)):
        found = distilens.gallery(model, given, ["gradcam"], sanity=False)
        assert torch.allclose(found.images, expected[:count])


def test_a_row_of_a_task_without_classes_says_its_numbers(tmp_path):
    data = brightness.pictures()
    data.test.rows.labels[data.test.index[0]] = math.nan
    model = Model(tiny(1), data.task, size=data.size, name="tiny")
    made = distilens.gallery(model, data, ["gradient"], images=len(data.test), sanity=False)
    rows = {row.index: row for row in map(made.row, range(len(made)))}
    answers = dict(zip(made.index.tolist(), made.logits[:, 0].tolist(), strict=True))
    for index, label in zip(data.test.index, data.test.labels, strict=True):
        row = rows[int(index)]
        assert row.label == (None if math.isnan(label) else data.task.metric.written(float(label)))
        assert row.prediction == row.target == data.task.metric.written(answers[int(index)])
        assert (row.right, row.confidence) == (None, "")
    assert made.save(tmp_path / "maps").is_file()


def test_a_split_without_images_is_said(tmp_path):
    one_each = (np.zeros((3, 16, 16, 3), dtype=np.uint8), np.arange(3))
    data = distilens.as_data(one_each, tmp_path, to_explain=True)
    assert len(draw_images(data, "test", 8).images) == 3
    with pytest.raises(UserError, match=f"the validation split of {data.name} has no images"):
        draw_images(data, "validation", 2)


def test_a_folder_without_permission_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(galleries.os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(UserError, match=f"there is no permission to write in {tmp_path}$"):
        galleries.check_writable(tmp_path / "deep" / "maps")
    (tmp_path / "deep").mkdir()
    galleries.check_writable(tmp_path / "deep" / "maps")
