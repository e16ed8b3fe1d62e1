"""What each mode of picture becomes, and what is said of it.

What belongs to the kind, each with an input here: transparency in every mode that has it (RGBA, LA, palettes, colour keys, hidden
colours), 16-bit and 32-bit and float values of other ranges, negative and endless values, CMYK, YCbCr, HSV, LAB, 1-bit, turns by
EXIF, animations and pages, pictures above Pillow's limit, and pictures of nearly one colour.
"""

import io
import re

import numpy as np
import pytest
from PIL import Image

from distilens.data import load
from distilens.data.decode import decode
from distilens.data.pixels import DeepError, Pixels, as_rgb_image, nearly_one_colour
from distilens.foundation.errors import UserError

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture
def root(tmp_path):
    return tmp_path / "set"


def fill(root, picture, count=6, suffix=".png", classes=("a", "b")):
    """Two classes of pictures made by `picture(random)`."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            picture(np.random.default_rng([label, number])).save(root / name / f"{number}{suffix}")


def loaded(root, options=""):
    return load(f"folder:path=[{root}]{options}", root.parent / "cache")


def refused(root, *words, options=""):
    with pytest.raises(UserError) as error:
        loaded(root, options)
    for each in words:
        assert re.search(each, str(error.value)), str(error.value)


# Transparency


def clear_pictures():
    """Pictures whose left half is fully transparent over a hidden black, and whose right half is opaque black."""
    alpha = Image.fromarray(np.repeat([[0] * 4 + [255] * 4], 8, 0).astype(np.uint8))
    black = Image.new("RGB", (8, 8))
    rgba = black.copy()
    rgba.putalpha(alpha)
    grey_alpha = Image.merge("LA", (Image.new("L", (8, 8)), alpha))
    palette = Image.fromarray(np.repeat([[0] * 4 + [1] * 4], 8, 0).astype(np.uint8))
    palette = Image.frombytes("P", (8, 8), palette.tobytes())
    palette.putpalette([0, 0, 0, 0, 0, 0])
    keyed = Image.fromarray(np.repeat([[7] * 4 + [0] * 4], 8, 0).astype(np.uint8))
    return {
        "RGBA": encoded(rgba),
        "RGBA in WebP": encoded(rgba, "WEBP", lossless=True, exact=True),
        "RGBA in TIFF": encoded(rgba, "TIFF"),
        "LA": encoded(grey_alpha),
        "P with alpha": encoded(palette, transparency=bytes([0, 255])),
        "P with one clear colour": encoded(palette, transparency=0),
        "P in GIF": encoded(palette, "GIF", transparency=0),
        "L with a clear grey": encoded(keyed, transparency=7),
        "RGB with a clear colour": encoded(keyed.convert("RGB"), transparency=(7, 7, 7)),
    }


@pytest.mark.parametrize(("ground", "value"), [("white", 255), ("black", 0), ("grey", 128)])
@pytest.mark.parametrize("kind", clear_pictures())
def test_transparency_is_laid_over_the_ground(kind, ground, value):
    said = []
    found = decode(clear_pictures()[kind], Pixels(ground=ground), said)
    assert (found[:, :4] == value).all()
    assert (found[:, 4:] == 0).all()
    assert said == [f"transparent, laid over {ground} (ground={ground})"]


@pytest.mark.parametrize("mode", ["La", "PA", "RGBa"])
def test_modes_that_only_memory_has(mode):
    clear = Image.new(mode, (2, 2))
    assert (np.asarray(as_rgb_image(clear, Pixels(), print)) == 255).all()


def test_half_transparent_colours_are_mixed_and_opaque_ones_stay():
    colour = Image.merge("RGB", [Image.fromarray(GREY)] * 3)
    half, whole = colour.copy(), colour.copy()
    half.putalpha(128)
    whole.putalpha(255)
    said = []
    np.testing.assert_array_equal(decode(encoded(whole), remarks=said), np.asarray(colour))
    assert not said
    expected = np.asarray(colour) * (128 / 255) + 255 * (127 / 255)
    np.testing.assert_allclose(decode(encoded(half)), expected, atol=1)


def test_a_set_with_transparency_says_so_and_each_ground_is_a_set_of_its_own(root):
    def icon(random):
        pixels = np.zeros((8, 8, 4), np.uint8)
        pixels[..., 3] = random.integers(0, 2, (8, 8)) * 255
        return Image.fromarray(pixels)

    fill(root, icon)
    data = loaded(root)
    assert data.train.rows.images.max() == 255
    assert data.inventory.remarks == ("transparent, laid over white (ground=white): 12 pictures",)
    assert loaded(root).inventory.remarks == data.inventory.remarks  # read from the cache
    black = loaded(root, ",ground=black")
    assert black.train.rows.images.max() == 0
    assert black.fingerprint != data.fingerprint
    assert re.match(
        r"12 of 12 pictures are nearly one colour, such as a/\d.png, among them all of the class 'a', 'b': nothing can be seen",
        black.inventory.remarks[1],
    )
    refused(root, "input should be 'white', 'black' or 'grey'", options=",ground=green")


# Deep values


@pytest.mark.parametrize(
    ("top", "dtype", "suffix"),
    [
        *((top, np.uint16, ".png") for top in (255, 1023, 4095, 16383, 65535)),
        (4095, np.uint16, ".tif"),
        (4095, np.int32, ".tif"),
        (1, np.float32, ".tif"),
    ],
)
def test_deep_values_are_scaled_by_one_range_for_the_whole_set(root, top, dtype, suffix):
    fill(root, lambda random: Image.fromarray((random.random((8, 8)) * top).astype(dtype)), suffix=suffix)
    (root / "a" / f"0{suffix}").unlink()
    edge = np.zeros((8, 8))
    edge[0, :2] = top, top / 2
    Image.fromarray(edge.astype(dtype)).save(root / "a" / f"0{suffix}")
    data = loaded(root)
    images = np.concatenate([data.train.rows.images, data.test.rows.images])
    assert images.max() == 255
    np.testing.assert_allclose(images[(images == 255).any((1, 2, 3))][0][0, 1], 127, atol=1)
    remark = data.inventory.remarks[0]
    assert remark.startswith(f"12 pictures of more than 8 bits hold values from 0 to {top}")
    assert remark.endswith(
        f"0 to {top} became black to white, in the whole set (for the same range with other data: range=[0,{top}])"
    )
    given = loaded(root, f",range=[0,{top}]")
    np.testing.assert_array_equal(given.train.rows.images, data.train.rows.images)
    assert given.fingerprint != data.fingerprint


def test_deep_and_plain_pictures_in_one_set(root):
    fill(root, lambda random: Image.fromarray(random.integers(0, 4096, (8, 8)).astype(np.uint16)), classes=("a",))
    fill(root, lambda random: Image.fromarray(random.integers(0, 256, (8, 8, 3)).astype(np.uint8)), classes=("b",))
    assert loaded(root).inventory.remarks[0].startswith("6 pictures of more than 8 bits")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda random: random.integers(-1000, 3000, (8, 8)).astype(np.int32), "12 pictures hold whole numbers from -"),
        (lambda random: random.integers(0, 100000, (8, 8)).astype(np.int32), "hold whole numbers from"),
        (lambda random: (random.random((8, 8)) * 300).astype(np.float32), "12 pictures hold floats from"),
    ],
)
def test_values_of_no_known_range_are_refused_with_the_option(root, make, words):
    fill(root, lambda random: Image.fromarray(make(random)), suffix=".tif")
    refused(root, words, r"it is not known which values are black and white .*range=\[")
    data = loaded(root, ",range=[0,200]")
    assert data.train.rows.images.max() == 255


def test_what_a_range_makes_of_values():
    values = np.array([[-5, 0, 50, 100, 200]], np.int32)
    found = decode(encoded(Image.fromarray(values), "TIFF"), Pixels(bounds=(0, 100)))
    assert found[0, :, 0].tolist() == [0, 0, 128, 255, 255]
    with pytest.raises(DeepError):
        decode(encoded(Image.fromarray(values), "TIFF"))
    endless = Image.fromarray(np.array([[np.nan, 1]], np.float32))
    with pytest.raises(ValueError, match="it holds values that are NaN or infinite"):
        decode(encoded(endless, "TIFF"), Pixels(bounds=(0, 1)))
    with pytest.raises(UserError, match=r"range=\[9,3\] goes down; expected range=\[low,high\]"):
        Pixels(bounds=(9, 3))


# The other modes


@pytest.mark.parametrize(
    ("mode", "kind", "near"),
    [
        ("1", "PNG", 0),
        ("L", "PNG", 0),
        ("CMYK", "TIFF", 1),
        ("CMYK", "JPEG", 12),
        ("YCbCr", "TIFF", 3),
        ("LAB", "TIFF", 3),
    ],
)
def test_modes_without_alpha(mode, kind, near):
    colour = Image.new("RGB", (16, 16), (200, 120, 40) if mode not in "1L" else (255, 255, 255))
    if mode == "LAB":
        from PIL import ImageCms

        image = ImageCms.profileToProfile(
            colour, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
    else:
        image = colour.convert(mode)
    found = decode(encoded(image, kind))
    np.testing.assert_allclose(found.astype(int), np.asarray(colour).astype(int), atol=near)


def test_of_an_animation_the_first_frame_is_read_and_said(root):
    frames = [Image.fromarray((GREY.astype(int) * k // 2).astype(np.uint8)) for k in (2, 1)]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        said = []
        options = {"lossless": True} if kind == "WEBP" else {}
        found = decode(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options), remarks=said)
        np.testing.assert_allclose(found[..., 0], GREY, atol=3)
        assert said == ["animated or with several pages, only the first is read"], kind


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16"])
def test_pictures_are_turned_by_exif_in_every_mode(turn, mode):
    pixels = np.zeros((4, 8), np.uint8)
    pixels[0, 0] = 255
    image = Image.fromarray(pixels.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    exif = image.getexif()
    exif[0x0112] = turn
    found = decode(encoded(image, "PNG", exif=exif), Pixels(bounds=(0, 65535)))
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}[turn]
    assert found.shape[:2] == ((4, 8) if turn < 5 else (8, 4))
    assert found[corner].tolist() == [255] * 3


def test_large_pictures_are_an_option(root, monkeypatch):
    fill(root, lambda random: Image.fromarray(random.integers(0, 256, (8, 8, 3)).astype(np.uint8)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    refused(
        root,
        r"cannot decode a/\d.png: it has 64 pixels, and Pillow's limit is twice 20. If you trust it: large=true",
    )
    assert len(loaded(root, ",large=true").train.rows) + len(loaded(root, ",large=true").test.rows) == 12
    assert Image.MAX_IMAGE_PIXELS == 20


# One colour


def test_nearly_one_colour():
    random = np.random.default_rng(0)
    flat = np.tile(np.array([200, 10, 90], np.uint8), (9, 7, 1))
    assert nearly_one_colour(flat)
    assert nearly_one_colour(flat + random.integers(0, 16, flat.shape).astype(np.uint8))
    flat[4, 6, 2] = 140
    assert not nearly_one_colour(flat)
    assert not nearly_one_colour(random.integers(0, 256, (5, 5, 3)).astype(np.uint8))
    assert nearly_one_colour(np.zeros((1, 1, 3), np.uint8))


@pytest.mark.parametrize(("flat", "said"), [(0, False), (1, False), (2, True), (6, True)])
def test_many_pictures_of_one_colour_are_said(root, flat, said):
    def picture(random):
        return Image.fromarray(random.integers(0, 256, (8, 8, 3)).astype(np.uint8))

    fill(root, picture)
    for number in range(flat):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(root / "b" / f"{number}.png")
    remarks = loaded(root).inventory.remarks
    assert bool(remarks) == said
    if said:
        assert remarks[0].startswith(f"{flat} of 12 pictures are nearly one colour, such as b/")
        assert ("among them all of the class 'b'" in remarks[0]) == (flat == 6)


def test_colours_of_16_bits_are_said(root):
    """Pillow writes none: a PNG by hand."""
    import struct
    import zlib

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    for label, name in enumerate("ab"):
        (root / name).mkdir(parents=True)
        for number in range(6):
            values = np.random.default_rng([label, number]).integers(0, 65536, (8, 8, 3)).astype(">u2")
            lines = b"".join(b"\0" + row.tobytes() for row in values)
            head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
            body = chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
            (root / name / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + body)
            assert np.abs(decode(root / name / f"{number}.png").astype(int) - (values >> 8)).max() == 0
    assert loaded(root).inventory.remarks == ("16 bits per colour, only the upper 8 are read: 12 pictures",)
