"""Labels in CSV files.

What belongs to the kind, each with an input here: columns under many names, names without suffix, paths that were written
elsewhere, tables without a header, other separators, a byte order mark, numbers as labels, labels that are missing, splits by
files, by a column and by folders; and the faults: pictures that are not there or could be two, two labels of one,
unknown columns.
"""

import re

import numpy as np
import pytest
from PIL import Image

from distilens.data import load
from distilens.foundation.errors import UserError

NAMES = ["cat", "dog", "owl"]


@pytest.fixture
def root(tmp_path):
    """Pictures `images/<label><number>.png`, eight a class, in a folder without a table."""
    pictures(tmp_path / "set" / "images", (f"{label}{number}" for label in range(3) for number in range(8)))
    return tmp_path / "set"


def pictures(folder, names, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        pixels = np.random.default_rng(int(name)).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        pixels[..., 0] = int(name)
        Image.fromarray(pixels).save(folder / f"{name}{suffix}")


def table(root, header, rows, name="train.csv", encoding="utf-8", separator=","):
    lines = [header] * bool(header) + [separator.join(map(str, row)) for row in rows]
    (root / name).write_text("\n".join(lines) + "\n", encoding=encoding)


def rows(template="{}{}.png", labels=NAMES, numbers=range(8)):
    return [(template.format(label, number), labels[label]) for label in range(3) for number in numbers]


def loaded(path, options="", **how):
    return load(f"csv:path=[{path}]{options}", path.parent / "cache", **how)


def refused(path, *words, options=""):
    with pytest.raises(UserError) as error:
        loaded(path, options)
    for each in words:
        assert re.search(each, str(error.value)), str(error.value)


def truth(data):
    """Class names by picture, as the pixels tell them: the red channel is 10 × label + number."""
    found = {}
    for split in (data.train, data.validation, data.test):
        for row, label in zip(split.index, split.labels, strict=True):
            found[int(split.rows.images[row, 0, 0, 0])] = data.classes[label] if label >= 0 else None
    return found


RIGHT = {10 * label + number: NAMES[label] for label in range(3) for number in range(8)}


@pytest.mark.parametrize(
    ("header", "template"),
    [
        ("image_id,label", "{}{}.png"),
        ("id,breed", "{}{}"),
        ("Filename,Class Name", "images/{}{}.png"),
        ("path,category", "/kaggle/input/pets/images/{}{}.png"),
        ("ImagePath,y", r"images\{}{}.png"),
        ("what,ever", "{}{}.png"),
        ("", "{}{}.png"),
    ],
)
def test_columns_and_names(root, header, template):
    table(root, header, rows(template))
    data = loaded(root)
    assert truth(data) == RIGHT
    assert len(data.test) >= 3
    assert data.inventory.places == {name: {"images": 8} for name in NAMES}
    assert loaded(root / "train.csv").fingerprint == data.fingerprint


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_separators_and_a_byte_order_mark(root, separator):
    table(root, separator.join(("image", "label")), rows(), encoding="utf-8-sig", separator=separator)
    assert truth(loaded(root)) == RIGHT


def test_chosen_columns_and_folder(root):
    (root / "images").rename(root / "photos")
    table(root, "id,first,second,seen", [(7, name, label, "yes") for name, label in rows()], name="a.csv")
    data = loaded(root, f",image=first,label=second,pictures=[{root / 'photos'}]")
    assert truth(data) == RIGHT
    refused(root, r"a.csv has no column 'secund' \(label=secund\). Did you mean 'second'", options=",label=secund")
    refused(root, "no column of a.csv has a usual name for classes: name it, label=", options=",image=first")
    refused(root, "the folder pictures=.*nowhere does not exist", options=",image=first,label=second,pictures=nowhere")


def test_numbers_as_labels_count_from_one_and_have_gaps(root):
    table(root, "image,label", rows(labels=["1.0", "9.0", "10.0"]))
    assert loaded(root).classes == ("1", "9", "10")


def test_a_missing_label_is_none(root):
    table(root, "image,label", [*rows()[:-1], ("27.png", "")])
    assert truth(loaded(root)) == {**RIGHT, 27: None}


def test_splits_by_files(root):
    table(root, "image,label", rows(numbers=(0, 1, 4)), name="train_labels.csv")
    table(root, "image,label", rows(numbers=(2,)), name="test_labels.csv")
    table(root, "image,label", rows(numbers=(3,)), name="ValLabels.csv")
    table(root, "image,label", rows(), name="sample_submission.csv")
    data = loaded(root)
    assert sorted(data.test.rows.images[:, 0, 0, 0]) == [2, 12, 22]
    assert sorted(data.validation.rows.images[:, 0, 0, 0]) == [3, 13, 23]
    assert data.inventory.left_out["tables that are not read"] == ["sample_submission.csv"]
    table(root, "image", [(f"{label}2.png",) for label in range(3)], name="test_labels.csv")
    data = loaded(root)
    assert data.inventory.left_out["tables without labels"] == ["test_labels.csv"]
    assert data.inventory.left_out["pictures that no table names"] == [
        f"images/{label}{number}.png" for label in range(3) for number in (2, 5, 6, 7)
    ]


def test_splits_by_a_column(root):
    parts = ["train", "Training", "VALID", "test"]
    given = [(name, label, parts[at % 4]) for at, (name, label) in enumerate(rows())]
    table(root, "image,label,split", given, name="labels.csv")
    data = loaded(root)
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 6, 6)
    assert sorted(data.test.rows.images[:, 0, 0, 0]) == [3, 7, 13, 17, 23, 27]
    table(root, "image,label,split", [(*row[:2], "test") for row in given], name="labels.csv")
    refused(root, "no row belongs to the training set; the splits are test")
    table(root, "image,label,part", [(*row[:2], 0) for row in given], name="labels.csv")
    refused(root, "the column 'part' of labels.csv says '0': expected train, test or val", options=",split=part")
    assert loaded(root).classes == tuple(NAMES)  # a column that nobody named splits nothing


