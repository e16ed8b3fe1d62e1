"""A second task, written outside the package, goes through training, explainers, stored answers, scores and pages."""

import json
import re

import numpy as np
import pytest
import torch

import distilens
from brightness import Brightness, Follow, pictures
from distilens import StoredTeacher
from distilens.foundation.errors import UserError
from distilens.measure.predictions import read_predictions
from distilens.runs.recipe import Recipe
from distilens.runs.run import Run
from distilens.runs.stages import run_all

SETTINGS = {"epochs": 3, "batch_size": 32, "precision": "float32", "progress": False}


@pytest.fixture(scope="module")
def data():
    return pictures()


@pytest.fixture(scope="module")
def teacher(data):
    return distilens.distill("resnet8", None, data, ["ce"], **SETTINGS)[0]


def test_a_student_follows_a_stored_teacher(data, teacher, tmp_path):
    stored = StoredTeacher(tmp_path, distilens.LiveTeacher(teacher))
    methods = ["ce", Follow(), "map_match:explainer=gradcam"]
    students = [
        distilens.distill("resnet8", answering, data, methods, **SETTINGS, variants=1)
        for answering in (stored, stored, distilens.LiveTeacher(teacher))
    ]
    (student, log), (again, _), (live, _) = students
    assert student.task == Brightness() and student.logits(student.example()).shape == (1, 1)
    assert "validation mean absolute error" in repr(log) and "lux" in repr(log)
    for key, value in student.bare_state().items():
        assert torch.equal(value, again.bare_state()[key])  # the second time, all answers are read
        assert torch.allclose(value.float(), live.bare_state()[key].float(), atol=0.02)


def test_the_best_epoch_has_the_lowest_error(data, tmp_path):
    _, log = distilens.distill("resnet8", None, data, ["ce"], folder=tmp_path, **SETTINGS, lr=0.01)
    errors = [row["validation"]["mean absolute error"] for row in log if "validation" in row]
    best = torch.load(tmp_path / "checkpoints" / "best.pt", weights_only=True)["place"]
    assert best["epoch"] == int(np.argmin(errors)) + 1 and best["best"] == -min(errors)


def test_explainers_differentiate_the_number(data, teacher):
    images = data.test.pixels(np.arange(4))[0]
    for explainer in ("gradcam", "ig:steps=4", "occlusion", "captum:Saliency"):
        number = distilens.attribute(teacher, images, explainer)
        assert torch.allclose(number, distilens.attribute(teacher, images, explainer, lambda outputs: outputs[:, 0]))
        other = distilens.attribute(teacher, images, explainer, lambda outputs: outputs[:, 0] ** 2)
        assert not torch.allclose(number, other)


def test_a_saved_model_keeps_its_task(teacher, tmp_path):
    distilens.save_model(teacher, tmp_path)
    assert distilens.load_model(tmp_path).task == Brightness()
    about = json.loads((tmp_path / "model.json").read_text())
    assert about["task"] == {"task": "brightness:Brightness", "outputs": 1}


@pytest.mark.parametrize("method", ["kd", "dkd", "dist", "osakd", "map_match:explainer=gradcam,target=label"])
def test_methods_of_classes_are_refused(data, teacher, method):
    with pytest.raises(
        UserError, match=r"is for classification( and segmentation)?, but the task of these data is brightness"
    ):
        distilens.distill("resnet8", teacher, data, ["ce", method], **SETTINGS)


def test_models_of_another_task_are_refused(data):
    shapes = distilens.build_model("resnet8", ["cat", "dog"], data.size)
    with pytest.raises(UserError, match="answers for 2 classes, but the data ask for brightness"):
        distilens.distill(shapes, None, data, ["ce"], **SETTINGS)


def test_a_loss_per_place_is_refused(data):
    class Places(distilens.Method):
        needs = ("logits",)

        def loss(self, batch, output, answer):
            return torch.ones(len(batch), 4, 4)

    with pytest.raises(
        UserError, match=r"the loss of places is \[32, 4, 4\]: expected a scalar, or one number per image"
    ):
        distilens.distill("resnet8", "resnet8", data, ["ce", Places()], **SETTINGS)


def test_a_run_from_the_recipe_to_the_page(tmp_path):
    train = {"epochs": 3, "batch_size": 32, "precision": "float32"}
    recipe = Recipe.model_validate(
        {
            "name": "lux",
            "data": "python:brightness:pictures",
            "teacher": {"model": "resnet8", "answers": "stored", "train": train},
            "student": {"model": "resnet8", "methods": ["ce", "fitnet:tap=layer2", "map_match:explainer=gradcam"]},
            "train": train,
            "explain": {"explainers": ["gradcam"], "images": 6, "measured": 12},
        }
    )
    run = Run(tmp_path / "run", recipe)
    run_all(run)
    scores = run.scores
    assert scores is not None
    student, (test, validation) = scores["models"]["student"], (pictures().test, pictures().validation)
    found = read_predictions(run.folder / "predictions.npz")
    assert found.task == Brightness() and len(found.validation) == len(validation)
    error = np.abs(found.test.logits["student"][:, 0] - test.targets).mean()
    assert student["test"]["mean absolute error"] == pytest.approx(error, rel=1e-5)
    assert student["test"]["low"] < error < student["test"]["high"] and student["test"]["n"] == len(test)
    apart = (
        np.abs(found.test.logits["student"][:, 0] - test.targets).mean()
        - np.abs(found.test.logits["base"][:, 0] - test.targets).mean()
    )
    assert student["more than base"]["test"]["mean"] == pytest.approx(apart, rel=1e-4)
    page = (run.folder / "report.html").read_text()
    assert "reaches a mean absolute error of" in page and "lux on the test split" in page
    assert "Validation mean absolute error by epoch" in page
    words = re.sub(r"<[^>]*>", " ", page.split("<main")[1].split('<h2 id="reproduce')[0])
    assert not re.search(r"accuracy|classes|\b(correct|confidence|right)\b", words, re.I)
    assert repr(run).count("lux") >= 3
