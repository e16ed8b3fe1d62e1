"""A segmentation from the recipe to the page; it resumes to the same bits, and is explained at fixed places."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from distilens.runs.recipe_file import make_recipe
from distilens.runs.run import Run
from distilens.runs.stages import run_all

sys.path.insert(0, str(Path(__file__).parents[1]))

from segments import TASK, model, squares

CONTENT = {
    "name": "squares",
    "data": "python:segments:pictures",
    "teacher": {"model": "python:segments:teacher", "train": {"epochs": 8}},
    "student": {"model": "python:segments:student", "methods": ["ce", "at:taps=[encoder.4],weight=100"]},
    "train": {"epochs": 4, "batch_size": 16, "optimizer": "adamw:lr=0.02", "augment": "crop:padding=4,flip=random"},
    "explain": {"explainers": ["gradcam:tap=encoder.4"], "images": 4, "measured": 4},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run = Run(folder / "run", make_recipe(CONTENT))
        run_all(run)
    return run


def test_the_scores_are_those_of_the_predicted_classes(finished):
    scores, found = finished.scores, finished.predictions().test
    assert scores["data"]["task"] == "segmentation" and scores["data"]["metric"]["name"] == "mIoU"
    for role in ("teacher", "base", "student"):
        answers = found.logits[role]
        assert answers.dtype == np.uint8 and answers.shape == found.targets.shape
        answers, targets = torch.from_numpy(answers), torch.from_numpy(found.targets)
        assert scores["models"][role]["test"]["mIoU"] == TASK.value(TASK.tally(answers, targets))
    assert scores["models"]["teacher"]["test"]["mIoU"] > 0.6
    assert scores["models"]["student"]["maps"]["gradcam"]["energy_in_mask"] is not None


def test_the_page_shows_classes_errors_and_maps(finished):
    page = (finished.folder / "report.html").read_text()
    for words in (
        "mIoU",
        "IoU by class, test",
        "F score of contours",
        "The errors of the student",
        "The classes by the teacher",
    ):
        assert words in page
    maps = np.load(finished.folder / "maps" / "gradcam.npz")
    assert maps["regions"].shape == maps["labels"].shape == maps["answers_student"].shape
    values = maps["values_student"]
    assert (np.diff(values[:3]) >= 0).all()  # the worst first
    json.dumps(finished.scores)


def test_a_stopped_training_resumes_to_the_same_bits(finished, tmp_path, monkeypatch):
    from distilens.training import checkpoints

    monkeypatch.chdir(finished.folder.parent)
    steps = []

    class StopError(Exception):
        pass

    real = checkpoints.Checkpoints.save

    def save(self, place, **options):
        real(self, place, **options)
        steps.append(place.step)
        if len(steps) == 2:
            raise StopError

    monkeypatch.setattr(checkpoints.Checkpoints, "save", save)
    again = Run(tmp_path / "run", make_recipe(CONTENT))
    with pytest.raises(StopError):
        run_all(again)
    run_all(again)
    for role in ("teacher", "base", "student"):
        one, other = (run.model(role).bare_state() for run in (finished, again))
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_every_place_follows_its_picture():
    images, masks = squares(6)
    assert ((images[:, 1] > 0.6) == (masks == 1))[:, 2:].float().mean() > 0.97
    assert model().logits(images).shape == (6, 3, 12, 16)


@pytest.fixture
def command(finished, monkeypatch, capsys):
    """The command line beside the run: exit code, output, error."""
    from distilens.cli import commands

    def go(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(finished.folder.parent)
        monkeypatch.setattr(sys, "argv", ["distilens", *arguments])
        code = 0
        try:
            commands.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return go


def test_a_class_is_explained_where_it_is_predicted(finished, command):
    options = ["--explainer", "gradcam:tap=encoder.4", "--images", "8", "--no-sanity", "--out", "maps"]
    code, output, error = command("explain", "run:run,part=teacher", "--of", "class:green", *options)
    assert code == 0, error
    assert "of 8 images are left out, because they have none of the explained places" in output
    page = (finished.folder.parent / "maps" / "index.html").read_text()
    assert "explained: <b>green (" in page
    code, _, error = command("explain", "run:run,part=teacher", "--of", "class:grean", *options)
    assert code == 2 and "the model has no class 'grean'. Did you mean 'green'?" in error


def test_a_comparison_is_refused_with_the_reason(command):
    code, _, error = command("compare", "run")
    message = " ".join(error.split())
    assert code == 2 and "compare is about one class per image: FSS, RS and UniCAM group the images by it" in message
    assert "segmentation, with a class per place" in message
