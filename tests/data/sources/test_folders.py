"""Folders as people have them: which picture is of which split and class, what is left out, what is refused.

What belongs to these kinds, each with an input here: splits under other names (case, spaces, years, a common word beside them),
splits below the classes, splits in a folder of the same name, folders around the set, classes called like splits, two folders for
one split, folders beside the splits, two levels of folders, flat pictures, one class, one picture a class; hidden and system
folders and files, suffixes, links to nothing, to folders, to themselves, empty folders, bytes in names.
"""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distilens.data import load
from distilens.data.sources.folders import folders_of_pictures
from distilens.data.sources.layout import find_splits, split_of
from distilens.foundation.errors import UserError
from distilens.measure.maps.gallery import gallery
from distilens.models import build_model
from distilens.report.page import source_facts
from distilens.runs.inspection import about_data

COUNT = 3


def write(root, *places, count=COUNT, suffix=".png"):
    """Pictures of noise in some folders, all different."""
    for place in places:
        (root / place).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            random = np.random.default_rng([*str(place).encode(), number])
            picture = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            picture.save(root / place / f"{number}{suffix}", {".jfif": "JPEG"}.get(suffix))
    return root


@pytest.fixture
def root(tmp_path):
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def loaded(root, options="", **how):
    return load(f"folder:path=[{root}]{options}", root.parent / "cache", **how)


def refused(root, *words, options=""):
    """The message of the refusal; it holds all the words."""
    with pytest.raises(UserError) as error:
        loaded(root, options)
    for each in words:
        assert re.search(each, str(error.value)), str(error.value)


def counts(data):
    return {
        part: np.bincount(rows.labels, minlength=len(data.classes)).tolist()
        for part, rows in (("train", data.train), ("validation", data.validation), ("test", data.test))
    }


@pytest.mark.parametrize(
    ("name", "part"),
    [
        *(
            (name, "train")
            for name in ("train", "Training", "TRAIN", "training_set", "train set", "trainset", "Train-Images")
        ),
        *((name, "test") for name in ("test", "Testing", "test_set", "TestData", "test1")),
        *((name, "validation") for name in ("val", "Valid", "validation_set", "dev", "val2017", "Evaluation")),
        *(
            (name, None)
            for name in ("cat", "trainer", "testament", "valley", "devil", "train_station", "contest", "trains")
        ),
    ],
)
def test_the_usual_names_of_splits(name, part):
    assert split_of(name) == part


def test_splits_with_a_word_in_common():
    assert find_splits(["seg_train", "seg_test", "seg_pred"]) == {"seg_train": "train", "seg_test": "test"}
    assert find_splits(["pets-v2-Train", "pets-v2-val"]) == {"pets-v2-Train": "train", "pets-v2-val": "validation"}
    assert find_splits(["bus_train", "cat_test"]) == {}
    assert find_splits(["freight_train", "bus"]) == {}


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training/{}", "Testing/{}"),
        ("training_set/{}", "test_set/{}"),
        ("pets-v1/TRAIN/{}", "pets-v1/Val/{}"),
        ("a/b/c/train/{}", "a/b/c/test/{}"),
        ("seg_train/seg_train/{}", "seg_test/seg_test/{}"),
        ("train/images/{}", "test/images/{}"),
        ("{}/train", "{}/test"),
        ("pets/{}/Training", "pets/{}/dev"),
    ],
)
def test_splits_wherever_they_are(root, train, test):
    write(root, *(train.format(name) for name in ("cat", "dog")), count=4)
    write(root, *(test.format(name) for name in ("cat", "dog")), count=2)
    data = loaded(root)
    assert data.classes == ("cat", "dog")
    assert counts(data) == {"train": [3, 3], "validation": [1, 1], "test": [2, 2]}
    assert data.inventory.places["cat"] == {train.format("cat"): 4, test.format("cat"): 2}
    assert not data.inventory.left_out


def test_three_splits_and_what_lies_beside_them(root):
    write(root, *(f"{part}/{name}" for part in ("Train", "Test", "Valid") for name in ("cat", "dog")))
    write(root, "predict", count=5)
    write(root, "Test", ".", count=1)
    data = loaded(root)
    assert counts(data) == {"train": [3, 3], "validation": [3, 3], "test": [3, 3]}
    assert data.inventory.left_out == {
        "pictures in folders beside the splits": [f"predict/{number}.png" for number in range(5)],
        "pictures outside of the folders of the classes": ["0.png", "Test/0.png"],
    }
    assert "left out: 5 pictures in folders beside the splits, such as predict/0.png" in data.inventory.lines()


