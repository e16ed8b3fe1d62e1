"""A stored teacher says what the teacher says, asks for nothing twice, and never answers with something else's records."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import pytest
import torch
from torch import nn

from distilens.core import Answer, Batch, Method, Model, Teacher
from distilens.data import Data, load
from distilens.data.augment import AUGMENTS
from distilens.data.pipeline import Batches
from distilens.foundation.errors import UserError
from distilens.methods import build_methods
from distilens.teachers import LiveTeacher, StoredTeacher
from distilens.teachers import records as store
from distilens.teachers.needs import Need
from distilens.training.log import Log
from distilens.training.loop import train
from distilens.training.settings import Training

AGAIN = "distilens record runs/x --again"
CAM = "maps:gradcam:of=canonical"
SOME = "maps:ig:steps=2,of=canonical,share=0.3,draw=x"
CLASS_MAPS = ["maps:gradcam:classes=all,pool=2", "maps:gradcam:classes=all,of=canonical,pool=2"]
NEEDS = [
    "logits",
    "features:last",
    CAM,
    "maps:ig:steps=2,target=label",
    "maps:gradcam:target=label,of=canonical",
    *CLASS_MAPS,
]
NEEDS += [SOME, "scores:confidence"]


def network(classes: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    made = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes),
    )  # fmt: skip
    with torch.no_grad():
        made[-1].weight *= 8  # so that images and variants are told apart well above rounding
    return made


def model_of(data: Data, seed: int = 0, name: str = "tiny") -> Model:
    return Model(network(len(data.classes), seed), data.classes, size=data.size, name=name)


@dataclass
class Counting(Teacher):
    """A teacher that notes what it is asked."""

    teacher: LiveTeacher
    asked: list[tuple[tuple[str, ...], list[int]]] = field(default_factory=list)

    @property
    def identity(self):
        return self.teacher.identity

    @property
    def precision(self):
        return self.teacher.precision

    def __call__(self, batch: Batch, needs: Sequence[str]) -> Answer:
        self.asked.append((tuple(needs), batch.index.tolist()))
        return self.teacher(batch, needs)

    def images(self, need: str) -> list[int]:
        """The images that were asked about, each as often as it was asked in a call of its own."""
        name = Need.parse(need).question
        return [image for needs, index in self.asked if name in needs for image in dict.fromkeys(index)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("stored")


@pytest.fixture(scope="module")
def data(place) -> Data:
    return load("shapes:train=80,test=40,size=16", place / "data")


@pytest.fixture(scope="module")
def live(data) -> LiveTeacher:
    return LiveTeacher(model_of(data))


@pytest.fixture
def teacher(live) -> Counting:
    return Counting(live)


def batches(given: Data, size: int = 20, *, augment: str = "crop:padding=2", seed: int = 0, **options) -> Batches:
    options = {"variant_seed": 0, **options}
    return Batches(given.train, size, augment=AUGMENTS.build(augment), seed=seed, **options)


def stored(folder, teacher=None, **options) -> StoredTeacher:
    said: list[str] = []
    made = StoredTeacher(folder, teacher, **{"again": AGAIN, "say": said.append, **options})
    made.said = said
    return made


def close(ours: Answer, theirs: Answer, *, mixed: float = 1e-5) -> None:
    """The same to float16 rounding: each value to 2^-11 of itself, or to `mixed` of the largest where it is a mean of others."""
    pairs = [(ours.logits, theirs.logits)]
    for kind in ("features", "maps", "scores"):
        assert getattr(ours, kind).keys() <= getattr(theirs, kind).keys()  # a live teacher may give features beside
        assert kind == "features" or getattr(ours, kind).keys() == getattr(theirs, kind).keys()
        pairs += [(value, getattr(theirs, kind)[key]) for key, value in getattr(ours, kind).items()]
    for mine, other in pairs:
        assert (mine is None) == (other is None)
        if mine is not None:
            assert mine.shape == other.shape and mine.dtype == other.dtype and mine.device == other.device
            # the teacher may have been asked about more images at once: float32's own rounding comes to it
            assert torch.allclose(mine, other, rtol=1.01 * 2.0**-11, atol=float(other.abs().max()) * mixed)
    assert ours.targets.keys() == theirs.targets.keys()
    for key, value in ours.targets.items():
        assert torch.equal(value, theirs.targets[key]), key


def same(ours: Answer, theirs: Answer) -> bool:
    """To the last bit."""
    kinds = ("features", "maps", "targets", "scores")
    pairs = [(getattr(ours, kind)[key], getattr(theirs, kind)[key]) for kind in kinds for key in getattr(ours, kind)]
    pairs += [(ours.logits, theirs.logits)] if ours.logits is not None else []
    assert pairs, "nothing was compared"
    return all(torch.equal(mine, other) for mine, other in pairs)


# what is said


@pytest.mark.parametrize("augment", ["crop:padding=2", "resized_crop:jitter=0.3,erase=0.5", "crop:mix=cutmix", "none"])
def test_it_says_what_the_teacher_says_when_recording_and_when_reading(tmp_path, data, live, augment):
    for epoch in (0, 1):
        recording, reading = stored(tmp_path, live), stored(tmp_path)
        for batch in list(batches(data, augment=augment).epoch(epoch))[:2]:
            needs = [need for need in NEEDS if "mix" not in augment or "canonical" not in need]
            expected = live(batch, needs)
            close(recording(batch, needs), expected, mixed=2.0**-11 if augment.startswith("resized") else 1e-5)
            assert same(reading(batch, needs), recording(batch, needs))


def test_variants_are_told_apart(tmp_path, data, live):
    """Else the tests of exactness would prove nothing."""
    loaded = batches(data)
    first, second = (loaded.batch(torch.arange(20), None, epoch, 0.0) for epoch in (0, 1))
    answers = [stored(tmp_path, live)(batch, NEEDS) for batch in (first, second)]
    for one, other in ((answers[0].logits, answers[1].logits), (answers[0].maps[CAM], answers[1].maps[CAM])):
        apart = (one - other).flatten(1).abs().amax(1) > 2.0**-9 * one.abs().max()
        assert apart.float().mean() > 0.8
    assert torch.equal(answers[0].scores["confidence"], answers[1].scores["confidence"])


@pytest.mark.parametrize("size", [16, 20, 37])
def test_in_bfloat16_logits_and_features_are_the_same_bits(tmp_path, data, live, size):
    needs = ["logits", "features:last"]
    with torch.autocast("cpu", torch.bfloat16):
        teacher = stored(tmp_path, live)
        for batch in batches(data, size).epoch(2):
            expected = live(batch, needs)
            assert same(teacher(batch, needs), expected)
            assert same(stored(tmp_path)(batch, needs), expected)
    exact = live(batch, needs)
    assert not torch.equal(exact.logits, expected.logits), "bfloat16 was not used"


def test_maps_and_scores_are_float32s_in_any_precision(tmp_path, data, live):
    batch = next(batches(data).epoch(0))
    needs = [CAM, "scores:confidence"]
    expected = live(batch, needs)
    with torch.autocast("cpu", torch.bfloat16):
        within = live(batch, needs)
        close(stored(tmp_path, live)(batch, needs), expected)
    assert torch.allclose(within.maps[CAM], expected.maps[CAM], rtol=1e-5, atol=1e-6)
    assert torch.allclose(within.scores["confidence"], expected.scores["confidence"], rtol=1e-5, atol=1e-6)
    close(stored(tmp_path)(batch, needs), expected)


@pytest.mark.parametrize("needs", [["logits:top=3"], ["logits:top=2", "logits:top=5"], ["logits:top=3", "logits"]])
def test_the_largest_logits_are_the_same_live_and_stored(tmp_path, data, live, needs):
    for batch in batches(data).epoch(1):
        expected = live(batch, needs)
        close(stored(tmp_path, live)(batch, needs), expected)
        close(stored(tmp_path)(batch, needs), expected)
        kinds = {len(row.unique()) for row in expected.logits}
        assert kinds == {8} if "logits" in needs else max(kinds) <= 6


def test_an_approximation_is_never_taken_for_the_logits_themselves(tmp_path, data, live, teacher):
    batch = next(batches(data).epoch(0))
    stored(tmp_path, live)(batch, ["logits:top=2"])
    asked = stored(tmp_path, teacher)
    close(asked(batch, ["logits"]), live(batch, ["logits"]))
    assert asked.recorded == 20


def test_with_bytes_for_maps_they_are_within_half_a_level(tmp_path, data, live):
    needs = ["maps:ig:steps=2,target=label", "logits"]
    batch = next(batches(data).epoch(0))
    found, expected = stored(tmp_path, live, maps="uint8")(batch, needs), live(batch, needs)
    maps, exact = found.maps[needs[0]].flatten(1), expected.maps[needs[0]].flatten(1)
    level = (exact.amax(1) - exact.amin(1))[:, None] / 255
    assert ((maps - exact).abs() <= level * 0.51).all()
    assert not torch.allclose(maps, exact, rtol=2.0**-11, atol=0), "these are not bytes"
    close(replace(found, maps={}, targets={}), replace(expected, maps={}, targets={}))


# what is asked


def test_nothing_is_asked_twice(tmp_path, data, live, teacher):
    first, seen = stored(tmp_path, teacher), []
    for batch in batches(data).epoch(0):
        first(batch, NEEDS)
        first(batch, NEEDS)
        seen += batch.index.tolist()
    for need in ("logits", "scores:confidence"):
        # the first image of all is asked about once more, to learn the shape of the answers
        assert len(teacher.images(need)) <= len({*teacher.images(need)}) + 1
        assert {*teacher.images(need)} == set(seen)
    before = len(teacher.asked)
    again = stored(tmp_path, teacher)
    for batch in batches(data).epoch(0):
        again(batch, NEEDS)
    assert (again.recorded, len(teacher.asked)) == (0, before)


def test_a_later_epoch_asks_only_for_what_is_new(tmp_path, data, teacher):
    first = stored(tmp_path, teacher)
    needs = ["logits", CAM]
    loaded = batches(data, ordered=True)  # all images, the last batch too
    for batch in loaded.epoch(0):
        first(batch, needs)
    assert first.recorded == 2 * len(data.train)
    for batch in loaded.epoch(1):
        first(batch, needs)
    assert first.recorded == 3 * len(data.train)  # logits of another variant, and the same maps


def test_needs_that_are_one_question_are_asked_once(tmp_path, data, teacher):
    first = stored(tmp_path, teacher)
    needs = ["maps:ig:steps=2,of=canonical", "maps:ig:of=canonical,steps=2", SOME]
    batch = next(batches(data).epoch(0))
    answer = first(batch, needs)
    assert torch.equal(answer.maps[needs[0]], answer.maps[needs[1]])
    rows = Need.parse(SOME).rows(batch)
    assert torch.equal(answer.maps[SOME][rows], answer.maps[needs[0]][rows])
    assert first.recorded == 20
    assert len(teacher.images("maps:ig:steps=2")) <= 21  # one of them to learn the shape


@pytest.mark.parametrize("share", [0.3, 0.0])
def test_only_the_images_that_are_drawn_are_explained(tmp_path, data, live, teacher, share):
    need = f"maps:ig:steps=2,of=canonical,share={share},draw=x"
    taught = stored(tmp_path, teacher)
    wanted = set()
    for batch in batches(data).epoch(0):
        answer, expected = taught(batch, [need]), live(batch, [need])
        drawn = batch.draw("x")[:, 0] < share
        wanted |= set(batch.index[drawn].tolist())
        assert not answer.maps[need][~drawn].any() and not answer.targets[need][~drawn].any()
        assert (answer.maps[need][drawn].flatten(1).abs().amax(1) > 0).all()
        assert torch.equal(answer.targets[need], expected.targets[need])
        assert torch.allclose(answer.maps[need], expected.maps[need], rtol=2.0**-10, atol=1e-6)
    made = set(teacher.images(need))
    # places that would go to repeats go to others; beyond them, one image may be asked about to learn the shape of its map
    assert wanted <= made and len(made) - taught.recorded in (0, 1)
    assert taught.recorded == (0 if share == 0 else 3 * 16)
    everything = stored(tmp_path, teacher)
    batch = next(batches(data).epoch(0))
    everything(batch, ["maps:ig:steps=2,of=canonical"])
    assert everything.recorded == (4 if share else 20)  # the others are the same records


def test_what_is_drawn_little_by_little_is_made_at_the_cost_of_all_at_once(tmp_path, data, teacher):
    need = "maps:ig:steps=2,of=canonical,share=0.1,draw=x"
    taught = stored(tmp_path, teacher)
    for epoch in range(20):
        for batch in batches(data).epoch(epoch):
            taught(batch, [need])
    places = sum(len(images) for _, images in teacher.asked)
    assert taught.recorded == len(data.train)
    # where repeats fill up, each image costs sixteen divided by how many are drawn
    assert places <= 3 * len(data.train)


def test_an_empty_selection_has_maps_of_the_same_shape_live_and_stored(tmp_path, data, live):
    need = "maps:gradcam:of=canonical,share=0,draw=x"
    batch = next(batches(data).epoch(0))
    ours, theirs = stored(tmp_path, live)(batch, [need]), live(batch, [need])
    assert ours.maps[need].shape == (20, 8, 8) and not ours.maps[need].any()
    assert theirs.maps[need].shape == ours.maps[need].shape


def test_parts_are_the_teachers_own_and_need_one(tmp_path, data, live):
    batch = next(batches(data).epoch(0))
    answer = stored(tmp_path, live)(batch, ["module:7", "logits"])
    assert answer.modules["7"] is live.model.network[7]
    assert answer.logits is not None
    anonymous = replace(batch, variant=None)  # a part is of no image
    assert stored(tmp_path, live)(anonymous, ["module:7"]).modules["7"] is live.model.network[7]
    with pytest.raises(UserError, match="module:7: a part of the teacher is not among its stored answers"):
        stored(tmp_path)(batch, ["module:7", "logits"])
    assert stored(tmp_path)(batch, []) == Answer() == stored(tmp_path, live)(batch, [])


# reading alone


def test_without_a_teacher_it_reads_what_is_there(tmp_path, data, live):
    batch = next(batches(data).epoch(0))
    kept = stored(tmp_path, live)(batch, NEEDS)
    reading = stored(tmp_path)
    assert same(reading(batch, NEEDS), kept)
    assert reading.recorded == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    order = torch.randperm(20)
    answer = stored(tmp_path)(batch.select(order), NEEDS)
    assert torch.equal(answer.logits, kept.logits[order])
    assert torch.equal(answer.maps[CAM], kept.maps[CAM][order])
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_without_a_teacher_what_is_not_there_is_an_error_with_the_command_to_record(tmp_path, data, live):
    loaded = batches(data)
    here, there = (loaded.batch(torch.arange(*ends), None, 0, 0.0) for ends in ((0, 20), (15, 25)))
    with pytest.raises(UserError, match=f"no answers to logits in .*Record them: {AGAIN}"):
        stored(tmp_path / "none")(here, ["logits"])
    assert not (tmp_path / "none").exists()
    stored(tmp_path, live)(here, ["logits"])
    index = data.train.index[20]
    with pytest.raises(UserError, match=f"5 answers to logits are not in .* index {index}, .*no teacher.*{AGAIN}"):
        stored(tmp_path)(there, ["logits"])
    with pytest.raises(UserError, match="20 answers to logits are not in"):
        stored(tmp_path)(loaded.batch(torch.arange(20), None, 1, 0.0), ["logits"])
    with pytest.raises(UserError, match="no answers to maps:gradcam"):
        stored(tmp_path)(here, [CAM])


@pytest.mark.parametrize("options", [{"augment": "crop:padding=3"}, {"variant_seed": 1}])
def test_without_a_teacher_other_pictures_are_refused_too(tmp_path, data, live, options):
    stored(tmp_path, live)(next(batches(data).epoch(0)), ["logits"])
    with pytest.raises(UserError, match=f"different inputs[^$]*{AGAIN}"):
        stored(tmp_path)(next(batches(data, **options).epoch(0)), ["logits"])


# what may be shared


@pytest.mark.parametrize(
    "choice",
    [
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("shots=3", "limit=24")),
        "shots=3,limit=40",
        "val_fraction=0.4",
    ],
)
def test_what_is_recorded_for_all_serves_any_choice_of_its_images(tmp_path, place, data, live, teacher, choice):
    recording = stored(tmp_path, live)
    for epoch in (0, 1):
        for batch in batches(data, ordered=True).epoch(epoch):
            recording(batch, NEEDS)
        for batch in Batches(data.validation, 20, augment=AUGMENTS.build("crop:padding=2"), ordered=True).epoch(epoch):
            recording(batch, NEEDS)  # which other choices train on
    few = load(f"shapes:train=80,test=40,size=16,{choice}", place / "data")
    assert 0 < len(few.train) < 72
    reading = stored(tmp_path, teacher)
    for epoch in (0, 1):
        for batch in batches(few, 10, seed=4).epoch(epoch):
            needs = [need for need in NEEDS if need != SOME]
            close(reading(batch, needs), live(batch, needs))
    assert (reading.recorded, teacher.asked) == (0, [])


def test_another_seed_of_the_run_reads_the_same_records(tmp_path, data, live, teacher):
    recording = stored(tmp_path, live)
    for epoch in range(2):
        for batch in batches(data, ordered=True).epoch(epoch):
            recording(batch, ["logits", "maps:ig:steps=2,of=canonical"])
    reading = stored(tmp_path, teacher)
    for seed, size in ((1, 20), (2, 15), (3, 64)):
        for epoch in range(2):
            for batch in batches(data, size, seed=seed).epoch(epoch):
                close(reading(batch, ["logits", SOME]), live(batch, ["logits", SOME]))
    assert (reading.recorded, teacher.asked) == (0, [])


def test_some_variants_are_the_first_of_all(tmp_path, data, live, teacher):
    recording = stored(tmp_path, live)
    for epoch in range(4):
        for batch in batches(data, ordered=True, variants=4).epoch(epoch):
            recording(batch, ["logits"])
    reading = stored(tmp_path, teacher)
    for variants, epochs in ((4, [4, 9, 3]), (0, range(4)), (2, range(6))):
        for epoch in epochs:
            for batch in batches(data, variants=variants).epoch(epoch):
                close(reading(batch, ["logits"]), live(batch, ["logits"]))
    assert reading.recorded == 0
    reading(next(batches(data).epoch(4)), ["logits"])
    assert reading.recorded == 20


def test_bytes_do_not_depend_on_who_was_asked_about_together(tmp_path, data, live):
    needs = ["logits", "features:last", CAM, "maps:ig:steps=2", "scores:confidence"]
    for name, size, seed in (("whole", 72, 0), ("odd", 7, 1), ("some", 20, 2), ("one", 1, 3)):
        teacher = stored(tmp_path / name, live)
        for epoch in (0, 1):
            for batch in islice(batches(data, size, seed=seed).epoch(epoch), 12):
                teacher(batch, needs)
    whole = {path.name: np.frombuffer(path.read_bytes(), np.uint8) for path in sorted((tmp_path / "whole").iterdir())}
    assert len(whole) == 2 * len(needs)
    for name in ("odd", "some", "one"):
        for path in sorted((tmp_path / name).iterdir()):
            if path.suffix == ".json":
                assert path.read_bytes() == whole[path.name].tobytes()
                continue
            each = store.read_json(path.with_suffix(".json"))["bytes"]
            found = np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, each)
            expected = whole[path.name].reshape(-1, each)[: len(found)]
            there = found.any(1)
            assert there.sum() >= 12
            assert np.array_equal(found[there], expected[there]), (name, path.name)


def test_it_does_not_matter_where_the_images_are_read(tmp_path, data, live):
    for name, resident in (("memory", True), ("disk", False)):
        teacher = stored(tmp_path / name, live)
        for batch in batches(data, resident=resident, workers=0).epoch(1):
            teacher(batch, ["logits", CAM])
    for path in (tmp_path / "memory").iterdir():
        assert path.read_bytes() == (tmp_path / "disk" / path.name).read_bytes()


# what is refused

REFUSED = {
    "weights": ({"seed": 1}, {}, {}, "logits", r"model, weights: recorded (\w+), this run (?!\1)\w+"),
    "model": ({"name": "other"}, {}, {}, "logits", "model, teacher: recorded tiny, this run other"),
    "augment": ({}, {"augment": "crop:padding=1"}, {}, "logits", "augment, padding: recorded 2, this run 1"),
    "flip": ({}, {"augment": "crop:padding=2,flip=none"}, {}, "logits", "augment, flip: recorded random, this run none"),
    "kind": ({}, {"augment": "resized_crop"}, {}, "logits", "augment, area: recorded None, this run"),
    "still": ({}, {"augment": "none"}, {}, "logits", "augment, padding: recorded 2, this run 0"),
    "jitter": ({}, {"augment": "crop:padding=2,jitter=0.1"}, {}, "logits", "jitter: recorded 0.0, this run 0.1"),
    "erase": ({}, {"augment": "crop:padding=2,erase=0.1"}, {}, "logits", "erase: recorded 0.0, this run 0.1"),
    "variant seed": ({}, {"variant_seed": 5}, {}, "logits", "variant seed: recorded 0, this run 5"),
    "maps of crops": ({}, {"variant_seed": 5}, {}, "maps:ig:steps=2,target=label", "variant seed: recorded 0, this run 5"),
    "features": ({"seed": 1}, {}, {}, "features:last", "weights: recorded"),
    "scores": ({"seed": 1}, {}, {}, "scores:confidence", "weights: recorded"),
    "maps": ({"seed": 1}, {}, {}, CAM, "weights: recorded"),
    "bytes": ({}, {}, {"maps": "uint8"}, CAM, "written as: recorded half, this run byte"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_records_of_something_else_are_refused_with_both_sides_and_the_command(tmp_path, data, live, case):
    model, pictures, options, need, text = REFUSED[case]
    stored(tmp_path, live)(next(batches(data).epoch(0)), NEEDS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    teacher = Counting(LiveTeacher(model_of(data, **model)) if model else live)
    with pytest.raises(UserError, match=f"different inputs:[^$]*{text}[^$]*\nRecord them again: {AGAIN}"):
        stored(tmp_path, teacher, **options)(next(batches(data, **pictures).epoch(0)), [need])
    assert teacher.asked == []
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("shapes:train=80,test=40,size=16,seed=1", "set: recorded"),
        ("shapes:train=120,test=40,size=16", "set: recorded"),
        ("shapes:train=80,test=40,size=24", "size: recorded .16, 16., this run .24, 24."),
    ],
)
@pytest.mark.parametrize("need", ["logits", CAM])
def test_records_of_other_data_are_refused(tmp_path, place, data, live, name, text, need):
    stored(tmp_path, live)(next(batches(data).epoch(0)), [need])
    other = load(name, place / "data")
    with pytest.raises(UserError, match=f"different inputs:[^$]*{text}[^$]*{AGAIN}"):
        stored(tmp_path, live)(next(batches(other).epoch(0)), [need])


def test_records_of_another_precision_are_refused(tmp_path, data, live):
    batch = next(batches(data).epoch(0))
    stored(tmp_path, live)(batch, NEEDS)
    with torch.autocast("cpu", torch.bfloat16):
        for need in ("logits", "features:last"):
            with pytest.raises(UserError, match="precision: recorded float32, this run bfloat16"):
                stored(tmp_path, live)(batch, [need])
        exact = [need for need in NEEDS if need.startswith(("maps", "scores"))]
        assert same(stored(tmp_path)(batch, exact), stored(tmp_path, live)(batch, exact))


def test_another_explainer_is_another_answer(tmp_path, data, live, teacher):
    batch = next(batches(data).epoch(0))
    first = stored(tmp_path, live)(batch, ["maps:ig:steps=2,of=canonical"])
    others = ["ig:steps=3", "ig:steps=2,baseline=zero", "ig:steps=2,target=label", "gradient"]
    for other in others:
        need = f"maps:{other}:of=canonical" if ":" not in other else f"maps:{other},of=canonical"
        reading, taught = stored(tmp_path), stored(tmp_path, teacher)
        with pytest.raises(UserError, match=f"no answers to maps:{other.partition(':')[0]}"):
            reading(batch, [need])
        answer = taught(batch, [need])
        assert taught.recorded == 20
        close(answer, live(batch, [need]))
        assert not torch.equal(answer.maps[need], first.maps["maps:ig:steps=2,of=canonical"])


def test_labels_that_count_other_classes_are_refused_where_they_matter(tmp_path, place, data, live):
    batch = next(batches(data, ordered=True).epoch(0))
    labelled = "maps:gradcam:of=canonical,target=label"
    stored(tmp_path, live)(batch, [labelled, CAM])
    other = load("shapes:train=80,test=40,size=16,classes=[ring,circle,star]", place / "data")
    answered = next(batches(other, ordered=True).epoch(0))
    with pytest.raises(UserError, match=r"labels: recorded (\w+), this run (?!\1)\w+"):
        stored(tmp_path, live)(answered, [labelled])
    close(stored(tmp_path, live)(answered, [CAM]), live(answered, [CAM]))  # of its own top-1, whatever the label


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_what_was_mixed_from_other_images_is_refused(tmp_path, place, data, live, mix):
    augment = f"crop:padding=2,mix={mix}"
    stored(tmp_path, live)(next(batches(data, augment=augment).epoch(0)), ["logits"])
    few = load("shapes:train=80,test=40,size=16,shots=4", place / "data")
    batch = next(batches(few, augment=augment).epoch(0))
    with pytest.raises(UserError, match=r"mixed from: recorded (\w+), this run (?!\1)\w+"):
        stored(tmp_path, live)(batch, ["logits"])
    for teacher in (stored(tmp_path, live), live):  # the map of one image says nothing of the other
        with pytest.raises(UserError, match="maps of=canonical are of one image, but mix= shows two"):
            teacher(batch, [CAM])


def test_evaluation_is_never_answered_from_the_records_of_training(tmp_path, data, live, teacher):
    taught = stored(tmp_path, teacher)
    needs = ["logits", CAM, "scores:confidence"]
    for batch in batches(data, ordered=True).epoch(0):
        taught(batch, needs)
    for reading in (stored(tmp_path, teacher), taught):
        validation = next(iter(Batches(data.validation, 8)))
        before = reading.recorded
        close(reading(validation, needs), live(validation, needs))
        assert reading.recorded - before == (24 if reading is not taught else 0)
        assert not set(validation.index.tolist()) & set(data.train.index.tolist())
        # images as they are, of the set that was trained on: not what was said of a crop of them
        plain = next(iter(Batches(data.train, 20)))
        close(reading(plain, ["logits"]), live(plain, ["logits"]))
        for needs_of_test in (["logits"], [CAM], ["scores:confidence"]):
            with pytest.raises(UserError, match=r"set: recorded (\w+), this run (?!\1)\w+"):
                reading(next(iter(Batches(data.test, 20))), needs_of_test)


def test_a_batch_that_does_not_say_what_it_shows_is_refused(tmp_path, data, live, teacher):
    batch = next(batches(data).epoch(0))
    stored(tmp_path, live)(batch, NEEDS)
    anonymous = replace(batch, variant=None)
    for need in NEEDS:
        with pytest.raises(UserError, match=r"does not say which variant .* Batch\(variant=\.\.\.\)"):
            stored(tmp_path, teacher)(anonymous, [need])
    assert teacher.asked == []


def test_answers_that_are_no_numbers_are_refused_with_the_images_and_nothing_is_kept(tmp_path, data, live):
    @dataclass
    class Broken(Counting):
        def __call__(self, batch: Batch, needs: Sequence[str]) -> Answer:
            answer = super().__call__(batch, needs)
            bad = (batch.index == data.train.index[3])[:, None]
            return replace(answer, logits=answer.logits.masked_fill(bad, float("nan")))

    batch = batches(data).batch(torch.arange(20), None, 0, 0.0)
    with pytest.raises(UserError, match=f"NaN or infinite .* index {data.train.index[3]}: not recorded"):
        stored(tmp_path, Broken(live))(batch, ["logits"])
    with pytest.raises(UserError, match=r"not in|no answers"):
        stored(tmp_path)(batch, ["logits"])


# damage


@pytest.fixture
def kept(tmp_path, data, live):
    """A folder with the answers to a batch, the batch, and the answers."""
    batch = batches(data).batch(torch.arange(20), None, 0, 0.0)
    return tmp_path / "answers", batch, stored(tmp_path / "answers", live)(batch, ["logits"]).logits


def heals(kept, live, *, damaged: int, named: int) -> None:
    """Without a teacher it is an error; with one, what was damaged is named, asked again, and whole from then on."""
    folder, batch, logits = kept
    with pytest.raises(UserError, match=f"{damaged} answers to logits are not in .*{AGAIN}"):
        stored(folder)(batch, ["logits"])
    teacher = stored(folder, live)
    assert torch.equal(teacher(batch, ["logits"]).logits, logits)
    assert teacher.recorded == damaged
    said = [line for line in teacher.said if "damaged records" in line]
    assert len(said) == (named > 0)
    if named:
        assert f"damaged records in {folder / 'logits.bin'}" in said[0] and "recorded again" in said[0]
        assert said[0].count("image ") == min(named, 5)
        assert (f"and {named - 5} more" in said[0]) == (named > 5)
    again = stored(folder)
    assert torch.equal(again(batch, ["logits"]).logits, logits)
    assert not any("damaged records" in line for line in again.said)


def test_damaged_records_are_named_and_recorded_again(kept, live, data):
    folder, _, _ = kept
    path = folder / "logits.bin"
    each = store.read_json(folder / "logits.json")["bytes"]
    chance = np.random.default_rng(0)
    images = chance.choice(20, 7, replace=False)
    content = bytearray(path.read_bytes())
    for image in images:
        row = int(data.train.index[image]) + 80
        content[row * each + int(chance.integers(each))] ^= 1 << int(chance.integers(8))
    path.write_bytes(content)
    teacher = stored(folder, live)
    with pytest.raises(UserError, match="7 answers"):
        stored(folder)(kept[1], ["logits"])
    heals(kept, live, damaged=7, named=7)
    assert teacher.recorded == 0


def test_a_damaged_record_is_named_by_its_image_and_variant(kept, live, data):
    folder, batch, _ = kept
    each = store.read_json(folder / "logits.json")["bytes"]
    content = bytearray((folder / "logits.bin").read_bytes())
    content[(int(data.train.index[4]) + 80) * each + 10] ^= 255
    (folder / "logits.bin").write_bytes(content)
    teacher = stored(folder, live)
    teacher(batch, ["logits"])
    (said,) = [line for line in teacher.said if "damaged records" in line]
    assert f"(image {data.train.index[4]} variant 0)" in said


def test_records_that_changed_places_are_recorded_again(kept, live, data):
    path = kept[0] / "logits.bin"
    each = store.read_json(kept[0] / "logits.json")["bytes"]
    records = np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, each).copy()
    rows = data.train.index[[2, 9]] + 80
    records[rows] = records[rows[::-1]]
    path.write_bytes(records.tobytes())
    heals(kept, live, damaged=2, named=2)


def test_a_file_that_was_cut_in_a_record_is_filled_up_again(kept, live, data):
    path = kept[0] / "logits.bin"
    each = store.read_json(kept[0] / "logits.json")["bytes"]
    with open(path, "r+b") as file:
        file.truncate((int(data.train.index[12]) + 80) * each + each // 2)
    heals(kept, live, damaged=8, named=0)


def test_garbage_at_the_end_is_no_answer(kept, live, data):
    folder, batch, logits = kept
    with open(folder / "logits.bin", "ab") as file:
        file.write(np.random.default_rng(0).bytes(10_000))
    assert torch.equal(stored(folder)(batch, ["logits"]).logits, logits)
    other = batches(data).batch(torch.arange(20, 40), None, 0, 0.0)
    with pytest.raises(UserError, match="20 answers"):
        stored(folder)(other, ["logits"])
    teacher = stored(folder, live)
    close(teacher(other, ["logits"]), live(other, ["logits"]))
    assert any("damaged records" in line for line in teacher.said)


def test_a_lost_description_is_an_error_without_a_teacher_and_written_again_with_one(kept, live):
    folder, batch, logits = kept
    text = (folder / "logits.json").read_bytes()
    (folder / "logits.json").unlink()
    with pytest.raises(UserError, match=f"no answers to logits in .*{AGAIN}"):
        stored(folder)(batch, ["logits"])
    teacher = stored(folder, live)
    assert torch.equal(teacher(batch, ["logits"]).logits, logits)
    assert (folder / "logits.json").read_bytes() == text
    assert torch.equal(stored(folder)(batch, ["logits"]).logits, logits)


def test_records_whose_description_was_lost_are_not_used_for_another_teacher(kept, data):
    folder, batch, _logits = kept
    (folder / "logits.json").unlink()
    other = LiveTeacher(model_of(data, seed=1))
    teacher = stored(folder, other)
    close(teacher(batch, ["logits"]), other(batch, ["logits"]))
    assert teacher.recorded == 20
    assert any("damaged records" in line for line in teacher.said)


@pytest.mark.parametrize("size", [0, 1, 100])
def test_a_description_cut_short_is_an_error_that_names_it(kept, live, size):
    folder, batch, _ = kept
    text = (folder / "logits.json").read_bytes()
    (folder / "logits.json").write_bytes(text[:size])
    for teacher in (None, live):
        with pytest.raises(UserError, match=r"logits\.json is not whole JSON"):
            stored(folder, teacher)(batch, ["logits"])


@pytest.mark.parametrize("text", ["{}", '{"need": "logits"}', '{"shape": [8]}', "[]"])
def test_a_description_of_something_else_is_an_error_in_words(kept, live, text):
    folder, batch, _ = kept
    (folder / "logits.json").write_text(text)
    for teacher in (None, live):
        with pytest.raises(UserError):
            stored(folder, teacher)(batch, ["logits"])


def test_records_copied_in_from_another_store_are_recorded_again(kept, data, live, tmp_path):
    folder, batch, _ = kept
    other = LiveTeacher(model_of(data, seed=1))
    stored(tmp_path / "other", other)(batch, ["logits"])
    shutil.copy(tmp_path / "other" / "logits.bin", folder / "logits.bin")
    heals(kept, live, damaged=20, named=20)


# the disk


def test_a_disk_that_is_too_small_for_all_is_refused_at_once(tmp_path, data, live, monkeypatch):
    batch = next(batches(data).epoch(0))
    room = [store.SPARE + len(data.train) * 24 * 3 - 1]  # a byte short
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, room[0]))
    with pytest.raises(UserError, match=r"the disk is full: 5\.\d kB of answers"):
        stored(tmp_path, live, variants=3)(batch, ["logits"])
    assert not (tmp_path / "logits.bin").exists()
    room[0] += 1000  # the file has places for the images of the set that are not trained on
    stored(tmp_path, live, variants=3)(batch, ["logits"])
    room[0] = store.SPARE  # reading needs no room
    assert stored(tmp_path)(batch, ["logits"]).logits is not None


def test_what_will_be_written_is_said_once(tmp_path, data, live):
    teacher = stored(tmp_path, live, variants=3)
    for batch in batches(data).epoch(0):
        teacher(batch, ["logits", CAM])
    logits, maps = teacher.said
    assert "logits: 24 bytes per image × 72 images × 3 variants" in logits
    assert "140 bytes per image × 72 images" in maps


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="a small disk is mounted by root")
def test_a_small_disk_is_never_filled(tmp_path, data, live):
    disk = tmp_path / "disk"
    disk.mkdir()
    # room for logits and maps, and for the features of some batches only
    size = store.SPARE + 200_000
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]).returncode:
        pytest.skip("no mount here")
    try:
        loaded = list(batches(data).epoch(0))
        stored(disk, live)(loaded[0], ["logits"])
        with pytest.raises(UserError, match=r"the disk is full: .* must be written in"):
            stored(disk, live, variants=10)(loaded[0], ["features:last"])
        teacher = stored(disk, live)  # one variant of them has room
        kept = [teacher(batch, ["features:last"]).features["last"] for batch in loaded[:2]]
        with open(disk / "other", "wb") as file:
            file.write(b"x" * (shutil.disk_usage(disk).free - store.SPARE - 5000))
        with pytest.raises(UserError, match="the disk is full"):
            teacher(loaded[2], ["features:last"])
        assert shutil.disk_usage(disk).free >= store.SPARE - 2**16  # files begin and end within a page
        reading = stored(disk)
        for batch, expected in zip(loaded, kept, strict=False):
            assert torch.equal(reading(batch, ["features:last"]).features["last"], expected)
        (disk / "other").unlink()
        close(teacher(loaded[2], ["features:last"]), live(loaded[2], ["features:last"]))
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)  # the records are still mapped


# the geometry


class Green(Teacher):
    """A teacher whose maps are the image's own green channel, in grey levels."""

    identity = {"teacher": "green"}
    precision = "float32"
    asked = 0

    def __call__(self, batch: Batch, needs: Sequence[str]) -> Answer:
        self.asked += len(batch)
        green = (batch.images[:, 1] * 255).round()
        return Answer(maps=dict.fromkeys(needs, green), targets=dict.fromkeys(needs, batch.labels))


