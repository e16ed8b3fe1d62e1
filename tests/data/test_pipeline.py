"""Augmentation and batches: the same picture for the same image and variant, and one geometry for all that belongs to it."""

import dataclasses

import numpy as np
import pytest
import torch

from distilens.data import from_arrays
from distilens.data.augment import AUGMENTS, crop
from distilens.data.geometry import Geometry, reflect_lines
from distilens.data.pipeline import Batches
from distilens.data.splits import Split
from distilens.foundation import randomness
from distilens.models.grids import resized


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    found = from_arrays(images, np.arange(60) % 3, classes=("a", "b", "c"))
    rows = dataclasses.replace(found.train.rows, masks=found.train.rows.images[..., 1])
    return dataclasses.replace(found, train=Split(rows, found.train.index))


def by_index(batches: Batches, epoch: int = 0) -> dict[int, torch.Tensor]:
    return {int(i): image for batch in batches.epoch(epoch) for i, image in zip(batch.index, batch.images, strict=True)}


def test_draws_depend_on_their_keys_alone():
    index = torch.arange(1000)
    found = randomness.uniform("crop", index, 3, 5, count=2)
    order = torch.randperm(1000)
    assert torch.equal(randomness.uniform("crop", index[order], 3, 5, count=2), found[order])
    assert found.min() >= 0
    assert found.max() < 1
    for other in (
        randomness.uniform("flip", index, 3, 5),
        randomness.uniform("crop", index, 3, 6),
        randomness.uniform("crop", index, 4, 5),
    ):
        assert abs(float(np.corrcoef(found[:, 0], other[:, 0])[0, 1])) < 0.1
    assert abs(float(np.corrcoef(found[:-1, 0], found[1:, 0])[0, 1])) < 0.1
    assert abs(float(np.corrcoef(found[:, 0], found[:, 1])[0, 1])) < 0.1


def test_draws_are_uniform():
    found = randomness.uniform("x", torch.arange(20000), 1)[:, 0]
    counts = torch.histc(found, 20, 0, 1)
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 50  # chi squared, 19 degrees of freedom: p < 1e-4


@pytest.mark.parametrize("notation", ["crop:padding=3", "crop:padding=5,flip=alternate", "none"])
def test_a_map_moves_exactly_as_its_image(data, notation):
    """The green channel, as uint8 evidence, is where the image's green channel is."""
    for batch in Batches(data.train, 16, augment=AUGMENTS.build(notation)).epoch(0):
        assert torch.equal((batch.mask * 255).round(), (batch.images[:, 1] * 255).round())
        green = torch.from_numpy(data.train.rows.images[batch.index.numpy()][..., 1])
        assert torch.equal(batch.geometry.move(green).float() / 255, batch.images[:, 1])
        assert torch.allclose(batch.geometry.move(batch.canonical), batch.images)


def test_resized_crops_move_maps_with_the_image(data):
    augment = AUGMENTS.build("resized_crop:area=[0.3,0.9]")
    for batch in Batches(data.train, 16, augment=augment).epoch(1):
        assert batch.images.min() >= 0
        assert batch.images.max() <= 1
        assert (batch.mask - batch.images[:, 1]).abs().max() < 1e-5


def test_sampling_agrees_with_copying_inside_the_image():
    pixels = torch.rand(4, 3, 12, 12)
    box = torch.tensor([[0.0, 0, 12, 12], [0, 0, 12, 12], [2, -3, 12, 12], [-2, 1, 12, 12]])
    moved = Geometry(box, torch.tensor([False, True, False, True]), (12, 12), (12, 12), whole=True)
    exact, sampled = moved.move(pixels), moved.resample(pixels, (12, 12))
    assert torch.allclose(exact[:2], sampled[:2], atol=1e-5)
    assert torch.allclose(exact[2:, :, 3:-3, 3:-3], sampled[2:, :, 3:-3, 3:-3], atol=1e-5)
    assert torch.equal(exact[0], pixels[0])
    assert torch.equal(exact[1], pixels[1].flip(-1))


def test_coarse_maps_move_with_the_image():
    box = torch.tensor([[8.0, 0, 16, 16]])
    moved = Geometry(box, torch.tensor([True]), (16, 16), (16, 16), whole=True)
    fine = torch.zeros(1, 16, 16)
    fine[0, 8:12, 0:4] = 1  # lands in the upper right corner
    coarse = resized(fine, (4, 4))
    assert moved.move(coarse).shape == (1, 4, 4)
    assert torch.allclose(moved.move(coarse)[0, 0], torch.tensor([0.0, 0, 0, 1]), atol=1e-5)
    assert torch.equal(moved.move(fine)[0, :4, 12:], torch.ones(4, 4))


def test_reflection_matches_numpy():
    padded = np.pad(np.arange(6), 4, mode="reflect")
    assert reflect_lines(torch.arange(-4, 10), 6).tolist() == padded.tolist()


