"""Corruptions: harder with severity, the same for an image in any batch, as their sources make them; accuracy under them."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from distilens.core import Batch
from distilens.data import load
from distilens.data.pipeline import Batches
from distilens.foundation.errors import UserError
from distilens.foundation.estimate import Estimate, share_of
from distilens.measure import accuracy_under_shift, corrupt, corrupted, predict
from distilens.measure.corruptions import CORRUPTIONS
from distilens.models import build_model

KINDS = tuple(CORRUPTIONS)


@pytest.fixture(scope="module")
def data():
    return load("shapes:limit=200")


@pytest.fixture(scope="module")
def batch(data) -> Batch:
    return next(iter(Batches(data.test, 8)))


def as_picture(image: torch.Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())


def as_image(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255


@pytest.mark.parametrize("kind", KINDS)
def test_images_keep_their_shape_and_range_and_get_worse_with_severity(kind, batch):
    clean, before = batch.images.clone(), 0.0
    for severity in range(1, 6):
        images = corrupt(batch.images, batch.index, kind, severity)
        assert (images.shape, images.dtype) == (clean.shape, torch.float32)
        assert images.min() >= 0
        assert images.max() <= 1
        distance = (images - clean).square().mean().item()
        assert distance > before
        before = distance
    assert torch.equal(batch.images, clean)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_corrupted_alike_in_any_batch_and_order(kind, batch):
    whole = corrupt(batch.images, batch.index, kind)
    order = torch.tensor([5, 2, 7])
    torch.testing.assert_close(corrupt(batch.images[order], batch.index[order], kind), whole[order], rtol=0, atol=1e-6)
    assert torch.equal(corrupt(batch.images, batch.index, kind), whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 3, 5), (3, 8, 8), (3, 1, 1), (1, 40, 17)])
def test_any_size_and_grey_images(kind, shape):
    images = torch.rand(2, *shape)
    assert corrupt(images, torch.arange(2), kind, 5).shape == images.shape


def test_noise_has_the_deviation_and_belongs_to_the_index():
    images = torch.full((64, 3, 32, 32), 0.5)
    index = torch.arange(64)
    for severity, deviation in enumerate((0.04, 0.06, 0.08, 0.09, 0.10), 1):
        noise = corrupt(images, index, "noise", severity) - 0.5
        assert noise.std().item() == pytest.approx(deviation, rel=0.02)
        assert abs(noise.mean().item()) < 0.001
    flat = noise.flatten(1)
    assert (flat[:-1] * flat[1:]).mean().abs() < 1e-4  # images have unrelated noise
    torch.testing.assert_close(corrupt(images[:1], index[9:10], "noise", 5)[0] - 0.5, noise[9])
    assert corrupt(torch.full((1, 3, 512, 512), 0.5), index[:1], "noise", 1).isfinite().all()


def test_jpeg_is_pillows_at_the_quality_that_was_asked(batch):
    for kind, quality in (("jpeg:quality=30", 30), ("jpeg", 58), ("jpeg:severity=5", 40)):
        stream = io.BytesIO()
        as_picture(batch.images[3]).save(stream, "JPEG", quality=quality)
        expected = as_image(Image.open(stream))
        torch.testing.assert_close(corrupt(batch.images, batch.index, kind)[3], expected)


def test_the_blur_is_scipys_and_grows_with_the_picture():
    images = torch.rand(1, 3, 32, 32)
    expected = ndimage.gaussian_filter(images.numpy(), (0, 0, 0.7, 0.7), mode="mirror", truncate=4)
    np.testing.assert_allclose(corrupt(images, torch.zeros(1, dtype=torch.long), "blur", 3), expected, atol=1e-3)
    large = torch.rand(1, 3, 64, 96)
    index = torch.zeros(1, dtype=torch.long)
    torch.testing.assert_close(corrupt(large, index, "blur", 3), corrupt(large, index, "blur:sigma=1.4"))


def test_contrast_keeps_the_mean_of_each_colour(batch):
    images = corrupt(batch.images, batch.index, "contrast", 2)
    torch.testing.assert_close(images.mean((2, 3)), batch.images.mean((2, 3)))
    torch.testing.assert_close(images.std((2, 3)), batch.images.std((2, 3)) / 2)
    torch.testing.assert_close(images, corrupt(batch.images, batch.index, "contrast:factor=0.5"))


def test_pixelate_is_pillows(batch):
    picture = as_picture(batch.images[0])
    size = [int(side * 0.65) for side in picture.size]
    expected = as_image(picture.resize(size, Image.Resampling.BOX).resize(picture.size, Image.Resampling.BOX))
    torch.testing.assert_close(corrupt(batch.images, batch.index, "pixelate", 5)[0], expected)
    torch.testing.assert_close(corrupt(batch.images, batch.index, "pixelate:factor=1"), batch.images)


def test_an_option_of_the_notation_wins_over_the_severity(batch):
    one = corrupt(batch.images, batch.index, "noise:severity=1", 5)
    assert torch.equal(one, corrupt(batch.images, batch.index, "noise", 1))


def test_batches_carry_the_corrupted_images_and_no_key_of_stored_answers(data):
    batches = Batches(data.test, 16)
    for clean, worse in zip(batches, corrupted(batches, "noise", 5), strict=True):
        expected = corrupt(clean.images, clean.index, "noise", 5)
        assert torch.equal(worse.images, expected)
        assert torch.equal(worse.view, expected)
        assert torch.equal(worse.canonical, expected)
        assert torch.equal(worse.targets, clean.targets)
        assert worse.variant is None


def test_accuracy_under_shift_is_that_of_the_corrupted_images(data):
    model = build_model("resnet8", data.task, data.size)
    found = accuracy_under_shift(model, data.test, ["jpeg:quality=30", "noise"], 5)
    assert list(found) == ["jpeg:quality=30", "noise"]
    labels = torch.from_numpy(data.test.labels)
    for kind, estimate in found.items():
        logits = predict(model, corrupted(Batches(data.test, 7), kind, 5))
        assert estimate == share_of(logits.argmax(1) == labels)
    assert found == accuracy_under_shift(model, data.test, ["jpeg:quality=30", "noise"], 5)
    assert list(accuracy_under_shift(model, data.test)) == list(KINDS)


def test_no_images_have_no_accuracy(data):
    empty = dataclasses.replace(data.test, index=data.test.index[:0])
    model = build_model("resnet8", data.task, data.size)
    assert accuracy_under_shift(model, empty, ["blur"]) == {"blur": Estimate(None, n=0)}


@pytest.mark.parametrize(
    ("kind", "severity", "message"),
    [
        ("jpg", 3, "unknown corruption 'jpg'.*jpeg"),
        ("jpeg", 0, "severity"),
        ("noise", 6, "severity"),
        ("jpeg:quality=101", 3, "quality"),
        ("noise:deviation=-1", 3, "deviation"),
        ("contrast:factor=2", 3, "factor"),
        ("blur:quality=3", 3, "quality"),
    ],
)
def test_wrong_kinds_and_values_are_errors_before_any_work(kind, severity, message, data):
    with pytest.raises(UserError, match=message):
        corrupt(torch.rand(1, 3, 8, 8), torch.arange(1), kind, severity)
    with pytest.raises(UserError, match=message):
        corrupted([], kind, severity)
    with pytest.raises(UserError, match=message):
        accuracy_under_shift(build_model("resnet8", data.task, data.size), data.test, ["blur", kind], severity)


def test_images_of_other_channels_are_no_pictures():
    with pytest.raises(UserError, match="1 or 3 channels; given 4"):
        corrupt(torch.rand(1, 4, 8, 8), torch.arange(1), "jpeg")
    assert corrupt(torch.rand(1, 4, 8, 8), torch.arange(1), "contrast").shape == (1, 4, 8, 8)