@pytest.mark.parametrize("padding", [0, 1, 4, 20])
@pytest.mark.parametrize("flip", ["random", "alternate", "none"])
def test_maps_and_pixels_are_moved_as_one(tmp_path, data, padding, flip):
    need = "maps:gradcam:of=canonical"
    for epoch in range(4):
        for batch in batches(data, augment=f"crop:padding={padding},flip={flip}").epoch(epoch):
            expected = (batch.images[:, 1] * 255).round()
            assert torch.equal(stored(tmp_path, Green())(batch, [need]).maps[need], expected)
            assert torch.equal(stored(tmp_path)(batch, [need]).maps[need], expected)
            flipped = batch.geometry.flip.float().mean()
            assert flipped == 0 if flip == "none" else 0 < flipped < 1
    teacher = stored(tmp_path, Green())
    for batch in Batches(data.train, 20):  # and as they are
        assert torch.equal(teacher(batch, [need]).maps[need], (batch.images[:, 1] * 255).round())


def test_maps_of_crops_are_kept_for_each_and_not_moved(tmp_path, data):
    need = "maps:gradcam"
    for epoch in range(3):
        for batch in batches(data).epoch(epoch):
            teacher = stored(tmp_path, Green())
            assert torch.equal(teacher(batch, [need]).maps[need], (batch.images[:, 1] * 255).round())
            assert teacher.recorded == 20


