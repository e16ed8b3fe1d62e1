"""Stored answers of a segmentation equal the live ones for the very crop; small records have their stated error."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from distilens.data.augment import AUGMENTS
from distilens.data.pipeline import Batches
from distilens.teachers import LiveTeacher, MeanTeacher, PermutedTeacher, StoredTeacher
from distilens.teachers.codecs import Largest
from distilens.teachers.needs import levelled, unlevelled

sys.path.insert(0, str(Path(__file__).parents[1]))

from segments import model, pictures

CROP = "crop:padding=4,flip=random"
CANONICAL, IMAGES = "maps:gradcam:tap=encoder.4,of=canonical", "maps:gradcam:tap=encoder.4"


@pytest.fixture(scope="module")
def data():
    return pictures()


@pytest.fixture(scope="module")
def live():
    return LiveTeacher(model(16))


def batches(data, augment=CROP, epoch=1):
    return list(Batches(data.train, 16, augment=AUGMENTS.build(augment), variants=4).epoch(epoch))


@pytest.mark.parametrize("augment", [CROP, "resized_crop:flip=random"])
def test_stored_answers_equal_those_for_the_very_crop(data, live, tmp_path, augment):
    needs = ["logits", "features:encoder.4", IMAGES]
    recording, reading = StoredTeacher(tmp_path, live), StoredTeacher(tmp_path)
    for batch in batches(data, augment):
        theirs, made = live(batch, needs), recording(batch, needs)
        again = reading(batch, needs)
        assert torch.equal(made.logits, again.logits) and torch.equal(made.maps[IMAGES], again.maps[IMAGES])
        scale = theirs.logits.abs().flatten(1).amax(1)[:, None, None, None]
        assert ((again.logits - theirs.logits).abs() <= scale * 2**-11).all()
        assert torch.equal(again.targets[IMAGES], theirs.targets[IMAGES])
    assert reading.recorded == 0


def test_maps_of_the_whole_image_move_with_their_places(data, live, tmp_path):
    stored = StoredTeacher(tmp_path, live)
    for batch in batches(data)[:2]:
        one, other = live(batch, [CANONICAL]), stored(batch, [CANONICAL])
        assert torch.equal(one.targets[CANONICAL], other.targets[CANONICAL])
        assert torch.allclose(one.maps[CANONICAL], other.maps[CANONICAL], rtol=2e-3, atol=1e-3)
        whole = live(batch.untransformed(), [IMAGES]).targets[IMAGES]
        for at in range(len(batch)):
            # shifts by an even number of pixels copy the places of the half-size grid exactly
            down, across = (int(side) for side in batch.geometry.box[at, :2])
            if down % 2 or across % 2:
                continue
            expected = np.full((12, 16), -1)
            for row in range(12):
                for column in range(16):
                    place = row + down // 2, (15 - column if batch.geometry.flip[at] else column) + across // 2
                    if 0 <= place[0] < 12 and 0 <= place[1] < 16:
                        expected[row, column] = whole[at][place]
            assert np.array_equal(one.targets[CANONICAL][at].numpy(), expected)


def test_the_largest_at_each_place_have_the_stated_error(data, live, tmp_path):
    need = "logits:top=2"
    stored = StoredTeacher(tmp_path, live)
    for batch in batches(data)[:2]:
        whole, small = live(batch, ["logits"]).logits, stored(batch, [need]).logits
        exact = unlevelled(*levelled(whole, 2), whole.shape[1])
        error = (exact.flatten(1).amax(1) - exact.flatten(1).amin(1)) / 510
        assert ((small - exact).abs().flatten(1).amax(1) <= error * 1.01).all()
        assert torch.equal(exact.topk(2, 1).indices.sort(1).values, whole.topk(2, 1).indices.sort(1).values)
        assert torch.allclose(exact.exp().sum(1), whole.exp().sum(1), rtol=1e-4)


def test_small_records_of_camvid_fit_the_budget():
    """367 images of 96 × 128 with 11 classes: three classes at each place take less than 40 MB a variant."""
    record = np.dtype([("sum", "<u4"), *Largest(3, 11, dense=True).fields((11, 96, 128))])
    assert 367 * record.itemsize < 40e6


def test_another_images_answers_are_dense_too(data, live):
    batch = batches(data)[0]
    permuted = PermutedTeacher(live)
    permuted_answer, own = permuted(batch, ["logits", IMAGES]), live(batch, ["logits", IMAGES])
    assert permuted_answer.logits.shape == own.logits.shape
    assert permuted_answer.targets[IMAGES].shape == own.targets[IMAGES].shape
    assert not torch.equal(permuted_answer.logits, own.logits)


def test_the_mean_of_teachers_explains_its_own_places(data, live):
    batch = batches(data)[0]
    teachers = [live, LiveTeacher(model(16, seed=1))]
    answer = MeanTeacher(teachers)(batch, ["logits", IMAGES, CANONICAL])
    assert torch.equal(answer.targets[IMAGES], data.task.explained(answer.logits))
    assert answer.targets[CANONICAL].shape == (16, 12, 16)
