"""The gallery of a segmentation: what is explained, which images are left out, the scores, the page, and the files."""

import json

import numpy as np
import pytest
import torch

import distilens
from distilens import measure
from distilens.foundation.errors import UserError
from distilens.models.model import Model
from distilens.tasks import NOWHERE, VOID
from segments import TASK, Net, pictures, squares

FAST = {"explainers": ["gradcam:tap=encoder.4", "occlusion"], "sanity": False}


@pytest.fixture(scope="module")
def model() -> Model:
    """A network that finds the squares by their colour: green of one kind of image, blue of the other."""
    torch.manual_seed(0)
    made = Model(Net(3, 4), TASK, size=(24, 32), mean=(0.0,) * 3, std=(1.0,) * 3, name="squares").eval()
    first, second, head = made.network.encoder[0], made.network.encoder[3], made.network.head
    with torch.no_grad():
        for layer in (first, second, head):
            layer.weight.zero_()
            layer.bias.zero_()
        for number in (1, 2):  # the green and the blue that is above a half, in the same channels
            first.weight[number, number] = 1 / 9
            first.bias[number] = -0.45
            second.weight[number, number] = 0.05
            second.weight[number, number, 1, 1] = 1
            head.weight[number, number], head.weight[0, number] = 20, -5
        head.bias[0] = 1
    return made


@pytest.fixture(scope="module")
def found(model):
    return distilens.gallery(model, pictures(), ["gradcam:tap=encoder.4", "occlusion"], images=6)


def test_the_largest_predicted_class_is_explained_where_it_is_predicted(found, model):
    assert found.target.shape == (6, 12, 16)
    assert torch.equal(found.target, TASK.explained(model.logits(found.images)))
    assert found.mask.shape == (6, 24, 32)
    assert torch.equal(found.mask[:, ::2, ::2] > 0, found.target >= 0)
    assert found.about_images.endswith("explained: the places where the model predicts its largest class of the image")


def test_scores_are_those_of_the_fixed_places(found, model):
    explanation = found.explanations["occlusion"]
    expected = measure.curves(model, found.images, explanation.maps, found.target, steps=20)
    torch.testing.assert_close(found.values["occlusion"]["insertion"], expected.insertion_auc, rtol=1e-4, atol=1e-5)
    energy = measure.energy_in_mask(explanation.maps, found.mask)
    torch.testing.assert_close(found.values["occlusion"]["energy_in_mask"], energy)
    assert {"randomisation", "stability"} <= set(found.scores["gradcam"])
    assert found.scores["occlusion"]["stability"]["n"] == 6
    titles = [line.title for line in found.content().measures]
    assert "energy on the explained places" in titles and "energy in mask" not in titles


def test_a_class_is_explained_where_it_is_predicted_and_other_images_are_left_out(model):
    made = distilens.gallery(model, pictures(), images=8, target="class:green", **FAST)
    assert 0 < len(made) < 8
    assert made.target.flatten(1).amax(1).tolist() == [1] * len(made)
    assert made.remarks[-1] == (
        f"{8 - len(made)} of 8 images are left out, because they have none of the explained places: the places where the "
        "model predicts green."
    )
    assert len(made.labels) == len(made.index) == len(made.logits) == len(made.mask) == len(made)
    answers = made.content().dense.answers
    assert all((answer == 1).any() for answer in answers)


def test_labels_boxes_points_and_places_are_explained(model):
    label = distilens.gallery(model, pictures(), images=3, target="label", **FAST)
    ground = (label.labels == 0).flatten(1).sum(1)
    assert torch.equal((label.target == 0).flatten(1).sum(1), ground) and label.target.shape == label.labels.shape
    point = distilens.gallery(model, pictures(), images=3, target="point:31,5", **FAST)
    assert (point.target >= 0).nonzero()[:, 1:].tolist() == [[5, 31]] * 3
    assert point.mask.sum() == 3
    box = distilens.gallery(model, pictures(), images=3, target="box:0,2,7,24", **FAST)
    rows, columns = (box.target >= 0).flatten(0, 1).any(1), (box.target >= 0).flatten(0, 1).any(0)
    assert columns.tolist() == [True] * 7 + [False] * 25
    assert rows.view(3, 24).any(0).tolist() == [False] * 2 + [True] * 22
    images, _ = squares(3)
    aim = torch.full((3, 24, 32), NOWHERE)
    aim[:2, 5:9, 5:9] = 2
    given = distilens.gallery(model, images, target=aim, **FAST)
    assert torch.equal(given.target, aim[:2])
    assert given.about_images.endswith("explained: the given places")


def test_the_page_shows_the_target_the_prediction_and_the_places(found, tmp_path):
    page = found.save(tmp_path).read_text()
    for words in (
        "Only pixels outside them are changed",
        "The line on a map is the outline of the places that are explained.",
        "other pixels removed (%)",
        "The target on image",
        "The predicted classes on image",
        "</i> green</li>",
        "explained: <b>ground (",
    ):
        assert words in page
    assert "evidence mask" not in page
    row = found.content().rows[0]
    share = float((found.target[0] >= 0).float().mean())
    assert f"({100 * share:.1f} % of the places" in row.target
    stored = np.load(tmp_path / "occlusion.npz")
    assert np.array_equal(stored["target"], found.target.numpy())
    assert (
        json.loads((tmp_path / "scores.json").read_text())["explainers"]["occlusion"]["scores"]["insertion"]["n"] == 6
    )


def test_images_without_labels_and_labels_of_another_kind(model):
    alone = distilens.gallery(model, squares(2)[0], **FAST)
    assert alone.labels.shape == (2, 24, 32) and (alone.labels == VOID).all()
    assert alone.content().dense.targets is None
    assert [row.label for row in alone.content().rows] == [None, None]
    assert "no target" in alone._repr_html_() or alone.content().rows[0].prediction
    classifier = distilens.build_model("resnet8", ("a", "b"), (24, 32)).eval()
    made = distilens.gallery(classifier, pictures(), ["gradient"], images=2, sanity=False)
    assert made.labels.tolist() == [-1, -1]
    assert made.content().rows[0].label is None


def test_places_that_fill_the_image_have_no_number_and_it_is_said(model):
    dark = torch.zeros(3, 3, 24, 32) + 0.2
    made = distilens.gallery(model, dark, **FAST)
    assert made.scores["occlusion"]["insertion"]["n"] == 0
    assert made.scores["occlusion"]["insertion"]["empty"] == 3
    assert made.findings()[0] == (
        "gradcam has no insertion AUC: the explained places fill every image, or the maps are empty."
    )
    assert "the explained places fill every image" in made._repr_html_()
    assert made.content().curves["occlusion"]["insertion"] is not None


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("class:grean", "the model has no class 'grean'. Did you mean 'green'"),
        ("point:32,0", "the point lies outside the images, which are 32 pixels wide and 24 high"),
        ("box:0,0,0,4", "x0 < x1"),
        ("places", "what to explain is top1, label, class:NAME, .* given 'places'"),
    ],
)
def test_what_does_not_fit_is_said(model, target, message):
    with pytest.raises(UserError, match=message):
        distilens.gallery(model, pictures(), images=2, target=target, **FAST)


def test_there_must_be_something_to_explain(model):
    dark = torch.zeros(2, 3, 24, 32) + 0.2
    with pytest.raises(
        UserError, match="none of the 2 images has one of these places: the places where the model predicts blue"
    ):
        distilens.gallery(model, dark, target="class:blue", **FAST)
    with pytest.raises(UserError, match="some images have no label"):
        distilens.gallery(model, dark, target="label", **FAST)
