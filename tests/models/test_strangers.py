"""Networks, files and settings as strangers bring them: each is taken as it is meant, or refused in its own words."""

import re
import sys

import pytest
import torch
from PIL import Image
from torch import nn

from distilens.core import Answer, Model, Objective
from distilens.data import load
from distilens.data.pipeline import Batches
from distilens.explain import check_taps
from distilens.foundation.errors import UserError
from distilens.methods import build_methods
from distilens.models import build_model, build_network, check_classes
from distilens.models.weights import load_state
from distilens.runs.recipe_file import make_recipe
from distilens.runs.training import source_key

NETS = """
import torch
from PIL import Image
from torch import nn

class Net(nn.Module):
    def __init__(self, classes, side=32):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 3, 2), nn.Linear(4 * ((side - 1) // 2) ** 2, classes)
    def forward(self, x): return self.head(self.body(x).relu().flatten(1))

def small(classes): return Net(classes, 16)
def places(classes): return nn.Conv2d(3, classes, 1)
def two(classes, width): return Net(classes)
instance = Net(2)
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    (tmp_path / "strange_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "strange_nets", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "instance",
            "is a network, but a run builds several: name a function that makes it, def instance(): ...",
        ),
        ("two", "two needs classes, width: expected a function of the number of classes, or without arguments"),
    ],
)
def test_what_makes_no_network(nets, name, message):
    with pytest.raises(UserError, match=re.escape(message)):
        build_network(f"python:strange_nets:{name}", 2)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("python:strange_nets:small", "fails on an image of 32×32 pixels: .* give it size="),
        ("torchvision:inception_v3", "fails on an image of 32×32 pixels"),
        (
            "python:strange_nets:places",
            r"gives logits of the shape \[1, 2, 32, 32\] for one image: expected one answer",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_networks_that_do_not_answer(nets, part, message):
    with pytest.raises(UserError, match=message):
        check_classes(build_model(part, ("a", "b"), (32, 32)), ("a", "b"), "teacher")


def test_an_edited_module_is_another_model(nets):
    before = source_key("python:strange_nets:small")
    assert before == source_key("python:strange_nets:small") is not None
    (nets / "strange_nets.py").write_text(NETS + "# edited\n")
    assert source_key("python:strange_nets:small") != before
    assert source_key("python:nowhere_to_be_found:small") is None


def test_an_edited_folder_of_weights_is_another_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"a")
    before = source_key(f"hf:{tmp_path}")
    (tmp_path / "model.safetensors").write_bytes(b"b")
    assert source_key(f"hf:{tmp_path}") != before is not None


@pytest.mark.parametrize("option", ["mean=[123,116,103]", "std=[0.2,0.2,-0.2]", "std=[0.2,0.2,0]"])
def test_pixels_of_another_range_are_refused(option):
    with pytest.raises(UserError, match=option.partition("=")[0]):
        build_model(f"resnet8:{option}", ("a", "b"), (32, 32))


@pytest.mark.parametrize("methods", [["ce:weight=0"], ["ce:weight=0", "kd:weight=0"]])
def test_terms_without_weight_are_no_loss(methods):
    content = {"data": "shapes", "teacher": {"model": "resnet8"}, "student": {"model": "resnet8", "methods": methods}}
    with pytest.raises(
        UserError, match=r"student\.methods have no loss at some step .*: add one with a loss and a weight"
    ):
        make_recipe(content)


def test_a_name_is_no_path():
    with pytest.raises(UserError, match="name"):
        make_recipe({"name": "../elsewhere", "data": "shapes", "student": {"model": "resnet8", "methods": ["ce"]}})


@pytest.mark.parametrize("part", ["fitnet:tap=input", "at:taps=input", "sp:tap=input", "rkd:tap=input"])
def test_nothing_is_learnt_at_the_input(part, tmp_path):
    data = load("shapes:train=64,test=40,size=16", tmp_path)
    batch = next(iter(Batches(data.train, 8)))
    methods = build_methods([part])
    objective = Objective(build_model("resnet8", data.classes, data.size), methods)
    answer = Answer(logits=torch.zeros(8, 8), features={"input": batch.images})
    with pytest.raises(UserError, match="compares the student's tap 'input'"):
        objective.prepare(batch, answer)


def test_an_explainer_that_reads_no_map_is_refused_before_training():
    model = build_model("resnet8", ("a", "b"), (32, 32))
    check_taps(["gradcam", "gradcam:tap=layer1", "ig:steps=2"], model)
    with pytest.raises(UserError, match="gradcam:tap=fc needs a feature map at the tap 'fc' of resnet8"):
        check_taps(["gradcam:tap=fc"], model)


def test_weights_are_known_by_their_content(tmp_path):
    from safetensors.torch import save_file

    state = {"weight": torch.ones(2)}
    save_file(state, tmp_path / "safe.pth")
    torch.save(state, tmp_path / "torch.safetensors")
    for name in ("safe.pth", "torch.safetensors"):
        assert torch.equal(load_state(tmp_path / name)["weight"], state["weight"])
    with pytest.raises(UserError, match="it is a folder"):
        load_state(tmp_path)


def test_logits_of_one_image_are_a_row():
    model = Model(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), "ab", size=(2, 2))
    check_classes(model, ("a", "b"), "student")


def test_a_folder_in_place_of_a_source_is_told_how(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(5):
            pixels = torch.randint(0, 255, (8, 8, 3), dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    (tmp_path / "labels.csv").write_text("image,label")
    with pytest.raises(UserError, match=r"unknown data 'photos'\..* It is a folder: folder:path=photos reads it\."):
        load("photos", tmp_path / "cache")
    with pytest.raises(UserError, match=r"It is a file: csv:path=labels.csv reads it\."):
        load("labels.csv", tmp_path / "cache")
    assert load("folder:photos", tmp_path / "cache").classes == ("cat", "dog")
    assert load("folder:photos,size=4", tmp_path / "cache").size == (4, 4)


def test_names_of_other_libraries_are_told_how():
    with pytest.raises(UserError, match=r"If it is a network of torchvision or timm: torchvision:resnet18, timm:r"):
        build_network("resnet18", 2)
    with pytest.raises(UserError, match=r"unknown model 'nope'\."):
        build_network("nope", 2)
