"""Networks for segmentation from elsewhere: their grids, odd sizes, heads, the end of their encoder, and what is refused."""

import re
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

from distilens.core import Model
from distilens.foundation.errors import UserError
from distilens.models import MODELS, adapters, build_model, check_classes
from distilens.models.heads import give_head, heads, keep_classes, replace_heads
from distilens.models.objects import as_model
from distilens.models.saved import load_model, save_model
from distilens.tasks import Classification, Segmentation

TASK = Segmentation(("sky", "road", "car"))
SMP = "smp:Unet,encoder=resnet18,depth=3"


def test_smp_pads_by_hand_where_it_must():
    torch.manual_seed(0)
    model = build_model("smp:Linknet,encoder=resnet18,depth=4", TASK, (31, 45)).eval()
    assert model.padded_size == (32, 48)
    images = torch.rand(1, 3, 31, 45)
    with pytest.raises(RuntimeError, match="Wrong input shape height=31, width=45"):
        type(model.network).check_input_shape(model.network, images)
    fresh = build_model("smp:Linknet,encoder=resnet18,depth=4", TASK, (32, 48)).eval().network
    fresh.load_state_dict(model.network.state_dict())
    padded = functional.pad(model.prepare(images), (1, 2, 0, 1), mode="replicate")
    assert torch.allclose(model.logits(images), fresh(padded)[..., :31, 1:46], atol=1e-5)


def test_an_encoder_of_timm_and_the_case_of_an_architecture():
    model = build_model("smp:UNET,encoder=mobilenetv3_small_050", TASK, (32, 32)).eval()
    assert type(model.network.encoder).__name__ == "TimmUniversalEncoder"
    assert model.logits(torch.rand(1, 3, 32, 32)).shape == (1, 3, 32, 32)
    assert model.loaded is False
    assert model.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


@pytest.mark.parametrize(
    ("notation", "task", "message"),
    [
        ("smp:unett", TASK, "has no architecture 'unett'. Did you mean 'unet'?"),
        ("smp:unet,encoder=resnet19", TASK, "there is no encoder 'resnet19'"),
        ("smp:unet,encoder=resnet18,weights=nowhere", TASK, "Wrong pretrained weights `nowhere`"),
        ("smp:unet,encoder=resnet18,deep=3", TASK, "unknown option 'deep' of model 'smp'"),
        ("smp:unet,depth=9", TASK, "less than or equal to 5; given '9'"),
        ("smp:unet", Classification(("a", "b")), "smp gives a class for each place of an image"),
        ("unet", Classification(("a", "b")), "unet gives a class for each place of an image"),
        ("torchvision:fcn_resnet50", Classification(("a", "b")), "torchvision:fcn_resnet50 gives a class for each"),
        ("torchvision:resnet18", TASK, "For segmentation torchvision has deeplabv3_mobilenet_v3_large"),
        ("torchvision:fcn_resnet51", TASK, "Did you mean 'fcn_resnet50'"),
    ],
)
def test_what_cannot_be_built_is_said(notation, task, message):
    with pytest.raises(UserError, match=re.escape(message)):
        build_model(notation, task, (32, 32))


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(UserError, match=re.escape("pip install 'distilens[dense]'")):
        build_model("smp:unet", TASK, (32, 32))


def test_classifiers_and_dense_networks_are_told_apart_before_training():
    with pytest.raises(UserError, match="a segmentation needs a class for each place"):
        check_classes(build_model("resnet8", TASK, (32, 32)), TASK, "student")
    unet = build_model("unet:width=4", TASK, (32, 32))
    check_classes(unet, TASK, "student")
    with pytest.raises(UserError, match=re.escape("was made for segmentation, but the data ask for classification")):
        check_classes(unet, Classification(TASK.classes), "teacher")
    places = Model(nn.Conv2d(3, 3, 1), Classification(TASK.classes), size=(8, 8))
    with pytest.raises(UserError, match="For one answer per place, the data need a mask per image"):
        check_classes(places, Classification(TASK.classes), "student")
    with pytest.raises(UserError, match="2 logits per place, but the data has 3 classes"):
        check_classes(as_model(nn.Conv2d(3, 2, 1), TASK, size=(8, 8)), TASK, "student")
    with pytest.raises(UserError, match="in another order: car, road, sky"):
        check_classes(build_model("unet:width=4", Segmentation(("car", "road", "sky")), (8, 8)), TASK, "teacher")
    with pytest.raises(UserError, match="knows 2 classes, the data has 3"):
        check_classes(build_model("unet:width=4", Segmentation(("car", "road")), (8, 8)), TASK, "teacher")


@pytest.fixture(scope="module")
def lraspp() -> Model:
    torch.manual_seed(0)
    return build_model("torchvision:lraspp_mobilenet_v3_large", TASK, (32, 48)).eval()


def test_two_summed_heads(lraspp):
    found = ["classifier.low_classifier", "classifier.high_classifier"]
    assert heads(lraspp) == found
    images = torch.rand(1, 3, 32, 48)
    before = lraspp.logits(images)
    assert before.shape == (1, 3, 32, 48)
    keep_classes(lraspp, [2, 0, 1], ("car", "sky", "road"))
    assert lraspp.task == Segmentation(("car", "sky", "road"))
    assert torch.allclose(lraspp.logits(images), before[:, [2, 0, 1]], atol=1e-5)
    assert lraspp.path_of("coarsest") == "backbone.16"
    lraspp.freeze(but=found)
    trained = {key for key, weight in lraspp.network.named_parameters() if weight.requires_grad}
    assert trained == {f"{path}.{kind}" for path in found for kind in ("weight", "bias")}
    replace_heads(lraspp.network, 5, found)
    assert lraspp.logits(images).shape == (1, 5, 32, 48)


