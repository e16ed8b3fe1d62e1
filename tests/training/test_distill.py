"""Distillation in one call."""

import io

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

import distilens
from distilens.core import Answer, Method, Model
from distilens.foundation.errors import UserError
from distilens.training.settings import Training, TrainingOptions

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*how its pixels are normalised"),
    pytest.mark.filterwarnings("ignore:.*it may know nothing of these data"),
]
"""Most teachers here are modules that say nothing of their pixels, and untrained."""

SETTINGS = {"epochs": 2, "batch_size": 16, "optimizer": "sgd:lr=0.05", "precision": "float32"}


def tiny(width: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 3),
    )


@pytest.fixture
def data():
    generator = np.random.default_rng(0)
    labels = np.arange(90) % 3
    images = generator.integers(0, 100, (90, 8, 8, 3), dtype=np.uint8)
    images[np.arange(90), :, :, labels] += 100
    return distilens.from_arrays(images, labels, classes=("red", "green", "blue"))


def names(log) -> set[str]:
    return {name for row in log for name in row.get("terms", {})}


def test_modules_in_and_the_bare_module_out(data):
    large, small = tiny(8), tiny()
    before = {key: value.clone() for key, value in large.state_dict().items()}
    found, log = distilens.distill(small, large, data, settings=SETTINGS)
    assert isinstance(found, Model)
    assert found.network is small
    assert not found.training
    assert not large.training
    assert all(torch.equal(value, before[key]) for key, value in large.state_dict().items())
    assert names(log) == {"ce", "kd"}
    assert [row["epoch"] for row in log if "validation" in row] == [0, 1]
    assert not any(module._forward_hooks for module in small.modules())
    assert all(parameter.requires_grad for parameter in small.parameters())


def test_every_form_of_student_and_teacher(data, tmp_path):
    distilens.save_model(distilens.build_model("resnet8", data.classes, data.size), tmp_path / "student")
    for teacher in ("resnet8", {"name": "resnet8"}, f"run:{tmp_path}", Model(tiny(), data.classes, size=data.size)):
        _, log = distilens.distill(tiny(), teacher, data, ["kd"], settings={**SETTINGS, "epochs": 1})
        assert names(log) == {"kd"}

    def says_red(batch, needs):
        assert needs == ("logits",)
        return Answer(logits=torch.eye(3)[torch.zeros_like(batch.labels)] * 20)

    found, _ = distilens.distill(tiny(), says_red, data, ["kd:temperature=1"], settings={**SETTINGS, "epochs": 8})
    assert (found.logits(torch.rand(16, 3, 8, 8)).argmax(1) == 0).all()
    found, _ = distilens.distill("resnet8", None, data, ["ce"], settings=Training(**{**SETTINGS, "epochs": 1}))
    assert found.name == "resnet8"


def test_data_by_notation_and_methods_as_objects(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Small(Method):
        def loss(self, batch, output, answer):
            return output.logits.square().mean(1)

    methods = ["ce", Small(), {"name": "ce", "smoothing": 0.1, "as": "smooth"}]
    found, log = distilens.distill(
        "resnet8", None, "digits:limit=40,size=16", methods, settings={**SETTINGS, "epochs": 1}
    )
    assert names(log) == {"ce", "small", "smooth"}
    assert len(found.classes) == 10


def test_the_same_seed_gives_the_same_weights(data):
    ours, theirs, other = (
        distilens.distill("resnet8", None, data, ["ce"], settings={**SETTINGS, "epochs": 1}, seed=seed)[0]
        for seed in (3, 3, 4)
    )
    assert torch.equal(ours.network.fc.weight, theirs.network.fc.weight)
    assert not torch.equal(ours.network.fc.weight, other.network.fc.weight)


def test_with_a_folder_the_same_call_has_its_result_already(data, tmp_path):
    ours, log = distilens.distill("resnet8", None, data, ["ce"], settings=SETTINGS, folder=tmp_path)
    theirs, again = distilens.distill("resnet8", None, data, ["ce"], settings=SETTINGS, folder=tmp_path)
    assert torch.equal(ours.network.fc.weight, theirs.network.fc.weight)
    assert again == log
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == len(log)
    for changes in ({"seed": 1}, {"settings": {**SETTINGS, "epochs": 3}}, {"methods": ["ce:weight=2"]}):
        given = {"methods": ["ce"], "settings": SETTINGS, "seed": 0, **changes}
        methods = given.pop("methods")
        with pytest.raises(UserError, match=r"the checkpoint in .* is of another training \(other data, settings"):
            distilens.distill("resnet8", None, data, methods, folder=tmp_path, **given)
    with pytest.raises(
        UserError, match=r"checkpoint in .* is of another network\. Give another folder, or delete this one$"
    ):
        distilens.distill("resnet14", None, data, ["ce"], settings=SETTINGS, folder=tmp_path)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"settings": {"epoch": 2}}, "unknown key 'epoch'. Did you mean 'epochs'"),
        (
            {"settings": {"epochs": 0, "batch_size": "many"}},
            "epochs: input should be greater.*; batch_size: input should be",
        ),
        ({"settings": {"optimizer": "sdg"}}, "Did you mean 'sgd'"),
        ({"settings": {"device": "cuda"}}, "distill takes no device.*ACCELERATE_USE_CPU.*CUDA_VISIBLE_DEVICES"),
        ({"methods": ["kdd"]}, "Did you mean 'kd'"),
        ({"methods": ["ce", "ce"]}, "two terms are called 'ce'"),
        ({"methods": ["kd"], "teacher": None}, "need a teacher"),
        ({"methods": []}, "no loss"),
        ({"student": "resnet9"}, "unknown model 'resnet9'"),
        ({"data": "shapse"}, "Did you mean 'shapes'"),
        (
            {"teacher": nn.Sequential(nn.Flatten(), nn.Linear(192, 5))},
            "the teacher Sequential gives 5 logits.* 3 classes",
        ),
        (
            {"student": nn.Sequential(nn.Flatten(), nn.Linear(192, 5))},
            "the student Sequential gives 5 logits.* 3 classes",
        ),
        (
            {"student": nn.Flatten(0)},
            "must return logits .b classes., or a structure with .logits; it returned a tensor",
        ),
    ],
)
def test_mistakes_are_said(data, changes, text):
    given = {
        "student": tiny(),
        "teacher": tiny(),
        "data": data,
        "methods": ["ce", "kd"],
        "settings": SETTINGS,
        **changes,
    }
    options = {name: given.pop(name) for name in ("settings",)}
    with pytest.raises(UserError, match=text):
        distilens.distill(given["student"], given["teacher"], given["data"], given["methods"], **options)


