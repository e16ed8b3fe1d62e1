"""Columns of labels as other tools write them: what the classes are, whatever the type."""

import gc
import json
import random
import unicodedata
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from distilens.data import from_arrays, load
from distilens.data.labels import classes_in, column_values, describe_alike_names
from distilens.foundation.errors import UserError

WORDS = ["cat", "dog", "owl", "dog"]


def png(value: int) -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.random.default_rng(value).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(folder, labels, images=None, name="train.parquet", column="label"):
    folder.mkdir(exist_ok=True)
    images = pa.array([png(k) for k in range(len(labels))]) if images is None else images
    pq.write_table(pa.table({"img": images, column: labels}), folder / name)
    return f"parquet:path={folder}"


@pytest.mark.parametrize(
    ("column", "classes", "labels"),
    [
        (pa.array([1, 2, 3, 2]), ["1", "2", "3"], [0, 1, 2, 1]),
        (pa.array([0, 10, 2, 10]), ["0", "2", "10"], [0, 2, 1, 2]),
        (pa.array([7, None, 5, 7], pa.uint8()), ["5", "7"], [1, -1, 0, 1]),
        (pa.array([7, -1, 5, 7]), ["5", "7"], [1, -1, 0, 1]),
        (pa.array([0.0, 1.0, None, float("nan")]), ["0", "1"], [0, 1, -1, -1]),
        (pa.array([True, False, None, True]), ["False", "True"], [1, 0, -1, 1]),
        (pa.array(WORDS), ["cat", "dog", "owl"], [0, 1, 2, 1]),
        (pa.array(["8", "10", "9", ""]), ["8", "9", "10"], [0, 2, 1, -1]),
        (pa.array(WORDS, pa.large_string()), ["cat", "dog", "owl"], [0, 1, 2, 1]),
        (pa.array(WORDS, pa.string_view()), ["cat", "dog", "owl"], [0, 1, 2, 1]),
        (pa.array([word.encode() for word in WORDS]), ["cat", "dog", "owl"], [0, 1, 2, 1]),
        (pa.array([word.encode() for word in WORDS], pa.binary_view()), ["cat", "dog", "owl"], [0, 1, 2, 1]),
        (pa.array([*WORDS, None]).dictionary_encode(), ["cat", "dog", "owl"], [0, 1, 2, 1, -1]),
        (pa.array([4, 2, 4]).dictionary_encode(), ["2", "4"], [1, 0, 1]),
        (pa.array(["café", unicodedata.normalize("NFD", "café"), "thé"]), ["café", "thé"], [0, 0, 1]),
        (pa.nulls(3), [], [-1, -1, -1]),
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_types(column, classes, labels, chunked):
    column = pa.chunked_array([column[:2], column[2:]]) if chunked else column
    names, places = classes_in({"train": column_values(column, "the labels")})
    assert (names, places["train"].tolist(), places["train"].dtype) == (classes, labels, np.int64)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([0.0, 1.5]), "the labels hold numbers that are not whole, 1.5 in row 1: expected classes"),
        (pa.array([[1, 0], [0]]), r"the labels hold several labels per row \(list<item: int64>\): expected one class"),
        (pa.array([{"a": 1}]), "the labels are struct<a: int64>: expected whole numbers or names"),
        (pa.array([0], pa.timestamp("s")), r"the labels are timestamp\[s\]"),
    ],
)
def test_types_that_hold_no_labels(column, message):
    with pytest.raises(UserError, match=message):
        column_values(column, "the labels")


def test_declared_names_count_the_labels():
    names, labels = classes_in({"train": np.array([2, 0])}, ["a", "b", "c"])
    assert (names, labels["train"].tolist()) == (["a", "b", "c"], [2, 0])
    names, labels = classes_in({"train": np.array(["c", "a"], dtype=object)}, ["c", "b", "a"])
    assert (names, labels["train"].tolist()) == (["c", "b", "a"], [0, 2])


def test_splits_may_say_it_differently():
    columns = {"train": np.array(["1", "2"], dtype=object), "test": np.array([2, -1, 3])}
    names, labels = classes_in(columns)
    assert names == ["1", "2", "3"]
    assert labels["test"].tolist() == [1, -1, 2]


def test_classes_are_chosen_by_the_numbers_that_they_are_called(tmp_path):
    part = write(tmp_path / "set", pa.array([1, 2, 3, 5] * 4))
    data = load(f"{part},classes=[3,1]", tmp_path / "cache")
    assert data.classes == ("3", "1")
    assert np.bincount(data.train.labels).tolist() == [2, 2]
    with pytest.raises(UserError, match=r"unknown class '4'\. Known: 1, 2, 3, 5"):
        load(f"{part},classes=[1,4]", tmp_path / "cache")


