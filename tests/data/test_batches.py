"""Which images come in which batch, in one process or many, with or without labels, and how they look there."""

import dataclasses

import numpy as np
import pytest
import torch

from distilens.data import from_arrays, source_of, subset
from distilens.data.augment import AUGMENTS, crop
from distilens.data.pipeline import Batches, balanced_order
from distilens.data.splits import Split


@pytest.fixture(scope="module")
def source():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (80, 12, 10, 3), dtype=np.uint8)
    masks = generator.integers(0, 2, (80, 12, 10), dtype=np.uint8)
    return source_of(images, np.arange(80) % 4, classes=tuple("abcd"), masks=masks)


def seen(batches: Batches, epoch: int = 0) -> dict[int, torch.Tensor]:
    return {int(i): image for batch in batches.epoch(epoch) for i, image in zip(batch.index, batch.images, strict=True)}


@pytest.mark.parametrize("part", ["crop", "resized_crop", "crop:flip=alternate,jitter=0.2,erase=0.5"])
@pytest.mark.parametrize("choice", [{"limit": 40}, {"shots": 5}, {"classes": ("a", "c")}])
def test_an_image_looks_the_same_in_every_choice_of_rows_and_size_of_batch(source, part, choice):
    options = {"augment": AUGMENTS.build(part), "seed": 5}
    whole = seen(Batches(subset(source, "all").train, 7, **options), 3)
    few = seen(Batches(subset(source, "few", **choice).train, 3, **options), 3)
    shared = set(whole) & set(few)
    assert len(shared) > 5
    for index in shared:  # batched float sums may differ in the last bit
        assert torch.allclose(few[index], whole[index], atol=1e-6)


def test_the_source_index_leads_back_to_the_images_and_labels(source):
    data = subset(source, "few", shots=6)
    for batch in Batches(data.train, 5, augment=AUGMENTS.build("resized_crop")).epoch(0):
        raw = torch.from_numpy(source.train.images[batch.index.numpy()]).permute(0, 3, 1, 2).float() / 255
        assert torch.equal(batch.canonical, raw)
        assert batch.labels.tolist() == source.train.labels[batch.index.numpy()].tolist()
        assert batch.view is batch.images


