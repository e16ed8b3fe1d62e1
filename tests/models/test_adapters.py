"""Others' models, weight files and runs: what is built, what is refused, and in which words."""

import copy
import json
import re
import sys
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models as library
from torchvision.models import Weights, WeightsEnum
from torchvision.transforms._presets import ImageClassification

from distilens.foundation.errors import UserError
from distilens.models import adapters, build_model, check_classes
from distilens.models.adapters import IMAGENET, load_state
from distilens.models.heads import head_of, replace_heads
from distilens.models.saved import load_model, save_model

CLASSES = tuple("abc")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def built(name: str, size: int = 32):
    torch.manual_seed(0)
    return build_model(name, CLASSES, (size, size)).eval()


def flat(tensor) -> list[float]:
    return tensor.flatten().tolist()


@pytest.mark.parametrize(
    ("name", "size", "mean"),
    [
        ("resnet8", 32, (0.5, 0.5, 0.5)),
        ("resnet8:size=24,mean=[0.1,0.2,0.3]", 24, (0.1, 0.2, 0.3)),
        ("timm:resnet18", 32, IMAGENET["mean"]),
        ("timm:resnet18,size=48", 48, IMAGENET["mean"]),
        ("timm:vit_tiny_patch16_224,size=32", 32, (0.5, 0.5, 0.5)),
        ("torchvision:resnet18", 32, IMAGENET["mean"]),
        ("torchvision:vit_b_32,size=64", 64, IMAGENET["mean"]),
        ("torchvision:mobilenet_v2,mean=[0,0,0],std=[1,1,1]", 32, (0, 0, 0)),
    ],
)
def test_a_model_by_name_has_the_datas_classes_and_its_own_pixels(name, size, mean):
    model = built(name)
    assert model.logits(torch.rand(2, 3, 40, 40)).shape == (2, 3)
    assert model.size == (size, size)
    assert flat(model.mean) == pytest.approx(mean)
    assert model.name == name


def test_models_of_one_input_size_bring_it():
    assert built("torchvision:vit_b_32").size == (224, 224)
    assert built("timm:vit_tiny_patch16_224").size == (224, 224)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("timm:resnet1", r"timm has no model 'resnet1'. Did you mean 'resnet"),
        ("torchvision:resnet19", r"torchvision has no classifier 'resnet19'. Did you mean 'resnet1"),
        ("torchvision:fasterrcnn_resnet50_fpn", "torchvision has no classifier"),
        ("torchvision:resnet18,weights=BEST", r"has no weights 'BEST'; it has IMAGENET1K_V1, DEFAULT"),
        ("timm", "'timm' needs timm:NAME"),
        ("file:w.pt", r"model 'file' needs the option model="),
        ("python:json", "python: needs package.module:callable; given 'json'"),
        ("python:no.such:make", "No module named 'no'"),
        ("python:json:decoder", "python:json:decoder is not callable: it is a module"),
        ("run:nowhere", "no run at nowhere: there is no such folder"),
        ("resnet21", "unknown model 'resnet21'.*Did you mean 'resnet"),
        ("resnet8:size=0", "greater than 0"),
        ("hf:nobody/nothing", r"hf:nobody/nothing could not be loaded: .*give weights in a folder or a file"),
        ("timm:resnet18,pretrained=true", r"could not be loaded: .*without a network"),
    ],
)
def test_what_cannot_be_built_is_said(place, name, text):
    with pytest.raises(UserError, match=text):
        built(name)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weight_files_come_back_bit_for_bit(place, wrapper, prefix):
    model = built("resnet8")
    state = {prefix + key: value + 1 for key, value in model.network.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, "weights.pt")
    files = ["weights.pt"]
    if wrapper is None:
        save_file(state, "weights.safetensors")
        files.append("weights.safetensors")
    for file in files:
        found = built(f"file:{file},model=resnet8").network.state_dict()
        assert all(torch.equal(found[key], state[prefix + key]) for key in found)


