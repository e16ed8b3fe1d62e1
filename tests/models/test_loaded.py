"""What a loaded model says of itself: classes, missing weights, type, channels, sides, pixels."""

import json
import re
import shutil

import pytest
import torch
from torch import nn

from distilens.core import Model
from distilens.foundation.errors import UserError
from distilens.models import MODELS, build_model
from distilens.models.adapters import settings_of_processor
from distilens.models.named import check_answers, classes_of_weights, positions_of
from distilens.models.objects import as_model
from distilens.models.saved import load_model, save_model

CLASSES = ("cat", "dog", "owl")


def vit(folder, labels, *, size=32, channels=3, dtype=torch.float32, processor=None):
    """A tiny Hugging Face ViT in a folder, as people save them."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    words = dict(enumerate(labels))
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=size, patch_size=8,
        num_channels=channels, id2label=words, label2id={word: number for number, word in words.items()},
    )  # fmt: skip
    model = ViTForImageClassification(config)
    model.to(dtype).save_pretrained(folder)
    ViTImageProcessor(**(processor or {"size": {"height": 32, "width": 32}})).save_pretrained(folder)
    return model


def built(folder, size=(32, 32), classes=CLASSES):
    return build_model(f"hf:{folder}", classes, size).eval()


def test_the_same_function_with_its_classes_in_another_order_answers_the_same(tmp_path):
    vit(tmp_path / "same", CLASSES)
    model = vit(tmp_path / "reordered", CLASSES)
    order = [2, 0, 1]
    with torch.no_grad():
        for weight in (model.classifier.weight, model.classifier.bias):
            weight.copy_(weight[order].clone())
    model.config.id2label = {number: CLASSES[old] for number, old in enumerate(order)}
    model.config.label2id = {name: number for number, name in model.config.id2label.items()}
    model.save_pretrained(tmp_path / "reordered")
    images = torch.rand(4, 3, 32, 32)
    one, other = built(tmp_path / "same"), built(tmp_path / "reordered")
    assert one.classes == other.classes == CLASSES
    assert torch.allclose(one.logits(images), other.logits(images), atol=1e-6)
    save_model(other, tmp_path / "saved")
    assert torch.allclose(load_model(tmp_path / "saved").logits(images), one.logits(images), atol=1e-6)


def test_the_datas_classes_are_taken_from_more(tmp_path):
    network = vit(tmp_path, ("ant", "owl", "cat", "bee", "dog")).eval()
    model, images = built(tmp_path), torch.rand(4, 3, 32, 32)
    assert torch.allclose(model.logits(images), network(model.prepare(images)).logits[:, [2, 4, 1]], atol=1e-6)
    assert model.loaded
    assert model.missing == ()
    check_answers(model, CLASSES, "teacher")


def test_other_names_are_refused_where_the_answers_are_used(tmp_path):
    vit(tmp_path, ("lion", "tiger", "owl"))
    model = built(tmp_path)
    with pytest.raises(UserError, match=r"answers for lion, tiger, owl, not for the data's cat, dog, .*finetune=head"):
        check_answers(model, CLASSES, "teacher")


def test_classes_without_names_are_said(tmp_path):
    vit(tmp_path, ("LABEL_0", "LABEL_1", "LABEL_2"))
    model = built(tmp_path)
    assert "its classes have no names: its logits are taken in the order of the data's classes" in model.notes
    check_answers(model, CLASSES, "teacher")


def test_a_head_that_was_not_loaded_is_refused_by_the_names_of_its_weights(tmp_path):
    vit(tmp_path, ("ant", "bee"))
    model = built(tmp_path)
    assert set(model.missing) == {"classifier.weight", "classifier.bias"}
    with pytest.raises(UserError, match=r"has random weights in classifier"):
        check_answers(model, CLASSES, "teacher")


def test_a_model_into_which_nothing_was_loaded_is_refused():
    with pytest.raises(UserError, match=r"the teacher resnet8 has random weights: .*teacher.finetune=head"):
        check_answers(build_model("resnet8", CLASSES, (32, 32)), CLASSES, "teacher")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_type_compute_in_float32(tmp_path, dtype):
    vit(tmp_path / "typed", CLASSES, dtype=dtype)
    model = built(tmp_path / "typed")
    assert model.logits(torch.rand(2, 3, 32, 32)).dtype == torch.float32
    save_model(model, tmp_path / "saved")
    assert load_model(tmp_path / "saved").logits(torch.rand(2, 3, 32, 32)).dtype == torch.float32


def test_a_network_of_grey_images_gets_the_brightness(tmp_path):
    grey = {"size": {"height": 32, "width": 32}, "image_mean": [0.5], "image_std": [0.25]}
    network = vit(tmp_path / "grey", CLASSES, channels=1, processor=grey).eval()
    model, images = built(tmp_path / "grey"), torch.rand(2, 3, 32, 32)
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    brightness = ((images * weights).sum(1, keepdim=True) - 0.5) / 0.25
    assert torch.allclose(model.logits(images), network(brightness).logits, atol=1e-5)
    assert model.last_tap
    save_model(model, tmp_path / "saved")
    assert torch.allclose(load_model(tmp_path / "saved").logits(images), model.logits(images), atol=1e-6)


OWN = """
from torch import nn

