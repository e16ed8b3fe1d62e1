"""Networks that take only multiples of their stride: padding and cropping by hand, and the outputs stay at their places."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from distilens.core import Model
from distilens.models.objects import as_model
from distilens.models.padding import crop, fit_size, margins_of, pad
from distilens.tasks import Classification, Segmentation

TASK = Segmentation(("a", "b"))


class Strict(nn.Module):
    """Takes multiples of 8 only, and answers on a grid that is `coarse` times coarser."""

    def __init__(self, coarse: int = 1):
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 2, coarse, stride=coarse)

    def forward(self, pixels):
        if pixels.shape[2] % 8 or pixels.shape[3] % 8:
            raise ValueError("not a multiple of 8")
        return {"out": self.head(self.body(pixels).relu())}


def test_half_of_the_margin_stands_on_each_side():
    assert margins_of((31, 45), 32) == (9, 10, 0, 1)
    assert margins_of((64, 96), 32) == (0, 0, 0, 0)
    images = torch.arange(6.0).view(1, 1, 2, 3)
    assert pad(images, margins_of((2, 3), 4))[0, 0].tolist() == [[0, 1, 2, 2], [0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5]]


def test_the_outputs_are_those_of_the_padded_image_cropped():
    model = as_model(Strict(), TASK, size=(31, 45)).eval()
    assert model.multiple == 4  # 32 and 48 are multiples of 8 as well
    assert model.padded_size == (32, 48)
    assert model.margins == (1, 2, 0, 1)
    assert "padded from 31×45 to 32×48 pixels, multiples of 4" in " ".join(model.notes)
    images = torch.rand(2, 3, 31, 45)
    padded = functional.pad((images - 0.5) / 0.25, (1, 2, 0, 1), mode="replicate")
    network = Strict()
    network.load_state_dict(model.network.state_dict())
    assert torch.allclose(model.logits(images), network(padded)["out"][..., :31, 1:46], atol=1e-6)
    assert torch.allclose(copy.deepcopy(model).logits(images), model.logits(images))


def test_a_coarse_grid_is_cropped_by_the_same_share():
    margins = margins_of((16, 48), 64)  # 24 rows above and below, 8 columns left and right, of 64
    assert margins == (8, 8, 24, 24)
    outputs = torch.rand(1, 2, 8, 8)
    assert torch.equal(crop(outputs, margins, (16, 48)), outputs[:, :, 3:5, 1:7])
    fine = torch.rand(1, 2, 128, 128)
    assert torch.equal(crop(fine, margins, (16, 48)), fine[:, :, 48:80, 16:112])


def test_a_margin_that_ends_inside_a_place_leaves_outputs_where_they_are():
    """A ramp over the padded image, read on a coarse grid, is the same ramp afterwards."""
    size, margins = (13, 21), margins_of((13, 21), 16)
    whole = (size[0] + margins.top + margins.bottom, size[1] + margins.left + margins.right)
    assert whole == (16, 32)
    ramp = torch.arange(32.0).expand(1, 1, 16, 32)
    coarse = functional.avg_pool2d(ramp, 4)
    back = crop(coarse, margins, size)
    expected = ramp[..., margins.top : margins.top + 13, margins.left : margins.left + 21]
    assert back.shape == (1, 1, 13, 21)
    assert torch.allclose(back, expected, atol=1e-5)  # all margins are more than half a place wide


def test_the_smallest_multiple_that_works_is_taken_and_others_are_left_alone():
    made = Model(Strict(), TASK, size=(12, 20))
    fit_size(made)
    assert made.multiple == 8
    fits = Model(Strict(), TASK, size=(16, 24))
    fit_size(fits)
    assert (fits.multiple, fits.notes) == (1, ())
    assert not fits.network._forward_hooks
    classifier = Model(Strict(), Classification(("a", "b")), size=(12, 20))
    fit_size(classifier)
    assert classifier.multiple == 1

    class Broken(nn.Module):
        def forward(self, pixels):
            raise RuntimeError("never")

    broken = Model(Broken(), TASK, size=(12, 20))
    fit_size(broken)
    assert (broken.multiple, len(broken.network._forward_hooks), len(broken.network._forward_pre_hooks)) == (1, 0, 0)


@pytest.mark.parametrize("coarse", [1, 4])
def test_taps_see_the_padded_image_and_export_gives_the_same(coarse):
    model = as_model(Strict(coarse), TASK, size=(13, 21)).eval()
    model.tap("body")
    images = torch.rand(2, 3, 13, 21)
    output = model(images)
    assert output.features["body"].shape == (2, 4, 16, 24)
    assert output.size == (16, 24)
    assert output.logits.shape == (2, 2, 13, 21)
    exported = torch.export.export(model, (images,)).module()
    assert torch.allclose(exported(images).logits, output.logits, atol=1e-5)
