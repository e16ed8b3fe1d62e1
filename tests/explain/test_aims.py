"""What is explained, in words: what they mean on hand-made answers, and what is said where they do not fit."""

import numpy as np
import pytest
import torch
from torch import nn

import distilens
from distilens.explain.aims import Wanted, aim_of, class_number, label_aim
from distilens.foundation.errors import UserError
from distilens.models.model import Model
from distilens.tasks import VOID, Classification, Segmentation

TASK = Segmentation(("sky", "road", "car"))
ROWS = [[0, 0, 0, 0], [0, 1, 1, 2], [1, 1, 2, 2]]
"""The classes of one image, 4 wide and 3 high; the second image is sky only."""


def answers() -> torch.Tensor:
    classes = torch.tensor([ROWS, [[0] * 4] * 3])
    return 5 * nn.functional.one_hot(classes, 3).permute(0, 3, 1, 2).float()


def aim(words: str, targets=None, size=(3, 4)) -> list:
    return aim_of(Wanted.read(words), answers(), size, TASK, targets).tolist()


def places(number: int, *there: tuple[int, int]) -> list:
    expected = np.full((3, 4), -1)
    for row, column in there:
        expected[row, column] = number
    return expected.tolist()


def test_words_name_classes_and_places():
    sky = [(row, column) for row in range(3) for column in range(4)]
    assert aim("top1") == [places(0, *sky[:4], (1, 0)), places(0, *sky)]
    assert aim("class:car") == aim("class:2") == [places(2, (1, 3), (2, 2), (2, 3)), places(0)]
    assert aim("point:3,1") == [places(2, (1, 3)), places(0, (1, 3))]  # x to the right, y down
    # road has four of the six pixels
    assert aim("box:0,1,3,3") == [
        places(1, (1, 1), (1, 2), (2, 0), (2, 1)),
        places(0, *[s for s in sky[4:] if s[1] < 3]),
    ]


def test_boxes_and_points_are_in_pixels_of_the_image_and_not_of_the_answers():
    (fine, _) = aim_of(Wanted.read("point:7,3"), answers(), (6, 8), TASK)
    assert fine.shape == (6, 8)
    assert (fine >= 0).nonzero().tolist() == [[3, 7]] and fine[3, 7] == 2


def test_a_label_is_its_largest_class_without_the_void():
    targets = torch.tensor([[[0, 0, 2, 2], [VOID] * 4, [2, VOID, VOID, VOID]], [[VOID] * 4] * 3], dtype=torch.uint8)
    assert label_aim(targets, TASK).tolist() == [places(2, (0, 2), (0, 3), (2, 0)), places(0)]
    assert aim("label", targets)[0] == places(2, (0, 2), (0, 3), (2, 0))
    labels = torch.tensor([1, 0])
    assert aim_of(Wanted.read("label"), torch.rand(2, 3), (3, 4), Classification(("a", "b", "c")), labels) is not None


def test_a_class_of_a_classification_is_that_of_all_images():
    task = Classification(("cat", "7", "dog"))
    assert aim_of(Wanted.read("class:dog"), torch.rand(2, 3), (3, 4), task).tolist() == [2, 2]
    assert class_number("7", task.classes) == 1  # a name comes before a number
    assert class_number("2", task.classes) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("top5", "what to explain is top1, label, class:NAME, box:x0,y0,x1,y1 or point:x,y, .*; given 'top5'"),
        ("class:", "given 'class:'"),
        ("label:car", "given 'label:car'"),
        ("point:1", "given 'point:1'"),
        ("point:1,-2", "given 'point:1,-2'"),
        ("box:1,2,3", "given 'box:1,2,3'"),
        ("box:1,2,x,4", "given 'box:1,2,x,4'"),
        ("box:2,0,2,3", "x0 < x1 and y0 < y1, such as box:8,8,24,24; given 'box:2,0,2,3'"),
        ("point:4,0", "the point lies outside the images, which are 4 pixels wide and 3 high"),
        ("point:0,3", "x goes from 0 to 3, y from 0 to 2; given x 0, y 3"),
        ("box:0,0,4,5", "the box lies outside .* given x 0 to 3, y 0 to 4"),
        ("class:cars", "the model has no class 'cars'. Did you mean 'car'"),
        ("class:9", "the model has no class '9'. Known: sky, road, car"),
        ("label", "there are none here"),
    ],
)
def test_what_does_not_fit_is_said(words, message):
    with pytest.raises(UserError, match=message):
        aim(words)


