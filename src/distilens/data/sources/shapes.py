"""Generated shapes on textures, with evidence masks; the texture can be a shortcut to the class.

With `shapes:shortcut=1` a model that looks at the background is right on the training images and wrong on the test images. The
evidence mask of each image shows where a model should look. Any change of the pixels needs a new VERSION.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from distilens.data.cache import cached_folder, read_source
from distilens.data.source import Rows, Source, digest
from distilens.tasks import Segmentation

VERSION = 1

SHAPES = ("circle", "square", "triangle", "cross", "ring", "star", "diamond", "crescent")

TEXTURES = ("stripes", "slants", "checks", "dots", "gradient", "blotches", "waves", "grain")
"""Backgrounds; the k-th is tied to the k-th shape."""

FINE = 3
"""The coverage of a pixel is counted on FINE × FINE points."""

CHUNK = 250
"""Images drawn at a time: at 32 × 32 an array of their points has 9 MB and stays in the CPU cache. Part of VERSION."""

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=40)]


def shapes(
    cache: Path,
    *,
    shortcut: Share = 0.0,
    train: Count = 8000,
    test: Count = 2000,
    seed: Annotated[int, Field(ge=0)] = 0,
    size: Annotated[int, Field(ge=16)] = 32,
    target: Literal["label", "mask"] = "label",
    merge: bool = False,
) -> Source:
    """Generated shapes on textures, with evidence masks; `shortcut` ties the background to the class.

    Eight shapes of random size, position, rotation and colour; the colours are independent of the class. The texture behind
    a training image is the one tied to its class with probability `shortcut`, and otherwise any of the eight with equal
    probability. So it predicts the class in shortcut + (1 - shortcut)/8 of the images. Nothing else depends on `shortcut`:
    the textures of the test images are independent of the class, and the test images are equal for all values.

    `target=mask` makes a segmentation of the same images: background and the eight shapes; with `merge` all shapes are one class.

    Source: after the planted shortcuts of Geirhos et al., "Shortcut learning in deep neural networks", 2020
    """
    about = {"shortcut": shortcut, "train": train, "test": test, "seed": seed, "size": size}
    fingerprint = digest("shapes", VERSION, about)

    def write(folder: Path) -> None:
        # The seed depends on the set, never on `shortcut` or on the other set's count.
        for part, count, tied, key in (("train", train, shortcut, 0), ("test", test, 0.0, 1)):
            rows = draw_rows(np.random.default_rng([VERSION, seed, key]), count, tied, size)
            for name, array in (("images", rows.images), ("labels", rows.targets), ("masks", rows.masks)):
                assert array is not None
                np.save(folder / f"{part}_{name}.npy", array)
        (folder / "set.json").write_text(json.dumps({"classes": SHAPES, "skipped": []}), encoding="utf-8")

    source = read_source(cached_folder(cache, fingerprint, write), fingerprint)
    return source if target == "label" else as_segmentation(cache, source, merge=merge)


def as_segmentation(cache: Path, source: Source, *, merge: bool) -> Source:
    """The same images with masks as targets: 0 is the background, k + 1 the k-th shape, or 1 any shape with `merge`."""
    fingerprint = digest("shapes as masks", source.fingerprint, merge)
    sets: dict[str, Rows] = {part: rows for part in ("train", "test") if (rows := getattr(source, part)) is not None}

    def write(folder: Path) -> None:
        for part, rows in sets.items():
            assert rows.masks is not None
            classes = np.ones(len(rows), np.uint8) if merge else (rows.targets + 1).astype(np.uint8)
            np.save(folder / f"{part}_targets.npy", np.where(rows.masks > 0, classes[:, None, None], np.uint8(0)))

    folder = cached_folder(cache, fingerprint, write)
    train, test = (
        Rows(sets[part].images, np.load(folder / f"{part}_targets.npy", mmap_mode="r")) for part in ("train", "test")
    )
    task = Segmentation(("background", *(("shape",) if merge else SHAPES)))
    return Source(train, test, None, task, fingerprint)


def draw_rows(random: np.random.Generator, count: int, shortcut: float, size: int) -> Rows:
    """`count` images of balanced classes in random order."""
    labels = random.permutation(np.arange(count) % len(SHAPES))
    # Everything is drawn even if it is not used, so that later random numbers do not depend on `shortcut`.
    free, tied = random.integers(0, len(TEXTURES), count), random.random(count) < shortcut
    families = np.where(tied, labels, free)
    images = np.empty((count, size, size, 3), dtype=np.uint8)
    masks = np.empty((count, size, size), dtype=np.uint8)
    for start in range(0, count, CHUNK):
        rows = slice(start, min(start + CHUNK, count))
        images[rows], masks[rows] = draw_images(random, labels[rows], families[rows], size)
    return Rows(images, labels.astype(np.int64), masks)


def draw_images(
    random: np.random.Generator, labels: np.ndarray, families: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Images `[n size size 3]` and masks `[n size size]` for given shapes and texture families."""
    count = len(labels)
    cover = coverage(random, labels, size)
    mixture = texture(random, families, size)[..., None]
    dark, light, colour = colours(random, count)
    ground = dark + mixture * (light - dark)
    pixels = ground + cover[..., None] * (colour - ground)
    noise = random.standard_normal(pixels.shape, dtype=np.float32)
    pixels += noise * random.uniform(0.01, 0.04, (count, 1, 1, 1)).astype(np.float32)
    images = np.clip(np.round(pixels * 255), 0, 255).astype(np.uint8)
    return images, np.where(cover >= 0.5, 255, 0).astype(np.uint8)


