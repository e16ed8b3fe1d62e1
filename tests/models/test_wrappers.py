"""Networks as people bring them: wrapped, lazy, quantised, scripted."""

import warnings

import pytest
import torch
from torch import nn

from distilens.foundation.errors import UserError
from distilens.models import build_model
from distilens.models.saved import fingerprint_of, load_model, save_model

CLASSES = tuple("abc")
OWN = """
import warnings

import torch
from torch import nn

class Of(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, classes)

    def forward(self, pixels):
        return self.head(self.body(pixels).relu().mean((2, 3)))

class Lazy(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body, self.head = nn.LazyConv2d(4, 3), nn.LazyLinear(classes)

    def forward(self, pixels):
        return self.head(self.body(pixels).relu().flatten(1))

def parallel(classes):
    return nn.DataParallel(Of(classes))

def compiled(classes):
    return torch.compile(Of(classes), backend="eager")

def both(classes):
    return torch.compile(nn.DataParallel(Of(classes)), backend="eager")

def scripted(classes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(Of(classes))

def quantised(classes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(Of(classes).eval(), {nn.Linear}, dtype=torch.qint8)

def broken(classes):
    made = Of(classes)
    made.head = nn.Linear(5, classes)
    return made
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_wrapped.py").write_text(OWN)
    return lambda name: build_model(f"python:own_wrapped:{name}", CLASSES, (16, 16)).eval()


@pytest.mark.parametrize("name", ["parallel", "compiled", "both"])
def test_the_network_inside_a_wrapper_is_taken(own, name):
    model = own(name)
    assert type(model.network).__name__ == "Of"
    assert model.tap("body") == "body"
    assert model(torch.rand(2, 3, 16, 16)).features["body"].shape == (2, 4, 14, 14)


def test_a_scripted_network_is_refused_with_its_own_reason(own):
    with pytest.raises(
        UserError, match=r"is a TorchScript module, whose layers cannot be read: give the original module"
    ):
        own("scripted")


def test_a_lazy_network_is_filled_and_saved(own, tmp_path):
    model = own("Lazy")
    images = torch.rand(2, 3, 16, 16)
    assert model.logits(images).shape == (2, 3)
    save_model(model, tmp_path / "saved")
    assert torch.equal(load_model(tmp_path / "saved").logits(images), model.logits(images))


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_network_has_a_fingerprint(own):
    model = own("quantised")
    assert fingerprint_of(model) == fingerprint_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(7)
        assert fingerprint_of(own("quantised")) != fingerprint_of(model)


def test_an_error_of_a_forward_is_not_blamed_on_the_size(own):
    with pytest.raises(
        UserError, match=r"fails on an image of 16×16 pixels: .*shapes.* If it takes images of another size"
    ):
        own("broken").observe()


def test_a_plain_module_is_unwrapped_too(cache):
    from distilens.data import load
    from distilens.training.distill import as_model

    data = load("shapes:train=40,test=40,size=16")
    inner = nn.Sequential(nn.Flatten(), nn.Linear(768, 8))
    assert as_model(nn.DataParallel(inner), data).network is inner


class Halve(nn.Module):
    def forward(self, feature, inputs):
        return feature / 2


def test_a_part_of_your_own_is_named_when_it_cannot_be_built(tmp_path):
    model = build_model("resnet8", CLASSES, (32, 32))
    model.insert("last", Halve(), name="halve")
    save_model(model, tmp_path)
    with pytest.raises(UserError, match="has a part 'halve' that is not a part of distilens: build the model yourself"):
        load_model(tmp_path)


def test_a_name_that_is_not_a_notation_is_a_module_of_your_own(tmp_path):
    model = build_model("resnet8", CLASSES, (32, 32))
    model.name = "mine:[the first"
    with pytest.warns(UserWarning, match=r"load_model cannot build mine:\[the first again"):
        save_model(model, tmp_path)
    with pytest.raises(UserError, match="was saved from a module of your own, mine:"):
        load_model(tmp_path)
