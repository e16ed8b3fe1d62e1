"""Whole groups on one side of a split, disjoint parts, and rows of one value."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from distilens.data import Rows, Source, from_arrays, subset
from distilens.data.copies import Copies
from distilens.data.groups import choose_part, groups_of, hold_out_groups, nearest_choice, where_rows
from distilens.data.subset import take_set
from distilens.foundation.errors import UserError
from distilens.tasks import VOID, Segmentation, as_task

NAMES = ("ant", "bee")


def rows_of(people, labels, dense=False):
    """Images named person_number.png, with the person in a column too."""
    count = len(people)
    images = np.random.default_rng(0).integers(0, 256, (count, 4, 5, 3), dtype=np.uint8)
    targets = np.asarray(labels, dtype=np.int64)
    if dense:
        targets = np.where(targets[:, None, None] < 0, VOID, np.arange(20).reshape(4, 5) % 2).astype(np.uint8)
    names = tuple(f"{person}_{number}.png" for number, person in enumerate(people))
    return Rows(images, targets, None, names, {"person": lambda: np.array(people, dtype=object)})


def source_of_people(dense=False, own=False):
    """60 images of 15 people, 1 to 7 images each; a label of each kind for each."""
    random = np.random.default_rng(1)
    sizes = [1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4, 5, 6, 7, 4]
    people = random.permutation([f"p{number:02}" for number, size in enumerate(sizes) for _ in range(size)])
    labels = np.arange(len(people)) % 2
    task = Segmentation(NAMES) if dense else as_task(NAMES)
    test = rows_of(["p03", "x1", "x1", "x2"], [0, 1, 0, 1], dense) if own else None
    return Source(rows_of(people.tolist(), labels, dense), test, None, task, "people")


def people_of(split):
    return set(split.rows.column("person")[split.index])


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("group", ["person", r"^(p\d+)_"])
def test_a_group_is_on_one_side(dense, group):
    data = subset(source_of_people(dense), "people", group=group, val_fraction=0.25)
    sides = [people_of(split) for split in data.splits.values()]
    assert all(sides) and not any(one & other for one, other in itertools.combinations(sides, 2))
    assert sum(map(len, data.splits.values())) == 60
    assert len(data.test) == 12 and len(data.validation) == 12  # a fifth of 60, and a quarter of the other 48
    assert any(f"group={group}: whole groups stay together" in line for line in data.inventory.remarks)
    again = subset(source_of_people(dense), "people", group=group, val_fraction=0.25)
    assert np.array_equal(again.validation.index, data.validation.index) and again.fingerprint == data.fingerprint
    other = subset(source_of_people(dense), "people", group=group, val_fraction=0.25, seed=1)
    assert np.array_equal(other.test.index, data.test.index) and other.fingerprint != data.fingerprint
    assert not np.array_equal(other.validation.index, data.validation.index)


def test_an_own_set_that_shares_groups_is_reported():
    data = subset(source_of_people(own=True), "people", group="person")
    assert any(
        "1 of 4 test images are of groups that are in train too (p03): the test set is the source's own" in line
        for line in data.inventory.remarks
    )
    assert people_of(data.train).isdisjoint(people_of(data.validation))


@pytest.mark.parametrize("counts", [[5, 5, 5], [1, 9], [2, 3, 7, 8, 1], list(range(1, 13))])
@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.6])
def test_of_few_groups_the_nearest_choice_is_taken(counts, fraction):
    counts = np.array(counts, dtype=float)
    chosen = nearest_choice(counts[:, None], fraction, np.random.default_rng(0))
    every = [
        abs(sum(some) - fraction * counts.sum())
        for size in range(1, len(counts))
        for some in itertools.combinations(counts, size)
    ]
    assert 0 < chosen.sum() < len(counts)
    assert abs(counts[chosen].sum() - fraction * counts.sum()) == pytest.approx(min(every))


def test_of_many_groups_the_share_and_the_classes_are_met():
    random = np.random.default_rng(0)
    counts = random.integers(0, 8, (60, 3)).astype(float)
    chosen = nearest_choice(counts, 0.2, random)
    assert abs(counts[chosen].sum() / counts.sum() - 0.2) < 0.01
    assert np.abs(counts[chosen].sum(0) / counts.sum(0) - 0.2).max() < 0.06


def test_a_class_keeps_training_images():
    """Only group 0 has class 1 beside group 1: it must not lose both, although that would fit the share best."""
    counts = np.array([[0, 5], [0, 5], [10, 0], [10, 0], [10, 1]], dtype=float)
    for seed in range(5):
        chosen = nearest_choice(counts, 0.25, np.random.default_rng(seed))
        assert (counts[~chosen].sum(0) > 0).all()
    with pytest.raises(
        UserError, match=r"person: however whole groups are held out, 1 class\(es\) have no training image"
    ):
        hold_out_groups(np.array(["a", "a", "b"]), np.array([0, 0, 1]), 0.5, np.random.default_rng(0), "person")


def test_too_few_groups():
    with pytest.raises(UserError, match=r"group=person makes 1 group .* \(one\): at least two are needed"):
        subset(Source(rows_of(["one"] * 10, np.arange(10) % 2), None, None, as_task(NAMES), "x"), "x", group="person")
    two = Source(rows_of(["one"] * 9 + ["two"] * 5, np.arange(14) % 2), None, None, as_task(NAMES), "x")
    with pytest.raises(UserError, match="group=person makes 1 group"):  # test takes one, validation finds one
        subset(two, "x", group="person")


def test_rows_without_a_label_leave_train_with_their_group():
    people = ["a"] * 4 + ["b"] * 4 + ["c"] * 4 + ["d"] * 4
    labels = [0, 1, -1, -1] * 3 + [-1] * 4
    data = subset(
        Source(rows_of(people, labels), None, None, as_task(NAMES), "x"), "x", group="person", val_fraction=0.3
    )
    sides = [people_of(split) for split in data.splits.values()]
    assert sorted(map(len, sides)) == [1, 1, 2] and "d" in sides[0]
    assert len(data.train) == 8 and len(data.test) == len(data.validation) == 2


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("persn", r"there is no column 'persn' in the train set\. Did you mean 'person'\? Its columns: person, path"),
        ("p(0)(1)", "the expression has 2 groups, expected one"),
        ("p(0", "is not a regular expression"),
        ("(q.)_", r"60 of 60 images of train have no group; the first is p\d\d_0.png"),
    ],
)
def test_groups_at_fault(group, message):
    with pytest.raises(UserError, match=message):
        subset(source_of_people(), "x", group=group)


def test_without_names_a_pattern_is_refused():
    rows = Rows(np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 1]))
    with pytest.raises(UserError, match="the images have no file names in the train set"):
        groups_of(rows, "(a)", "train")


def test_parts_are_disjoint_and_together_everything():
    whole = subset(source_of_people(), "x")
    parts = [subset(source_of_people(), "x", part=f"{k}/4") for k in (1, 2, 3, 4)]
    every = np.concatenate([data.train.index for data in parts])
    assert sorted(every.tolist()) == whole.train.index.tolist()
    assert len({data.fingerprint for data in (whole, *parts)}) == 5
    assert max(len(data.train) for data in parts) - min(len(data.train) for data in parts) <= 1
    for data in parts:
        assert np.array_equal(data.test.index, whole.test.index) and np.array_equal(
            data.validation.index, whole.validation.index
        )
        assert abs(np.diff(np.bincount(data.train.labels))[0]) <= 1
    other = subset(source_of_people(), "x", part="1/4", draw=5)
    assert not np.array_equal(other.train.index, parts[0].train.index) and np.array_equal(
        other.test.index, whole.test.index
    )


def test_parts_keep_groups_together():
    parts = [subset(source_of_people(), "x", part=f"{k}/3", group="person") for k in (1, 2, 3)]
    people = [people_of(data.train) for data in parts]
    assert not any(one & other for one, other in itertools.combinations(people, 2))
    sizes = [len(data.train) for data in parts]
    assert sum(sizes) == len(subset(source_of_people(), "x", group="person").train) and max(sizes) - min(sizes) <= 7


@pytest.mark.parametrize("part", ["0/4", "5/4", "1", "a/b", "1/0"])
def test_parts_at_fault(part):
    with pytest.raises(UserError, match=rf"part={part}: expected k/n with k from 1 to n"):
        choose_part(part, np.zeros(10), None, np.random.default_rng(0))


def test_more_parts_than_images_or_groups():
    with pytest.raises(UserError, match="there are 3 training images, fewer than 4"):
        choose_part("1/4", np.zeros(3), None, np.random.default_rng(0))
    with pytest.raises(UserError, match=r"there are 2 groups in train \(a, b\), fewer than 3"):
        choose_part("1/3", np.zeros(4), np.array(list("aabb")), np.random.default_rng(0))


@pytest.mark.parametrize("dense", [True, False])
def test_few_images_keep_their_targets_and_all_stay(dense):
    whole = subset(source_of_people(dense), "x")
    data = subset(source_of_people(dense), "x", few=16)
    assert np.array_equal(data.train.index, whole.train.index)
    known = data.train.strata >= 0
    assert known.sum() == 16
    assert np.array_equal(data.train.targets[known], whole.train.targets[known])
    assert (data.train.targets[~known] == (VOID if dense else -1)).all()
    for name in ("validation", "test"):  # validation is held out of the same rows, and keeps its targets
        assert np.array_equal(getattr(data, name).targets, getattr(whole, name).targets)
    fewer = subset(source_of_people(dense), "x", few=6)
    assert set(np.flatnonzero(fewer.train.strata >= 0)) < set(np.flatnonzero(known))
    assert len({fewer.fingerprint, data.fingerprint, whole.fingerprint}) == 3
    assert data.train.origin == whole.train.origin  # answers that need no labels serve both
    other = subset(source_of_people(dense), "x", few=16, draw=3)
    assert not np.array_equal(other.train.strata, data.train.strata)
    if not dense:
        assert np.bincount(data.train.labels[known]).tolist() == [8, 8]


def test_few_at_fault():
    with pytest.raises(UserError, match="few=500 asks for 500 labelled training images, but there are 44"):
        subset(source_of_people(), "x", few=500)
    with pytest.raises(UserError, match=r"few=1 leaves no labelled training image of 'bee'|of 'ant'"):
        subset(source_of_people(), "x", few=1)


def test_rows_of_one_value():
    data = subset(source_of_people(own=True), "x", where=r"path:^p0\d_")
    assert all(person.startswith("p0") for split in data.splits.values() for person in people_of(split))
    assert len(data.test) == 1 and len(data.train) + len(data.validation) == sum([1, 2, 3, 4, 5, 6, 7, 1, 2, 3])
    one = subset(source_of_people(dense=True), "x", where="person:p06")
    assert {person for split in one.splits.values() for person in people_of(split)} == {"p06"}
    assert sorted(map(len, one.splits.values())) == [1, 1, 5]
    gone = subset(source_of_people(dense=True, own=True), "x", where="person:p06")
    assert any(
        "where=person:p06 leaves no image of test: it is held out of train" in line for line in gone.inventory.remarks
    )
    assert gone.fingerprint != subset(source_of_people(dense=True, own=True), "x").fingerprint


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("person", "expected a column and a value, where=COLUMN:VALUE"),
        ("persn:a", "the train set has no column 'persn'. Did you mean 'person'"),
        ("person:nobody", "no training image has this value"),
        ("path:(", "is not a regular expression"),
    ],
)
def test_values_at_fault(where, message):
    with pytest.raises(UserError, match=message):
        subset(source_of_people(), "x", where=where)


def test_a_row_without_a_value_does_not_match():
    rows = Rows(
        np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 1]), columns={"a": lambda: np.array([None, "b"], dtype=object)}
    )
    assert where_rows(rows, "a:b", "train").tolist() == [False, True]


def test_options_of_classes_are_refused_for_masks():
    for option in ({"shots": 3}, {"classes": ("ant",)}, {"min_images": 2}):
        with pytest.raises(
            UserError, match="is about images of one class, but an image has several in the task segmentation"
        ):
            subset(source_of_people(dense=True), "x", **option)


def test_the_options_change_nothing_if_they_are_not_given():
    """The fingerprint of data without the options is the one of before, so that recorded answers stay valid."""
    images = np.zeros((10, 4, 4, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(10)
    assert from_arrays(images, np.arange(10) % 2).fingerprint == FINGERPRINT


FINGERPRINT = "2d06988f70fc0011"


def test_all_images_can_come_from_one_set():
    """Of a drive that only the test set has, for example. Stored answers stay valid: the rows are those of the test set."""
    source = source_of_people(own=True)
    swapped = replace(source, train=source.test, test=source.train, copies=(
        Copies(True, (("test", 3), ("test", 5), ("train", 0)), ("a", "b", "c")),
        Copies(True, (("test", 7), ("train", 1)), ("d", "e")),
    ))  # fmt: skip
    data = subset(swapped, "x", from_split="test", group="person", val_fraction=0.25)
    assert sum(map(len, data.splits.values())) == 60
    assert all(split.rows is swapped.test for split in data.splits.values())
    plain = subset(swapped, "x", group="person")
    assert {split.origin for split in data.splits.values()} == {plain.test.origin}
    assert data.fingerprint != subset(replace(swapped, train=source.train, test=None), "x", group="person").fingerprint
    assert take_set(swapped, "test").copies == (Copies(True, (("train", 3), ("train", 5)), ("a", "b")),)
    assert subset(source, "x", from_split="train").train.origin == subset(source, "x").train.origin
    with pytest.raises(UserError, match="from_split=validation: the data has no such set; it has train, test"):
        subset(source, "x", from_split="validation")


def test_rows_that_are_not_used_need_no_group():
    source = source_of_people()
    with pytest.raises(UserError, match=r"group=p0\(\\d\): 26 of 60 images of train have no group"):
        subset(source, "x", group=r"p0(\d)")
    data = subset(source, "x", where="path:^p0", group=r"p0(\d)", val_fraction=0.3)
    sides = [people_of(split) for split in data.splits.values()]
    assert set.union(*sides) == {f"p0{number}" for number in range(10)}
    assert all(sides) and not any(one & other for one, other in itertools.combinations(sides, 2))
