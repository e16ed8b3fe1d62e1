"""The student as it is shipped: the same answers, from pixels, without teacher, taps or training form."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import segments
from distilens import Model, UserError, build_model
from distilens.deploy.shipped import Shipped
from distilens.explain import build_explainer
from distilens.measure import macs, parameters


def test_it_answers_as_the_student_does(student):
    images = torch.rand(3, 3, 16, 16)
    logits, probabilities = Shipped(student)(images)
    assert torch.allclose(logits, student.logits(images), atol=1e-5)
    assert torch.allclose(probabilities, logits.softmax(1))


def test_pixels_may_be_bytes_and_of_another_size(student):
    bytes_ = (torch.rand(2, 3, 24, 20) * 255).byte()
    shipped = Shipped(student, pixels="uint8", size=(24, 20))
    assert shipped.example().shape == (1, 3, 24, 20) and shipped.example().dtype == torch.uint8
    assert torch.allclose(shipped(bytes_)[0], student.logits(bytes_.float() / 255), atol=1e-5)


def test_maps_are_those_of_cam_for_every_class(student):
    images = torch.rand(2, 3, 16, 16)
    shipped = Shipped(student, maps=True)
    assert shipped.outputs == ("logits", "probabilities", "maps")
    maps = shipped(images)[2]
    for number in range(2):
        expected = build_explainer("cam")(student, images, torch.full((2,), number)).maps
        assert torch.allclose(maps[:, number], expected, atol=1e-4)


def test_a_network_without_closed_form_maps_is_refused():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 2))
    with pytest.raises(UserError, match="closed-form"):
        Shipped(Model(network, "ab", size=(8, 8)), maps=True)


def test_a_segmentation_gives_logits_and_mask_of_the_size_of_the_input():
    model, images = segments.model().eval(), torch.rand(2, 3, 30, 20)  # its own grid is half of 24 x 32
    shipped = Shipped(model, size=(30, 20))
    assert shipped.outputs == ("logits", "mask")
    logits, mask = shipped(images)
    own = model.logits(images)
    assert own.shape == (2, 3, 12, 16) and logits.shape == (2, 3, 30, 20)
    assert torch.allclose(logits, bilinear(own, 30, 20), atol=1e-5)
    assert mask.dtype == torch.uint8 and torch.equal(mask.long(), logits.argmax(1)) and len(mask.unique()) > 1
    about = shipped.about()
    assert (about["task"], about["classes"], about["void"]) == ("segmentation", ["ground", "green", "blue"], 255)
    assert about["input"]["size"] == [30, 20] and about["outputs"] == ["logits", "mask"]


def bilinear(values, height, width):
    """Resized with half-pixel centres (align_corners=False), written out: first the rows, then the columns."""
    for axis, length in ((2, height), (3, width)):
        old = values.shape[axis]
        at = ((torch.arange(length) + 0.5) * old / length - 0.5).clamp(0, old - 1)
        low = at.floor().long()
        share = (at - low).view([-1 if number == axis else 1 for number in range(4)])
        values = (
            values.index_select(axis, low) * (1 - share)
            + values.index_select(axis, (low + 1).clamp_max(old - 1)) * share
        )
    return values


def test_maps_of_a_class_are_refused_for_a_segmentation():
    with pytest.raises(UserError, match=r"a class for each place.*--maps.*leave it out"):
        Shipped(segments.model(), maps=True)


def test_the_student_is_not_changed_and_its_taps_stay(student):
    before = {key: value.clone() for key, value in student.bare_state().items()}
    student.tap("layer2")
    shipped = Shipped(student)
    assert not shipped.model.taps and "layer2" in student.taps
    assert all(torch.equal(before[key], value) for key, value in student.bare_state().items())
    student.remove_taps()
    assert not any(module._forward_hooks for module in student.network.modules())


def test_a_parametrised_layer_is_shipped_with_its_final_weight():
    network = nn.Sequential(nn.Flatten(), weight_norm(nn.Linear(48, 2)))
    model = Model(network, "ab", size=(4, 4)).eval()
    shipped, images = Shipped(model), torch.rand(2, 3, 4, 4)
    assert torch.allclose(shipped(images)[0], model.logits(images), atol=1e-6)
    assert not any("parametrizations" in name for name, _ in shipped.named_parameters())


def test_a_student_that_needs_its_teacher_is_refused_with_the_reason():
    class Needing(nn.Module):
        requires = ("map",)

        def forward(self, feature, inputs):
            return feature * inputs["map"].mean()

    model = build_model("resnet8", "ab", (16, 16)).eval()
    model.insert("layer2", Needing(), name="fusion")
    with pytest.raises(UserError, match=r"fusion reads what the teacher answers.*deploy="):
        Shipped(model)
    model = build_model("resnet8", "ab", (16, 16)).eval()
    model.companion = lambda images: {}
    with pytest.raises(UserError, match="runs with its teacher"):
        Shipped(model)


def test_what_travels_in_the_file(student):
    about = Shipped(student, pixels="uint8").about()
    assert about["classes"] == ["above", "below"] and about["task"] == "classification"
    assert about["input"]["type"] == "uint8" and about["input"]["range"] == [0, 255]
    assert about["input"]["size"] == [16, 16] and about["outputs"] == ["logits", "probabilities"]
    assert about["parameters"] == parameters(student) and about["macs"] == macs(student) > 0
    assert about["input"]["mean"] == pytest.approx(student.mean.flatten().tolist())