def test_classes_called_like_splits(root):
    write(root, "bus", "car", "train", count=6)
    data = loaded(root)
    assert data.classes == ("bus", "car", "train")
    assert data.inventory.remarks == ("'train' is taken as a class: beside it are bus, car, not splits",)
    write(root, "test", count=6)  # now there are two that could be splits, and neither has classes in it
    refused(root, "the images have no classes", "Folders seen: bus, car, test, train")
    assert loaded(root, ",splits=false").classes == ("bus", "car", "test", "train")


def test_a_class_or_a_split_that_holds_folders(root):
    write(root, "bus/2023", "bus/2024", "train/2023", "train/2024")
    refused(root, "train/ in .*set could be a split or a class: beside it are bus", "path=.*set/train;", "splits=false")
    refused(root, "all hold the same folders, 2023, 2024: which of the two are the classes", options=",splits=false")
    assert loaded(root, ",splits=false,level=1").classes == ("bus", "train")
    assert loaded(root, ",splits=false,level=2").classes == ("2023", "2024")


def test_folders_of_folders(root):
    write(root, "2023/cat", "2023/dog", "2024/cat", "2024/dog")
    refused(root, "the folders 2023, 2024 in .* all hold the same folders, cat, dog", "level=1 .* level=2")
    data = loaded(root, ",level=2")
    assert data.classes == ("cat", "dog")
    assert data.inventory.places["dog"] == {"2023/dog": 3, "2024/dog": 3}
    write(root, "2024/eel")
    assert loaded(root).inventory.remarks == (
        "the classes are 2023, 2024; level=2 takes the folders below as classes: cat, dog, eel",
    )


def test_two_folders_for_one_split(root):
    write(root, *(f"{part}/{name}" for part in ("train", "Training", "test") for name in ("cat", "dog")))
    refused(root, "the folders Training, train could each be the train set: expected one")


def test_splits_without_training(root):
    write(root, "test/cat", "test/dog", "val/cat", "val/dog")
    refused(root, "there is no train folder beside test, val in .*set. Name the folder", "path=.*set/test")


def test_some_classes_without_the_splits_of_others(root):
    write(root, "cat/train", "cat/test", "dog/train", "dog/test", "owl", "cat")
    refused(
        root,
        "cat/ in .* has test, train in it, and 6 pictures are in no such folder, such as cat/0.png",
        "splits=false",
    )
    assert loaded(root, ",splits=false").classes == ("cat", "dog", "owl")


def test_pictures_without_classes_can_be_explained_and_not_trained(root):
    write(root, ".", count=5)
    (root / "train.csv").write_text("image,label\n0.png,cat\n")
    refused(
        root,
        r"the images have no classes: nothing can be learnt from that \(distilens explain takes such images\)",
        "There are no folders in it. If the labels are in train.csv, name it: csv:path=.*set/train.csv",
    )
    data = loaded(root, to_explain=True)
    assert (data.classes, data.test.labels.tolist(), len(data.validation)) == ((), [-1] * 5, 0)
    assert data.fingerprint == loaded(root, to_explain=True).fingerprint
    assert len(loaded(root, ",limit=2", to_explain=True).test) == 2


@pytest.mark.parametrize("place", ["train", "test", "images"])
def test_pictures_in_one_folder(root, place):
    write(root, place)
    refused(root, "nothing can be learnt", f"Folders seen: {place}")
    assert len(loaded(root, to_explain=True).test) > 0


def test_one_picture_of_each_class(root):
    write(root, "cat", "dog", count=1)
    refused(root, "too few training images in 2 of 2 classes: 'cat' 1, 'dog' 1. Each needs")
    data = loaded(root, to_explain=True)
    assert (data.classes, data.test.labels.tolist()) == (("cat", "dog"), [0, 1])
    assert loaded(root, ",classes=[dog]", to_explain=True).classes == ("dog",)
    write(root, "cat", "dog", count=5)
    assert loaded(root, to_explain=True).fingerprint == loaded(root).fingerprint


