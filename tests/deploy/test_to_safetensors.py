"""The folder for the hub: distilens and timm load the same network from it."""

import json
import sys
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

from brightness import Brightness
from distilens.deploy.exporters import as_model
from distilens.deploy.shipped import Shipped
from distilens.deploy.to_safetensors import Folder, Safetensors
from distilens.foundation.errors import UserError
from distilens.models import build_model
from distilens.models.model import Model
from distilens.models.parts import build_part
from distilens.models.saved import load_model
from networks import convolutional, transformer

CLASSES = ("cat", "dog", "owl")


def written(model, folder, **options):
    """The folder of a model, opened, and its config."""
    shipped = Shipped(model, **options)
    Safetensors().write(shipped, folder, shipped.about())
    return Folder(folder), json.loads((folder / "config.json").read_text())


def pixels(model, count=2):
    return torch.rand(count, 3, *model.size)


@pytest.mark.parametrize("part", ["timm:test_resnet.r160_in1k", "timm:test_vit,size=32", "timm:test_convnext"])
def test_timm_loads_the_same_network_with_the_same_pixels(part, tmp_path):
    model = build_model(part, CLASSES, (32, 32)).eval()
    _, config = written(model, tmp_path / "hub")
    network = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    found = timm.data.resolve_data_config(pretrained_cfg=network.pretrained_cfg)
    assert config["library_name"] == "timm"
    assert tuple(found["input_size"]) == (3, 32, 32)
    assert found["mean"] == pytest.approx(model.mean.flatten().tolist())
    assert found["std"] == pytest.approx(model.std.flatten().tolist())
    assert found["interpolation"] == model.interpolation
    assert found["crop_pct"] == 1
    assert network.pretrained_cfg["label_names"] == list(CLASSES)
    images = pixels(model)
    mean, std = (torch.tensor(found[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        assert torch.equal(network((images - mean) / std), model.logits(images))


def test_distilens_loads_the_same_model(tmp_path):
    model = convolutional()
    folder, config = written(model, tmp_path / "hub", pixels="uint8", size=(48, 40), maps=True)
    images = pixels(model)
    loaded = load_model(tmp_path / "hub")
    with torch.no_grad():
        assert torch.equal(loaded.logits(images), model.logits(images))
    assert config["library_name"] == "distilens"
    assert "pretrained_cfg" not in config
    assert folder.about["input"] | {"type": "float32", "range": [0, 1], "size": [32, 32]} == folder.about["input"]
    logits, probabilities = folder(images.numpy())  # the names that it states, and no maps
    assert folder.about["outputs"] == ["logits", "probabilities"]
    assert probabilities == pytest.approx(torch.from_numpy(logits).softmax(1).numpy())


def test_parts_are_kept_and_the_network_is_not_said_to_be_timms(tmp_path):
    model = build_model("timm:test_resnet", CLASSES, (32, 32)).eval()
    model.insert("layer4", build_part(f"kd_layer:channels={model.network.num_features},templates=4"), name="extra")
    model.eval()
    images = pixels(model)
    _, config = written(model, tmp_path / "hub")
    loaded = load_model(tmp_path / "hub")
    with torch.no_grad():
        assert torch.equal(loaded.logits(images), model.logits(images))
    assert config["library_name"] == "distilens"
    assert "pretrained_cfg" not in config


def test_a_network_of_transformers_is_loaded_again(tmp_path):
    pytest.importorskip("transformers")
    network = transformer().network
    network.save_pretrained(tmp_path / "net")
    model = build_model(f"hf:{tmp_path / 'net'}", tuple("abcd"), (32, 32)).eval()
    written(model, tmp_path / "hub")
    images = pixels(model)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "hub").logits(images), model.logits(images))


def grey(classes):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))


def test_a_grey_network_states_the_three_channels_of_its_images(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "grey_networks", SimpleNamespace(grey=grey))
    model = Model(grey(3), CLASSES, size=(16, 16), mean=(0.4,), std=(0.2,), name="python:grey_networks:grey").eval()
    folder, _ = written(model, tmp_path / "hub")
    assert folder.about["input"]["channels"] == 3
    assert folder.about["input"]["mean"] == pytest.approx([0.4])
    images = pixels(model)
    with torch.no_grad():
        assert torch.equal(as_model(folder, model).logits(images), model.logits(images))


def test_a_module_that_cannot_be_built_again_is_refused(tmp_path):
    model = Model(grey(3), CLASSES, size=(16, 16), mean=(0.4,), std=(0.2,)).eval()
    with pytest.raises(UserError, match="load_model cannot build a module of your own again"):
        written(model, tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


def test_another_task_has_only_its_numbers(tmp_path):
    model = build_model("resnet8", Brightness(), (32, 32)).eval()
    folder, config = written(model, tmp_path / "hub")
    images = pixels(model)
    (numbers,) = folder(images.numpy())
    with torch.no_grad():
        assert numbers == pytest.approx(model.logits(images).numpy())
    assert "classes" not in config["distilens"]