@pytest.mark.parametrize(
    ("notation", "path", "encoder"),
    [("unet:width=4", "head", "encoder.3"), (SMP, "segmentation_head.0", "encoder.layer2")],
)
def test_heads_stand_behind_upsampling_or_nothing(notation, path, encoder):
    model = build_model(notation, TASK, (31, 45)).eval()
    images = torch.rand(1, 3, 31, 45)
    assert heads(model) == [path]
    assert model.path_of("coarsest") == encoder
    before = model.logits(images)
    keep_classes(model, [1, 0], ("road", "sky"))
    assert torch.allclose(model.logits(images), before[:, [1, 0]], atol=1e-5)
    give_head(model.network, nn.Conv2d(model.network.get_submodule(path).in_channels, 7, 1))
    assert model.logits(images).shape == (1, 7, 31, 45)


def test_weights_of_torchvision_lose_their_auxiliary_head(monkeypatch):
    """With weights for two classes; nothing is downloaded."""
    from functools import partial

    from torchvision import models as library
    from torchvision.models import WeightsEnum
    from torchvision.models._api import Weights
    from torchvision.transforms._presets import SemanticSegmentation

    class Two(WeightsEnum):
        DEFAULT = Weights("nowhere", partial(SemanticSegmentation, resize_size=52), {"categories": ["road", "sky"]})

    name = "lraspp_mobilenet_v3_large"
    network = library.get_model(name, weights=None, weights_backbone=None, num_classes=2)
    network.aux_classifier = nn.Conv2d(3, 2, 1)  # as a deeplabv3 has
    monkeypatch.setattr(library, "get_model_weights", lambda name: Two)
    monkeypatch.setattr(library, "get_model", lambda name, *, weights: network)
    model = build_model(f"torchvision:{name},weights=DEFAULT", Segmentation(("sky", "road")), (32, 32)).eval()
    assert model.network.aux_classifier is None
    assert (model.loaded, model.missing, model.size) == (True, (), (32, 32))
    assert "whose shorter side has 52 pixels" in " ".join(model.notes)
    assert model.classes == ("sky", "road")
    new = build_model(f"torchvision:{name},weights=DEFAULT", TASK, (32, 32)).eval()
    assert new.missing == ("classifier.low_classifier", "classifier.high_classifier")
    assert new.logits(torch.rand(1, 3, 32, 32)).shape == (1, 3, 32, 32)


@pytest.mark.slow
def test_segformer_from_a_folder(tmp_path):
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    config = SegformerConfig(
        depths=[1] * 4, hidden_sizes=[8, 8, 8, 16], decoder_hidden_size=8, num_attention_heads=[1] * 4, num_labels=3
    )
    config.id2label = {0: "road", 1: "car", 2: "sky"}
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "net")
    model = build_model(f"hf:{tmp_path}/net", TASK, (64, 96)).eval()
    images = torch.rand(1, 3, 64, 96)
    assert model.size == (64, 96)
    assert model.logits(images).shape == (1, 3, 16, 24)
    assert model.missing == ()
    theirs = SegformerForSemanticSegmentation.from_pretrained(tmp_path / "net").eval()
    expected = theirs(model.prepare(images)).logits[:, [2, 0, 1]]
    assert torch.allclose(model.logits(images), expected, atol=1e-5)
    assert heads(model) == ["decode_head.classifier"]
    assert model.path_of("coarsest").startswith("segformer.")
    model.tap("coarsest")
    assert model(images).features["coarsest"].shape[1:] in ((16, 2, 3), (6, 16))
    save_model(model, tmp_path / "saved")
    assert torch.equal(load_model(tmp_path / "saved").logits(images), model.logits(images))
    other = build_model(f"hf:{tmp_path}/net", Segmentation(tuple("abcd")), (64, 96))
    assert other.logits(images).shape == (1, 4, 16, 24)
    assert other.missing


def test_a_module_of_ones_own():
    model = as_model(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1)), TASK, size=(9, 11)).eval()
    check_classes(model, TASK, "student")
    assert model.logits(torch.rand(2, 3, 9, 11)).shape == (2, 3, 7, 9)
    unnamed = as_model(nn.Conv2d(3, 2, 1), size=(8, 8))
    assert unnamed.task == Segmentation(("0", "1"))
    assert as_model(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 2, 1)), size=(8, 8)).task == Classification(
        ("0", "1")
    )


@pytest.mark.parametrize("notation", ["unet:width=4,depth=3", "smp:linknet,encoder=resnet18,depth=4"])
def test_a_saved_model_comes_back(tmp_path, notation):
    model = build_model(notation, TASK, (31, 45)).eval()
    save_model(model, tmp_path)
    back = load_model(tmp_path)
    images = torch.rand(1, 3, 31, 45)
    assert (back.task, back.size, back.multiple) == (TASK, (31, 45), model.multiple)
    assert torch.equal(back.logits(images), model.logits(images))


def test_a_weight_file_of_a_dense_network(tmp_path):
    network = build_model("unet:width=4", TASK, (16, 16)).network
    torch.save(network.state_dict(), tmp_path / "net.pth")
    model = build_model(f"file:{tmp_path}/net.pth,model=[unet:width=4]", TASK, (16, 16))
    assert torch.equal(model.network.head.weight, network.head.weight)


def test_they_are_listed():
    titles = {title: source for title, _, _, source in MODELS.table()}
    assert "segmentation_models" in titles["smp:ARCHITECTURE"]
    assert "1505.04597" in titles["unet"]
    adapters.check_name("smp:fpn")
    with pytest.raises(UserError, match="has no architecture 'fpm'"):
        adapters.check_name("smp:fpm")