def test_rubbish_is_not_read(root):
    write(root, "cat", "dog", "cat/.ipynb_checkpoints", "__MACOSX/cat", "dog/@eaDir", ".cache", "dog/old")
    (root / "cat" / "._0.png").write_bytes(b"\0\5\26\7")
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store"):
        (root / "dog" / name).touch()
    data = loaded(root)
    assert data.classes == ("cat", "dog")
    assert data.inventory.places == {"cat": {"cat": 3}, "dog": {"dog": 3, "dog/old": 3}}
    hidden = [".cache", "__MACOSX", "cat/.ipynb_checkpoints", "dog/@eaDir"]
    assert data.inventory.left_out == {"hidden and system folders": hidden, "hidden files": ["cat/._0.png"]}


def test_what_is_left_out_is_counted_by_reason(root):
    write(root, "cat", "dog")
    write(root, "cat", suffix=".jfif")
    for name in ("a.heic", "b.heic", "notes.TXT", "noend"):
        (root / "dog" / name).write_bytes(b"something")
    data = loaded(root)
    assert data.inventory.places["cat"] == {"cat": 6}
    assert data.inventory.left_out == {
        "files ending in .heic": ["dog/a.heic", "dog/b.heic"],
        "files without a suffix": ["dog/noend"],
        "files ending in .txt": ["dog/notes.TXT"],
    }
    assert data.inventory.plain()["left_out"]["files ending in .heic"]["count"] == 2
    assert "left out: files ending in .txt: dog/notes.TXT" in data.inventory.lines()


def test_only_pictures_that_cannot_be_read(root):
    (root / "cat").mkdir()
    (root / "cat" / "a.heic").touch()
    refused(root, "no images in .*: expected a folder per class", "there are 1 files ending in .heic")
    refused(root, r"Images end in .jpg, .png or one of \d+ others; there")


def test_one_class_folder_is_told_of_the_folders_beside_it(root):
    write(root, "cat", "dog")
    (root / "empty").mkdir()
    refused(root / "cat", rf"{root} holds several folders with pictures \(cat, dog\): path={root}\.$")


def test_links_to_nothing(root):
    write(root, "cat", "dog")
    (root / "cat" / "gone.png").symlink_to("/nowhere/gone.png")
    refused(root, "a link leads nowhere: cat/gone.png points to /nowhere/gone.png", "skip_bad=true")
    (root / "eel").symlink_to("/nowhere/eel")
    refused(root, "2 links lead nowhere: cat/gone.png points to")
    data = loaded(root, ",skip_bad=true")
    assert data.inventory.left_out["links that lead nowhere"] == ["cat/gone.png", "eel"]


def test_linked_folders_are_followed_once(root, tmp_path):
    write(root, "cat", "dog")
    write(tmp_path, "store")
    for name in ("dog/more", "dog/again"):
        (root / name).symlink_to(tmp_path / "store")
    (root / "cat" / "loop").symlink_to(root)
    (root / "cat" / "linked.png").symlink_to(tmp_path / "store" / "0.png")
    data = loaded(root)
    assert data.inventory.places == {"cat": {"cat": 4}, "dog": {"dog": 3, "dog/again": 3}}
    assert data.inventory.left_out == {"links to folders that are read already": ["cat/loop", "dog/more"]}


def test_empty_folders(root):
    write(root, "cat", "dog")
    (root / "eel").mkdir()
    refused(root, "too few training images in 1 of 3 classes: 'eel' 0.")
    write(root / "wrapped", "cat", "dog")
    (root / "wrapped" / "docs").mkdir()


def test_the_test_set_stays_whatever_is_around_the_set(root, tmp_path):
    write(root, "cat", "dog", count=10)
    tested = loaded(root).test.pixels(np.arange(3))[0]
    write(tmp_path / "other" / "pets-v1", "cat", "dog", count=10)
    again = loaded(tmp_path / "other")
    assert (again.test.pixels(np.arange(3))[0] == tested).all()
    assert again.inventory.remarks == ("the data set is read from the inner folder pets-v1/",)


def test_a_relative_path_and_names_that_are_no_text(root, monkeypatch):
    write(root, "cat", "dog")
    os.rename(os.fsencode(root / "cat" / "0.png"), os.fsencode(root / "cat") + b"/ni\xf1o.png")
    monkeypatch.chdir(root)
    data = load("folder:path=.", root.parent / "cache")
    assert data.inventory.places == {"cat": {"cat": 3}, "dog": {"dog": 3}}
    assert Path.cwd() == root