def test_settings_as_keywords(data):
    student, log = distilens.distill(tiny(), None, data, epochs=1, batch_size=16, lr=0.01, precision="float32")
    assert names(log) == {"ce"}  # labels alone, where there is no teacher
    assert [row["epoch"] for row in log if "validation" in row] == [0]
    same, _ = distilens.distill(
        tiny(),
        None,
        data,
        ["ce"],
        settings={"epochs": 1, "batch_size": 16, "precision": "float32", "optimizer": "auto:lr=0.01"},
    )
    assert names(log) and student.classes == same.classes
    _, both = distilens.distill(tiny(), tiny(8), data, settings=Training(batch_size=16), epochs=1)
    assert names(both) == {"ce", "kd"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epoch": 3}, "unknown key 'epoch'.*epochs"),
        ({"learning_rate": 0.1}, "Did you mean lr=0.1"),
        ({"epochs": 3, "settings": {"epochs": 2}}, "epochs is given twice"),
        ({"lr": 0.1, "optimizer": "sgd"}, "optimizer='sgd:lr=0.1'"),
        ({"lr": -1.0}, "lr"),
    ],
)
def test_keywords_at_fault(data, options, message):
    with pytest.raises(UserError, match=message):
        distilens.distill(tiny(), None, data, **options)


def test_the_typed_keywords_are_the_settings():
    hints = TrainingOptions.__annotations__.keys()
    assert hints - {"lr"} == Training.model_fields.keys()


def test_a_teacher_whose_pixels_nobody_knows_is_said(data):
    with pytest.warns(UserWarning, match="how its pixels are normalised"):
        distilens.distill(tiny(), tiny(8), data, epochs=1, batch_size=16)


def test_progress_is_shown_where_it_is_asked_for(data, capsys):
    console = Console(file=io.StringIO(), width=80)
    distilens.distill(tiny(), None, data, epochs=1, batch_size=16, progress=console)
    assert "epoch 1/1" in console.file.getvalue()
    distilens.distill(tiny(), None, data, epochs=1, batch_size=16)  # nobody watches a test
    assert capsys.readouterr() == ("", "")


def test_a_teacher_that_knows_nothing_is_said(data):
    class Wrong(nn.Module):
        """Always the class after the right one: the brightest channel says the right one."""

        def __init__(self, step: int):
            super().__init__()
            self.step = step

        def forward(self, images):
            return 10 * images.mean((2, 3)).roll(self.step, 1)

    with pytest.raises(UserError, match="is right for 0 of"):
        distilens.distill(tiny(), Wrong(1), data, epochs=1, batch_size=16)
    distilens.distill(tiny(), Wrong(0), data, epochs=1, batch_size=16)  # this one knows all
    constant = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    nn.init.zeros_(constant[1].weight)
    with pytest.warns(UserWarning, match="it may know nothing of these data"):
        distilens.distill(tiny(), constant, data, epochs=1, batch_size=16)


class Rising(Method):
    """A loss that grows by one per step."""

    steps = 0

    def loss(self, batch, output, answer):
        self.steps += 1
        return 0 * output.logits.sum(1) + self.steps


def test_a_loss_that_rises_is_said(data):
    message = r"The loss of the student did not fall: it ends above its start \(rising 1 → [\d.]+\)"
    with pytest.warns(UserWarning, match=message):
        distilens.distill(tiny(), None, data, [Rising()], progress=False, log_every=1, **SETTINGS)