def test_classes_without_pictures_are_left_out_by_choice(tmp_path):
    features = {"info": {"features": {"label": {"names": ["ant", "bee", "cat", "dog"], "_type": "ClassLabel"}}}}
    table = pa.table({"img": [png(k) for k in range(12)], "label": [0, 2] * 6})
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    (tmp_path / "set").mkdir()
    pq.write_table(table, tmp_path / "set" / "train.parquet")
    part, cache = f"parquet:path={tmp_path / 'set'}", tmp_path / "cache"
    with pytest.raises(
        UserError,
        match=r"in 2 of 4 classes: 'bee' 0, 'dog' 0\. Each needs 3, .* min_images=3 \(an option of the data: .*\)$",
    ):
        load(part, cache)
    data = load(f"{part},min_images=3", cache)
    assert data.classes == ("ant", "cat")
    assert data.inventory.left_out == {"classes of fewer than 3 training images": ["bee", "dog"]}
    assert load(f"{part},classes=[cat,ant]", cache).classes == ("cat", "ant")
    with pytest.raises(UserError, match="min_images=9 leaves fewer than two classes; training images of each: 'ant' 6"):
        load(f"{part},min_images=9", cache)


def test_rare_classes_are_named_all_at_once(tmp_path):
    part = write(tmp_path / "set", pa.array([*[0, 1] * 9, 2, 3, 3, 4]))
    with pytest.raises(UserError, match="in 3 of 5 classes: '2' 1, '3' 2, '4' 1"):
        load(part, tmp_path / "cache")
    assert load(f"{part},min_images=3", tmp_path / "cache").classes == ("0", "1")


def test_the_columns_are_found(tmp_path):
    (tmp_path / "set").mkdir()
    columns = {"picture": [png(k) for k in range(9)], "name": ["a"] * 9, "breed": ["pug", "cat", "owl"] * 3}
    pq.write_table(pa.table(columns), tmp_path / "set" / "train.parquet")
    part = f"parquet:path={tmp_path / 'set'}"
    assert load(part, tmp_path / "cache").classes == ("cat", "owl", "pug")
    pq.write_table(pa.table(columns | {"thumb": columns["picture"]}), tmp_path / "set" / "train.parquet")
    with pytest.raises(
        UserError, match=r"several columns of encoded images .* name one, image=\.\.\.; its columns are pic"
    ):
        load(part, tmp_path / "cache")
    assert len(load(f"{part},image=thumb", tmp_path / "cache").classes) == 3
    with pytest.raises(UserError, match="there is only one class, 'a'"):
        load(f"{part},image=thumb,label=name", tmp_path / "cache")
    pq.write_table(pa.table({"picture": columns["picture"]}), tmp_path / "set" / "train.parquet")
    with pytest.raises(
        UserError, match=r"no column of train.parquet has a usual name for labels: name it, label=\.\.\."
    ):
        load(part, tmp_path / "cache")


def test_pictures_in_the_views_of_polars(tmp_path):
    images = pa.array([png(k) for k in range(9)], pa.binary_view())
    data = load(write(tmp_path / "set", pa.array(["a", "b", "c"] * 3, pa.string_view()), images), tmp_path / "cache")
    assert data.classes == ("a", "b", "c")
    assert data.train.rows.images[0].tolist() == np.asarray(Image.open(BytesIO(png(0)))).tolist()


def test_a_class_in_both_forms_of_unicode_is_one(tmp_path):
    for part, form in (("train", "NFC"), ("test", "NFD")):
        for name in ("café", "thé"):
            folder = tmp_path / "set" / part / unicodedata.normalize(form, name)
            folder.mkdir(parents=True)
            for number in range(3):
                (folder / f"{number}.png").write_bytes(png(number))
    data = load(f"folder:path={tmp_path / 'set'}", tmp_path / "cache")
    assert data.classes == ("café", "thé")
    assert data.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    decomposed = unicodedata.normalize("NFD", "thé")
    assert load(f"folder:path={tmp_path / 'set'},classes=[{decomposed},café]", tmp_path / "cache").classes[0] == "thé"


def test_names_that_differ_in_case_or_spaces_are_said(tmp_path):
    assert describe_alike_names(["cat", "dog"]) == ""
    assert "'Cat', 'cat', 'cat '; 'dog house', 'doghouse'" in describe_alike_names(
        ["Cat", "cat", "cat ", "dog house", "doghouse", "owl"]
    )
    data = load(write(tmp_path / "set", pa.array(["Cat", "cat"] * 6)), tmp_path / "cache")
    assert "differ only in case or spaces, 'Cat', 'cat'" in " ".join(data.inventory.remarks)
    part = write(tmp_path / "rare", pa.array(["Cat", "cat", "cat", "dog"] * 2))
    with pytest.raises(UserError, match=r"min_images=3|Add images\. Some classes differ only in case"):
        load(part, tmp_path / "cache")


