"""From the values of a mask to classes, on the grid of its image."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from distilens.data.decode import Encoded
from distilens.data.masks import (
    Masks,
    Pair,
    Table,
    check_targets,
    count_places,
    decode_pair,
    find_table,
    read_values,
)
from distilens.data.pixels import Pixels
from distilens.foundation.errors import UserError

VALUES = np.array([[0, 1, 2], [3, 4, 255]], dtype=np.uint8)


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def table_of(masks, *values):
    """The table for a training set with one mask for each array."""
    each = [encoded(Image.fromarray(value)) for value in values]
    sets = {"train": Encoded(np.zeros(len(each)), lambda: iter(each), str, lambda: iter(each))}
    with ThreadPoolExecutor(1) as pool:
        return find_table(masks, pool, sets)


def palette(values):
    image = Image.fromarray(values)
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([shade for index in range(256) for shade in (255 - index, (7 * index) % 256, 3)])
    return image


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(VALUES),
        palette(VALUES),
        Image.fromarray(VALUES.astype(np.uint16)),
        Image.fromarray(VALUES.astype(np.int32)),
        Image.fromarray(np.repeat(VALUES[..., None], 3, axis=2)),
        Image.merge("LA", [Image.fromarray(VALUES), Image.new("L", (3, 2), 255)]),
    ],
    ids=["grey", "palette", "16 bits", "32 bits", "equal channels", "grey and alpha"],
)
def test_the_value_or_the_index_is_read(image):
    kind = "TIFF" if image.mode == "I" else "PNG"
    assert np.array_equal(read_values(encoded(image, kind), coloured=False), VALUES)


def test_black_and_white_is_0_and_1():
    image = Image.fromarray(VALUES > 1)
    assert image.mode == "1"
    assert np.array_equal(read_values(encoded(image), coloured=False), VALUES > 1)


def test_floats_are_read_if_they_are_whole():
    whole = Image.fromarray(VALUES.astype(np.float32))
    assert np.array_equal(read_values(encoded(whole, "TIFF"), coloured=False), VALUES)
    with pytest.raises(ValueError, match="holds fractions"):
        read_values(encoded(Image.fromarray(VALUES.astype(np.float32) / 2), "TIFF"), coloured=False)


def test_colours_are_refused_or_read():
    colours = np.zeros((2, 3, 3), dtype=np.uint8)
    colours[0], colours[1] = (255, 0, 0), (0, 16, 255)
    with pytest.raises(ValueError, match=r"is a colour picture without a palette.*colours=\[000000,ff0000\]"):
        read_values(encoded(Image.fromarray(colours)), coloured=False)
    table, _ = table_of(Masks(("sea", "land"), colours=("0010ff", "#FF0000")))
    assert table.classes == ("sea", "land")
    values = read_values(encoded(Image.fromarray(colours)), coloured=True)
    assert table.targets(values).tolist() == [[1, 1, 1], [0, 0, 0]]
    with pytest.raises(ValueError, match="holds the colours 0010ff, which is no class"):
        Table(("a", "b"), (0xFF0000, 1), (), True).targets(values)


@pytest.mark.parametrize(
    ("masks", "classes", "targets"),
    [
        (Masks(), ("0", "1", "2", "3", "4"), [[0, 1, 2], [3, 4, 255]]),
        (Masks(ignore=3), ("0", "1", "2", "4"), [[0, 1, 2], [255, 3, 255]]),
        (Masks(tuple("abcde")), tuple("abcde"), [[0, 1, 2], [3, 4, 255]]),
        (Masks(tuple("abcde"), ignore=(0, "4")), tuple("bcd"), [[255, 0, 1], [2, 255, 255]]),
        (Masks(tuple("abcd"), ignore=4), tuple("abcd"), [[0, 1, 2], [3, 255, 255]]),
        (Masks(("x", "y"), values=(4, 255), ignore=(0, 1, 2, 3)), ("x", "y"), [[255, 255, 255], [255, 0, 1]]),
    ],
)
def test_values_become_classes(masks, classes, targets):
    table, remark = table_of(masks, VALUES)
    assert table.classes == classes and remark == ""
    assert table.targets(VALUES).tolist() == targets


def test_the_same_meaning_is_the_same_fingerprint():
    same = [Masks(ignore=11), Masks(ignore="11"), Masks(ignore=(11,)), Masks(ignore=("11", 11))]
    assert all(masks.plain() == same[0].plain() for masks in same)
    assert Masks(colours=("ff0000", "0000FF")).plain() == Masks(colours=("#FF0000", "0000ff")).plain()
    different = [
        Masks(),
        Masks(ignore=11),
        Masks(ignore=(10, 11)),
        Masks(("a",)),
        Masks(values=(1,)),
        Masks(colours=("000001",)),
    ]
    assert len({str(masks.plain()) for masks in different}) == len(different)


def test_0_and_255_alone_are_two_classes():
    values = np.array([[0, 255]], dtype=np.uint8)
    table, remark = table_of(Masks(), values)
    assert table.targets(values).tolist() == [[0, 1]] and table.classes == ("0", "255")
    assert "both are classes (values=[0,255])" in remark
    with pytest.raises(UserError, match="the masks have one class, '0'"):  # the user said that 255 is void
        table_of(Masks(ignore=255), values)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (
            Masks(tuple("abc")),
            "the values 3, 4, which are no class and not ignored: the classes a, b, c have the values 0 to 2",
        ),
        (Masks(tuple("abcd")), "holds the value 4, which is no class and not ignored.*void is the value 255"),
        (Masks(values=(0, 1, 2, 3, 4, 255), ignore=()), None),
    ],
)
def test_unknown_values_are_named(masks, message):
    table, _ = table_of(masks, VALUES)
    if message is None:
        assert table.targets(VALUES)[1, 2] == 5
        return
    with pytest.raises(ValueError, match=message):
        table.targets(VALUES)


def test_a_smoothed_mask_is_suspected():
    with pytest.raises(ValueError, match="Was it scaled with smoothing, or saved as JPEG"):
        Table(("a", "b"), (0, 255), ()).targets(np.arange(256))


@pytest.mark.parametrize(
    ("masks", "values", "message"),
    [
        (
            Masks(),
            np.arange(300, dtype=np.uint16).reshape(15, 20),
            "299 classes, with the values 0 to 299: there can be at most 255",
        ),
        (Masks(tuple(map(str, range(300)))), VALUES, "300 classes"),
        (Masks(), np.full((2, 2), 7, dtype=np.uint8), "the masks have one class, '7'"),
        (Masks(), np.full((2, 2), 255, dtype=np.uint8), "the masks have no class"),
        (Masks(("a", "b", "c"), values=(0, 1)), VALUES, "3 names of classes and 2 values"),
        (Masks(values=(1, 1)), VALUES, "a different value for each name"),
        (Masks(ignore="x"), VALUES, "ignore=x: expected whole numbers"),
        (Masks(colours=("red", "0000ff")), VALUES, "colours=red: expected colours of six hexadecimal digits"),
    ],
)
def test_options_and_values_at_fault(masks, values, message):
    with pytest.raises(UserError, match=message):
        table_of(masks, values)


def test_16_bit_values_above_254_are_classes_if_they_are_few():
    values = np.array([[1000, 7], [40000, 7]], dtype=np.uint16)
    table, _ = table_of(Masks(), values)
    assert table.classes == ("7", "1000", "40000")
    assert table.targets(values).tolist() == [[1, 0], [2, 0]]


@pytest.mark.parametrize("shape", [(40, 40), (61, 43), (30, 90), (90, 31)])
@pytest.mark.parametrize("size", [None, (20, 20), (16, 24), (50, 50)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_mask_is_scaled_and_cropped_as_its_image(shape, size, kind):
    """Of an image in two colours, split at a column, the mask is the same split: also after resizing, to one pixel."""
    height, width = shape
    right = np.broadcast_to(np.arange(width) >= width // 3, shape)
    image = Image.fromarray(np.where(right[..., None], 255, 0).astype(np.uint8).repeat(3, axis=2))
    pair = Pair(encoded(image, kind), encoded(Image.fromarray(right.astype(np.uint8))))
    pixels, targets = decode_pair(pair, Pixels(size), [], table=Table(("left", "right"), (0, 1), ()))
    assert pixels.shape[:2] == targets.shape == (size or shape)
    off = (pixels[..., 1] > 127) != targets
    assert off.sum(axis=1).max() <= (0 if size is None and kind == "PNG" else 1)
    if size:  # and exactly where Pillow's nearest neighbour has it
        scale = max(size[1] / width, size[0] / height)
        across, down = max(size[1], round(width * scale)), max(size[0], round(height * scale))
        big = Image.fromarray(right.astype(np.uint8)).resize((across, down), Image.Resampling.NEAREST)
        left, top = (across - size[1]) // 2, (down - size[0]) // 2
        assert np.array_equal(targets, np.asarray(big)[top : top + size[0], left : left + size[1]])


def test_an_image_without_a_mask_is_void_and_another_size_is_an_error():
    image, table = encoded(Image.new("RGB", (3, 2))), Table(("a", "b"), (0, 1), ())
    assert (decode_pair(Pair(image, None), Pixels(), [], table=table)[1] == 255).all()
    with pytest.raises(ValueError, match="its mask is 4×2, the image 3×2"):
        decode_pair(Pair(image, np.zeros((2, 4), np.uint8)), Pixels(), [], table=table)
    with pytest.raises(ValueError, match="its mask cannot be read: the bytes are not an image"):
        decode_pair(Pair(image, b"nonsense"), Pixels(), [], table=table)


def test_training_masks_need_two_classes():
    masks = np.array([[[0, 255]], [[1, 1]]], dtype=np.uint8)
    assert check_targets({"train": masks}, ("a", "b")).classes == ("a", "b")
    with pytest.raises(UserError, match="all training masks hold a single class, 'b'"):
        check_targets({"train": masks[1:]}, ("a", "b"))
    with pytest.raises(UserError, match=r"all places of all 2 training masks are void \(ignored: 9\)"):
        check_targets({"train": np.full((2, 3, 3), 255, np.uint8)}, ("a", "b"), (9,))


def test_places_are_counted_in_pieces(monkeypatch):
    masks = np.random.default_rng(0).choice(np.array([0, 1, 2, 255], dtype=np.uint8), (9, 5, 4))
    expected = [(masks[[0, 4, 8]] == value).sum() for value in (0, 1, 2, 255)]
    assert count_places(masks, 3, np.array([0, 4, 8])).tolist() == expected
    assert count_places(masks, 3).sum() == masks.size
