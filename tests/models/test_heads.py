"""Heads are found by a forward, all of them; classes are put in the data's order by name."""

import pytest
import torch
from torch import nn

from distilens.core import Model
from distilens.foundation.errors import UserError
from distilens.models import build_model
from distilens.models.heads import head_of, heads, keep_classes, replace_heads
from distilens.models.named import are_named, positions_of

CLASSES = tuple("abc")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("resnet8", ["fc"]),
        ("vgg8", ["fc"]),
        ("mobilenetv2", ["classifier.1"]),
        ("shrink:blocks=9", ["classifier"]),
        ("torchvision:squeezenet1_1,size=64", ["classifier.1"]),
        ("timm:deit_tiny_distilled_patch16_224,size=64", ["head", "head_dist"]),
        ("timm:levit_128s,size=64", ["head.linear", "head_dist.linear"]),
        ("timm:crossvit_9_240,size=240", ["head.0", "head.1"]),
    ],
)
def test_all_heads_are_found_replaced_and_trained(name, found):
    model = build_model(name, CLASSES, (32, 32)).eval()
    paths = heads(model)
    assert paths == found
    model.freeze(but=paths)
    trained = {key for key, weight in model.network.named_parameters() if weight.requires_grad}
    assert trained == {f"{path}.{kind}" for path in found for kind in ("weight", "bias")}
    replace_heads(model.network, 5, paths)
    assert model.logits(model.example()).shape == (1, 5)


@pytest.mark.parametrize("name", ["resnet8", "timm:deit_tiny_distilled_patch16_224,size=64"])
def test_classes_are_kept_in_another_order(name):
    model = build_model(name, tuple("abcd"), (32, 32)).eval()
    images = torch.rand(3, 3, 32, 32)
    before = model.logits(images)
    keep_classes(model, [3, 0], ("d", "a"))
    assert model.classes == ("d", "a")
    assert torch.allclose(model.logits(images), before[:, [3, 0]], atol=1e-5)


class Named(nn.Module):
    """Its last layer in the order of definition does not give the logits."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 4)
        self.gate = nn.Linear(3, 3)

    def forward(self, pixels):
        mean = pixels.mean((2, 3))
        return self.head(mean * self.gate(mean).sigmoid())


def test_the_order_of_definition_does_not_matter():
    model = Model(Named(), tuple("abcd"), size=(4, 4))
    assert head_of(model.network) == "gate"
    assert heads(model) == ["head"]


class Scaled(Named):
    def forward(self, pixels):
        return super().forward(pixels) * torch.arange(1.0, 5.0)


def test_logits_that_are_not_rows_of_a_layer_are_not_put_in_order():
    model = Model(Scaled(), tuple("abcd"), size=(4, 4))
    with pytest.raises(UserError, match="its logits are not the rows of one layer"):
        keep_classes(model, [1, 0, 2, 3], tuple("bacd"))


def test_without_a_graph_the_last_layer_that_fits_is_taken():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 4)

        @torch.no_grad()
        def forward(self, pixels):
            return self.head(pixels.mean((2, 3)))

    assert heads(Model(Frozen(), tuple("abcd"), size=(4, 4))) == ["head"]


@pytest.mark.parametrize(
    ("data", "own", "expected"),
    [
        (("cat", "dog"), ("dog", "cat"), [1, 0]),
        (("Cat", "great_white"), ("great white", "cat", "dog"), [1, 0]),
        (("tench",), ("tench, Tinca tinca", "goldfish"), [0]),
        (("Tinca tinca",), ("tench, Tinca tinca", "goldfish"), [0]),
        (("caf\u00e9",), ("cafe\u0301", "th\u00e9"), [0]),
        (("cat", "owl"), ("cat", "dog"), None),
        (("crane",), ("crane, bird", "crane, machine"), None),  # which of the two is not said
        (("cat", "Cat"), ("cat", "dog"), None),
    ],
)
def test_classes_are_found_by_name(data, own, expected):
    assert positions_of(data, own) == expected


def test_numbers_are_no_names():
    assert not are_named(("0", "1", "2"))
    assert are_named(("1", "2"))


class Summed(nn.Sequential):
    """Its two logits are sums over the outputs of its last layer."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6))

    def forward(self, images):
        return super().forward(images).view(-1, 2, 3).sum(2)


def test_a_network_without_a_head_is_refused():
    with pytest.raises(UserError, match="Summed gives 2 logits, but none of its linear and convolutional layers does"):
        heads(Model(Summed(), ("a", "b"), size=(8, 8)))
