"""Which rows are trained on, validated on and tested on."""

import numpy as np
import pytest

from distilens.data import Data, Rows, Source, from_arrays, load, source_of, subset
from distilens.foundation.errors import UserError
from distilens.tasks import as_task

NAMES = ("ant", "bee", "cat", "dog")


def rows(counts, start=0):
    """A labelled set whose image k is filled with the number start + k; `counts` may count the label -1 too."""
    labels = np.concatenate([np.full(count, label) for label, count in counts.items()])
    labels = np.random.default_rng(start).permutation(labels)
    images = np.broadcast_to((start + np.arange(len(labels)))[:, None, None, None] % 256, (len(labels), 4, 5, 3))
    return Rows(images.astype(np.uint8), labels.astype(np.int64))


@pytest.fixture
def source():
    train = rows({0: 100, 1: 60, 2: 40, 3: 20, -1: 10})
    test = rows({0: 10, 1: 10, 2: 10, 3: 10, -1: 3}, start=1)
    return Source(train, test, None, as_task(NAMES), "content", ("a.png: broken",))


def counts(split):
    return np.bincount(split.labels + 1, minlength=len(NAMES) + 1).tolist()


def test_validation_is_held_out_of_train_stratified(source):
    data = subset(source, "mine")
    assert counts(data.validation) == [0, 10, 6, 4, 2]
    assert counts(data.train) == [10, 90, 54, 36, 18]
    assert counts(data.test) == [0, 10, 10, 10, 10]  # rows without a label cannot be tested on
    assert not set(data.train.index) & set(data.validation.index)
    assert sorted([*data.train.index, *data.validation.index]) == list(range(230))
    for split in (data.train, data.validation, data.test):
        assert split.index.dtype == np.int64
        assert (np.diff(split.index) > 0).all()
        assert len(split) == len(split.index)
    assert data.train.rows.images is source.train.images
    assert data.size == (4, 5)
    assert (data.name, data.classes, data.seed, data.skipped) == ("mine", NAMES, 0, ("a.png: broken",))
    assert data.source_fingerprint == "content"


def test_the_same_seed_draws_the_same_rows_and_another_seed_others(source):
    same = [subset(source, "a", seed=7, shots=3, limit=100) for _ in range(2)]
    np.testing.assert_array_equal(same[0].train.index, same[1].train.index)
    np.testing.assert_array_equal(same[0].validation.index, same[1].validation.index)
    assert same[0].fingerprint == same[1].fingerprint
    other = subset(source, "a", seed=8, shots=3, limit=100)
    assert not np.array_equal(other.validation.index, same[0].validation.index)
    assert other.fingerprint != same[0].fingerprint


def test_every_option_changes_the_fingerprint_and_the_name_does_not(source):
    changes = [{}, {"limit": 50}, {"shots": 3}, {"classes": ("ant", "bee")}, {"val_fraction": 0.2}, {"seed": 1}]
    found = {subset(source, "a", **change).fingerprint for change in changes}
    assert len(found) == len(changes)
    assert subset(source, "a").fingerprint == subset(source, "b").fingerprint


def test_limit_keeps_the_shares_of_the_classes(source):
    data = subset(source, "a", limit=52)
    assert len(data.train) == 52
    assert counts(data.train) == pytest.approx([2.5, 22.5, 13.5, 9, 4.5], abs=1)
    assert len(data.validation) == 22
    assert len(data.test) == 40
    smoke = subset(source, "a", limit=8)
    assert counts(smoke.test) == [0, 2, 2, 2, 2]
    assert len(smoke.validation) == 8
    assert len(subset(source, "a", limit=10**6).train) == 208


def test_a_smaller_limit_or_shots_is_a_part_of_a_larger_one(source):
    for option in ("limit", "shots"):
        small, large = (subset(source, "a", **{option: count}) for count in (5, 9))
        assert set(small.train.index) < set(large.train.index)
        assert set(small.validation.index) <= set(large.validation.index)