def test_training_drops_the_last_part_of_an_epoch_and_evaluation_does_not(source):
    split = subset(source, "all").train
    count = len(split)
    training = Batches(split, 10, augment=crop())
    assert [len(batch) for batch in training.epoch(0)] == [10] * (count // 10)
    evaluation = Batches(split, 10)
    assert [len(batch) for batch in evaluation] == [10] * (count // 10) + [count % 10]
    assert len(evaluation) == len(list(evaluation))
    small = Batches(split, 10_000, augment=crop())  # a batch is at most the split
    assert [len(batch) for batch in small.epoch(0)] == [count]
    assert all(batch.geometry is None for batch in evaluation)


def test_every_image_comes_once_an_epoch_in_an_order_of_the_seed_and_the_epoch(source):
    split = subset(source, "all").train
    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            batches = Batches(split, len(split), augment=crop(), seed=seed)
            orders[seed, epoch] = [int(i) for batch in batches.epoch(epoch) for i in batch.index]
    assert all(sorted(order) == split.index.tolist() for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 4


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("augment", [None, crop()])
def test_processes_part_each_batch_between_them(source, world, augment):
    split = subset(source, "all").train
    whole = list(Batches(split, 9, augment=augment).epoch(0))
    shards = [list(Batches(split, 9, augment=augment, rank=rank, world=world).epoch(0)) for rank in range(world)]
    assert {len(shard) for shard in shards} == {len(whole)}
    for number, batch in enumerate(whole):
        own = [shard[number].index.tolist() for shard in shards]
        assert sorted(index for part in own for index in part) == sorted(batch.index.tolist())
        assert max(map(len, own)) - min(map(len, own)) <= 1
        images = {int(i): image for i, image in zip(batch.index, batch.images, strict=True)}
        for shard in shards:
            for i, image in zip(shard[number].index, shard[number].images, strict=True):
                assert torch.equal(image, images[int(i)])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("part", ["resized_crop:mix=mixup", None])
def test_streamed_batches_are_the_resident_ones(source, part, workers):
    split = subset(source, "all").train
    augment = AUGMENTS.build(part) if part else None
    made = [
        list(Batches(split, 16, augment=augment, resident=resident, workers=workers).epoch(1, start=1))
        for resident in (True, False)
    ]
    assert len(made[0]) == len(made[1]) > 1
    for ours, theirs in zip(*made, strict=True):
        for field in ("images", "labels", "index", "mask", "canonical"):
            assert torch.equal(getattr(ours, field), getattr(theirs, field)), field
        assert ours.progress == theirs.progress


def test_one_batch_by_position_is_had_from_a_streamed_set_too(source):
    split = subset(source, "all").train
    positions = torch.tensor([4, 0, 7])
    ours, theirs = (Batches(split, 8, resident=resident).batch(positions, None, 0, 0.0) for resident in (True, False))
    assert torch.equal(ours.images, theirs.images)
    assert ours.index.tolist() == split.index[[4, 0, 7]].tolist()


def test_progress_goes_from_zero_towards_one(source):
    batches = Batches(subset(source, "all").train, 8, augment=crop())
    found = [batch.progress for epoch in range(3) for batch in batches.epoch(epoch, epochs=3)]
    assert found[0] == 0
    assert found == sorted(found)
    assert found[-1] < 1
    assert len(set(found)) == 3 * len(batches)
    assert [batch.epoch for batch in batches.epoch(2, epochs=3)] == [2] * len(batches)


def test_images_without_a_label_keep_it_that_way():
    images = np.zeros((20, 4, 4, 3), dtype=np.uint8)
    labels = np.where(np.arange(20) % 5 == 4, -1, np.arange(20) % 2)
    split = from_arrays(images, labels, classes=("a", "b")).train
    found = torch.cat([batch.labels for batch in Batches(split, 4)])
    assert (found == -1).any()
    assert found.tolist() == split.labels.tolist()


def test_evidence_follows_what_is_mixed_and_erased(source):
    """Where an image is its own evidence (the green channel), it stays so through crop, cutmix and mixup."""
    split = subset(source, "all").train
    rows = dataclasses.replace(split.rows, masks=split.rows.images[..., 1])
    for mix in ("cutmix", "mixup"):
        for batch in Batches(Split(rows, split.index), 16, augment=AUGMENTS.build(f"crop:mix={mix}")).epoch(0):
            assert torch.allclose(batch.mask, batch.images[:, 1], atol=1e-6)
            assert batch.mixed.targets.shape == batch.labels.shape


def test_erased_boxes_are_as_large_as_said_and_as_frequent(source):
    split = subset(source, "all").train
    (batch,) = Batches(split, len(split), augment=AUGMENTS.build("crop:padding=0,flip=none,erase=0.5")).epoch(0)
    holes = (batch.images != batch.canonical).any(1)
    share = holes.any((1, 2)).float().mean()
    assert 0.3 < share < 0.7
    assert holes.float().mean((1, 2)).max() <= 0.34**2 * 1.4  # a third of each side, to the pixel
    assert (batch.images.permute(0, 2, 3, 1)[holes] == 0.5).all()


@pytest.mark.parametrize("counts", [(90, 9, 1), (50, 50, 50), (7, 3), (40, 2, 0, 30)])
def test_a_balanced_order_shows_each_class_as_often(counts):
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)] + [torch.full((5,), -1)])
    order = balanced_order(labels, torch.Generator().manual_seed(0))
    assert len(order) == len(labels)
    shown = torch.bincount(labels[order] + 1, minlength=len(counts) + 1)
    there = [label for label, count in enumerate(counts) if count]
    assert shown[0] == 5  # what has no label comes once
    assert sorted(shown[1:].tolist())[-len(there) :] == pytest.approx([sum(counts) / len(there)] * len(there), abs=1)
    for label in there:
        times = torch.bincount(order, minlength=len(labels))[labels == label]
        assert times.max() - times.min() <= 1  # the images of a class take turns
    other = balanced_order(labels, torch.Generator().manual_seed(1))
    assert not torch.equal(order, other)
    assert torch.equal(order, balanced_order(labels, torch.Generator().manual_seed(0)))


def test_balanced_batches_are_those_of_the_images_whatever_the_processes():
    images = np.random.default_rng(0).integers(0, 255, (60, 8, 8, 3), dtype=np.uint8)
    split = from_arrays(images, np.array([0] * 50 + [1] * 10)).train
    augment = AUGMENTS.build("crop")
    whole = Batches(split, 8, augment=augment, balanced=True)
    shares = [Batches(split, 8, augment=augment, balanced=True, rank=rank, world=2) for rank in range(2)]
    seen = []
    for batch, *parts in zip(whole.epoch(1), *(share.epoch(1) for share in shares), strict=True):
        seen.append(batch.labels)
        for rank, part in enumerate(parts):
            assert torch.equal(part.images, batch.images[rank::2])
            assert torch.equal(part.labels, batch.labels[rank::2])
    assert torch.cat(seen).float().mean() == pytest.approx(0.5, abs=0.1)
    assert split.labels.mean() < 0.25
