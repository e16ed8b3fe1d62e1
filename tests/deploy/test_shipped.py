"""The student as it is shipped: the same answers, from pixels, without teacher, taps or training form."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

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
