"""Fake quantisation: INT8 rounding in float, with a gradient, that leaves again."""

import torch
from torch import nn

from distilens import Model
from distilens.deploy.fake_quantization import RoundInput, RoundWeight, fake_quantize, remove_rounding


def test_a_weight_is_rounded_to_255_levels_of_its_channel():
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    rounded = RoundWeight()(weight)
    for channel, own in zip(rounded, weight, strict=True):
        steps = channel / (own.abs().max() / 127)
        assert torch.allclose(steps, steps.round(), atol=1e-3)
        assert (channel - own).abs().max() <= own.abs().max() / 127 / 2 * 1.001


def test_a_transposed_convolution_has_a_scale_per_output_channel():
    weight = (
        torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1, 10, 100, 1000.0])[:, None, None]
    )
    rounded = RoundWeight(axis=1)(weight)
    for number in range(4):
        step = weight[:, number].abs().max() / 127
        assert (rounded[:, number] - weight[:, number]).abs().max() <= step / 2 * 1.001
    model = Model(
        nn.Sequential(nn.ConvTranspose2d(3, 4, 2, 2), nn.Flatten(), nn.Linear(64, 2)), "ab", size=(2, 2)
    ).eval()
    rounded = fake_quantize(model, torch.rand(4, 3, 2, 2))
    assert rounded.network[0].parametrizations["weight"][0].axis == 1
    assert torch.equal(remove_rounding(rounded).network[0].weight, model.network[0].weight)


def test_an_input_is_rounded_within_the_range_that_was_seen():
    rounding = RoundInput()
    rounding(torch.tensor([-1.0, 3.0]))
    rounding.watching = False
    values = torch.linspace(-2, 4, 400)
    rounded = rounding(values)
    step = 4 / 255
    assert len(rounded.unique()) <= 256
    assert (rounded - values.clamp(-1, 3)).abs().max() <= step * 1.001
    assert 0.0 in rounding(torch.zeros(1)).tolist(), "zero is exact"


def test_the_gradient_passes_the_rounding():
    weight = torch.randn(2, 3, requires_grad=True)
    RoundWeight()(weight).sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))


def test_answers_are_near_and_coarser_and_the_student_is_unchanged(student):
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    before = student.logits(images)
    rounded = fake_quantize(student, images)
    after = rounded.logits(images)
    assert torch.equal(student.logits(images), before)
    assert not torch.equal(after, before)
    assert (after - before).abs().max() < 0.1 * before.abs().max()


def test_float_comes_back_with_the_weights_before_rounding(student):
    images = torch.rand(4, 3, 16, 16)
    back = remove_rounding(fake_quantize(student, images))
    assert not any(module._forward_pre_hooks for module in back.modules())
    assert torch.allclose(back.logits(images), student.logits(images), atol=1e-4)
    assert not any(isinstance(module, RoundInput) for module in back.modules())
    assert not any("parametrizations" in name for name, _ in back.named_parameters())


def test_weights_that_were_trained_with_rounding_stay():
    model = Model(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), "ab", size=(2, 2))
    rounded = fake_quantize(model, torch.rand(4, 3, 2, 2)).requires_grad_(True)
    with torch.no_grad():
        rounded.network[1].parametrizations["weight"].original.add_(1.0)
    back = remove_rounding(rounded)
    assert torch.allclose(back.network[1].weight, model.network[1].weight + 1.0)
