"""What is usual for a network: by its family and its weights, whatever brings it; what is asked for comes first."""

import pytest
import torch
from torch import nn

import distilens
from distilens.core import Model
from distilens.models import build_model
from distilens.models.saved import save_model
from distilens.tasks import Segmentation
from distilens.training.defaults import CLIP, OPTIMIZER, Kind, in_words, kind_of, kind_of_model, settled
from distilens.training.settings import Training


@pytest.mark.parametrize(
    ("part", "family", "weights"),
    [
        ("resnet8", "zoo", "random"),
        ("wrn-16-2", "zoo", "random"),
        ("shrink:blocks=3,model=mobilenetv2", "zoo", "random"),
        ("file:some.pth,model=resnet20", "zoo", "loaded"),
        ("timm:resnet10t", "other", "random"),
        ("timm:resnet10t,pretrained=true", "other", "loaded"),
        ("torchvision:resnet18", "other", "random"),
        ("torchvision:resnet18,weights=DEFAULT", "other", "loaded"),
        ("hf:some/model", "other", "loaded"),
        ("hf:some/model,pretrained=false", "other", "random"),
        ("file:some.pth,model=timm:resnet10t", "other", "loaded"),
        ("unet:width=8", "unet", "random"),
        ("file:some.pth,model=unet", "unet", "loaded"),
        ("smp:unet,encoder=resnet18", "other", "random"),
        ("smp:unet,encoder=resnet18,weights=imagenet", "other", "loaded"),
        ("torchvision:fcn_resnet50", "other", "random"),
        ("python:nets:mine", "other", "unknown"),
        ("Sequential", "other", "unknown"),
    ],
)
def test_kinds_by_notation(part, family, weights):
    assert kind_of(part) == Kind(family, weights)


def test_kinds_of_saved_models_and_of_modules(tmp_path):
    for name, family in (("resnet8", "zoo"), ("timm:resnet10t", "other")):
        save_model(build_model(name, ("a", "b"), (32, 32)), tmp_path / family / "student")
        assert kind_of(f"run:{tmp_path / family}") == Kind(family, "loaded")
        loaded = build_model(f"run:{tmp_path / family}", ("a", "b"), (32, 32))
        assert kind_of_model(loaded) == Kind(family, "loaded")
    assert kind_of_model(build_model("resnet8", ("a", "b"), (32, 32))) == Kind("zoo", "random")
    assert kind_of_model(Model(nn.Linear(2, 2), "ab", size=(1, 1))) == Kind("other", "unknown")


def test_a_unet_keeps_its_kind_in_a_dense_task():
    model = build_model("unet:width=4", Segmentation(("a", "b")), (16, 16))
    assert kind_of_model(model) == Kind("unet", "random")
    assert settled(Training(), Kind("unet", "random")).optimizer == "adamw:lr=0.01,weight_decay=0.05"
    assert settled(Training(), Kind("unet", "random")).clip == 1
    assert str(Kind("unet", "loaded")) == "distilens' U-Net, weights loaded"


def test_what_is_asked_for_comes_first():
    zoo, other = Kind("zoo", "random"), Kind("other", "random")
    assert settled(Training(), zoo).optimizer == "sgd:lr=0.2"
    assert settled(Training(), zoo).clip is None
    assert settled(Training(), other).optimizer == "adamw:lr=0.001,weight_decay=0.05"
    assert settled(Training(), other).clip == 1
    assert settled(Training(clip=0), other).clip is None
    assert settled(Training(clip=3), zoo).clip == 3
    assert settled(Training(optimizer="auto:lr=0.01"), zoo).optimizer == "sgd:lr=0.01"
    assert settled(Training(optimizer="auto:lr=0.01"), other).optimizer == "adamw:lr=0.01,weight_decay=0.05"
    assert settled(Training(optimizer="auto:lr=none"), zoo) == settled(
        Training(), zoo
    )  # as the recipe of a run says it
    asked = settled(Training(optimizer="sgd:lr=0.1"), other)
    assert (asked.optimizer, asked.clip) == ("sgd:lr=0.1", None)
    assert settled(asked, zoo) == asked
    assert in_words(settled(Training(), other)).endswith("one_cycle, gradients clipped to a norm of 1")


def test_keys_of_trainings_that_said_nothing_stay_as_they_were():
    before = Training(optimizer="sgd:lr=0.2", clip=None)
    assert settled(Training(), Kind("zoo", "random")).decisive() == before.decisive()


def test_the_table_in_the_docs_is_the_one_that_is_used():
    from distilens.training import defaults

    for (family, weights), optimizer in OPTIMIZER.items():
        if weights != "unknown" or family == "other":  # how our own networks were made is known
            clip = "not" if not CLIP[family] else f"{CLIP[family]:g}"
            row = f" | {weights} | `{optimizer}` | {clip} |"
            assert [line.endswith(row) for line in defaults.__doc__.splitlines()].count(True) == 1


class Mixer(nn.Module):
    """A network of somebody's own, of layer norms and linear layers."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.mix = nn.ModuleList(
            [nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in "abc"]
        )
        self.head = nn.Linear(32, 8)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        for mix in self.mix:
            tokens = tokens + mix(tokens)
        return self.head(tokens.mean(1))


NAMED = [
    pytest.param(lambda name=name: name, marks=pytest.mark.slow) for name in ("timm:mobilenetv3_small_050", "resnet8")
]


@pytest.mark.parametrize("make", [pytest.param(Mixer, marks=pytest.mark.slow), *NAMED])
def test_what_nobody_has_tuned_learns(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    settings = {"epochs": 3, "batch_size": 32, "precision": "float32", "log_every": 1}
    _, log = distilens.distill(make(), None, "shapes:limit=600", ["ce"], settings=settings)
    losses = [row["loss"] for row in log if "loss" in row]
    assert all(loss == loss for loss in losses)
    assert sum(losses[-10:]) < sum(losses[:10])
