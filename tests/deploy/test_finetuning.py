"""Quantisation-aware distillation: the student is trained with INT8 rounding, under the same teacher."""

import copy

import torch

import segments
from distilens import LiveTeacher, Training
from distilens.data.pipeline import batch_at
from distilens.deploy.fake_quantization import fake_quantize
from distilens.deploy.finetuning import finetune, methods_after


def test_methods_that_change_the_student_or_have_parameters_are_left_out():
    assert methods_after(["ce:weight=0.1", "kd", "fitnet", "ig_overlay"], with_teacher=True) == ["ce:weight=0.1", "kd"]
    assert methods_after(["fitnet"], with_teacher=True) == ["ce:weight=0.1", "kd:temperature=4,weight=0.9"]
    assert methods_after(["ig_overlay"], with_teacher=False) == ["ce"]


def test_the_loss_with_rounding_falls_and_the_student_is_float_again(student, data):
    images = batch_at(data.validation, torch.arange(len(data.validation))).images
    rows = batch_at(data.train, torch.arange(len(data.train)))
    asked = []

    class Teacher(LiveTeacher):
        def __call__(self, batch, needs):
            asked.append(len(batch.images))
            return super().__call__(batch, needs)

    worse = copy.deepcopy(student)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in worse.network.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.3 * weight.std(correction=0))
    state = {key: value.clone() for key, value in worse.bare_state().items()}
    before = data.task.loss(fake_quantize(worse, images).logits(rows.images), rows.targets).mean()
    settings = Training(batch_size=12, augment="none", epochs=3)
    tuned = finetune(worse, images, data, teacher=Teacher(student), methods=["ce", "kd"], settings=settings, epochs=8)
    assert asked, "the teacher was asked"
    assert not any("parametrizations" in name for name, _ in tuned.named_parameters())
    after = data.task.loss(fake_quantize(tuned, images).logits(rows.images), rows.targets).mean()
    assert after < 0.7 * before
    assert all(torch.equal(state[key], value) for key, value in worse.bare_state().items()), "the student is unchanged"


def test_a_segmentation_is_trained_with_rounding_also_of_transposed_convolutions(segmenter):
    dense = segments.pictures()
    images = batch_at(dense.validation, torch.arange(len(dense.validation))).images
    rows = batch_at(dense.train, torch.arange(len(dense.train)))
    worse = copy.deepcopy(segmenter)
    with torch.no_grad():
        worse.network.decoder[0].up.weight.mul_(0.5)
    before = dense.task.loss(fake_quantize(worse, images).logits(rows.images), rows.targets).mean()
    settings = Training(batch_size=12, augment="none", epochs=3)
    tuned = finetune(
        worse, images, dense, teacher=LiveTeacher(segmenter), methods=["ce", "kd"], settings=settings, epochs=4
    )
    assert not any("parametrizations" in name for name, _ in tuned.named_parameters())
    assert not torch.equal(tuned.network.decoder[0].up.weight, worse.network.decoder[0].up.weight)
    assert dense.task.loss(fake_quantize(tuned, images).logits(rows.images), rows.targets).mean() < before