def test_shots_leaves_validation_alone_and_keeps_what_has_no_label(source):
    data, whole = subset(source, "a", shots=7), subset(source, "a")
    assert counts(data.train) == [10, 7, 7, 7, 7]
    np.testing.assert_array_equal(data.validation.index, whole.validation.index)
    assert set(data.train.index) < set(whole.train.index)


@pytest.mark.parametrize("options", [{"limit": 60}, {"shots": 5}, {"limit": 100, "shots": 5}])
def test_another_draw_takes_other_training_images_and_leaves_the_rest(source, options):
    usual, same, other = (subset(source, "mine", draw=draw, **options) for draw in (None, 0, 3))
    assert np.array_equal(usual.train.index, same.train.index)
    assert counts(other.train) == counts(usual.train)
    assert set(other.train.index) != set(usual.train.index)
    for part in ("validation", "test"):
        assert np.array_equal(getattr(usual, part).index, getattr(other, part).index)
    assert not set(other.train.index) & set(other.validation.index)
    assert len({data.fingerprint for data in (usual, same, other)}) == 3
    assert subset(source, "mine", draw=3).fingerprint == subset(source, "mine").fingerprint


def test_too_many_shots(source):
    with pytest.raises(UserError) as error:
        subset(source, "a", shots=20)
    assert str(error.value) == (
        "shots=20 asks for 20 training images of every class, but 'dog' has 18 (after validation and limit). "
        "Ask for fewer, or leave the class out with classes=[...]"
    )


@pytest.mark.parametrize("classes", [("cat", "ant"), ("2", "0"), (2, 0), ("cat", 0)])
def test_classes_by_name_or_position_are_counted_in_the_order_given(source, classes):
    data = subset(source, "a", classes=classes)
    assert data.classes == ("cat", "ant")
    assert counts(data.train) == [10, 36, 90, 0, 0]
    assert counts(data.test) == [0, 10, 10, 0, 0]
    before = source.train.labels[data.train.index]
    np.testing.assert_array_equal(np.where(before == 2, 0, np.where(before == 0, 1, -1)), data.train.labels)
    # Stored answers are kept by row of the source, whatever was chosen from it.
    np.testing.assert_array_equal(data.train.rows.images, source.train.images)


def test_names_that_are_numbers_come_before_positions(source):
    data = subset(Source(source.train, source.test, None, as_task(("3", "2", "1", "0")), "f"), "a", classes=("3", "2"))
    assert data.classes == ("3", "2")
    assert counts(data.train)[1] == 90


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("cats",), r"unknown class 'cats'\. Did you mean 'cat'\? Known: ant, bee, cat, dog"),
        ((4,), "unknown class 4"),
        ((-1,), "unknown class -1"),
        (("cat", 2), r"classes=\[...\] names 'cat' twice; give each class once"),
        ((), "names no class"),
    ],
)
def test_classes_that_are_not_there(source, classes, message):
    with pytest.raises(UserError, match=message):
        subset(source, "a", classes=classes)


def test_a_validation_set_of_the_sources_own_is_used(source):
    own = rows({0: 5, 1: 5, 2: 5, 3: 5}, start=2)
    data = subset(Source(source.train, source.test, own, as_task(NAMES), "f"), "a", val_fraction=0.5)
    assert data.validation.rows is own
    assert len(data.validation) == 20
    assert len(data.train) == 230


