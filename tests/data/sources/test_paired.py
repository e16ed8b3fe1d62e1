"""Which picture is the mask of which image, by the names of folders and files."""

import numpy as np
import pytest
from PIL import Image

from distilens.data import SOURCES, load
from distilens.data.sources.paired import find_pairs, key_of
from distilens.data.sources.tree import walk_tree
from distilens.foundation.errors import UserError
from distilens.foundation.notation import Spec
from distilens.tasks import Classification, Segmentation


def picture(file, seed=0, shape=(6, 8)):
    file.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(image).save(file)
    return image


def mask(file, image):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((image[..., 1] > 127).astype(np.uint8)).save(file)


def fill(root, image, target, count=10, start=0):
    """Images and masks by patterns of their names, such as `images/{}.png`."""
    for number in range(start, start + count):
        mask(root / target.format(number), picture(root / image.format(number), number))


def build(root, cache, **options):
    return SOURCES.build(Spec.parse(f"folder:path=[{root}]").replaced(**options), cache)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


LAYOUTS = [
    ("images/{}.png", "masks/{}.png"),
    ("images/{}.bmp", "labels/{}.png"),
    ("img/{}.png", "mask/{}_mask.png"),
    ("JPEGImages/{}.png", "SegmentationClass/{}.png"),
    ("set-1/Images/{}.png", "set-1/annotations/{}.png"),
    ("images/{}_image.png", "masks/{}_label.png"),
    ("images/a/{}.png", "masks/a/{}.png"),
    ("{}.bmp", "{}_mask.png"),
    ("all/{}.png", "all/{}_label.png"),
]


@pytest.mark.parametrize(("image", "target"), LAYOUTS)
def test_layouts_without_splits(tmp_path, cache, image, target):
    fill(tmp_path / "set", image, target, count=20)
    source = build(tmp_path / "set", cache)
    assert source.task == Segmentation(("0", "1"))
    assert len(source.train) + len(source.test) == 20 and len(source.test) >= 1
    for rows in (source.train, source.test):
        assert np.array_equal(rows.targets, (rows.images[..., 1] > 127).astype(np.uint8))
        assert len(rows.names) == len(rows) and (tmp_path / "set" / rows.names[0]).is_file()
    before = set(source.test.names)
    fill(tmp_path / "set", image, target, count=5, start=20)
    again = build(tmp_path / "set", cache)
    assert before <= set(again.test.names) and again.fingerprint != source.fingerprint


@pytest.mark.parametrize(
    ("image", "target"),
    [
        ("{part}/images/{{}}.png", "{part}/masks/{{}}.png"),
        ("images/{part}/{{}}.png", "masks/{part}/{{}}.png"),
        ("{part}_images/{{}}.png", "{part}_masks/{{}}.png"),
        ("{part}/{{}}.bmp", "{part}/{{}}_mask.png"),
    ],
)
def test_layouts_with_splits(tmp_path, cache, image, target):
    for start, part in enumerate(("train", "val", "test")):
        fill(tmp_path / "set", image.format(part=part), target.format(part=part), count=4 + start, start=10 * start)
    source = build(tmp_path / "set", cache)
    assert [len(rows) for rows in (source.train, source.validation, source.test)] == [4, 5, 6]
    for rows in (source.train, source.validation, source.test):
        assert np.array_equal(rows.targets, (rows.images[..., 1] > 127).astype(np.uint8))


def test_folders_of_classes_stay_classes(tmp_path, cache):
    for name in ("cat", "dog"):
        for number in range(4):
            picture(tmp_path / "set" / name / f"{number}.png", number)
    assert isinstance(build(tmp_path / "set", cache).task, Classification)
    with pytest.raises(
        UserError, match=r"target=mask: no image in .* has a mask. Expected images/1.jpg and masks/1.png"
    ):
        build(tmp_path / "set", cache, target="mask")
    with pytest.raises(
        UserError, match=r"values= is about masks, and .* is read as folders of classes: target=mask reads masks"
    ):
        build(tmp_path / "set", cache, values=(0, 1))


def test_classes_with_masks_beside_the_pictures(tmp_path, cache):
    """As in the set BUSI: folders of classes, and masks in them. It stays a classification, unless the user says otherwise."""
    for name in ("benign", "malignant"):
        fill(tmp_path / "set" / name, "x ({}).png", "x ({})_mask.png", count=5)
    assert isinstance(build(tmp_path / "set", cache).task, Classification)
    dense = build(tmp_path / "set", cache, target="mask")
    assert dense.task.dense and len(dense.train) + len(dense.test) == 10