class Of(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.body, self.head = nn.Conv2d(channels, 4, 3), nn.Linear(4, classes)

    def forward(self, pixels):
        return self.head(self.body(pixels).mean((2, 3)))

def grey(classes):
    return Of(1, classes)

def four(classes):
    return Of(4, classes)

def half(classes):
    return Of(3, classes).half()

def deep(depth=3, num_classes=10):
    return Of(3, num_classes)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_loaded.py").write_text(OWN)
    return lambda name: build_model(f"python:own_loaded:{name}", CLASSES, (16, 16)).eval()


def test_own_networks_of_other_channels_and_types(own):
    model = own("grey")
    assert model.logits(torch.rand(2, 3, 16, 16)).shape == (2, 3)
    assert "takes grey images" in " ".join(model.notes)
    with pytest.raises(UserError, match="takes images of 4 channels, but pictures have three"):
        own("four")
    half = own("half")
    assert half.logits(torch.rand(2, 3, 16, 16)).dtype == torch.float32
    assert "its weights are float16" in " ".join(half.notes)


def test_the_number_of_classes_is_given_by_its_name(own):
    assert own("deep").logits(torch.rand(1, 3, 16, 16)).shape == (1, 3)


def test_a_module_that_nothing_can_build_again_is_said_when_it_is_saved(own, tmp_path):
    save_model(own("deep"), tmp_path / "named")  # any warning would fail the test
    model = Model(own("deep").network, CLASSES, size=(16, 16))
    with pytest.warns(UserWarning, match=r"load_model cannot build Of again.*name='python:module:callable'"):
        save_model(model, tmp_path / "saved")
    with pytest.raises(UserError, match=r"a module of your own, Of, and it is unknown(?!.*[Uu]nknown model)"):
        load_model(tmp_path / "saved")


def test_sides_need_not_be_equal(tmp_path):
    wide = {"size": {"height": 32, "width": 64}}
    vit(tmp_path, CLASSES, size=(32, 64), processor=wide)
    model = built(tmp_path)
    assert model.size == (32, 64)
    assert model.logits(torch.rand(1, 3, 20, 20)).shape == (1, 3)


class Processor:
    """What an image processor of transformers carries."""

    size, image_mean, image_std, rescale_factor, resample = {"height": 8, "width": 6}, [0.4] * 3, [0.2] * 3, 1 / 255, 3

    def __init__(self, **changes):
        self.__dict__.update(changes)


@pytest.mark.parametrize(
    ("changes", "mean", "std"),
    [
        ({}, 0.4, 0.2),
        ({"do_normalize": False}, 0.0, 1.0),
        ({"do_rescale": False, "do_normalize": False}, 0.0, 1 / 255),
        ({"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False}, 0.5, 0.5),
        ({"rescale_factor": 1 / 127.5}, 0.2, 0.1),
    ],
)
def test_the_range_and_normalisation_of_a_processor(changes, mean, std):
    """`(x - mean) / std` of pixels in [0, 1] is what the processor makes of pixels from 0 to 255."""
    processor = Processor(**changes)
    found = settings_of_processor(processor, None)
    assert found["mean"] == pytest.approx([mean] * 3)
    assert found["std"] == pytest.approx([std] * 3)
    assert found["size"] == (8, 6)
    assert found["interpolation"] == "bicubic"
    assert "size" not in settings_of_processor(processor, 32), "the model's own size comes first"


def test_interpolation_is_the_models_own_and_is_saved(tmp_path):
    model = build_model("timm:resnet18,size=16", CLASSES, (16, 16))
    assert model.interpolation == "bicubic"
    small = build_model("resnet8", CLASSES, (16, 16)).eval()
    images = torch.rand(2, 3, 32, 32)
    other = build_model("resnet8", CLASSES, (16, 16)).eval()
    other.load_bare_state(small.bare_state())
    other.interpolation = "bicubic"
    assert not torch.allclose(small.logits(images), other.logits(images), atol=1e-4)
    save_model(other, tmp_path / "saved")
    assert torch.equal(load_model(tmp_path / "saved").logits(images), other.logits(images))


def test_a_module_of_timm_brings_its_pixels(cache):
    import timm

    from distilens.data import load
    from distilens.training.distill import as_model

    data = load("shapes:train=40,test=40,size=16")
    model = as_model(timm.create_model("resnet10t", num_classes=8), data)
    assert model.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    plain = as_model(nn.Sequential(nn.Flatten(), nn.Linear(768, 8)), data)
    assert plain.mean.flatten().tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("notation", "first"),
    [
        ("timm:resnet18,pretrained=true", "tench, Tinca tinca, n01440764"),
        ("torchvision:resnet18,weights=DEFAULT", "tench, n01440764"),
    ],
)
def test_the_names_of_pretrained_classes(notation, first):
    own = classes_of_weights(MODELS.resolve(notation))
    assert own is not None
    assert len(own) == 1000
    assert own[0] == first
    assert positions_of(("goldfish", "Tench"), own) == [1, 0]
    assert positions_of(("n01443537", "n01440764"), own) == [1, 0]


def test_pretrained_weights_without_names_or_a_wrong_notation_have_no_classes():
    assert classes_of_weights(MODELS.resolve("resnet8")) is None
    assert classes_of_weights(MODELS.resolve("timm:resnet18")) is None


def test_a_pretrained_timm_model_answers_for_the_datas_classes_by_name(monkeypatch):
    """Its weights cannot be had without a network: the library's call is stood in for, its head of a thousand is real."""
    import timm

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **options: create(name, **options))
    torch.manual_seed(0)
    model = build_model("timm:resnet10t,pretrained=true", ("goldfish", "tench"), (32, 32)).eval()
    assert model.classes == ("goldfish", "tench")
    assert model.network.fc.weight.shape[0] == 2
    assert model.missing == ()
    torch.manual_seed(0)
    other = build_model("timm:resnet10t,pretrained=true", ("one", "two"), (32, 32))
    assert other.missing == ("fc",)
    with pytest.raises(UserError, match="has random weights in fc"):
        check_answers(other, ("one", "two"), "teacher")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda about: about.pop("model"),
            "the key 'model' is missing. Expected are the keys that save_model writes: model, classes",
        ),
        (lambda about: about.pop("classes"), "the key 'classes' is missing"),
        (lambda about: about.update(size=[32]), "the key 'size.1' is missing"),
        (lambda about: about.update(size="32"), "does not describe a model: size"),
        (lambda about: about.update(mean=None), "does not describe a model: mean"),
        (lambda about: about.update(classes=[]), "does not describe a model: classes"),
        (lambda about: about.update(parts=[{"name": "head"}]), "the key 'parts.0.tap' is missing"),
        (lambda about: about.update(interpolation="lanczos"), "does not describe a model: interpolation"),
        (
            lambda about: about.update(model="resnet21"),
            "saved from a module of your own, resnet21, and it is unknown how",
        ),
    ],
)
def test_a_description_at_fault_is_said(tmp_path, change, message):
    save_model(build_model("resnet8", ("a", "b"), (32, 32)), tmp_path / "saved")
    file = tmp_path / "saved" / "model.json"
    about = json.loads(file.read_text())
    change(about)
    file.write_text(json.dumps(about))
    with pytest.raises(UserError, match=re.escape(message)):
        load_model(tmp_path / "saved")


