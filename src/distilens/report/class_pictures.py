"""Pictures of a segmentation: the classes at the places of an image, and the places where an answer is wrong."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Shaped, UInt8
from PIL import Image

from distilens.report import pictures
from distilens.report.cells import percent

VOID = 255
"""The value of places without a class."""

NAMED = 4
"""How many classes of an image are named."""

DISTINCT = ("0072b2", "e69f00", "009e73", "d55e00", "cc79a7", "56b4e9", "f0e442", "8c564b", "7f7f7f", "332288")
"""Colours that can be told apart without full colour vision: Okabe and Ito's seven, then brown, grey and indigo."""

WEIGHT = 0.6
"""The opacity of a class's colour over the grey image."""

WRONG = (213, 30, 60)


def class_colours(count: int) -> UInt8[np.ndarray, "count 3"]:
    """A colour per class: ten that can be told apart by all, then hues in steps of the golden ratio."""
    made = [tuple(int(code[at : at + 2], 16) for at in (0, 2, 4)) for code in DISTINCT[:count]]
    for number in range(len(made), count):
        shades = colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.55 + 0.25 * (number % 2), 0.75 + 0.2 * (number % 3) / 2)
        made.append(tuple(round(255 * shade) for shade in shades))
    return np.array(made, dtype=np.uint8).reshape(count, 3)


def legend(classes: Sequence[str], masks: Shaped[np.ndarray, ...]) -> list[tuple[str, str]]:
    """The names and CSS colours of the classes that occur in some masks."""
    there = np.unique(masks)
    colours = class_colours(len(classes))
    return [
        (name, "#{:02x}{:02x}{:02x}".format(*colours[number])) for number, name in enumerate(classes) if number in there
    ]


def classes_uri(image: UInt8[np.ndarray, "h w 3"], mask: UInt8[np.ndarray, "h w"], count: int) -> str:
    """The colours of the classes over the grey image; void places stay dark grey."""
    large, classes = pictures.enlarge(image), fitted(mask, image)
    known = classes < count
    colours = np.zeros((*classes.shape, 3))
    colours[known] = class_colours(count)[classes[known]]
    return pictures.encode_image(blended(large, colours), sharp=False)


def errors_uri(
    image: UInt8[np.ndarray, "h w 3"], answer: UInt8[np.ndarray, "h w"], target: UInt8[np.ndarray, "h w"]
) -> str:
    """The places with the wrong class in red over the grey image; void places are dark."""
    large, ours, theirs = pictures.enlarge(image), fitted(answer, image), fitted(target, image)
    known, wrong = theirs != VOID, (ours != theirs) & (theirs != VOID)
    colours = np.asarray(Image.fromarray(large).convert("L"), dtype=float)[..., None].repeat(3, -1)
    colours[~known] = 0
    colours[wrong] = WRONG
    return pictures.encode_image(blended(large, colours), sharp=False)


def blended(large: UInt8[np.ndarray, "h w 3"], colours: Shaped[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Colours over the grey image."""
    grey = np.asarray(Image.fromarray(large).convert("L"), dtype=float)[..., None]
    return (WEIGHT * colours + (1 - WEIGHT) * grey).round().astype(np.uint8)


def fitted(mask: UInt8[np.ndarray, "h w"], image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W"]:
    """A mask at the size of the shown image, by the nearest place."""
    height, width = pictures.enlarge(image).shape[:2]
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))


def share_wrong(answer: UInt8[np.ndarray, "h w"], target: UInt8[np.ndarray, "h w"]) -> float | None:
    """The share of the places with a class that are wrong; None without such places."""
    known: Bool[np.ndarray, "h w"] = target != VOID
    return float((answer != target)[known].mean()) if known.any() else None


def names_in(mask: UInt8[np.ndarray, "h w"], classes: Sequence[str]) -> str | None:
    """The largest classes of a mask with their shares; None if all is void."""
    numbers, counts = np.unique(mask[mask < len(classes)], return_counts=True)
    if not len(numbers):
        return None
    order = np.argsort(-counts, kind="stable")
    shares = zip(numbers[order].tolist(), (counts[order] / counts.sum()).tolist(), strict=True)
    shown = [f"{classes[number]} {percent(share)}" for number, share in list(shares)[:NAMED]]
    return ", ".join(shown) + (f" and {len(order) - NAMED} more" if len(order) > NAMED else "")


def figures(
    arrays: Mapping[str, np.ndarray], at: int, roles: Sequence[str], classes: Sequence[str]
) -> dict[str, list[dict[str, str]]]:
    """The pictures of one image: `answers` are the target and each model's classes, `errors` each model's errors."""
    image, target = np.ascontiguousarray(arrays["images"][at]), arrays["labels"][at]
    answers = [figure("target", classes_uri(image, target, len(classes)), "The target")]
    errors = []
    for role in roles:
        answer = arrays[f"answers_{role}"][at]
        wrong = share_wrong(answer, target)
        answers.append(figure(role, classes_uri(image, answer, len(classes)), f"The classes by the {role}"))
        note = "" if wrong is None else f"{percent(wrong)} wrong"
        errors.append(figure(role, errors_uri(image, answer, target), f"The errors of the {role}", note))
    return {"answers": answers, "errors": errors}


def figure(caption: str, picture: str, of: str, note: str = "") -> dict[str, str]:
    return {"caption": caption, "picture": picture, "of": of, "note": note}
