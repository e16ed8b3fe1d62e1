"""Each source on small files of its kind, and each fault with its message."""

import errno
import io
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from distilens.data import SOURCES, decode, load, writing
from distilens.data import cache as cached
from distilens.data.pixels import Pixels, usual_size
from distilens.data.sources.digits import enlarge_digits
from distilens.foundation.errors import UserError
from distilens.foundation.notation import Spec

CIFAR10 = Path(__file__).parents[3] / "../shared/data/cifar10"


def png(value, shape=(6, 6)):
    """A grey PNG of one value, as bytes."""
    return encoded(Image.new("RGB", (shape[1], shape[0]), (value,) * 3), "PNG")


def encoded(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def write_parquet(file, images, labels, names=None, columns=("img", "label")):
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table(
        {
            columns[0]: pyarrow.array(
                [{"bytes": image, "path": None} for image in images],
                pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}),
            ),
            columns[1]: labels,
        }
    )
    if names:
        features = {"info": {"features": {columns[1]: {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pyarrow.parquet.write_table(table, file)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def small(tmp_path):
    """A parquet folder of 12 + 4 images: image k has the value 10 k, label k mod 2."""
    folder = tmp_path / "small"
    write_parquet(folder / "train.parquet", [png(10 * k) for k in range(12)], [k % 2 for k in range(12)])
    write_parquet(folder / "test.parquet", [png(10 * k) for k in range(4)], [k % 2 for k in range(4)])
    return folder


def build(part, cache, **options):
    return SOURCES.build(Spec.parse(part).replaced(**options), cache)


def fails(message, part, cache, **options):
    """The build fails with this message, and leaves no half-made folder."""
    with pytest.raises(UserError) as error:
        build(part, cache, **options)
    assert re.search(message, str(error.value)), str(error.value)
    assert not [entry for entry in (cache.iterdir() if cache.exists() else []) if entry.name != "content"]


# Decoding


def test_every_kind_of_image_becomes_rgb():
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    colour = Image.merge("RGB", (grey, grey.rotate(90), grey.rotate(180)))
    transparent = colour.copy()
    transparent.putalpha(128)
    palette = colour.quantize(16)
    clear = encoded(palette, "PNG", transparency=bytes(range(16)))
    deep = Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 257)
    for image, kind in (
        (grey, "PNG"),
        (colour, "PNG"),
        (transparent, "PNG"),
        (palette, "GIF"),
        (grey.convert("1"), "PNG"),
    ):
        assert decode.decode(encoded(image, kind)).shape == (16, 16, 3)
    np.testing.assert_array_equal(decode.decode(encoded(colour, "PNG")), np.asarray(colour))
    assert decode.decode(encoded(transparent, "PNG")).shape == decode.decode(clear).shape == (16, 16, 3)
    np.testing.assert_array_equal(decode.decode(encoded(grey, "PNG"))[..., 2], np.asarray(grey))
    scaled = decode.decode(encoded(deep, "PNG"), Pixels(bounds=(0, 65535)))
    np.testing.assert_array_equal(scaled[..., 0], np.asarray(grey))
    assert decode.decode(encoded(colour.convert("CMYK"), "JPEG")).dtype == np.uint8


def test_an_image_stands_upright():
    image = Image.new("RGB", (8, 4))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by a quarter
    assert decode.decode(encoded(image, "JPEG", exif=exif)).shape == (8, 4, 3)


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (900, 300), (10, 10), (7, 30)])
def test_size_resizes_the_shorter_side_and_cuts_out_the_middle(shape):
    ramp = np.linspace(0, 255, shape[1]).astype(np.uint8)
    image = Image.fromarray(np.repeat(np.broadcast_to(ramp, shape)[..., None], 3, axis=2))
    found = decode.decode(encoded(image, "JPEG", quality=95), Pixels(size=20))
    assert found.shape == (20, 20, 3)
    scale = 20 / min(shape)
    first = (max(20, shape[1] * scale) - 20) / 2
    # A new pixel's centre lies at this place of the old row; the ramp's k-th pixel has the value 255 k / (n - 1).
    place = (first + np.arange(20) + 0.5) / scale - 0.5
    expected = place * 255 / (shape[1] - 1)
    np.testing.assert_allclose(found[10, 2:18, 0], expected[2:18], atol=4)


def test_threads_keep_the_order(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        images = (png(k % 256, (1, 1)) for k in range(1000))
        found = [int(one[0, 0, 0]) for one in decode.decode_all(pool, images, Pixels(), [])]
    assert found == [k % 256 for k in range(1000)]


# The cache


def test_an_image_is_decoded_once(small, cache, monkeypatch):
    first = build("parquet", cache, path=small)
    assert first.train.images.shape == (12, 6, 6, 3)
    assert first.train.images[:, 0, 0, 0].tolist() == [10 * k for k in range(12)]
    assert first.train.labels.tolist() == [0, 1] * 6
    assert first.test.images[:, 0, 0, 0].tolist() == [0, 10, 20, 30]
    assert first.classes == ("0", "1")
    assert len(first.fingerprint) == 16

    def never(*given):
        raise AssertionError("decoded again")

    monkeypatch.setattr(decode, "decode", never)
    again = build("parquet", cache, path=small)
    np.testing.assert_array_equal(again.train.images, first.train.images)
    assert again.fingerprint == first.fingerprint
    assert isinstance(again.train.images, np.memmap)
    assert not again.train.images.flags.writeable


def test_the_fingerprint_is_of_content_and_options(small, cache, tmp_path):
    first = build("parquet", cache, path=small)
    moved = tmp_path / "moved"
    shutil.copytree(small, moved)
    assert build("parquet", cache, path=moved).fingerprint == first.fingerprint
    assert build("parquet", cache, path=small, size=4).fingerprint != first.fingerprint
    write_parquet(moved / "test.parquet", [png(10 * k + 1) for k in range(4)], [k % 2 for k in range(4)])
    changed = build("parquet", cache, path=moved)
    assert changed.fingerprint != first.fingerprint
    assert changed.test.images[0, 0, 0, 0] == 1


def test_the_content_of_old_files_is_remembered(small, cache, monkeypatch):
    files = [small / "test.parquet"]
    fresh = cached.content_of(files, small, cache)
    assert not (cache / "content").exists()  # changed a moment ago: a further change could go unseen
    later = cached.time.time_ns() + 10**10
    monkeypatch.setattr(cached.time, "time_ns", lambda: later)
    assert cached.content_of(files, small, cache) == fresh
    monkeypatch.setattr(cached.hashlib, "file_digest", None)
    assert cached.content_of(files, small, cache) == fresh


def test_of_two_that_decode_at_once_one_wins(cache):
    """The one that is slower finds the folder there when it renames its own, and takes it."""
    both = threading.Barrier(2)

    def write(folder):
        (folder / "set.json").write_text("whole")
        both.wait(5)

    threads = [threading.Thread(target=cached.cached_folder, args=(cache, "key", write)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [entry.name for entry in cache.iterdir()] == ["key"]
    assert (cache / "key" / "set.json").read_text() == "whole"


@pytest.mark.slow
def test_two_processes_decode_at_once(small, cache):
    code = (
        "import sys; from distilens.data import load; from pathlib import Path\n"
        "print(load(f'parquet:path={sys.argv[1]}', Path(sys.argv[2])).train.rows.images.sum())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(small), str(cache)]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(2)]
    assert {process.communicate()[0].strip() for process in running} == {str(sum(range(12)) * 10 * 108).encode()}


def test_a_disk_that_cannot_hold_it(small, cache, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    fails(
        r"the disk is full: 1\.7 kB of decoded images must be written in .*cache, but 1\.0 kB are free\. Make room",
        "parquet",
        cache,
        path=small,
    )


def test_a_disk_that_fills_up(small, cache, monkeypatch):
    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing.np, "save", full)
    fails(
        r"the disk is full: more than .* of decoded images must be written in .* are free\. Make room",
        "parquet",
        cache,
        path=small,
    )


def test_a_cache_that_cannot_be_written(small, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to the data cache .*file: Not a directory"):
        build("parquet", tmp_path / "file", path=small)


def test_a_wait_is_shown_on_stderr(small, cache, monkeypatch, capsys):
    monkeypatch.setattr(writing, "MOMENT", 0.0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    build("parquet", cache, path=small)
    shown = capsys.readouterr()
    assert "decoding images" in shown.err
    assert not shown.out


def test_sources_do_not_import_torch(small, cache):
    code = (
        "import sys; from distilens.data import load; from pathlib import Path\n"
        "load(f'parquet:path={sys.argv[1]}', Path(sys.argv[2])); assert 'torch' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(small), str(cache)], env=environment, check=True)


# Parquet


def test_hub_style_parquet_with_names_and_several_files(tmp_path, cache):
    folder = tmp_path / "hub"
    for number in range(3):
        images, labels = [png(50 * number + k) for k in range(4)], [0, 1, 0, 1]
        write_parquet(folder / f"data/train-0000{number}-of-00003.parquet", images, labels, ["cat", "dog"])
    write_parquet(folder / "data/validation-00000-of-00001.parquet", [png(7)], [1])
    write_parquet(folder / "data/test-00000-of-00001.parquet", [png(8)], [0])
    found = build("parquet", cache, path=folder)
    assert found.classes == ("cat", "dog")
    assert found.train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 50, 51, 52, 53, 100, 101, 102, 103]
    assert found.validation.labels.tolist() == [1]
    assert found.test.labels.tolist() == [0]
    shutil.move(folder / "data", folder / "plain_text")
    assert build("parquet", cache, path=folder).classes == ("cat", "dog")
    shutil.copytree(folder / "plain_text", folder / "other")
    fails("several folders in .*hub have train.*name one, path=.*other", "parquet", tmp_path / "c", path=folder)


def test_plain_bytes_named_labels_and_missing_labels(tmp_path, cache):
    for part in ("train", "test"):
        table = pyarrow.table({"x": [png(k) for k in range(6)], "y": ["b", "a", None, "a", "b", "b"]})
        (tmp_path / "plain").mkdir(exist_ok=True)
        pyarrow.parquet.write_table(table, tmp_path / "plain" / f"{part}.parquet")
    found = build("parquet", cache, path=tmp_path / "plain", image="x", label="y")
    assert found.classes == ("a", "b")
    assert found.train.labels.tolist() == [1, 0, -1, 0, 1, 1]


@pytest.mark.parametrize("labels", [[0, 1], [-1, -1]])
def test_without_labelled_tests_the_validation_set_is_the_test_set(small, cache, labels):
    write_parquet(small / "test.parquet", [png(1), png(2)], labels)
    write_parquet(small / "validation.parquet", [png(3)], [1])
    found = build("parquet", cache, path=small)
    assert (found.validation is None) == (labels == [-1, -1])
    assert len(found.test) == (1 if labels == [-1, -1] else 2)


def test_parquet_at_fault(small, cache, tmp_path):
    fails(r"the folder .*nowhere does not exist \(looked from ", "parquet", cache, path=tmp_path / "nowhere")
    (tmp_path / "photos").mkdir()
    fails(r"photo does not exist .*\. Did you mean 'photos'\?$", "parquet", cache, path=tmp_path / "photo")
    fails("is a file, expected a folder", "parquet", cache, path=small / "train.parquet")
    fails(
        r"train\.parquet has no column 'image' \(image=image\)\. .*Its columns: img, label",
        "parquet",
        cache,
        path=small,
        image="image",
    )
    fails(r"no column 'labels' \(label=labels\)\. Did you mean 'label'\?", "parquet", cache, path=small, label="labels")
    fails(
        "the column 'label' of train.parquet is int64: expected encoded images",
        "parquet",
        cache,
        path=small,
        image="label",
    )
    fails("the labels in 'img' of train.parquet are struct", "parquet", cache, path=small, label="img")
    (small / "train.parquet").rename(small / "training_set.pq")
    fails("no train.*parquet in .*; there is test.parquet, training_set.pq", "parquet", cache, path=small)
    (small / "train.parquet").write_bytes(b"nothing of the kind")
    fails("train.parquet is not a parquet file, or is damaged: ", "parquet", cache, path=small)


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 1, -2, 1], None, r"row 2 of train.parquet has the label -2"),
        (
            [0, 1, 2, 1],
            ["cat", "dog"],
            r"row 2 of train.parquet has the label 2: with 2 classes \(cat, dog\) labels go from 0",
        ),
        ([0, 1, 0, 1], ["cat", "dog", "eel"], "too few training images in 1 of 3 classes: 'eel' 0. Each needs 2"),
        ([0, 0, 0, 0], None, r"'1' 0 \(and 2 to test\)"),
        (["a", "a", "a", "a"], None, r"'0' 0 \(and 2 to test\), '1' 0 \(and 2 to test\)"),
    ],
)
def test_labels_at_fault(small, cache, labels, names, message):
    write_parquet(small / "train.parquet", [png(k) for k in range(4)], labels, names)
    with pytest.raises(UserError, match=message):
        load(f"parquet:path={small}", cache)


@pytest.mark.parametrize(
    "content", [b"not an image", png(3)[:40], b"", None, encoded(Image.new("RGB", (64, 64)), "JPEG")[:300]]
)
def test_images_that_cannot_be_decoded(small, cache, content):
    images = [png(k) for k in range(6)]
    images[4] = content
    write_parquet(small / "train.parquet", images, [0, 1] * 3)
    fails(r"cannot decode row 4 of train\.parquet: .*skip_bad=true", "parquet", cache, path=small)
    found = build("parquet", cache, path=small, skip_bad=True)
    assert found.train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 5]
    assert found.train.labels.tolist() == [0, 1, 0, 1, 1]
    assert len(found.skipped) == 1
    assert found.skipped[0].startswith("row 4 of train.parquet: ")
    assert load(f"parquet:path={small},skip_bad=true", cache).skipped == found.skipped


def test_a_class_or_a_set_of_which_nothing_can_be_decoded(small, cache):
    write_parquet(small / "train.parquet", [png(1), b"bad", png(2), b"bad"], [0, 1] * 2)
    with pytest.raises(UserError, match="too few training images in 1 of 2 classes: '1' 0"):
        load(f"parquet:path={small},skip_bad=true", cache)
    cache = cache.with_name("other")
    write_parquet(small / "train.parquet", [b"bad"] * 4, [0, 1] * 2)
    fails(
        "no image of the train set can be decoded; the first is row 0 of",
        "parquet",
        cache,
        path=small,
        skip_bad=True,
    )


def test_images_of_several_sizes(small, cache):
    write_parquet(small / "test.parquet", [png(1), png(2, (8, 9))], [0, 1])
    found = build("parquet", cache, path=small)
    assert found.test.images.shape == (2, 6, 6, 3)
    said = found.inventory.remarks[0]
    assert said.startswith(
        "the pictures have different sizes (shorter sides from 6 to 8, median 6): each is resized to 6 on"
    )
    assert build("parquet", cache, path=small, size=5).test.images.shape == (2, 5, 5, 3)
    assert load(f"parquet:path={small},size=[5,7]", cache).size == (5, 7)


@pytest.mark.parametrize(
    ("sides", "expected"),
    [([640, 375, 500], 128), ([120, 97, 100], 96), ([40, 33], 32), ([20, 9, 11], 11), ([70] * 3, 64)],
)
def test_the_usual_size_is_one_that_the_median_picture_has(sides, expected):
    assert usual_size(np.array(sides))[0] == expected


def test_a_height_and_a_width_cut_the_middle_out(tmp_path):
    gradient = np.repeat(np.arange(0, 200, 2, dtype=np.uint8)[None], 50, 0)
    image = Image.fromarray(np.stack([gradient] * 3, 2))  # 50 × 100
    found = decode.decode(encoded(image, "PNG"), Pixels((50, 60)))
    assert found.shape == (50, 60, 3)
    assert (found[..., 0] == gradient[:, 20:80]).all()
    assert decode.decode(encoded(image, "PNG"), Pixels((30, 60))).shape == (30, 60, 3)
    assert decode.decode(encoded(image, "PNG"), Pixels((25, 20)))[:, :, 0].mean() == pytest.approx(
        gradient.mean(), abs=1
    )


@pytest.mark.skipif(not CIFAR10.exists(), reason="the CIFAR-10 files are not there")
def test_the_shared_cifar10_files(cache):
    from distilens.data.sources.files import existing_folder, label_column, parquet_files

    files = parquet_files(existing_folder(CIFAR10))
    labels = label_column(files["train"], CIFAR10, "img", "label")
    assert np.bincount(labels).tolist() == [5000] * 10


# Folders


def image_folder(root, parts, classes=("cat", "dog"), count=3):
    for part in parts:
        for label, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                (root / part / name / f"{number}.png").write_bytes(png(100 * label + number))
    return root


@pytest.mark.parametrize("validation", ["val", "valid", "validation"])
def test_folder_with_splits(tmp_path, cache, validation):
    root = image_folder(tmp_path / "set", ["train", "test", validation])
    (root / "train" / "cat" / "notes.txt").write_text("not an image, and not looked at")
    (root / "train" / ".hidden").mkdir()
    found = build("folder", cache, path=root)
    assert found.classes == ("cat", "dog")
    assert found.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 100, 101, 102]
    assert len(found.validation) == len(found.test) == 6


def test_folder_without_splits_holds_out_a_fifth_that_stays(tmp_path, cache):
    root = image_folder(tmp_path / "set", ["."], count=60)
    found = build("folder", cache, path=root)
    assert len(found.train) + len(found.test) == 120
    assert 12 <= len(found.test) <= 36
    assert set(found.test.labels) == {0, 1}
    tested = set(found.test.images[:, 0, 0, 0].tolist())
    (root / "cat" / "new.png").write_bytes(png(250))
    more = set(build("folder", cache, path=root).test.images[:, 0, 0, 0].tolist())
    assert more - {250} == tested


def test_folder_of_few_images_still_has_both(tmp_path, cache):
    found = build("folder", cache, path=image_folder(tmp_path / "set", ["."], count=2))
    assert (len(found.train), len(found.test)) == (2, 2)


def test_folder_at_fault(tmp_path, cache):
    root = image_folder(tmp_path / "set", ["train", "test"])
    (root / "train" / "eel").mkdir()
    with pytest.raises(UserError, match="too few training images in 1 of 3 classes: 'eel' 0"):
        load(f"folder:path={root}", tmp_path / "other")
    (root / "train" / "eel").rmdir()
    (root / "test" / "emu").mkdir()
    (root / "test" / "emu" / "1.png").write_bytes(png(1))
    with pytest.raises(UserError, match=r"too few training images in 1 of 3 classes: 'emu' 0 \(and 1 to test\)"):
        load(f"folder:path={root}", tmp_path / "other")
    shutil.rmtree(root / "test" / "emu")
    (root / "train" / "dog" / "1.png").write_bytes(b"no image")
    fails(
        r"cannot decode train/dog/1\.png: the bytes are not an image\. Repair or remove it", "folder", cache, path=root
    )
    assert build("folder", cache, path=root, skip_bad=True).skipped == ("train/dog/1.png: the bytes are not an image",)
    (tmp_path / "empty").mkdir()
    fails(r"no images in .*empty: expected a folder per class", "folder", tmp_path / "c", path=tmp_path / "empty")
    fails("the folder .* does not exist", "folder", tmp_path / "c", path=tmp_path / "nowhere")


def test_a_class_that_the_test_set_lacks_is_fine(tmp_path, cache):
    root = image_folder(tmp_path / "set", ["train", "test"])
    shutil.rmtree(root / "test" / "dog")
    assert build("folder", cache, path=root).test.labels.tolist() == [0, 0, 0]


# Hugging Face datasets


@pytest.fixture
def offline(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "huggingface")
    datasets.disable_progress_bars()


@pytest.mark.usefixtures("offline")
def test_a_local_image_folder_in_the_hubs_format(tmp_path, cache):
    root = image_folder(tmp_path / "set", ["train", "test"])
    found = build(f"hf:{root}", cache)
    assert found.classes == ("cat", "dog")
    assert found.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 100, 101, 102]
    assert found.fingerprint == build(f"hf:{root}", cache).fingerprint
    assert build(f"hf:{root}", cache, size=3).test.images.shape == (6, 3, 3, 3)