def test_a_network_whose_own_names_start_with_module_is_left_alone(place):
    (place / "wraps.py").write_text(
        "from torch import nn\n\nclass Wraps(nn.Module):\n    def __init__(self, classes):\n        super().__init__()\n"
        "        self.module = nn.Linear(12, classes)\n    def forward(self, x):\n        return self.module(x.flatten(1))\n"
    )
    model = build_model("python:wraps:Wraps", CLASSES, (2, 2))
    save_model(model, place / "saved")
    assert torch.equal(load_model(place / "saved").network.module.weight, model.network.module.weight)
    save_file(model.network.state_dict(), "w.safetensors")
    again = build_model("file:w.safetensors,model=python:wraps:Wraps", CLASSES, (2, 2))
    assert torch.equal(again.network.module.weight, model.network.module.weight)


def test_a_weight_file_takes_its_architectures_pixels_and_its_own_come_first(place):
    save_file(built("resnet8").network.state_dict(), "w.safetensors")
    inner = "model=[resnet8:size=24,mean=[0.1,0.2,0.3]]"
    model = built(f"file:w.safetensors,{inner}")
    assert model.size == (24, 24)
    assert flat(model.mean) == pytest.approx([0.1, 0.2, 0.3])
    assert built(f"file:w.safetensors,{inner},size=16").size == (16, 16)


def test_a_saved_model_does_not_need_the_file_that_it_came_from(place):
    save_file(built("resnet8").network.state_dict(), "w.safetensors")
    model = built("file:w.safetensors,model=resnet8")
    save_model(model, place / "saved")
    (place / "w.safetensors").unlink()
    ones = torch.ones(1, 3, 32, 32)
    assert torch.equal(load_model(place / "saved").logits(ones), model.logits(ones))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is not a weights file"),
        (b"no weights\n" * 30, "it is neither safetensors nor written by torch.save"),
        (b"PK\x03\x04" + b"\0" * 60, "is not a weights file"),
    ],
)
def test_files_that_hold_no_weights_are_not_called_dangerous(place, content, text):
    (place / "w.pt").write_bytes(content)
    with pytest.raises(UserError, match=text):
        load_state(place / "w.pt")


def test_truncated_weights_and_other_contents_are_said(place):
    save_file(built("resnet8").network.state_dict(), "w.safetensors")
    whole = (place / "w.safetensors").read_bytes()
    for share in (0.001, 0.5, 0.999):
        (place / "cut.safetensors").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(UserError, match="is not a whole safetensors file"):
            load_state(place / "cut.safetensors")
    torch.save(built("resnet8").network.state_dict(), "w.pt")
    for share in (0.01, 0.5, 0.999):
        (place / "cut.pt").write_bytes((place / "w.pt").read_bytes()[: int((place / "w.pt").stat().st_size * share)])
        with pytest.raises(UserError, match="is not a weights file"):
            load_state(place / "cut.pt")
    torch.save([torch.zeros(2)], "list.pt")
    with pytest.raises(UserError, match="has no state dict: expected names with tensors"):
        load_state(place / "list.pt")
    torch.save(nn.Linear(2, 2), "module.pt")
    with pytest.raises(UserError, match="reading it would run code"):
        load_state(place / "module.pt")


def test_saved_models_that_do_not_fit_their_description_are_said(place):
    save_model(built("resnet8"), place / "saved")
    about = json.loads((place / "saved/model.json").read_text())
    for change, text in (
        ({"model": "resnet14"}, "are not those of resnet14: missing: layer1.1"),
        ({"classes": ["a", "b"]}, r"fc.weight: \[3, 64\] in the file, \[2, 64\] in the model"),
        ({"model": "resnett8"}, "from a module of your own, resnett8, and it is unknown how"),
    ):
        (place / "saved/model.json").write_text(json.dumps({**about, **change}))
        with pytest.raises(UserError, match=text):
            load_model(place / "saved")
    (place / "saved/model.json").write_text("{")
    with pytest.raises(UserError, match="is not whole JSON"):
        load_model(place / "saved")
    (place / "saved/model.json").unlink()
    with pytest.raises(UserError, match=r"model\.json is missing"):
        load_model(place / "saved")


