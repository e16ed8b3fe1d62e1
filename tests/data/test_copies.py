"""The same picture twice: exact, saved again, brighter; in two splits, in two classes."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn

from distilens.data import from_arrays, load
from distilens.data.copies import APART, Copies, cosines, find_copies, group_pairs, hash_images, pairs_of, show_the_same


def pictures(count: int, side: int = 32, seed: int = 0) -> np.ndarray:
    """Coloured blotches that differ, uint8 `[n side side 3]`."""
    random = np.random.default_rng(seed)
    light, colour = random.integers(0, 200, (count, 12, 12, 1)), random.integers(0, 55, (count, 12, 12, 3))
    coarse = (light + colour).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC)) for one in coarse])


def saved(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def named(part: str, row: int) -> str:
    return f"{part} {row}"


@pytest.mark.parametrize("side", [9, 28, 32, 48, 64, 96, 100])
def test_the_frequencies_are_those_of_scipy(side):
    image = pictures(1, side)[0, ..., 1].astype(np.float64)
    pieces = min(side, 32)
    if side % pieces:
        edges = np.arange(pieces + 1) * side / pieces
        cover = np.minimum(edges[1:, None], np.arange(side) + 1) - np.maximum(edges[:-1, None], np.arange(side))
        means = np.clip(cover, 0, None)
        small = means @ image @ means.T / (means.sum(1)[:, None] * means.sum(1)[None])
    else:
        small = image.reshape(pieces, side // pieces, pieces, side // pieces).mean((1, 3))
    wanted = dctn(small, norm="ortho")[:8, :8] / pieces
    assert cosines(side) @ image @ cosines(side).T == pytest.approx(wanted, abs=1e-3)


def test_hashes_of_a_picture_saved_again_are_near_and_of_others_far():
    images = pictures(200)
    again = np.stack([saved(image, 50) for image in images])
    bits = np.unpackbits((hash_images(images) ^ hash_images(again)).view(np.uint8).reshape(-1, 8), axis=1).sum(1)
    others = np.unpackbits(
        (hash_images(images) ^ np.roll(hash_images(images), 1)).view(np.uint8).reshape(-1, 8), axis=1
    ).sum(1)
    assert np.median(bits) <= 2
    assert others.min() > APART
    assert np.median(others) > 24


def test_the_hash_does_not_depend_on_the_chunk(monkeypatch):
    images = pictures(9)
    whole = hash_images(images)
    monkeypatch.setattr("distilens.data.copies.CHUNK", 1)
    assert (hash_images(images) == whole).all()
    assert len(hash_images(images[:0])) == 0


def test_near_hashes_are_found_whatever_quarter_they_differ_in():
    generator = np.random.default_rng(0)
    hashes = generator.integers(1, 2**63, 2000, dtype=np.uint64)
    close = hashes.copy()
    for row in range(2000):
        for bit in generator.choice(64, 3, replace=False):
            close[row] ^= np.uint64(1) << np.uint64(bit)
    pairs = pairs_of(np.concatenate([hashes, close]))
    assert {tuple(pair) for pair in pairs.tolist()} == {(row, row + 2000) for row in range(2000)}


def test_groups():
    images = pictures(12)
    train = np.concatenate([images, images[3:4], saved(images[5], 85)[None]])
    test = np.stack(
        [images[3], saved(images[7], 85), np.clip(images[8] * 0.8 + 20, 0, 255).astype(np.uint8), images[0, ::-1]]
    )
    found = find_copies({"train": train, "test": test}, named)
    assert sorted(found, key=lambda group: group.rows) == [
        Copies(True, (("train", 3), ("train", 12), ("test", 0)), ("train 3", "train 12", "test 0")),
        Copies(False, (("train", 5), ("train", 13)), ("train 5", "train 13")),
        Copies(False, (("train", 7), ("test", 1)), ("train 7", "test 1")),
        Copies(False, (("train", 8), ("test", 2)), ("train 8", "test 2")),
    ]


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((6, 32, 32, 3), np.uint8),
        np.random.default_rng(0).integers(100, 108, (6, 32, 32, 3), dtype=np.uint8),
        np.random.default_rng(0).integers(0, 255, (60, 32, 32, 3), dtype=np.uint8),
        pictures(2, side=3),
    ],
)
def test_black_still_and_noisy_pictures_are_no_copies(images):
    assert find_copies({"train": images}, named) == []


def test_what_is_said_of_arrays():
    images = pictures(60)
    labels = np.arange(60) % 3
    assert from_arrays(images, labels).inventory.remarks == ()
    test = np.concatenate([images[:2], saved(images[6], 85)[None], pictures(9, seed=1)])
    data = from_arrays(images, labels, test=(test, np.array([0, 1, 0, *[0, 1, 2] * 3])))
    here = [row for row in (0, 1, 6) if row in data.train.index]
    (said,) = [line for line in data.inventory.remarks if " test " in line]
    assert said.startswith(f"{len(here)} of 12 test pictures are also in the training set (")
    assert "nearly" in said
    assert f"such as row {'012'[here[0]]} of test and row {here[0]} of train: a model can memorise them" in said
    data = from_arrays(images, labels, test=(test, np.array([1, 1, 0, *[0, 1, 2] * 3])))
    assert any("2 pictures have a copy in another class, such as row 0 of t" in line for line in data.inventory.remarks)


def test_pictures_that_a_choice_leaves_out_are_not_counted():
    images = pictures(300)
    images[31] = images[1]
    data = from_arrays(images, np.arange(300) % 3)
    splits = [
        next(name for name in ("train", "validation", "test") if row in getattr(data, name).index) for row in (1, 31)
    ]
    assert len(data.inventory.remarks) == (len(set(splits)) > 1)
    images = pictures(60)
    images[1::3] = images[1]
    remarks = from_arrays(images, np.arange(60) % 3).inventory.remarks
    assert remarks[0].startswith("4 of 12 test pictures are also in the training set (with equal pixels)")
    assert remarks[1].startswith("2 of 6 validation pictures")
    assert remarks[2].startswith("13 of 42 training pictures are copies of others, such as row ")


def test_files_are_named_and_remembered(tmp_path):
    for part, seed in (("train", 0), ("test", 1)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / "set" / part / name
            folder.mkdir(parents=True)
            for number, image in enumerate(pictures(9, seed=10 * seed + label)):
                Image.fromarray(image).save(folder / f"{number}.png")
    Image.fromarray(pictures(9, seed=1)[4]).save(tmp_path / "set" / "test" / "cat" / "stray.png")
    for number in range(9):
        Image.fromarray(pictures(9, seed=11)[number]).save(tmp_path / "set" / "train" / "cat" / f"again{number}.jpg")
    for _ in range(2):
        data = load(f"folder:path={tmp_path / 'set'}", tmp_path / "cache")
        leak, two = data.inventory.remarks[0], data.inventory.remarks[-1]
        assert " of 19 test pictures are also in the training set (" in leak
        assert "18 pictures have a copy in another class" in two
        assert ".jpg (cat)" in two or "stray.png (cat)" in two


def test_pairs_become_groups():
    assert group_pairs([]) == []
    assert group_pairs([(1, 2), (5, 9), (2, 3), (8, 7), (7, 1)]) == [[1, 2, 3, 7, 8], [5, 9]]
    assert group_pairs([(number, number + 1) for number in range(5000)]) == [list(range(5001))]


def test_pictures_of_other_shapes_do_not_show_the_same():
    (picture,) = pictures(1)
    assert show_the_same(picture, saved(picture, 90))
    assert not show_the_same(picture, picture[:-1])
    assert not show_the_same(picture, picture[::-1])