@pytest.mark.usefixtures("offline")
def test_a_local_parquet_folder_in_the_hubs_format(tmp_path, cache):
    import datasets

    features = datasets.Features(
        {
            "img": datasets.Image(),
            "fine": datasets.ClassLabel(names=["a", "b", "c"]),
            "coarse": datasets.ClassLabel(names=["x"]),
        }
    )
    images = [{"bytes": png(k), "path": None} for k in range(6)]
    rows = {"img": images, "fine": [0, 1, 2] * 2, "coarse": [0] * 6}
    (tmp_path / "set" / "data").mkdir(parents=True)
    for part in ("train", "validation"):
        made = datasets.Dataset.from_dict(rows, features=features)
        made.to_parquet(tmp_path / "set" / "data" / f"{part}-00000-of-00001.parquet")
    found = build(f"hf:{tmp_path / 'set'}", cache, label="fine")
    assert found.classes == ("a", "b", "c")
    assert found.train.images[:, 0, 0, 0].tolist() == list(range(6))
    assert found.test is not None
    assert found.validation is None
    assert load(Spec("hf", str(tmp_path / "set"), {"label": "fine", "shots": 1}), cache).classes == ("a", "b", "c")
    fails(
        "has several columns of class labels: name one, label=...; the columns are fine, coarse",
        f"hf:{tmp_path / 'set'}",
        tmp_path / "c",
    )
    fails(
        r"has no column 'imgs'\. Did you mean 'img'\? Its columns",
        f"hf:{tmp_path / 'set'}",
        tmp_path / "c",
        image="imgs",
    )
    assert build("parquet", cache, path=tmp_path / "set", label="fine").classes == ("a", "b", "c")