def test_splits_by_folders_and_names_that_are_there_twice(root):
    for part in ("train", "test"):
        pictures(root / part, (f"{label}{number}" for label in range(3) for number in range(3)), ".jpg")
    both = [
        (f"{part}/{name}", label) for part in ("train", "test") for name, label in rows("{}{}.jpg", numbers=range(3))
    ]
    table(root, "image,label", both, name="labels.csv")
    data = loaded(root)
    assert (len(data.train), len(data.test)) == (6, 9)
    table(root, "image,label", rows("{}{}.jpg", numbers=range(3)), name="labels.csv")
    refused(root, r"'00.jpg' in labels.csv could be test/00.jpg and train/00.jpg\. Write the path")
    for part in ("train", "test"):
        table(root, "image,label", rows("{}{}.jpg", numbers=range(3)), name=f"{part}.csv")
    (root / "labels.csv").unlink()
    assert len(loaded(root).test) == 9


def test_pictures_that_are_not_there(root):
    table(root, "image,label", [*rows(), ("99.png", "cat"), ("98.png", "dog")])
    refused(
        root, r"2 of 26 pictures of train.csv \(column 'image'\) are not below .*set, the first is '99.png'", "skip_bad"
    )
    data = loaded(root, ",skip_bad=true")
    assert data.inventory.left_out == {"pictures of train.csv that are not there": ["99.png", "98.png"]}
    assert truth(data) == RIGHT


def test_a_picture_with_two_labels(root):
    table(root, "image,label", [*rows(), ("00", "cat")])
    assert loaded(root).inventory.left_out == {"rows that name a picture again": ["images/00.png"]}
    table(root, "image,label", [*rows(), ("00", "dog")])
    refused(root, "images/00.png has two labels, 'cat' and 'dog'")