def test_resampled_maps_are_the_teachers_own_moved_by_the_same_boxes(tmp_path, data):
    need = "maps:gradcam:of=canonical"
    for batch in batches(data, augment="resized_crop").epoch(0):
        found = stored(tmp_path, Green())(batch, [need]).maps[need]
        exact = batch.geometry.move((batch.canonical[:, 1] * 255).round())
        assert torch.equal(found, exact)
        assert (found - batch.images[:, 1] * 255).abs().mean() < 1  # which is what the pixels were


# training


class Maps(Method):
    """A loss that depends on every pixel of a map and on the class that it explains."""

    def __init__(self, *needs: str):
        super().__init__()
        self.needs = needs

    def loss(self, batch, output, answer):
        total = output.logits.new_zeros(len(batch))
        for need in self.needs:
            maps = answer.maps[need]
            ramp = torch.linspace(-1, 1, maps[0].numel()).sin().view(maps.shape[1:])
            level = output.logits.gather(1, answer.targets[need][:, None])[:, 0]
            total = total + (level - 3 * (maps * ramp).sum((1, 2))).square()
        return total


def terms_of(data: Data, teacher, methods: Sequence, **settings) -> list[dict[str, float]]:
    """The terms of every step of a training."""
    given = {"epochs": 3, "batch_size": 20, "optimizer": "sgd:lr=0.02", "precision": "float32", "log_every": 1}
    given |= {"augment": "crop:padding=2", **settings}
    log = Log()
    train(model_of(data, seed=7), build_methods(methods), data, Training(**given), teacher=teacher, log=log)
    return [row["terms"] for row in log.rows if "terms" in row]