def test_an_image_looks_the_same_in_every_batch_order_and_subset(data):
    whole = by_index(Batches(data.train, 16, augment=crop(), seed=3), epoch=2)
    few = Split(data.train.rows, data.train.index[10:40])
    part = by_index(Batches(few, 5, augment=crop(), seed=3), epoch=2)
    assert len(part) == 30
    assert all(torch.equal(image, whole[index]) for index, image in part.items() if index in whole)
    other = by_index(Batches(data.train, 16, augment=crop(), seed=4), epoch=2)
    assert any(not torch.equal(image, whole[index]) for index, image in other.items() if index in whole)


def test_variants_come_round_and_epochs_differ_in_order(data):
    batches = Batches(data.train, 9, augment=crop(), variants=2)
    first, second, third = (by_index(batches, epoch) for epoch in range(3))
    assert all(torch.equal(image, third[index]) for index, image in first.items() if index in third)
    assert any(not torch.equal(image, second[index]) for index, image in first.items() if index in second)
    orders = [torch.cat([batch.index for batch in batches.epoch(epoch)]).tolist() for epoch in (0, 2)]
    assert orders[0] != orders[1]
    assert len(set(orders[0])) == len(orders[0]) == len(orders[1])


def test_alternate_flips_show_each_side_once_in_two_epochs(data):
    batches = Batches(data.train, 9, augment=crop(padding=0, flip="alternate"))
    first, second = by_index(batches, 0), by_index(batches, 1)
    assert all(torch.equal(image, second[index].flip(-1)) for index, image in first.items() if index in second)
    canonical = {
        int(i): image for batch in Batches(data.train, 9) for i, image in zip(batch.index, batch.images, strict=True)
    }
    flipped = sum(not torch.equal(image, canonical[index]) for index, image in first.items())
    assert 10 < flipped < 44


@pytest.mark.parametrize("workers", [0, 1])
def test_streaming_gives_the_resident_batches_bit_for_bit(data, workers):
    options = {"augment": AUGMENTS.build("crop:mix=cutmix,erase=0.5,jitter=0.3"), "seed": 1}
    resident = Batches(data.train, 16, resident=True, **options)
    streamed = Batches(data.train, 16, resident=False, workers=workers, **options)
    for ours, theirs in zip(resident.epoch(0), streamed.epoch(0), strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours.canonical, theirs.canonical)
        assert torch.equal(ours.mixed.share, theirs.mixed.share)


def test_processes_share_the_batches_of_one(data):
    whole = list(Batches(data.train, 10, augment=crop()).epoch(0))
    parts = [list(Batches(data.train, 10, augment=crop(), rank=rank, world=2).epoch(0)) for rank in range(2)]
    for batch, *shards in zip(whole, *parts, strict=True):
        assert sorted(batch.index.tolist()) == sorted(torch.cat([shard.index for shard in shards]).tolist())


def test_an_epoch_goes_on_from_a_number_and_evaluation_keeps_all_images_in_order(data):
    batches = Batches(data.train, 10, augment=crop())
    rest = [batch.index.tolist() for batch in batches.epoch(1, start=2)]
    assert rest == [batch.index.tolist() for batch in batches.epoch(1)][2:]
    assert all(len(batch) == 10 for batch in batches.epoch(0))
    seen = torch.cat([batch.index for batch in Batches(data.train, 10)])
    assert seen.tolist() == data.train.index.tolist()
    assert len(list(batches.epoch(0))) == len(batches) == len(data.train) // 10


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_mixing_keeps_shares_and_labels_together(mix):
    images = np.zeros((40, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(40) % 2
    images[labels == 1] = 255  # an image is as bright as its share of class 1
    found = from_arrays(images, labels)
    for batch in Batches(found.train, 8, augment=AUGMENTS.build(f"crop:mix={mix}")).epoch(0):
        share = batch.mixed.share * batch.labels + (1 - batch.mixed.share) * batch.mixed.targets
        assert torch.allclose(batch.images.mean((1, 2, 3)), share.float(), atol=1e-5)
        assert (batch.mixed.share >= 0).all()
        assert (batch.mixed.share <= 1).all()


def test_erasing_takes_the_evidence_with_it(data):
    (batch, *_) = Batches(data.train, 30, augment=AUGMENTS.build("crop:erase=1")).epoch(0)
    holes = (batch.images == 0.5).all(1)
    assert holes.any((1, 2)).float().mean() > 0.9
    assert (batch.mask[holes] == 0).all()


def test_batch_draws_are_keyed_by_name(data):
    (batch, *_) = Batches(data.train, 30, augment=crop(), seed=2).epoch(1)
    assert torch.equal(batch.draw("overlay"), randomness.uniform("overlay", batch.index, 2, 1))
    assert not torch.equal(batch.draw("overlay"), batch.draw("dropout"))
