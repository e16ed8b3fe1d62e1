"""Which images come in which batch, in one process or many, resident or streamed, and how they look there."""

import dataclasses
import os
import pickle
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch

from distilens.data import Rows, Source, from_arrays, source_of, subset
from distilens.data.augment import AUGMENTS, crop
from distilens.data.pipeline import Batches, Streamed, balanced_order, batch_at, free_memory
from distilens.data.splits import Split
from distilens.foundation import randomness
from distilens.foundation.errors import UserError
from distilens.tasks import VOID, Segmentation


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    found = from_arrays(images, np.arange(60) % 3, classes=("a", "b", "c"))
    rows = dataclasses.replace(found.train.rows, masks=found.train.rows.images[..., 1])
    return dataclasses.replace(found, train=Split(rows, found.train.index))


def by_index(batches: Batches, epoch: int = 0) -> dict[int, torch.Tensor]:
    return {int(i): image for batch in batches.epoch(epoch) for i, image in zip(batch.index, batch.images, strict=True)}


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
@pytest.mark.parametrize("part", ["resized_crop:mix=mixup", "crop:mix=cutmix,erase=0.5,jitter=0.3", None])
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
        assert part is None or torch.equal(ours.mixed.share, theirs.mixed.share)


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


def test_a_memory_map_travels_by_its_path(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (500, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    streamed = Streamed(np.load(tmp_path / "images.npy", mmap_mode="r"))
    sent = pickle.dumps(streamed)
    assert len(sent) < 1000 < images.nbytes
    again, rows = pickle.loads(sent), np.array([3, 499, 0])
    assert torch.equal(again[rows], torch.from_numpy(images[rows]))
    assert isinstance(again.images, np.memmap)
    assert not again.images.flags.writeable


def test_an_array_travels_in_shared_memory():
    images = np.random.default_rng(0).integers(0, 256, (500, 8, 8, 3), dtype=np.uint8)
    assert len(bytes(ForkingPickler.dumps(Streamed(images)))) < 2000


SCRIPT = """
import multiprocessing
import sys

import distilens

def main():
    settings = {"epochs": 1, "batch_size": 16, "resident": False, "workers": 1}
    distilens.distill("resnet8", None, "shapes:train=3000,test=40,size=32", ["ce"], settings=settings | {"epochs": 1})
    print("done")

if sys.argv[1] == "bare":
    if multiprocessing.get_start_method(allow_none=True) is None:
        multiprocessing.set_start_method("spawn")
    main()
elif __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["guarded", "bare"])
def test_workers_that_are_spawned(tmp_path, how):
    """As on macOS and Windows. A script without a guard ends in an error; it must not wait for ever."""
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "script.py", how]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    if how == "guarded":
        assert done.returncode == 0, done.stderr[-2000:]
        assert "done" in done.stdout
    else:
        assert done.returncode != 0
        assert "__main__" in done.stderr


def test_images_at_positions_are_unchanged_and_only_they_are_read(source, monkeypatch):
    split, read = subset(source, "all").train, []
    get = Streamed.__getitem__
    monkeypatch.setattr(Streamed, "__getitem__", lambda self, rows: (read.append(rows.tolist()), get(self, rows))[1])
    found = batch_at(split, torch.tensor([5, 2]))
    assert found.index.tolist() == split.index[[5, 2]].tolist()
    raw = torch.from_numpy(source.train.images[found.index.numpy()]).permute(0, 3, 1, 2).float() / 255
    assert torch.equal(found.images, raw)
    assert (found.epoch, found.step, found.progress, found.geometry) == (0, 0, 0.0, None)
    assert read == [split.index[[5, 2]].tolist()]


def test_steps_are_counted_over_all_epochs(source):
    batches = Batches(subset(source, "all").train, 8, augment=crop())
    assert [batch.step for batch in batches.epoch(2, start=1)] == list(range(2 * len(batches) + 1, 3 * len(batches)))
    first = next(iter(batches))
    assert (first.epoch, first.step, first.progress) == (0, 0, 0)
    assert batches.batch(torch.arange(3), None, 4, 0.5).step == 0


@pytest.mark.parametrize(
    ("part", "variants", "numbers"),
    [
        (None, 0, [None, None, None, None]),
        ("none", 0, [0, 0, 0, 0]),
        ("crop", 0, [0, 1, 2, 3]),
        ("crop", 2, [0, 1, 0, 1]),
    ],
)
def test_an_epoch_shows_a_variant_of_its_number(source, part, variants, numbers):
    augment = AUGMENTS.build(part) if part else None
    batches = Batches(subset(source, "all").train, 8, augment=augment, variants=variants, seed=3)
    found = [batches.variant(torch.tensor([2, 0]), epoch) for epoch in range(4)]
    assert [each.number for each in found] == numbers
    assert found[0].index.tolist() == batches.split.index[[2, 0]].tolist()
    assert found[0].seed == 3


def test_what_is_mixed_in_comes_from_the_whole_split(source):
    batches = Batches(subset(source, "all").train, 8, augment=AUGMENTS.build("crop:mix=mixup"))
    count = len(batches.split)
    shown = batches.variant(torch.arange(count), 1)
    found = batches.partners(shown, batches.augment)
    places = [batches.split.index.tolist().index(index) for index in found.index.tolist()]
    assert len(set(places)) > count / 3
    assert min(places) < count / 8
    assert max(places) > 7 * count / 8
    assert abs(np.corrcoef(places, np.arange(count))[0, 1]) < 0.4


def test_images_in_memory_travel_themselves():
    images = np.zeros((4, 2, 2, 3), np.uint8)
    again = pickle.loads(pickle.dumps(Streamed(images)))
    assert torch.equal(again[np.array([1])], torch.zeros(1, 2, 2, 3, dtype=torch.uint8))
    assert len(again) == 4


def test_the_free_memory_is_that_of_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: {1: (5, 80)}[device.index])
    assert free_memory(torch.device("cuda", 1)) == 5
    assert free_memory(torch.device("cpu")) > 1e6


# Masks of classes


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """40 images whose target at each place is 1 where the picture is bright, in memory maps as a cache has them."""
    folder = tmp_path_factory.mktemp("masked")
    images = np.repeat(np.random.default_rng(0).integers(0, 256, (40, 16, 12, 1), dtype=np.uint8), 3, axis=3)
    np.save(folder / "images.npy", images)
    np.save(folder / "targets.npy", (images[..., 1] > 127).astype(np.uint8))
    maps = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "targets")]
    return subset(Source(Rows(*maps), None, None, Segmentation(("dark", "bright")), "masked"), "masked").train


def bright(batch):
    return (batch.images[:, 1] * 255 > 127.5).to(torch.uint8)


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("notation", ["crop:padding=3", "crop:padding=5,flip=alternate", "crop:mix=cutmix", "none"])
def test_targets_stay_the_threshold_of_their_image(masked, notation, resident):
    augment = AUGMENTS.build(notation)
    batches = Batches(masked, 8, augment=augment, resident=resident, workers=0)
    known = []
    for batch in [*batches.epoch(0), *batches.epoch(1)]:
        assert batch.targets.dtype == torch.uint8 and batch.targets.shape == batch.images[:, 0].shape
        valid = batch.targets != VOID
        assert torch.equal(batch.targets[valid], bright(batch)[valid])
        if augment.mix == "none":  # void is what lies outside of the image
            inside = batch.geometry.move_nearest(torch.ones_like(batch.targets), outside=0)
            assert torch.equal(valid, inside.bool())
        known.append(float(valid.float().mean()))
    assert (min(known) == 1) == (notation == "none") and min(known) > 0.4


@pytest.mark.parametrize("part", ["resized_crop:mix=cutmix", "crop:mix=cutmix,erase=0.5,jitter=0.3", None])
def test_streamed_targets_are_the_resident_ones(masked, part):
    augment = AUGMENTS.build(part) if part else None
    ours, theirs = (
        list(Batches(masked, 16, augment=augment, resident=resident, workers=0).epoch(1)) for resident in (True, False)
    )
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.targets, other.targets) and torch.equal(one.images, other.images)
        assert torch.equal(one.index, other.index)


def test_cutmix_pastes_the_targets_of_what_it_pastes(masked):
    """Images of one class each: every place has the class of the image that it shows."""
    rows = masked.rows
    classes = (np.arange(len(rows)) % 2).astype(np.uint8)
    images = np.broadcast_to(classes[:, None, None, None] * np.uint8(200), rows.images.shape).copy()
    targets = np.broadcast_to(classes[:, None, None], rows.targets.shape).copy()
    split = Split(Rows(images, targets), masked.index, task=masked.task)
    both = 0
    for batch in Batches(split, 8, augment=AUGMENTS.build("crop:padding=0,mix=cutmix")).epoch(0):
        assert torch.equal(batch.targets, bright(batch)) and batch.mixed is None
        both += sum(len(target.unique()) == 2 for target in batch.targets)
    assert both > 3


def test_mixup_is_refused_for_masks(masked):
    with pytest.raises(UserError, match="mix=mixup gives each place two classes, which a segmentation cannot have"):
        next(Batches(masked, 8, augment=AUGMENTS.build("crop:mix=mixup")).epoch(0))


def test_erased_places_are_void(masked):
    augment = AUGMENTS.build("crop:padding=0,flip=none,erase=1")
    (batch, *_) = Batches(masked, 32, augment=augment).epoch(0)
    holes = (batch.images == 0.5).all(1)
    assert torch.equal(batch.targets == VOID, holes) and 0.005 < holes.float().mean() < 0.12


def test_the_untransformed_batch_has_its_own_targets(masked):
    for batch in Batches(masked, 8, augment=AUGMENTS.build("crop:mix=cutmix,erase=1")).epoch(0):
        plain = batch.untransformed()
        assert np.array_equal(plain.targets, masked.rows.targets[batch.index.numpy()])
        assert torch.equal(plain.targets, bright(plain))
        assert torch.equal(plain.select(np.array([2, 0])).targets, plain.targets[[2, 0]])