@pytest.mark.parametrize(
    "name",
    ["vgg8", "mobilenetv2:width=0.25", "timm:mobilenetv3_small_050", "timm:swin_tiny_patch4_window7_224,size=64"],
)
def test_models_come_back_as_they_were_saved(place, name):
    model = built(name, 64)
    save_model(model, place / "saved")
    again = load_model(place / "saved")
    assert torch.equal(again.logits(torch.ones(2, 3, 50, 50)), model.logits(torch.ones(2, 3, 50, 50)))
    assert not again.training
    assert flat(again.mean) == flat(model.mean)


def test_a_run_gives_its_student_first_and_any_part_by_name(place):
    save_model(built("resnet8"), place / "run/base")
    save_model(built("resnet14"), place / "run/teacher")
    assert built("run:run").name == "resnet14"
    assert built("run:run,part=base").name == "resnet8"
    with pytest.raises(UserError, match="the run run has no student; it has: teacher, base"):
        built("run:run,part=student")
    save_model(built("vgg8"), place / "run/student")
    assert built("run:run").name == "vgg8"
    with pytest.raises(UserError, match="needs an architecture as model="):
        built("file:w.pt,model=[run:run]")
    (place / "empty").mkdir()
    with pytest.raises(UserError, match="the run empty has no trained model; it has: none"):
        built("run:empty")


def test_a_head_is_replaced_where_the_classes_differ_and_left_alone_where_not():
    from torchvision import models

    for network, path in (
        (models.resnet18(num_classes=5), "fc"),
        (models.squeezenet1_1(num_classes=5), "classifier.1"),
        (models.mobilenet_v2(num_classes=5), "classifier.1"),
    ):
        old = network.get_submodule(path)
        replace_heads(network, 5, [head_of(network)])
        assert network.get_submodule(path) is old
        replace_heads(network, 7, [head_of(network)])
        assert network.get_submodule(path) is not old
        assert network.eval()(torch.rand(2, 3, 64, 64)).shape == (2, 7)
    with pytest.raises(UserError, match="ReLU has no linear or convolutional layer"):
        head_of(nn.ReLU())


def test_transformers_resnets_and_vits_from_a_folder(place):
    from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5)
    ResNetForImageClassification(config).save_pretrained("net")
    model = built(f"hf:{place}/net")
    assert model.size == (32, 32)  # none of its own: the data's
    assert flat(model.mean) == pytest.approx(IMAGENET["mean"])
    assert model.tap() == "resnet.encoder.stages.1"
    assert model(torch.rand(2, 3, 32, 32)).logits.shape == (2, 3)  # another head than the folder's 5 classes
    ViTImageProcessor(size={"height": 48, "width": 48}, image_mean=[0.1] * 3, image_std=[0.9] * 3).save_pretrained(
        "net"
    )
    model = built(f"hf:{place}/net")
    assert model.size == (48, 48)
    assert flat(model.mean) == pytest.approx([0.1] * 3)
    assert flat(model.std) == pytest.approx([0.9] * 3)
    save_model(model, place / "saved")
    ones = torch.ones(1, 3, 48, 48)
    assert torch.equal(load_model(place / "saved").logits(ones), model.logits(ones))


def test_classes_must_be_the_datas_in_their_order():
    model = built("resnet8")
    check_classes(model, CLASSES, "teacher")
    with pytest.raises(UserError, match=r"knows 3 classes, the data has 2. .*teacher.finetune=all"):
        check_classes(model, ("a", "b"), "teacher")
    with pytest.raises(UserError, match="classes in another order: a, b, c"):
        check_classes(model, ("b", "a", "c"), "teacher")