def test_without_a_test_set_a_fifth_is_held_out_the_same_for_every_seed(source):
    one, two = (subset(Source(source.train, None, None, as_task(NAMES), "f"), "a", seed=seed) for seed in (0, 1))
    assert counts(one.test) == [0, 20, 12, 8, 4]
    np.testing.assert_array_equal(one.test.index, two.test.index)
    assert not np.array_equal(one.validation.index, two.validation.index)
    parts = [set(split.index) for split in (one.train, one.validation, one.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 230


def test_at_least_one_image_of_a_class_validates_and_trains():
    few = Source(rows({0: 3, 1: 2}), rows({0: 1, 1: 1}), None, as_task(NAMES[:2]), "f")
    data = subset(few, "a", val_fraction=0.01)
    assert counts(data.validation)[1:3] == [1, 1]
    assert counts(data.train)[1:3] == [2, 1]
    most = subset(few, "a", val_fraction=0.99)
    assert counts(most.train)[1:3] == [1, 1]


def test_a_class_with_one_image(source):
    with pytest.raises(UserError) as error:
        subset(Source(rows({0: 5, 1: 1}), source.test, None, as_task(NAMES[:2]), "f"), "a")
    assert str(error.value) == (
        "too few training images in 1 of 2 classes: 'bee' 1 (and 10 to test). Each needs 2, as validation images are held "
        "out of them. Add images"
    )


def test_a_test_set_without_the_chosen_classes(source):
    with pytest.raises(UserError, match="the test set has no image of the classes ant, bee"):
        subset(Source(source.train, rows({3: 4}), None, as_task(NAMES), "f"), "a", classes=("ant", "bee"))


def test_from_arrays():
    images, labels = np.arange(40 * 12, dtype=np.uint16).astype(np.uint8).reshape(40, 2, 2, 3), np.arange(40) % 2
    data = from_arrays(images, labels, masks=images[..., 0] > 3, test=(images[:4], labels[:4]))
    assert isinstance(data, Data)
    assert data.classes == ("0", "1")
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 4)
    assert set(np.unique(data.train.rows.masks)) == {0, 255}
    assert load(data) is data
    grey = from_arrays(images[..., 0], labels, classes=("even", "odd"))
    assert grey.train.rows.images.shape == (40, 2, 2, 3)
    assert (len(grey.train), len(grey.validation), len(grey.test)) == (28, 4, 8)
    assert grey.fingerprint != data.fingerprint
    tested = from_arrays(images, labels, test=Rows(images[:2], labels[:2]))
    assert len(tested.test) == 2
    assert source_of(images, labels).fingerprint != source_of(images + 1, labels).fingerprint


ZEROS = np.zeros((6, 2, 2, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "options", "message"),
    [
        (ZEROS - 1.0, [0, 1] * 3, {}, "the train images hold numbers from -1 to -1"),
        (ZEROS[..., :2], [0, 1] * 3, {}, r"the train images are \[6, 2, 2, 2\]: expected 1, 3 or 4 channels"),
        (ZEROS, [0, 1], {}, r"the train labels are int64 \[2\]; expected 6 integers"),
        (ZEROS, [0.5, 1.0] * 3, {}, "the train labels hold numbers that are not whole"),
        (ZEROS, [0, 1] * 3, {"masks": ZEROS}, r"the train masks are \[6, 2, 2, 3\]; expected \[6, 2, 2\]"),
        (ZEROS, [0, 1, 2] * 2, {"classes": ("a", "b")}, r"row 2 of train has the label 2: with 2 classes \(a, b\)"),
        (ZEROS, [0, -2] * 3, {}, "row 1 of train has the label -2"),
        (
            ZEROS,
            [0, 1] * 3,
            {"classes": "abc"},
            "too few training images in 1 of 3 classes: 'c' 0. Each needs 3, as test and",
        ),
        (ZEROS, [-1] * 6, {}, "the images have no classes: nothing can be learnt from that"),
        (ZEROS, [0, 1] * 3, {"test": (ZEROS, [0, 2] * 3)}, r"in 1 of 3 classes: '2' 0 \(and 3 to test\)"),
        (
            ZEROS,
            [0, 1] * 3,
            {"test": (ZEROS[:, :1], [0] * 6)},
            r"the test images are \[1, 2, 3\], those of train \[2, 2, 3\]",
        ),
    ],
)
def test_arrays_at_fault(images, labels, options, message):
    with pytest.raises(UserError, match=message):
        from_arrays(images, labels, **options)
