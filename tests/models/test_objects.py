"""Models from Python objects: any module is a model, with the pixels that it carries."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import distilens
from distilens import as_model, attribute, measure
from distilens.core import Model
from distilens.explain import EXPLAINERS
from distilens.foundation.errors import UserError

IMAGENET = (0.485, 0.456, 0.406)


def small(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, classes),
    )


@pytest.fixture(scope="module")
def images():
    return torch.rand(4, 3, 12, 16, generator=torch.Generator().manual_seed(0))


def test_a_module_is_wrapped_and_a_model_is_taken():
    network = small().eval()
    made = as_model(network, size=(12, 16))
    assert made.network is network
    assert made.classes == ("0", "1", "2")
    assert made.size == (12, 16)
    assert any("how its pixels are normalised" in note for note in made.notes)
    assert as_model(made) is made
    assert as_model(network, ["a", "b", "c"], (12, 16)).classes == ("a", "b", "c")
    assert as_model("resnet8", ["a", "b"], (16, 16)).name == "resnet8"


def pixels(model: Model) -> tuple[list[float], list[float]]:
    return model.mean.flatten().tolist(), model.std.flatten().tolist()


def test_pixels_that_a_module_carries():
    timm = pytest.importorskip("timm")
    plain = as_model(timm.create_model("resnet10t", num_classes=4), size=(32, 32))
    assert pixels(plain)[0] == pytest.approx(IMAGENET)
    assert not plain.notes
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=2, img_size=32, depth=1)
    assert as_model(vit, size=(96, 96)).size == (32, 32)  # the one that it takes


def test_pixels_of_torchvisions_weights():
    from torchvision.models import ResNet18_Weights

    network = small()
    network.weights = ResNet18_Weights.DEFAULT
    assert pixels(as_model(network, size=(8, 8)))[0] == pytest.approx(IMAGENET)


def test_pixels_and_names_of_transformers(tmp_path, images):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8],
        depths=[1, 1],
        layer_type="basic",
        id2label={0: "cat", 1: "dog"},
        label2id={},
    )
    network = transformers.ResNetForImageClassification(config)
    processor = transformers.ConvNextImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    network.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = transformers.ResNetForImageClassification.from_pretrained(tmp_path)
    made = as_model(loaded, size=(16, 16))
    assert made.classes == ("cat", "dog")
    assert pixels(made)[0] == pytest.approx((0.1, 0.2, 0.3))
    pipeline = transformers.pipeline("image-classification", model=network, image_processor=processor)
    assert pixels(as_model(pipeline, size=(16, 16)))[1] == pytest.approx((0.4, 0.5, 0.6))
    said = as_model(loaded, size=(12, 16)).predict(images)
    assert set(said.classes) <= {"cat", "dog"}


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (3, {"size": (8, 8)}, "a model is a Model, a notation or a torch module; given a int"),
        (nn.Flatten, {"size": (8, 8)}, r"given a type\. Call it, and give what it returns: Flatten\(\)"),
        (small(), {}, r"the picture size of Sequential is unknown: as_model\(network, size="),
        ("resnet8", {}, "needs the classes and the size"),
        (nn.Linear(3, 2), {"size": (8, 8)}, "Linear"),
    ],
)
def test_what_is_no_model_is_refused(given, options, message):
    with pytest.raises(UserError, match=message):
        as_model(given, **options)


def test_explainers_and_measures_take_any_module(images):
    network = small().eval()
    model = as_model(network, size=(12, 16))
    for notation in ("gradcam", "ig:steps=4", "occlusion"):
        explainer = EXPLAINERS.build(notation)
        assert torch.equal(explainer(network, images).maps, explainer(model, images).maps)
    maps, target = explainer(model, images).maps, torch.zeros(4, dtype=torch.long)
    areas = [measure.insertion(one, images, maps, target, steps=4) for one in (network, model)]
    assert torch.equal(*areas)
    assert torch.equal(
        measure.stability(EXPLAINERS.build("gradcam"), network, images),
        measure.stability(EXPLAINERS.build("gradcam"), model, images),
    )
    assert set(measure.randomisation(EXPLAINERS.build("gradcam"), network, images)) == {"all"}
    with pytest.raises(UserError, match="as_model"):
        measure.macs(network)


def test_gallery_and_comparison_take_any_module(images):
    found = distilens.gallery(small(), images, ["gradcam"], sanity=False)
    assert found.model == "Sequential"
    assert any("normalised" in line for line in found.remarks)
    data = distilens.load("shapes:limit=64,size=16")
    how = {"samples": 32, "reference": 16, "images": 2, "measured": 4, "sets": 1, "taps": ["last"]}
    compared = distilens.compare(
        {"one": small(8), "two": distilens.build_model("resnet8", data.classes, (16, 16))}, data, how
    )
    assert set(compared.scores["models"]) == {"one", "two"}


def test_attribute(images):
    network = small().eval()
    model = Model(network, ("ant", "bee", "cow"), size=(12, 16))
    expected = EXPLAINERS.build("gradcam")(model, images, 1).maps
    assert torch.equal(attribute(model, images, target="bee"), expected)
    assert torch.equal(attribute(network, images, "gradcam", 1), expected)
    assert torch.equal(attribute(network, images, EXPLAINERS.build("gradcam"), [1] * 4), expected)
    own = attribute(model, images)
    assert torch.equal(own, EXPLAINERS.build("gradcam")(model, images).maps)
    assert attribute(network, images[0]).shape[0] == 1
    with pytest.raises(UserError, match=r"no class 'be'\. Did you mean 'bee'"):
        attribute(model, images, target="be")
    with pytest.raises(UserError, match="unknown explainer"):
        attribute(model, images, "gradcamm")


@pytest.fixture(scope="module")
def model():
    return Model(small().eval(), ("ant", "bee", "cow"), size=(12, 16))


def test_predict_takes_pictures_in_every_form(model, images, tmp_path):
    eight = (images * 255).round().byte()
    floats = eight.float() / 255
    expected = model.logits(floats).softmax(1)
    found = model.predict(floats)
    assert torch.allclose(found.probabilities, expected, atol=1e-6)
    assert found.classes == [model.classes[one] for one in expected.argmax(1).tolist()]
    pictures = [Image.fromarray(one) for one in eight.permute(0, 2, 3, 1).numpy()]
    pictures[0].save(tmp_path / "one.png")
    for given in (
        eight,
        eight.numpy(),
        eight.permute(0, 2, 3, 1).numpy(),
        pictures,
        list(floats),
        floats.double().numpy(),
    ):
        assert torch.allclose(model.predict(given).probabilities, expected, atol=1e-5)
    for given in (pictures[0], floats[0], tmp_path / "one.png", str(tmp_path / "one.png"), [tmp_path / "one.png"]):
        assert torch.allclose(model.predict(given).probabilities, expected[:1], atol=1e-5)
    assert torch.allclose(model.predict(floats, chunk=3).probabilities, expected, atol=1e-6)
    assert not model.predict(floats).probabilities.requires_grad
    grey = np.full((2, 12, 16, 1), 0.5, dtype=np.float32)
    assert torch.allclose(
        model.predict(grey).probabilities, model.predict(torch.full((2, 3, 12, 16), 0.5)).probabilities
    )


def test_predict_leaves_the_model_as_it_was(images):
    model = Model(small().train(), ("ant", "bee", "cow"), size=(12, 16)).train()
    before = {key: value.clone() for key, value in model.bare_state().items()}
    model.predict(images)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.bare_state().items())
    assert repr(model.predict(images)).startswith("Prediction(")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "the list is empty"),
        ("nowhere.png", "nowhere.png cannot be read: No such file"),
        (torch.randn(2, 3, 8, 8) - 1, "They look normalised"),
        (torch.full((2, 3, 8, 8), float("nan")), "NaN"),
        (torch.rand(2, 5, 8, 8), "1, 3 or 4 channels"),
        (torch.rand(8), r"given \[8\]"),
        (3, "given a int|given \\[\\]"),
        (np.zeros((1, 8, 8, 4), dtype=np.uint8), "4 channels"),
    ],
)
def test_what_is_no_picture_is_refused(model, given, message):
    with pytest.raises(UserError, match=message):
        model.predict(given)


def test_a_file_that_is_no_picture(model, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match=r"text.png is not a picture"):
        model.predict(tmp_path / "text.png")


def test_classes_in_another_order_are_refused():
    class Named(nn.Sequential):
        config = SimpleNamespace(id2label={0: "cat", 1: "dog", 2: "ant"})

    network = Named(small())
    assert as_model(network, ["cat", "dog", "ant"], (12, 16)).classes == ("cat", "dog", "ant")
    assert as_model(network, ["x", "y", "z"], (12, 16)).classes == (
        "x",
        "y",
        "z",
    )  # it was trained for others: a new task
    with pytest.raises(UserError, match="another order: cat, dog, ant; given ant, cat, dog"):
        as_model(network, ["ant", "cat", "dog"], (12, 16))


def test_a_network_says_the_side_of_its_images():
    network = small()
    network.image_size = 16
    assert as_model(network, size=(32, 32)).size == (16, 16)
    network.image_size = (12, 20)
    assert as_model(network, size=(32, 32)).size == (12, 20)


def test_a_damaged_processor_beside_a_network_leaves_its_pixels_unknown(tmp_path):
    pytest.importorskip("transformers")
    network = small()
    network.config = SimpleNamespace(_name_or_path=str(tmp_path))
    (tmp_path / "preprocessor_config.json").write_text("{")
    made = as_model(network, size=(16, 16))
    assert any("how its pixels are normalised" in note for note in made.notes)
    settings = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.1] * 3, "image_std": [0.2] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    whole = as_model(network, size=(16, 16))
    assert pixels(whole)[0] == pytest.approx([0.1] * 3)