def file_of(root, split, position):
    """The pixels of the file that a split names."""
    return np.asarray(Image.open(root / split.names()[position]).convert("RGB"))


@pytest.mark.parametrize(
    "layout",
    [("cat", "dog"), ("train/cat", "train/dog", "val/cat", "val/dog"), ("train/cat", "train/dog", "test/loose")],
)
def test_every_image_has_the_name_of_its_file(root, layout):
    write(root, *layout, count=8)
    if "test/loose" in layout:  # a test set without labels gives way to the validation set
        write(root, "val/cat", "val/dog", count=8)
        for file in (root / "test" / "loose").iterdir():
            file.rename(root / "test" / file.name)
        (root / "test" / "loose").rmdir()
    (root / layout[1] / "broken.png").write_bytes(b"no picture")
    data = loaded(root, ",skip_bad=true")
    for split in (data.train, data.validation, data.test):
        assert len(split.names()) == len(split) > 0
        for position in range(len(split)):
            shown = split.rows.images[split.index[position]]
            np.testing.assert_array_equal(shown, file_of(root, split, position))
    assert data.test.names(np.array([1, 0])) == data.test.names()[1::-1]
    one = loaded(root, ",skip_bad=true,classes=[dog,cat],limit=4")
    np.testing.assert_array_equal(one.test.rows.images[one.test.index[0]], file_of(root, one.test, 0))


def test_a_page_and_a_table_say_what_was_found(root):
    write(root, *(f"{part}/{name}" for part in ("Train", "Test") for name in ("cat", "dog")))
    write(root, "predict", count=2)
    data = loaded(root)
    facts = source_facts(data.inventory.plain())
    assert facts == [
        ("classes", "cat (3 from Test/cat, 3 from Train/cat), dog (3 from Test/dog, 3 from Train/dog)"),
        ("left out", "2 pictures in folders beside the splits: predict/0.png, predict/1.png"),
    ]
    notes = about_data(data)["notes"]
    assert "cat: 3 from Test/cat, 3 from Train/cat" in notes
    assert any(
        line.startswith("left out: 2 pictures in folders beside the splits, such as predict/0.png") for line in notes
    )


def test_a_gallery_of_pictures_without_classes(root, monkeypatch):
    write(root, ".", count=2)
    monkeypatch.chdir(root.parent)
    model = build_model("resnet8", ["cat", "dog"], (4, 4))
    made = gallery(model, "folder:path=set", ["random"], sanity=False, prepared=False)
    assert made.labels.tolist() == [-1, -1]
    assert made.label_classes == ()
    with pytest.raises(UserError, match="neither resnet8 nor a data set names the classes"):
        gallery("resnet8", "folder:path=set", ["random"])


def test_one_picture(tmp_path):
    picture = Image.new("RGB", (40, 30), (250, 10, 10))
    picture.putpixel((3, 3), (0, 0, 255))
    picture.save(tmp_path / "red.png")
    data = load(f"image:{tmp_path / 'red.png'}", tmp_path / "cache", to_explain=True)
    assert data.size == (30, 40)
    assert len(data.test) == 1
    assert data.test.rows.names == ("red.png",)
    assert np.array_equal(data.test.rows.images[0], np.asarray(picture))
    assert load(f"image:{tmp_path / 'red.png'},size=16", tmp_path / "cache", to_explain=True).size == (16, 16)
    for given, message in (
        (f"image:{tmp_path}", "is a folder: folder:path="),
        (f"image:{tmp_path}/blue.png", "cannot be read: No such file"),
        (f"{tmp_path}/red.png", r"If it is a picture to be explained: image:.*red\.png"),
    ):
        with pytest.raises(UserError, match=message):
            load(given, tmp_path / "cache", to_explain=True)
    with pytest.raises(UserError, match="nothing can be learnt"):
        load(f"image:{tmp_path / 'red.png'}", tmp_path / "cache")


def test_a_folder_without_permission_holds_no_pictures_that_count(root, monkeypatch):
    write(root, "cats", "dogs")
    assert folders_of_pictures(root) == ["cats", "dogs"]
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "cats")
    assert folders_of_pictures(root) == ["dogs"]
    assert folders_of_pictures(root / "cats") == []