def test_a_name_with_a_comma_is_written_in_brackets(tmp_path):
    part = write(tmp_path / "set", pa.array(["Pepper, bell", "Tomato"] * 6))
    with pytest.raises(UserError, match=r"unknown class 'Pepper'.* in brackets: classes=\[\[Pepper, bell\],\.\.\.\]"):
        load(f"{part},classes=[Pepper, bell,Tomato]", tmp_path / "cache")
    assert load(f"{part},classes=[[Pepper, bell],Tomato]", tmp_path / "cache").classes == ("Pepper, bell", "Tomato")


def test_arrays_with_labels_from_one():
    images = np.random.default_rng(0).integers(0, 255, (12, 8, 8, 3), dtype=np.uint8)
    data = from_arrays(images, np.array([1, 3] * 6))
    assert data.classes == ("1", "3")
    assert sorted(set(data.train.labels.tolist())) == [0, 1]


@pytest.fixture
def offline(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "huggingface")
    datasets.disable_progress_bars()
    return datasets


@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_hub_sets_with_names_and_sets_saved_to_disk(tmp_path, offline):
    images = [{"bytes": png(k), "path": None} for k in range(12)]
    words = ["owl", "cat", "dog"] * 4
    features = offline.Features({"image": offline.Image(), "label": offline.Value("string")})
    made = offline.Dataset.from_dict({"image": images, "label": words}, features=features)
    (tmp_path / "names").mkdir()
    made.to_parquet(tmp_path / "names" / "train.parquet")
    made.save_to_disk(tmp_path / "one")
    offline.DatasetDict({"train": made, "test": made.select(range(3))}).save_to_disk(tmp_path / "both")
    folder = tmp_path / "metadata" / "train"
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        (folder / f"{number}.png").write_bytes(image["bytes"])
    lines = [f"{number}.png,{word}" for number, word in enumerate(words)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,label", *lines]))
    for name in ("names", "one", "both", "metadata"):
        data = load(f"hf:{tmp_path / name}", tmp_path / "cache")
        assert data.classes == ("cat", "dog", "owl")
        whole = data.train.rows
        assert [data.classes[label] for label in whole.labels] == words
        assert (data.test.rows is whole) == (name != "both")
    gc.collect()  # datasets leaves the CSV file open


def test_damaged_files_are_read_or_named(tmp_path):
    """Of bytes flipped, cut out and added: never a foreign exception."""
    part = write(tmp_path / "set", pa.array(WORDS * 6))
    file = tmp_path / "set" / "train.parquet"
    whole, chance = file.read_bytes(), random.Random(0)
    refused = 0
    for number in range(250):
        content = bytearray(whole)
        place = chance.randrange(len(content)) if number % 2 else len(content) - 1 - chance.randrange(600)
        match number % 3:
            case 0:
                for _ in range(4):
                    content[(place + chance.randrange(8)) % len(content)] ^= 1 << chance.randrange(8)
            case 1:
                del content[place : place + chance.randrange(1, 40)]
            case 2:
                content[place:place] = bytes(chance.randrange(256) for _ in range(5))
        file.write_bytes(content)
        try:
            load(part, tmp_path / "cache")
        except UserError:
            refused += 1
    assert 50 < refused < 250


def declared(names, labels, folder, file):
    features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    table = pa.table({"img": [png(k) for k in range(len(labels))], "label": labels})
    folder.mkdir(exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), folder / file)


def test_files_that_declare_other_names_are_read_by_name(tmp_path):
    declared(["ant", "bee", "cat"], [0, 1, 2] * 4, tmp_path / "set", "train-0.parquet")
    declared(["cat", "ant", "bee"], [0, 1, 2, 2], tmp_path / "set", "train-1.parquet")
    declared(["bee", "cat"], [0, 1, -1], tmp_path / "set", "test.parquet")
    data = load(f"parquet:path={tmp_path / 'set'}", tmp_path / "cache")
    assert data.classes == ("ant", "bee", "cat")
    assert data.train.rows.labels.tolist() == [0, 1, 2] * 4 + [2, 0, 1, 1]
    assert data.test.rows.labels.tolist() == [1, 2, -1]
    assert "the test split has no picture of 'ant': its accuracy says nothing about them" in data.inventory.remarks


@pytest.mark.parametrize("label", [-2, 2])
def test_a_label_without_a_declared_name_is_refused(tmp_path, label):
    declared(["ant", "bee"], [0, 1] * 6, tmp_path / "set", "train.parquet")
    declared(["bee", "ant"], [0, label], tmp_path / "set", "test.parquet")
    with pytest.raises(UserError, match=f"there is a label {label}, and the declared names are bee, ant"):
        load(f"parquet:path={tmp_path / 'set'}", tmp_path / "cache")


