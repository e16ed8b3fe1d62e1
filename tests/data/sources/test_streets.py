"""Pascal VOC and Cityscapes in small folders of their layout."""

import numpy as np
import pytest
from PIL import Image

from distilens.data import load
from distilens.foundation.errors import UserError
from distilens.tasks import VOID


def picture(file, seed, shape=(10, 12)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)).save(file)


@pytest.fixture
def voc(tmp_path):
    base = tmp_path / "VOCdevkit" / "VOC2012"
    for part, rows in (("train", range(8)), ("val", range(8, 12))):
        listed = base / "ImageSets" / "Segmentation" / f"{part}.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text("".join(f"{row}\n" for row in rows))
        for row in rows:
            picture(base / "JPEGImages" / f"{row}.jpg", row)
            values = np.random.default_rng(row).choice(np.array([0, 5, 20, 255], dtype=np.uint8), (10, 12))
            mask = Image.frombytes("P", (12, 10), values.tobytes())
            mask.putpalette([shade % 256 for shade in range(768)])
            (base / "SegmentationClass").mkdir(exist_ok=True)
            mask.save(base / "SegmentationClass" / f"{row}.png")
    return tmp_path


def test_voc(voc, tmp_path):
    data = load(f"voc:path=[{voc}]", tmp_path / "cache")
    assert len(data.classes) == 21 and data.classes[0] == "background" and data.classes[20] == "tvmonitor"
    assert len(data.test) == 4 and len(data.train) + len(data.validation) == 8
    expected = np.random.default_rng(9).choice(np.array([0, 5, 20, 255], dtype=np.uint8), (10, 12))
    assert np.array_equal(data.test.targets[1], expected)
    assert data.test.names()[1].endswith("JPEGImages/9.jpg")
    (voc / "VOCdevkit" / "VOC2012" / "SegmentationClass" / "3.png").unlink()
    with pytest.raises(UserError, match=r"1 files are missing, such as .*SegmentationClass/3.png"):
        load(f"voc:path=[{voc}]", tmp_path / "cache")
    with pytest.raises(UserError, match=r"the files of Pascal VOC 2007 are not in .* expected VOCdevkit/VOC2007"):
        load(f"voc:path=[{voc}],year=2007", tmp_path / "cache")


def test_cityscapes(tmp_path):
    for part, count in (("train", 6), ("val", 3)):
        for row in range(count):
            name = f"bern_{row:06}_000019"
            picture(tmp_path / "leftImg8bit" / part / "bern" / f"{name}_leftImg8bit.png", row)
            mask = tmp_path / "gtFine" / part / "bern" / f"{name}_gtFine_labelIds.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.arange(120, dtype=np.uint8).reshape(10, 12) % 34).save(mask)
    data = load(f"cityscapes:path=[{tmp_path}]", tmp_path / "cache")
    assert (
        len(data.classes) == 19 and (data.classes[0], data.classes[18]) == ("road", "bicycle") and len(data.test) == 3
    )
    first = data.train.targets[0].ravel()[:34]  # of the ids 0 to 33
    assert first[7] == 0 and first[11] == 2 and first[26] == 13 and first[33] == 18  # road, building, car, bicycle
    assert (first != VOID).sum() == 19 and first[0] == VOID and first[29] == VOID  # unlabelled, caravan
    with pytest.raises(UserError, match="the files of Cityscapes are not in"):
        load(f"cityscapes:path=[{tmp_path / 'gtFine'}]", tmp_path / "cache")