def test_tables_at_fault(root):
    refused(root, r"which table has the labels\? CSV files in .*: none")
    refused(root / "nowhere.csv", r"path=.*nowhere.csv does not exist .*expected a CSV file, or a folder with one")
    table(root, "image,label", rows(), name="a.csv")
    table(root, "image,label", rows(), name="b.csv")
    refused(root, r"which table has the labels\? CSV files in .*: a.csv, b.csv. Name it")
    (root / "b.csv").write_text("image,label\n00.png,cat,more\n")
    refused(root / "b.csv", "row 2 of b.csv has 3 cells, its header 2: put values that contain ',' in quotation marks")
    (root / "b.csv").write_text("")
    refused(root / "b.csv", "b.csv is empty")
    (root / "b.csv").write_bytes(b"image,label\n00.png,ni\xf1o\n")
    refused(root / "b.csv", r"b.csv is not UTF-8 \(byte 21\)")
    table(root, "weight,height", [(1, 2)], name="b.csv")
    refused(
        root / "b.csv", "no column of b.csv has a usual name for pictures: name it, image=...; its columns are weight"
    )
    table(root, "image,label", [("00.png", "cat"), ("01.png", "cat")], name="b.csv")
    refused(root / "b.csv", "there is only one class, 'cat'", "label=")
    assert loaded(root / "b.csv", to_explain=True).classes == ("cat",)


def test_a_column_for_each_class(root):
    lines = [(name, *(int(label == other) for other in NAMES)) for name, label in rows("{}{}")]
    table(root, "image_id,cat,dog,owl", lines)
    data = loaded(root / "train.csv")
    assert data.classes == ("cat", "dog", "owl")
    assert truth(data) == RIGHT
    table(root, "image_id,is_test,dog,owl,cat", [(a, int(a[1] == "0"), c, d, b) for a, b, c, d in lines])
    data = loaded(root / "train.csv")
    assert (data.classes, len(data.test)) == (("cat", "dog", "owl"), 3)
    assert truth(data) == RIGHT
    table(root, "image_id,cat,dog,owl", [*lines[:-1], (lines[-1][0], 1, 0, 1)])
    refused(
        root / "train.csv", r"a column for each class \(cat, dog, owl\), and 27 is in 2 of them: expected one class"
    )


def test_a_column_that_says_which_are_validated_on(root):
    lines = [(name, label, str(number % 4 == 0)) for number, (name, label) in enumerate(rows("{}{}"))]
    table(root, "fname,labels,is_valid", lines)
    data = loaded(root / "train.csv")
    assert len(data.test) == 6  # the only held-out set takes the place of the test set
    assert truth(data) == RIGHT


@pytest.mark.parametrize("name", ["./", "."])
def test_a_name_that_is_no_file_is_refused(root, name):
    table(root, "file,label", [*rows(), (name, "cat")])
    refused(root / "train.csv", re.escape(name))


def test_a_column_of_persons_keeps_them_on_one_side(root):
    """Six persons with pictures of every class; the table has no split, so all that is held out is whole persons."""
    table(root, "image_id,label,person", [(name, label, f"p{int(name[1]) % 6}") for name, label in rows()])
    data = loaded(root, ",group=person,val_fraction=0.25")
    persons = [set(split.rows.column("person")[split.index]) for split in data.splits.values()]
    assert sum(map(len, persons)) == 6 == len(set().union(*persons)) and all(persons)
    assert truth(data) == RIGHT
    for split in data.splits.values():
        for row, person in zip(split.index, split.rows.column("person")[split.index], strict=True):
            assert person == f"p{split.rows.images[row, 0, 0, 0] % 10 % 6}"
    some = loaded(root, r",where=[path:[0-4]\.png]")
    shown = {int(split.rows.images[row, 0, 0, 0]) for split in some.splits.values() for row in split.index}
    assert shown == {value for value in RIGHT if value % 10 < 5}