@pytest.mark.usefixtures("offline")
def test_a_hub_that_cannot_be_reached(cache, monkeypatch):
    import datasets

    def unreachable(*given):
        raise ConnectionError("Couldn't reach 'someone/something' on the Hub (LocalEntryNotFoundError)\nand more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError) as error:
        build("hf:someone/something", cache)
    assert str(error.value) == (
        "hf:someone/something cannot be loaded: Couldn't reach 'someone/something' on the Hub (LocalEntryNotFoundError)"
        ". Give a data set of huggingface.co/datasets that this machine can reach, or a local folder"
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda *given: datasets.DatasetDict(test=None))
    fails("hf:someone/something has no train split; it has test", "hf:someone/something", cache)
    fails("'hf' needs hf:NAME", "hf", cache)


# torchvision


def write_idx(file, array):
    file.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    file.write_bytes(header + array.astype(np.uint8).tobytes())


def test_mnist_files(tmp_path, cache):
    random = np.random.default_rng(0)
    raw = tmp_path / "data" / "MNIST" / "raw"
    pixels = {}
    for part, count in (("train", 40), ("t10k", 20)):
        pixels[part] = random.integers(0, 256, (count, 28, 28))
        write_idx(raw / f"{part}-images-idx3-ubyte", pixels[part])
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
    found = build("torchvision:MNIST", cache, root=tmp_path / "data")
    assert found.classes[:2] == ("0 - zero", "1 - one")
    assert found.train.images.shape == (40, 28, 28, 3)
    np.testing.assert_array_equal(found.train.images[..., 1], pixels["train"])
    np.testing.assert_array_equal(found.test.labels, np.arange(20) % 10)
    assert build("torchvision:MNIST", cache, root=tmp_path / "data", size=32).train.images.shape == (40, 32, 32, 3)


def test_cifar10_files(tmp_path, cache, monkeypatch):
    from torchvision import datasets

    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", None]])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": None})
    root = tmp_path / "data" / "cifar-10-batches-py"
    root.mkdir(parents=True)
    for name, count in (("data_batch_1", 20), ("test_batch", 10)):
        data = np.repeat(np.arange(count, dtype=np.uint8)[:, None], 3072, axis=1)
        data[:, 1024:2048] = 200  # all green comes after all red
        (root / name).write_bytes(pickle.dumps({"data": data, "labels": [k % 10 for k in range(count)]}))
    (root / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {k}" for k in range(10)]}))
    found = build("torchvision:CIFAR10", cache, root=tmp_path / "data")
    assert found.classes[9] == "class 9"
    assert found.train.images.shape == (20, 32, 32, 3)
    assert found.train.images[7, 5, 5].tolist() == [7, 200, 7]
    assert found.test.labels.tolist() == list(range(10))


def test_torchvision_at_fault(tmp_path, cache):
    fails(
        r"the files of CIFAR10 are not in .*data, or are incomplete\. Fetch them with download=true",
        "torchvision:CIFAR10",
        cache,
        root=tmp_path / "data",
    )
    fails("the files of SVHN are not in", "torchvision:SVHN", cache, root=tmp_path / "data")
    fails(
        r"unknown torchvision data set 'CIFAR'\. Did you mean 'CIFAR10'\? Known: .*Others can be read with folder",
        "torchvision:CIFAR",
        cache,
    )
    fails("'torchvision' needs torchvision:NAME", "torchvision", cache)


# Digits and names


def test_digits(cache):
    found = build("digits", cache)
    assert found.train.images.shape[1:] == (32, 32, 3)
    assert len(found.train) + len(found.test) == 1797
    shares = np.bincount(found.test.labels) / (np.bincount(found.train.labels) + np.bincount(found.test.labels))
    np.testing.assert_allclose(shares, 0.2, atol=0.01)
    assert found.train.images.max() == 255
    assert build("digits", cache, size=8).fingerprint != found.fingerprint
    np.testing.assert_array_equal(build("digits", cache).test.images, found.test.images)
    from sklearn.datasets import load_digits

    same = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    np.testing.assert_array_equal(enlarge_digits(load_digits().images, 8), same)


def test_enlarging_agrees_with_torch():
    import torch

    grey = np.random.default_rng(0).integers(0, 17, (3, 8, 8)).astype(float)
    wanted = torch.nn.functional.interpolate(torch.from_numpy(grey)[None], (20, 20), mode="bilinear")[0] * 255 / 16
    np.testing.assert_allclose(enlarge_digits(grey, 20), wanted.numpy(), atol=0.51)


def test_names_and_options(cache):
    data = load({"name": "digits", "limit": 50, "classes": [3, "7"], "val_fraction": 0.2, "seed": 4}, cache)
    assert data.classes == ("3", "7")
    assert len(data.train) == 50
    assert data.seed == 4
    assert load("digits:classes=[3,7],limit=50,seed=4,val_fraction=0.2", cache).fingerprint == data.fingerprint
    with pytest.raises(
        UserError, match=r"unknown data 'digit'\. Did you mean 'digits'\? Known: cityscapes, csv, digits, folder, "
    ):
        load("digit", cache)
    with pytest.raises(UserError, match="option 'shots' of data 'digits': input should be greater than or equal to 1"):
        load("digits:shots=0", cache)
    with pytest.raises(UserError, match=r"data 'folder' needs the option path=\.\.\."):
        load("folder", cache)


def test_every_source_says_what_it_is_for():
    for title, _, purpose, origin in SOURCES.table():
        assert purpose.endswith((".", ":")), title
        assert origin, title