def test_an_answer_per_image_has_no_places():
    with pytest.raises(
        UserError, match=r"a point needs an answer for each place .* a classification answers once per image"
    ):
        aim_of(Wanted.read("point:0,0"), torch.rand(2, 3), (3, 4), Classification(("a", "b", "c")))


class Colours(nn.Module):
    """The logit of a class is one colour, with some of all colours around."""

    def __init__(self):
        super().__init__()
        self.smooth = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        nn.init.dirac_(self.smooth.weight)
        self.smooth.weight.data += 0.1

    def forward(self, pixels):
        return self.smooth(pixels).square()


@pytest.fixture
def model() -> Model:
    return Model(Colours(), TASK, size=(6, 8), mean=(0.0,) * 3, std=(1.0,) * 3).eval()


@pytest.mark.parametrize("explainer", ["gradient", "occlusion:window=2", "gradcam:tap=smooth"])
def test_attribute_takes_classes_places_masks_and_words(model, explainer):
    images = torch.rand(2, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    chosen = torch.zeros(2, 6, 8, dtype=torch.bool)
    chosen[:, 2:4, 5:7] = True
    number = torch.tensor([2, 1])
    expected = distilens.attribute(model, images, explainer, torch.where(chosen, number[:, None, None], -1))
    assert expected.abs().sum() > 0
    for classes in (["car", "road"], number, [2, "road"]):
        assert torch.equal(distilens.attribute(model, images, explainer, chosen, classes=classes), expected)
    by_name = distilens.attribute(model, images, explainer, "road")
    assert torch.equal(by_name, distilens.attribute(model, images, explainer, 1))
    assert torch.equal(by_name, distilens.attribute(model, images, explainer, "class:road"))
    assert torch.equal(by_name, distilens.attribute(model, images, explainer, ["road", "road"]))
    by_point = distilens.attribute(model, images, explainer, "point:5,2", chunk=1)
    classes = model.logits(images).argmax(1)
    single = torch.full((2, 6, 8), -1)
    single[:, 2, 5] = classes[:, 2, 5]
    assert torch.equal(by_point, distilens.attribute(model, images, explainer, single, chunk=1))


@pytest.mark.parametrize(
    ("target", "classes", "message"),
    [
        (torch.ones(2, 6, 8, dtype=torch.bool), None, "a mask of booleans needs the class"),
        ("road", 1, "classes= is for a mask of booleans"),
        (torch.ones(2, 6, 8, dtype=torch.bool), ["car"], "one target per image: 2 images"),
        (torch.ones(6, 8, dtype=torch.bool), "car", r"2 images, a mask of shape \[6, 8\]"),
        (torch.ones(2, 6, 8, dtype=torch.bool), "cat", "no class 'cat'. Did you mean 'car'"),
        ("cat", None, "no class 'cat'. Did you mean 'car'"),
        ("place:1,2", None, "given 'place:1,2'"),
        (torch.full((2, 6, 8), 3), None, "a class from 0 to 2, all others -1"),
        ([0, 1, 2], None, "one target per image: 2 images"),
    ],
)
def test_attribute_says_what_does_not_fit(model, target, classes, message):
    with pytest.raises(UserError, match=message):
        distilens.attribute(model, torch.rand(2, 3, 6, 8), "gradient", target, classes=classes)