METHODS = {
    "logits": ["ce:weight=0.5", "kd:temperature=2"],
    "maps": [Maps(CAM, SOME)],
    "labelled": ["ce", Maps("maps:gradcam:of=canonical,target=label", "maps:ig:steps=2,target=label")],
}


QUICK = [("logits", 2), ("maps", 0), ("labelled", 1)]
"""Each list of methods and each number of variants once; the other pairs are slow."""


@pytest.mark.parametrize(
    ("name", "variants"),
    [
        pytest.param(name, variants, marks=[] if (name, variants) in QUICK else [pytest.mark.slow])
        for name in METHODS
        for variants in (0, 1, 2)
    ],
)
def test_training_is_that_of_the_live_teacher(tmp_path, data, live, name, variants):
    methods = METHODS[name]
    expected = terms_of(data, live, methods, variants=variants)
    taught = stored(tmp_path, live)
    found = terms_of(data, taught, methods, variants=variants)
    assert len(found) == len(expected) == 9
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    # and again, from the records alone
    assert terms_of(data, stored(tmp_path), methods, variants=variants) == found
    images = 60 * {0: 3, 1: 1, 2: 2}[variants]
    if name == "logits":
        assert 0.75 * images < taught.recorded <= images * 1.2
    # while a teacher that is hardly another one is told apart
    other = LiveTeacher(model_of(data))
    with torch.no_grad():
        other.model.network[0].weight *= 1.05
    others = terms_of(data, other, methods, variants=variants)
    assert any(ours != pytest.approx(theirs, rel=1e-3) for ours, theirs in zip(others, expected, strict=True))