def colours(random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two colours per background and one per shape, `[n 1 1 3]`: sometimes similar, but always distinguishable."""
    first, second = random.random((2, count, 1, 3), dtype=np.float32)
    # The colours of a texture are closer to each other than two random ones, so that a shape can differ from both.
    second = first + 0.35 * (second - first)
    candidates = random.random((count, 16, 3), dtype=np.float32)
    target = random.uniform(0.4, 0.9, (count, 1)).astype(np.float32)
    contrast = np.minimum(np.linalg.norm(candidates - first, axis=2), np.linalg.norm(candidates - second, axis=2))
    best = np.abs(contrast - target).argmin(axis=1)
    return first[:, None], second[:, None], candidates[np.arange(count), best][:, None, None]


def coverage(random: np.random.Generator, labels: np.ndarray, size: int) -> np.ndarray:
    """The share of each pixel that the shape covers, `[n size size]` in [0, 1]; every shape is completely inside its image."""
    count = len(labels)
    radius = random.uniform(0.24, 0.42, (count, 1, 1)) * size
    across, down = (radius + random.random((2, count, 1, 1)) * (size - 2 * radius)).astype(np.float32)
    angle = random.uniform(0, 2 * np.pi, (count, 1, 1))
    points = (np.arange(size * FINE, dtype=np.float32) + 0.5) / FINE
    x, y = points[None, None, :] - across, points[None, :, None] - down
    cosine, sine = (np.cos(angle) / radius).astype(np.float32), (np.sin(angle) / radius).astype(np.float32)
    u, v = cosine * x + sine * y, cosine * y - sine * x
    inside = np.empty(u.shape, dtype=np.float32)
    for label, shape in enumerate((circle, square, triangle, cross, ring, star, diamond, crescent)):
        rows = np.flatnonzero(labels == label)
        inside[rows] = shape(u[rows], v[rows])
    return inside.reshape(count, size, FINE, size, FINE).mean(axis=(2, 4))


# Each shape is a test for points of the unit disc: whether they are inside.


def circle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return u**2 + v**2 < 0.85**2


def square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) < 0.7


def triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """An equilateral triangle: the inner side of three lines at half a radius."""
    slanted = np.sqrt(0.75, dtype=np.float32) * u
    return (-v < 0.5) & (slanted + v / 2 < 0.5) & (v / 2 - slanted < 0.5)


def cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (np.minimum(np.abs(u), np.abs(v)) < 0.27) & (np.maximum(np.abs(u), np.abs(v)) < 0.95)


def ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(u, v) - 0.72) < 0.22


def star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A star with five points: folded into a tenth of the turn, the inner side of one line from a tip to a notch."""
    turn = np.float32(2 * np.pi / 5)
    angle = np.abs((np.arctan2(v, u) + turn / 2) % turn - turn / 2)
    distance, notch = np.hypot(u, v), 0.42 * np.exp(1j * np.pi / 5)
    along, beside = distance * np.cos(angle), distance * np.sin(angle)
    return notch.imag * along + (1 - notch.real) * beside < notch.imag


def diamond(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A rhombus twice as long as wide; with equal sides and random rotation it would be a square."""
    return np.abs(u) + 2 * np.abs(v) < 1


def crescent(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (u**2 + v**2 < 0.95**2) & ((u - 0.45) ** 2 + v**2 > 0.72**2)


def texture(random: np.random.Generator, families: np.ndarray, size: int) -> np.ndarray:
    """The share of the second colour in each background pixel, `[n size size]` in [0, 1]."""
    count = len(families)
    # The same random numbers are drawn for every family, so that the family changes nothing else.
    tilt = random.uniform(-0.15, 0.15, (count, 1, 1)).astype(np.float32)
    period = random.uniform(4.5, 7.5, (count, 1, 1)).astype(np.float32) * np.float32(size / 32)
    phase, other = random.uniform(0, 2 * np.pi, (2, count, 1, 1)).astype(np.float32)
    way = random.integers(0, 4, (count, 1, 1)).astype(np.float32)
    grain = random.random((count, size, size), dtype=np.float32)
    points = np.arange(size, dtype=np.float32)
    mixture = np.empty((count, size, size), dtype=np.float32)
    for family in range(len(TEXTURES)):
        rows = np.flatnonzero(families == family)
        turned = tilt[rows] + (np.pi / 4 if TEXTURES[family] == "slants" else 0)
        if TEXTURES[family] == "gradient":
            turned = turned + way[rows] * np.float32(np.pi / 2)
        x = np.cos(turned) * (points[None, None, :] - size / 2) + np.sin(turned) * (points[None, :, None] - size / 2)
        y = np.cos(turned) * (points[None, :, None] - size / 2) - np.sin(turned) * (points[None, None, :] - size / 2)
        frequency = 2 * np.pi / period[rows]
        wave = np.sin(frequency * y + phase[rows])
        match TEXTURES[family]:
            case "stripes" | "slants":
                value = make_steps(wave)
            case "checks":
                value = make_steps(wave * np.sin(frequency * x + other[rows]) * 2)
            case "dots":
                value = make_steps(wave + np.sin(frequency * x + other[rows]) - 1)
            case "gradient":
                value = 0.5 + y / size
            case "blotches":
                value = make_steps(blur_noise(grain[rows], size / 16))
            case "waves":
                value = make_steps(np.sin(frequency * y + phase[rows] + 2 * np.sin(frequency / 2 * x + other[rows])))
            case _:
                value = grain[rows]
        mixture[rows] = value
    return np.clip(mixture, 0, 1)


def make_steps(wave: np.ndarray) -> np.ndarray:
    """Turn a wave around 0 into two levels with edges about one pixel wide."""
    return np.clip(0.5 + 1.5 * wave, 0, 1)


def blur_noise(grain: np.ndarray, sigma: float) -> np.ndarray:
    """Smooth noise of mean 0 and variance 1, without a border: a Gaussian filter in the frequency domain."""
    size = grain.shape[1]
    frequency = np.fft.fftfreq(size)
    square = frequency[:, None] ** 2 + frequency[None, : size // 2 + 1] ** 2
    smooth = np.fft.irfft2(np.fft.rfft2(grain - 0.5) * np.exp(-2 * (np.pi * sigma) ** 2 * square), s=(size, size))
    return (smooth - smooth.mean(axis=(1, 2), keepdims=True)) / smooth.std(axis=(1, 2), keepdims=True).clip(1e-6)