def test_classes_called_images_and_labels(tmp_path, cache):
    for number in range(6):
        picture(tmp_path / "set" / "image" / f"i{number}.png", number)
        picture(tmp_path / "set" / "label" / f"l{number}.png", 10 + number)
    assert build(tmp_path / "set", cache).classes == ("image", "label")
    for number in range(6):
        picture(tmp_path / "other" / "image" / f"{number}.png", number)
        picture(tmp_path / "other" / "label" / f"{number}.png", 10 + number)
    assert build(tmp_path / "other", cache, target="label").classes == ("image", "label")


def test_images_and_masks_alone_are_counted_and_named(tmp_path, cache):
    root = tmp_path / "set"
    fill(root, "images/{}.png", "masks/{}.png")
    picture(root / "images" / "lonely.png", 99)
    picture(root / "images" / "alone.png", 98)
    mask(root / "masks" / "extra.png", picture(root / "other.png", 97))
    with pytest.raises(UserError) as error:
        build(root, cache)
    assert (
        "there are 2 images without a mask (images/alone.png, images/lonely.png) and 1 masks without an image (masks/extra.png)"
        in str(error.value)
    )
    source = build(root, cache, skip_bad=True)
    assert len(source.train) + len(source.test) == 10
    assert source.inventory.left_out["images without a mask"] == ["images/alone.png", "images/lonely.png"]
    assert source.inventory.left_out["pictures outside of the folders of images and masks"] == ["other.png"]


def test_a_fault_names_the_mask(tmp_path, cache):
    root = tmp_path / "set"
    fill(root, "images/{}.png", "masks/{}.png")
    mask(root / "masks" / "3.png", picture(tmp_path / "x.png", shape=(5, 5)))
    with pytest.raises(UserError, match=r"cannot decode images/3.png: its mask 3.png is 5×5, the image 8×6"):
        build(root, cache)
    left = build(root, cache, skip_bad=True)
    assert len(left.train) + len(left.test) == 9 and "images/3.png" not in left.train.names + left.test.names


def test_two_pictures_of_one_name(tmp_path, cache):
    fill(tmp_path / "set", "images/{}.png", "masks/{}.png")
    picture(tmp_path / "set" / "images" / "3.bmp")
    with pytest.raises(UserError, match=r"images/3.bmp and images/3.png have one name"):
        build(tmp_path / "set", cache)


def test_images_of_a_test_set_without_masks_are_left_out(tmp_path, cache):
    root = tmp_path / "set"
    fill(root, "train/images/{}.png", "train/masks/{}.png")
    picture(root / "test" / "images" / "1.png")
    source = build(root, cache)
    assert source.test is None and source.inventory.left_out["images without a folder of masks"] == [
        "test/images/1.png"
    ]


def test_groups_are_held_out_whole(tmp_path, cache):
    fill(tmp_path / "set", "images/a_{}.png", "masks/a_{}.png")
    fill(tmp_path / "set", "images/b_{}.png", "masks/b_{}.png", start=20)
    fill(tmp_path / "set", "images/c_{}.png", "masks/c_{}.png", start=40)
    data = load(f"folder:path=[{tmp_path / 'set'}],group=/([a-z])_", cache)
    letters = [{name.split("/")[1][0] for name in split.names()} for split in data.splits.values()]
    assert sorted(map(sorted, letters)) == [["a"], ["b"], ["c"]]
    classes = tmp_path / "classes"
    for number in range(24):
        picture(classes / ("cat" if number % 2 else "dog") / f"{number // 4}_{number}.png", number)
    data = load(f"folder:path=[{classes}],group=/([0-9]+)_", cache)
    people = [{name.split("/")[1].split("_")[0] for name in split.names()} for split in data.splits.values()]
    assert sorted(person for side in people for person in side) == list("012345")


@pytest.mark.parametrize(
    ("folders", "key", "side"),
    [
        (("train", "images"), ("train",), 0),
        (("Masks", "val"), ("val",), 1),
        (("train_masks",), ("train",), 1),
        (("cat",), ("cat",), None),
        ((), (), None),
        (("image_labels",), (), 1),
    ],
)
def test_words_in_folders(folders, key, side):
    assert key_of(folders) == (key, side)


def test_a_folder_without_masks_is_none(tmp_path):
    picture(tmp_path / "images" / "1.png")
    assert find_pairs(walk_tree(tmp_path), sure=False) is None
