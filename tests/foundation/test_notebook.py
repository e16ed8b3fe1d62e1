"""What objects say of themselves: one short line, and a table in a notebook."""

import sys

import matplotlib
import numpy as np
import pytest
import torch

import distilens
from distilens.core import Model
from distilens.foundation.errors import UserError
from distilens.foundation.notebook import picture, table
from distilens.methods import METHODS, build_methods
from distilens.methods.kd import KD
from distilens.runs.recipe import Recipe
from distilens.runs.run import Run
from distilens.teachers import LiveTeacher, MeanTeacher, PermutedTeacher, StoredTeacher
from distilens.training.history import History

ROWS = [
    {"stage": "student", "epoch": 0, "step": 5, "terms": {"ce": 2.0, "kd": 1.0}, "loss": 3.0, "learning_rate": 0.1},
    {"stage": "student", "epoch": 0, "step": 10, "terms": {"ce": 1.5}, "loss": 1.5},
    {"stage": "student", "epoch": 0, "step": 10, "validation": {"accuracy": 0.5, "loss": 1.0, "n": 8}},
    {"stage": "student", "epoch": 1, "step": 15, "terms": {"ce": 1.0}, "loss": 1.0, "learning_rate": 0.05},
    {"stage": "student", "epoch": 1, "step": 20, "validation": {"accuracy": 0.25, "loss": 2.0, "n": 8}},
]


@pytest.fixture(scope="module")
def data() -> distilens.Data:
    images = np.random.default_rng(0).integers(0, 255, (60, 8, 8, 3), dtype=np.uint8)
    return distilens.from_arrays(images, np.arange(60) % 3, classes=("red", "green", "<blue>"))


@pytest.fixture
def model(data) -> Model:
    return distilens.build_model("resnet8", data.classes, data.size)


def test_models_outputs_and_data_are_one_line(data, model):
    count = sum(parameter.numel() for parameter in model.parameters())
    assert repr(model) == f"Model('resnet8': {count:,} parameters, 3 classes, 8×8 pixels)"
    model.tap("layer3")
    assert repr(model(torch.rand(2, 3, 8, 8))) == "Output(logits [2, 3], layer3 [2, 64, 2, 2])"
    counts = f"{len(data.train)} train, {len(data.validation)} validation, {len(data.test)} test"
    assert repr(data) == f"Data({data.name!r}: {counts}; 3 classes, 8×8 pixels)"
    assert repr(data.test) == f"Split({len(data.test)} images)"
    assert f"{count:,}" in model._repr_html_()


def test_data_show_counts_and_pictures(data):
    markup = data._repr_html_()
    red = int((data.train.labels == 0).sum())
    assert f'<td style="text-align: left">red</td><td style="text-align: left">{red}</td>' in markup
    assert markup.count("<img") == 3
    assert "<blue>" not in markup
    assert "&lt;blue&gt;" in markup


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ("kd", "kd(temperature=4)"),
        ("kd:temperature=2,weight=0.9", "kd(temperature=2,weight=0.9)"),
        ("ce:smoothing=0.1,as=smooth", "ce(smoothing=0.1)"),
        ("at:taps=[layer1,layer2]", "at(taps=[layer1,layer2],power=2)"),
        ("dkd:warmup=0.2", "dkd(temperature=4,alpha=1,beta=2,warmup=0.2)"),
    ],
)
def test_methods_are_calls(part, text):
    (method,) = build_methods([part]).values()
    assert repr(method) == text
    assert repr(KD()) == "KD()"


def test_teachers_and_registries(model, tmp_path):
    live = LiveTeacher(model)
    assert repr(live) == "LiveTeacher('resnet8')"
    assert repr(MeanTeacher([live, live])) == "MeanTeacher(LiveTeacher('resnet8'), LiveTeacher('resnet8'))"
    assert repr(PermutedTeacher(live)) == "PermutedTeacher(LiveTeacher('resnet8'))"
    assert repr(StoredTeacher(tmp_path, live)) == f"StoredTeacher({str(tmp_path)!r}, LiveTeacher('resnet8'))"
    assert repr(METHODS).startswith("Registry(method: ce, kd, ")
    assert "\n" not in repr(METHODS)
    assert METHODS._repr_html_().count("<tr>") == len(list(METHODS)) + 1


def test_a_run_without_scores_says_so(tmp_path):
    run = Run(tmp_path, Recipe(name="mine", data="shapes", student={"model": "resnet8"}))
    assert repr(run) == f"Run({str(tmp_path)!r}, 'mine')"
    assert "not measured yet" in run._repr_html_()


def test_the_log_of_a_training_is_a_history(data):
    _, log = distilens.distill("resnet8", None, data, ["ce"], settings={"epochs": 1, "batch_size": 32})
    assert isinstance(log, History)
    assert isinstance(log, list)
    assert repr(log).startswith("History(student: 1 epoch, validation accuracy ")


def test_the_log_as_a_table():
    log = History(ROWS)
    found = log.frame()
    assert list(found.columns[:3]) == ["stage", "epoch", "step"]
    assert list(found["epoch"]) == [1, 1, 2, 2]  # losses and validation after step 10 are one row
    assert found["total loss"].tolist()[:3] == [3.0, 1.5, 1.0]
    assert found["validation accuracy"].isna().tolist() == [True, False, True, False]
    assert found["kd"].isna().tolist() == [False, True, True, True]
    assert found["validation accuracy"].dropna().tolist() == [0.5, 0.25]
    assert found["learning rate"].dropna().tolist() == [0.1, 0.05]
    assert list(History().frame().columns) == ["stage", "epoch", "step"]
    assert repr(log) == "History(student: 2 epochs, validation accuracy 50.0% at best)"
    assert repr(History()) == "History(empty)"
    assert "validation accuracy" in log._repr_html_()


def test_the_log_as_a_chart(monkeypatch):
    matplotlib.use("Agg")
    losses, accuracy = History(ROWS).plot()
    lines = {line.get_label(): line.get_xydata().tolist() for line in losses.get_lines()}
    assert lines == {"ce": [[0.5, 2.0], [1.0, 1.5], [1.5, 1.0]], "kd": [[0.5, 1.0]]}
    assert accuracy.get_lines()[0].get_xydata().tolist() == [[1, 50], [2, 25]]
    losses.figure.canvas.draw()
    with pytest.raises(UserError, match="the log is empty"):
        History().plot()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match="pip install matplotlib"):
        History(ROWS).plot()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="pip install pandas"):
        History(ROWS).frame()


def test_markup_is_escaped():
    assert "<script>" not in table([("<script>", 1)], ("<script>",))
    assert "<b>" not in picture(np.zeros((2, 2, 3), dtype=np.uint8), "<b>")
