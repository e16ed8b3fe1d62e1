"""Images with masks in parquet files: small ones with each fault, and the shared sets."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from distilens.data import SOURCES, load
from distilens.data.places import describe_places, shares_of
from distilens.foundation.errors import UserError
from distilens.foundation.notation import Spec
from distilens.tasks import VOID, Classification, Segmentation

SHARED = Path(__file__).parents[3] / "../shared/data"
ENCODED = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})


def png(values):
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    return stream.getvalue()


def write(file, images, masks, metadata=None, mask="mask", **columns):
    file.parent.mkdir(parents=True, exist_ok=True)

    def column(given, name):
        return pyarrow.array(
            [one if one is None else {"bytes": png(one), "path": name.format(row)} for row, one in enumerate(given)],
            ENCODED,
        )

    table = pyarrow.table({"image": column(images, "case{}_a.jpg"), mask: column(masks, "case{}.png"), **columns})
    pyarrow.parquet.write_table(table.replace_schema_metadata(metadata or {}), file)


def pictures(count, shape=(6, 8)):
    return np.random.default_rng(count).integers(0, 256, (count, *shape, 3), dtype=np.uint8)


def masks_of(images):
    """The class is 1 where the picture is bright, 2 in the first column."""
    masks = (images[..., 1] > 127).astype(np.uint8)
    masks[:, :, 0] = 2
    return masks


@pytest.fixture
def small(tmp_path):
    folder = tmp_path / "small"
    for part, count in (("train", 12), ("test", 4)):
        images = pictures(count)
        write(folder / f"{part}.parquet", images, masks_of(images), site=[f"s{row % 3}" for row in range(count)])
    return folder


def build(part, cache, **options):
    return SOURCES.build(Spec.parse(part).replaced(**options), cache)


def fails(message, folder, cache, **options):
    with pytest.raises(UserError) as error:
        build(f"parquet:path=[{folder}]", cache, **options)
    assert re.search(message, str(error.value)), str(error.value)
    assert not [entry for entry in (cache.iterdir() if cache.exists() else []) if entry.name != "content"]


def test_a_set_with_masks_and_no_labels_is_a_segmentation(small, tmp_path):
    cache = tmp_path / "cache"
    source = build(f"parquet:path=[{small}]", cache)
    assert source.task == Segmentation(("0", "1", "2"))
    assert np.array_equal(source.train.images, pictures(12)) and np.array_equal(
        source.train.targets, masks_of(pictures(12))
    )
    assert isinstance(source.train.targets, np.memmap) and source.train.targets.dtype == np.uint8
    assert source.inventory.remarks[0] == "no column of labels: 'mask' has the masks of a segmentation"
    assert source.train.column("site").tolist() == ["s0", "s1", "s2"] * 4
    assert source.test.column("path").tolist() == [f"case{row}_a.jpg" for row in range(4)]
    again = build(f"parquet:path=[{small}]", cache)
    assert again.fingerprint == source.fingerprint and again.task == source.task
    named = build(f"parquet:path=[{small}]", cache, class_names=("dark", "bright", "edge"), ignore=2)
    assert named.classes == ("dark", "bright") and named.fingerprint != source.fingerprint
    assert (named.train.targets[:, :, 0] == VOID).all() and set(np.unique(named.train.targets)) == {0, 1, VOID}
    data = load(f"parquet:path=[{small}],group=site,few=3,part=1/2", cache)
    assert data.task == source.task and "group=site" in " ".join(data.inventory.remarks)


def test_names_and_void_from_the_metadata(tmp_path):
    metadata = {"mask_classes": json.dumps(["dark", "bright", "edge"]), "ignore_index": "2"}
    images = pictures(12)
    write(tmp_path / "set" / "train.parquet", images, masks_of(images), metadata)
    source = build(f"parquet:path=[{tmp_path / 'set'}]", tmp_path / "cache")
    assert source.classes == ("dark", "bright") and (source.train.targets[:, :, 0] == VOID).all()
    kept = build(f"parquet:path=[{tmp_path / 'set'}]", tmp_path / "cache", class_names=("a", "b", "c"), ignore=())
    assert kept.classes == ("a", "b", "c")


def test_labels_come_first_unless_target_names_the_masks(tmp_path):
    images = pictures(12)
    write(tmp_path / "set" / "train.parquet", images, masks_of(images), label=[row % 2 for row in range(12)])
    part = f"parquet:path=[{tmp_path / 'set'}],image=image"
    assert isinstance(build(part, tmp_path / "cache").task, Classification)
    dense = build(part, tmp_path / "cache", target="mask")
    assert dense.task == Segmentation(("0", "1", "2")) and dense.train.column("label").tolist() == ["0", "1"] * 6
    fails(
        "label=label and target=mask: expected one of them",
        tmp_path / "set",
        tmp_path / "none",
        target="mask",
        label="label",
    )
    fails(
        r"ignore= is about masks, and train.parquet is read with labels: name the column of masks, target=",
        *(tmp_path / "set", tmp_path / "none"),
        ignore=2,
    )
    fails(r"no column 'msk' \(target=msk\)\. Did you mean 'mask'", tmp_path / "set", tmp_path / "none", target="msk")
    fails("the column 'label' of train.parquet is int64", tmp_path / "set", tmp_path / "none", target="label")


@pytest.mark.parametrize("name", ["segmentation", "annotation", "label", "other"])
def test_the_column_of_masks_is_found(tmp_path, name):
    images = pictures(12)
    write(tmp_path / "set" / "train.parquet", images, masks_of(images), mask=name)
    assert build(f"parquet:path=[{tmp_path / 'set'}]", tmp_path / "cache").task.dense


def test_the_same_size_is_made_of_both(small, tmp_path):
    source = build(f"parquet:path=[{small}],size=[4,5]", tmp_path / "cache")
    assert source.train.images.shape == (12, 4, 5, 3) and source.train.targets.shape == (12, 4, 5)
    whole = Image.fromarray(masks_of(pictures(12))[0]).resize((5, 4), Image.Resampling.NEAREST)  # 8x6 to 5x4: no crop
    assert np.array_equal(source.train.targets[0], np.asarray(whole))


def test_pictures_of_several_sizes_get_a_usual_one(tmp_path):
    images = [*pictures(6, (50, 60)), *pictures(6, (70, 40))]
    write(tmp_path / "set" / "train.parquet", images, [(image[..., 1] > 127).astype(np.uint8) for image in images])
    source = build(f"parquet:path=[{tmp_path / 'set'}]", tmp_path / "cache")
    assert source.train.images.shape[1:3] == source.train.targets.shape[1:] == (32, 32)
    assert any("the pictures have different sizes" in remark for remark in source.inventory.remarks)


def test_masks_at_fault_name_their_row(tmp_path):
    cache, images = tmp_path / "cache", pictures(12)

    def wrong(name, masks, message, **options):
        write(tmp_path / name / "train.parquet", images, masks)
        fails(message, tmp_path / name, cache, **options)

    masks = list(masks_of(images))
    masks[5] = np.zeros((6, 9), dtype=np.uint8)
    wrong("size", masks, "cannot decode row 5 of train.parquet: its mask is 9×6, the image 8×6")
    source = build(f"parquet:path=[{tmp_path / 'size'}]", cache, skip_bad=True)
    assert len(source.train) == 11 and source.skipped == ("row 5 of train.parquet: its mask is 9×6, the image 8×6",)
    assert source.train.column("path").tolist() == [f"case{row}_a.jpg" for row in range(12) if row != 5]
    masks = list(masks_of(images))
    masks[3] = np.full((6, 8), 9, dtype=np.uint8)
    cache = tmp_path / "another"
    wrong(
        "value",
        masks,
        r"row 3 of train.parquet: its mask holds the value 9, which is no class",
        class_names=("a", "b", "c"),
    )
    masks[3] = np.zeros((6, 8, 3), dtype=np.uint8)
    masks[3][0, 0] = (255, 0, 0)
    wrong("rgb", masks, r"row 3 of train.parquet: its mask is a colour picture without a palette.*colours=\[")
    wrong("one", [np.ones((6, 8), np.uint8)] * 12, "the masks have one class, '1'")
    wrong("declared", [np.ones((6, 8), np.uint8)] * 12, "hold a single class, 'b'", class_names=("a", "b"))
    wrong(
        "void",
        [np.full((6, 8), 255, np.uint8)] * 12,
        "all places of all 12 training masks are void",
        class_names=("a", "b"),
    )
    many = [np.arange(48, dtype=np.uint16).reshape(6, 8) + 48 * row for row in range(12)]
    wrong("many", many, "there can be at most 255")


def test_images_without_a_mask_are_not_labelled(tmp_path):
    images = pictures(12)
    masks = [None if row in (2, 3) else np.full((6, 8), 255, np.uint8) if row == 4 else mask
             for row, mask in enumerate(masks_of(images))]  # fmt: skip
    write(tmp_path / "set" / "train.parquet", images, masks)
    data = load(f"parquet:path=[{tmp_path / 'set'}]", tmp_path / "cache")
    unlabelled = data.train.index[data.train.strata < 0]
    assert unlabelled.tolist() == [2, 3, 4] and len(data.train) + len(data.validation) + len(data.test) == 12
    assert (
        "3 of them" not in describe_places(data)[0]
        and f"{len(data.train) - 3:,} of them with labels" in describe_places(data)[0]
    )


def pillow_masks(file):
    cells = pyarrow.parquet.read_table(file, columns=["mask"]).column(0).to_pylist()
    return np.stack([np.asarray(Image.open(io.BytesIO(cell["bytes"]))) for cell in cells])


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "camvid").is_dir(), reason="the shared CamVid files are not here")
def test_the_shared_camvid_files(tmp_path):
    folder = SHARED / "camvid"
    data = load(f"parquet:path=[{folder}],group=^(.{{6}})", tmp_path)
    assert [len(split) for split in data.splits.values()] == [367, 101, 233]
    assert (
        len(data.classes) == 11
        and data.classes[0] == "sky"
        and data.classes[-1] == "bicyclist"
        and data.size == (180, 240)
    )
    shown = data.train.rows.targets[7]
    every = pillow_masks(folder / "train.parquet")
    given = every[7]
    assert (given == 11).any() and np.array_equal(shown, np.where(given == 11, VOID, given))
    shares = shares_of(data.train)
    assert shares["void"] == pytest.approx((every == 11).mean())
    assert shares["road"] == pytest.approx((every == 3).sum() / (every != 11).sum())
    assert sum(shares[name] for name in data.classes) == pytest.approx(1)
    remarks = " ".join(data.inventory.remarks)
    assert "101 of 101 validation images are of groups that are in train too (0016E5)" in remarks
    assert "62 of 233 test images are of groups that are in train too (0001TP)" in remarks


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "retina").is_dir(), reason="the shared retina files are not here")
def test_the_shared_retina_files(tmp_path):
    folder = SHARED / "retina"
    data = load(f"parquet:path=[{folder}],where=source:drive", tmp_path)
    assert data.classes == ("background", "vessel") and len(data.train) + len(data.validation) == 20 == len(data.test)
    assert np.array_equal(data.train.rows.targets[3], pillow_masks(folder / "train.parquet")[3])
    assert 0.08 < shares_of(data.train)["vessel"] < 0.11 and shares_of(data.train)["void"] == 0