def test_hub_splits_that_declare_other_names_are_read_by_name(tmp_path, offline):
    def split(names, labels):
        features = offline.Features({"image": offline.Image(), "label": offline.ClassLabel(names=names)})
        images = [{"bytes": png(k), "path": None} for k in range(len(labels))]
        return offline.Dataset.from_dict({"image": images, "label": labels}, features=features)

    sets = {"train": split(["ant", "bee"], [0, 1] * 6), "test": split(["bee", "ant"], [0, 0, 1])}
    offline.DatasetDict(sets).save_to_disk(tmp_path / "set")
    data = load(f"hf:{tmp_path / 'set'}", tmp_path / "cache")
    assert (data.classes, data.test.labels.tolist()) == (("ant", "bee"), [1, 1, 0])


def test_a_limit_that_leaves_no_image_of_a_class_is_refused(tmp_path):
    part = write(tmp_path / "set", pa.array([0, 1, 2, 3] * 6))
    with pytest.raises(UserError, match=r"limit=3 leaves no training image of '\d', of 4 classes\. Raise it"):
        load(f"{part},limit=3", tmp_path / "cache")
    assert len(load(f"{part},limit=4", tmp_path / "cache").train) == 4


def test_the_role_of_a_validation_set_and_sets_without_labels_are_said(tmp_path):
    write(tmp_path / "set", pa.array(["a", "b"] * 6))
    write(tmp_path / "set", pa.array(["a", "b"] * 2), name="validation.parquet")
    said = load(f"parquet:path={tmp_path / 'set'}", tmp_path / "cache").inventory.remarks
    assert said[0] == "there is no test set: the validation set is the test set, and another one is held out of train"
    write(tmp_path / "set", pa.nulls(3, pa.string()), name="test.parquet")
    said = load(f"parquet:path={tmp_path / 'set'}", tmp_path / "cache").inventory.remarks
    assert said[0] == "the test set has no labels, and is not used"


def test_leaving_classes_out_is_not_advised_where_nothing_would_be_tested(tmp_path):
    write(tmp_path / "set", pa.array(["cat", "dog"] * 6))
    part = write(tmp_path / "set", pa.array(["Cat", "Dog"] * 2), name="test.parquet")
    with pytest.raises(UserError) as error:
        load(part, tmp_path / "cache")
    assert "'Cat' 0 (and 2 to test)" in str(error.value)
    assert "min_images" not in str(error.value)
    assert "Some classes differ only in case or spaces, 'Cat', 'cat'" in str(error.value)


def test_unreadable_pictures_are_left_out_of_the_counts_too(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(8):
            (tmp_path / "set" / name / f"{number}.png").write_bytes(png(number + 8 * (name == "dog")))
    (tmp_path / "set" / "cat" / "zero.png").write_bytes(b"")
    found = load(f"folder:path={tmp_path / 'set'},skip_bad=true", tmp_path / "cache").inventory
    assert found.places == {"cat": {"cat": 8}, "dog": {"dog": 8}}
    assert found.left_out["pictures that cannot be decoded"] == ("cat/zero.png: the bytes are not an image",)


def test_a_folder_whose_name_is_not_utf8_is_refused(tmp_path):
    import os

    for name in (b"cat", b"d\xf6g"):
        folder = os.fsencode(tmp_path / "set") + b"/" + name
        os.makedirs(folder)
        for number in range(4):
            with open(folder + f"/{number}.png".encode(), "wb") as file:
                file.write(png(number))
    with pytest.raises(UserError, match=r"the name of the folder b'd\\xf6g' in .* is not UTF-8: rename it"):
        load(f"folder:path={tmp_path / 'set'}", tmp_path / "cache")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "image,label\n0.png,0.5\n1.png,0.0\n",
            "the labels are numbers that are not whole, such as 0.5: expected classes",
        ),
        ("image,label,label\n0.png,a,b\n", "has two columns 'label': give each column a different name"),
    ],
)
def test_tables_that_say_no_classes(tmp_path, text, message):
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        load(f"csv:path={tmp_path / 'train.csv'}", tmp_path / "cache")


def test_pictures_of_nothing_but_nan_are_unreadable(tmp_path):
    (tmp_path / "set" / "cat").mkdir(parents=True)
    (tmp_path / "set" / "dog").mkdir()
    for name in ("cat", "dog"):
        Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(tmp_path / "set" / name / "0.tif")
    with pytest.raises(UserError, match=r"cannot decode .*\.tif: it holds values that are NaN or infinite"):
        load(f"folder:path={tmp_path / 'set'}", tmp_path / "cache")
