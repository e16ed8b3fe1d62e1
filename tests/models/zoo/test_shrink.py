"""A shrunken network is the published one, keeps what it does not remove, and travels without its origin."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from distilens.foundation.errors import UserError
from distilens.measure import macs, parameters
from distilens.models import build_model
from distilens.models.saved import architecture, load_model, save_model

CLASSES = tuple("abcdefghij")
TEACHER_PARAMETERS, TEACHER_MACS = 2_236_682, 87_976_448


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def built(name: str, classes=CLASSES):
    return build_model(name, classes, (32, 32)).eval()


@pytest.mark.parametrize(
    ("blocks", "channels", "count", "compression", "million_macs", "ratio"),
    [
        (3, 160, 1_019_402, 2.19, 68.8, 1.28),
        (5, 96, 543_498, 4.12, 58.7, 1.50),
        (7, 96, 306_954, 7.29, 43.9, 2.01),
        (9, 64, 185_738, 12.04, 36.4, 2.42),
        (11, 64, 77_194, 28.97, 29.6, 2.97),
        (13, 32, 40_970, 54.59, 23.6, 3.73),
        (15, 24, 16_042, 139.43, 14.9, 5.89),
        (17, 16, 1_994, 1121.71, 1.7, 51.6),
    ],
)
def test_every_student_of_the_paper_has_its_parameters_and_multiply_accumulates(
    blocks, channels, count, compression, million_macs, ratio
):
    model = built(f"shrink:blocks={blocks}")
    assert model.network.classifier.in_features == channels
    assert parameters(model) == count
    assert compression == round(TEACHER_PARAMETERS / count, 2)
    assert million_macs == round(macs(model) / 1e6, 1)
    assert ratio == round(TEACHER_MACS / macs(model), 1 if blocks == 17 else 2)


def test_what_the_ratios_are_of():
    teacher = built("mobilenetv2")
    assert (parameters(teacher), macs(teacher)) == (TEACHER_PARAMETERS, TEACHER_MACS)


def test_what_is_left_is_unchanged_and_the_classifier_is_linear_in_its_mean(place):
    whole = built("mobilenetv2:width=0.25")
    save_file(whole.network.state_dict(), "w.safetensors")
    student = built("shrink:blocks=12,model=[file:w.safetensors,model=[mobilenetv2:width=0.25]]")
    images = torch.rand(2, 3, 32, 32)
    features = whole.network.features[:7](images)
    assert torch.equal(student.network.features(images), features)
    expected = features.mean(dim=(2, 3)) @ student.network.classifier.weight.T + student.network.classifier.bias
    torch.testing.assert_close(student.network(images), expected)


@pytest.mark.parametrize(
    ("inner", "blocks", "channels"),
    [
        ("mobilenetv2:width=0.5", 5, 48),
        ("torchvision:mobilenet_v2", 5, 96),
        ("torchvision:mobilenet_v3_small", 10, 24),
        ("torchvision:vgg11", 10, 256),
        ("timm:densenet121", 4, 256),
    ],
)
def test_networks_of_the_form_can_be_shrunk_and_trained(inner, blocks, channels):
    model = built(f"shrink:blocks={blocks},model=[{inner}]", classes="abc").train()
    assert model.network.classifier.in_features == channels
    nn.functional.cross_entropy(model.logits(torch.rand(2, 3, 32, 32)), torch.tensor([0, 1])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_pixels_are_those_of_the_inner_network_unless_told():
    assert built("shrink:blocks=10,model=[mobilenetv2:size=24,mean=[0,0,0]]").size == (24, 24)
    model = built("shrink:blocks=10,model=[mobilenetv2:size=24,mean=[0,0,0]],size=16")
    assert model.size == (16, 16)
    assert model.mean.abs().max() == 0


@pytest.mark.parametrize(
    "name",
    [
        "shrink:blocks=14",
        "shrink:blocks=14,model=[torchvision:mobilenet_v2]",
        "shrink:blocks=14,model=[file:w.safetensors,model=mobilenetv2]",
    ],
)
def test_a_saved_student_comes_back_without_the_weights_that_it_began_with(place, name):
    save_file(built("mobilenetv2").network.state_dict(), "w.safetensors")
    model = built(name)
    save_model(model, place / "saved")
    (place / "w.safetensors").unlink()
    again = load_model(place / "saved")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(again.logits(images), model.logits(images))
    assert (again.name, again.size, again.classes) == (model.name, model.size, model.classes)


def test_a_pretrained_origin_is_not_fetched_again():
    spec = architecture("shrink:blocks=5,model=[torchvision:mobilenet_v2,weights=DEFAULT]", (32, 32))
    assert str(spec) == "shrink:blocks=5,model=[torchvision:mobilenet_v2,weights=none,size=32]"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shrink:blocks=0", "shrink:model=mobilenetv2 removes 1 to 18 of its blocks; blocks was 0."),
        ("shrink:blocks=19", "shrink:model=mobilenetv2 removes 1 to 18 of its blocks; blocks was 19."),
        ("shrink", "model 'shrink' needs the option blocks=..."),
        (
            "shrink:blocks=1,model=resnet8",
            "shrink needs a network of the form of mobilenetv2, an nn.Sequential named `features` and then `classifier`; "
            "'resnet8' has: conv1, bn1, relu, layer1, layer2, layer3, avgpool, fc",
        ),
        (
            "shrink:blocks=1,model=[python:flat:Flat]",
            "shrink needs `features` that end in a feature map [b c h w]; the remaining ones give [1, 150528]",
        ),
        (
            "shrink:blocks=1,model=[run:trained]",
            "shrink needs an architecture as model=, such as mobilenetv2; given 'run:trained', a trained model",
        ),
    ],
)
def test_an_error_says_what_would_be_right(place, monkeypatch, name, message):
    (place / "flat.py").write_text(
        "from torch import nn\n\nclass Flat(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.features = nn.Sequential(nn.Flatten(), nn.ReLU())\n        self.classifier = nn.Linear(12, 3)\n"
    )
    monkeypatch.syspath_prepend(place)
    save_model(built("resnet8"), place / "trained" / "student")
    with pytest.raises(UserError) as error:
        built(name)
    assert str(error.value) == message