def test_a_hub_without_an_address_is_not_tried(monkeypatch):
    """Without this the library tries for a minute."""
    from huggingface_hub import constants

    def nowhere(host, port):
        assert host == "hub.example"
        raise OSError("Name or service not known")

    monkeypatch.setattr(adapters.socket, "getaddrinfo", nowhere)
    monkeypatch.setattr(adapters, "getproxies", dict)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example")

    def load():
        with adapters.explain_download_errors("mine"):
            raise OSError(f"offline: {constants.HF_HUB_OFFLINE}")

    with pytest.raises(UserError, match="mine could not be loaded: offline: True"):
        load()
    assert not constants.HF_HUB_OFFLINE
    monkeypatch.setattr(adapters, "getproxies", lambda: {"https": "a proxy"})  # which may find it
    with adapters.explain_download_errors("mine"):
        assert not constants.HF_HUB_OFFLINE


class Four(WeightsEnum):
    """Weights of torchvision for four classes."""

    DEFAULT = Weights(
        "nowhere",
        partial(ImageClassification, crop_size=24, resize_size=32, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
        {"categories": list("dcba")},
    )


@pytest.fixture
def pretrained(monkeypatch):
    """The network that torchvision gives for these weights; nothing is downloaded."""
    network = library.get_model("resnet18", weights=None, num_classes=4)

    def get_model(name: str, *, weights: Four) -> nn.Module:
        assert (name, weights) == ("resnet18", Four.DEFAULT)
        return copy.deepcopy(network)

    monkeypatch.setattr(library, "get_model_weights", lambda name: Four)
    monkeypatch.setattr(library, "get_model", get_model)
    return network


def test_weights_of_torchvision_for_other_classes_get_a_new_head(pretrained):
    model = build_model("torchvision:resnet18,weights=DEFAULT", ("x", "y", "z"), (32, 32)).eval()
    assert (model.loaded, model.missing) == (True, ("fc",))
    assert model.logits(model.example()).shape == (1, 3)
    assert torch.equal(model.network.conv1.weight, pretrained.conv1.weight)
    assert (model.size, model.interpolation) == ((24, 24), "bilinear")
    assert flat(model.mean) + flat(model.std) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert "its authors evaluated it on the middle 0.75 of each side" in " ".join(model.notes)


def test_weights_of_torchvision_for_classes_of_these_names_keep_their_head(pretrained):
    model = build_model("torchvision:resnet18,weights=DEFAULT", ("a", "c"), (32, 32))
    assert (model.loaded, model.missing, model.classes) == (True, (), ("a", "c"))
    assert torch.equal(model.network.fc.weight, pretrained.fc.weight[[3, 1]])
    assert torch.equal(model.network.fc.bias, pretrained.fc.bias[[3, 1]])


def test_a_failed_download_of_torchvision_is_said(pretrained, monkeypatch):
    def fail(name, *, weights):
        raise OSError("no route to host")

    monkeypatch.setattr(library, "get_model", fail)
    message = "torchvision:resnet18,weights=DEFAULT could not be loaded: no route to host (without a network, give"
    with pytest.raises(UserError, match=re.escape(message)):
        build_model("torchvision:resnet18,weights=DEFAULT", CLASSES, (32, 32))


def test_a_vit_of_torchvision_takes_square_images_only():
    message = "torchvision:vit_b_32 takes square images: size=64 for example; given [64, 32]"
    with pytest.raises(UserError, match=re.escape(message)):
        adapters.torchvision("vit_b_32", 3, size=(64, 32))


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=re.escape("pip install 'distilens[hf]'")):
        build_model("hf:google/vit-base-patch16-224", CLASSES, (32, 32))


@pytest.mark.parametrize("resolved", [True, False])
def test_the_hub_is_looked_up_by_its_name(monkeypatch, resolved):
    asked = []

    def getaddrinfo(host, port):
        asked.append((host, port))
        if not resolved:
            raise OSError("unknown host")

    monkeypatch.setattr(adapters, "getproxies", dict)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example:8080/path")
    monkeypatch.setattr(adapters.socket, "getaddrinfo", getaddrinfo)
    assert adapters.finds_hub() is resolved
    assert asked == [("hub.example", 443)]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert adapters.finds_hub()
    assert len(asked) == 1, "the library itself decides, without a look-up"
