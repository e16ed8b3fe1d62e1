"""The classes of pretrained weights, as timm knows them."""

import timm
from timm.models import PretrainedCfg

from distilens.models.named import are_named, timm_classes


def test_weights_of_a_thousand_classes_are_those_of_imagenet():
    names = timm_classes("resnet18")
    assert len(names) == 1000
    assert names[0].startswith("tench")


def test_weights_of_other_classes_have_numbers():
    names = timm_classes("resnetv2_50x1_bit.goog_in21k")
    assert names == tuple(map(str, range(21843)))
    assert not are_named(names)


def test_the_names_in_the_config_of_weights_come_first(monkeypatch):
    about = PretrainedCfg(num_classes=1000, label_names=("cat", "dog"))
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name, allow_unregistered: about)
    assert timm_classes("mine") == ("cat", "dog")


def test_weights_without_a_head_have_no_classes(monkeypatch):
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name, allow_unregistered: PretrainedCfg(num_classes=0))
    assert timm_classes("mine") is None