def test_a_model_is_taken_as_it_is():
    model = build_model("resnet8", CLASSES, (32, 32))
    assert build_model(model, ("other", "classes"), (16, 16)) is model


def test_a_model_of_a_run_answers_in_the_order_of_the_data(tmp_path):
    torch.manual_seed(0)
    model = build_model("resnet8", CLASSES, (32, 32)).eval()
    save_model(model, tmp_path / "student")
    other = build_model(f"run:{tmp_path}", ("owl", "cat", "dog"), (32, 32)).eval()
    assert other.classes == ("owl", "cat", "dog")
    images = torch.rand(2, 3, 32, 32)
    assert torch.allclose(other.logits(images), model.logits(images)[:, [2, 0, 1]], atol=1e-6)
    assert build_model(f"run:{tmp_path}", ("x", "y", "z"), (32, 32)).classes == CLASSES


def test_a_network_of_nearest_neighbours_sees_the_pixels_themselves():
    images = torch.rand(1, 3, 4, 4)
    model = Model(nn.Identity(), CLASSES, size=(8, 8), mean=(0, 0, 0), std=(1, 1, 1), interpolation="nearest")
    expected = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(model.prepare(images), expected)


@pytest.mark.parametrize("classes", [CLASSES, ("ant", "bee")])
def test_a_saved_network_of_transformers_needs_its_first_folder_no_more(tmp_path, classes):
    vit(tmp_path / "net", CLASSES)
    model, images = built(tmp_path / "net", classes=classes), torch.rand(4, 3, 32, 32)
    save_model(model, tmp_path / "saved")
    shutil.rmtree(tmp_path / "net")
    again = load_model(tmp_path / "saved")
    assert (again.classes, again.size) == (classes, (32, 32))
    assert torch.equal(again.logits(images), model.logits(images))


def test_a_network_of_transformers_in_memory_is_saved_and_loaded(tmp_path):
    model, images = as_model(vit(tmp_path / "net", CLASSES)).eval(), torch.rand(4, 3, 32, 32)
    save_model(model, tmp_path / "saved")
    assert torch.equal(load_model(tmp_path / "saved").logits(images), model.logits(images))


def test_a_damaged_configuration_is_named(tmp_path):
    save_model(built(vit_in(tmp_path / "net")), tmp_path / "saved")
    file = tmp_path / "saved" / "model.json"
    about = json.loads(file.read_text())
    file.write_text(json.dumps({**about, "config": {**about["config"], "model_type": "nothing"}}))
    with pytest.raises(UserError, match="transformers cannot build a network from this configuration"):
        load_model(tmp_path / "saved")


def vit_in(folder):
    """A folder with a ViT."""
    vit(folder, CLASSES)
    return folder