def test_training_in_bfloat16_is_the_same_to_the_last_bit(tmp_path, data, live):
    settings = {"precision": "bfloat16", "epochs": 2}
    expected = terms_of(data, live, METHODS["logits"], **settings)
    assert terms_of(data, stored(tmp_path, live), METHODS["logits"], **settings) == expected
    assert terms_of(data, stored(tmp_path), METHODS["logits"], **settings) == expected


def test_one_teacher_in_two_precisions_is_two_teachers(tmp_path, data, live):
    """One StoredTeacher serves several trainings: what the first recorded in bfloat16 is nothing for the second."""
    teacher, batch = stored(tmp_path, live), next(batches(data).epoch(0))
    with torch.autocast("cpu", torch.bfloat16):
        teacher(batch, ["logits"])
    with pytest.raises(UserError, match="precision: recorded bfloat16, this run float32"):
        teacher(batch, ["logits"])


def test_images_to_compare_with_are_part_of_what_answers_are_made_from(tmp_path, data, live, monkeypatch):
    from distilens.teachers import stored as module

    batch = next(batches(data).epoch(0))
    found = [module.pictures(batch.variant, Need.parse(f"maps:expected_gradients:data=[shapes:train={count},size=16]"))
             for count in (80, 96)]  # fmt: skip
    assert found[0]["reference"] != found[1]["reference"]
    assert "reference" not in module.pictures(batch.variant, Need.parse("maps:expected_gradients"))


def test_reading_alone_goes_by_what_is_written(tmp_path, data, live):
    batch = next(batches(data).epoch(0))
    expected = stored(tmp_path, live, maps="uint8")(batch, [CAM])
    assert same(stored(tmp_path)(batch, [CAM]), expected)
