"""Pictures of a segmentation: colours, errors, names."""

import base64
import io

import numpy as np
from PIL import Image

from distilens.report.class_pictures import (
    class_colours,
    classes_uri,
    errors_uri,
    figures,
    legend,
    names_in,
    share_wrong,
)

VOID = 255
CLASSES = ("ground", "car", "tree", "sky", "sign", "road")


def pixels(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")).astype(int)


def mask(**boxes):
    made = np.zeros((80, 100), dtype=np.uint8)
    for number, (rows, columns) in boxes.items():
        made[slice(*rows), slice(*columns)] = int(number.removeprefix("n"))
    return made


GREY = np.full((80, 100, 3), 128, dtype=np.uint8)


def test_colours_differ():
    colours = class_colours(60)
    assert colours.shape == (60, 3) and len({tuple(colour) for colour in colours.tolist()}) == 60
    assert np.array_equal(class_colours(3), colours[:3])


def test_a_class_has_its_colour_and_void_is_dark():
    target = mask(n1=((0, 80), (0, 50)), n255=((0, 80), (50, 100)))
    shown = pixels(classes_uri(GREY, target, len(CLASSES)))
    middle = shown.shape[0] // 2
    expected = 0.6 * class_colours(2)[1] + 0.4 * 128
    assert np.abs(shown[middle, shown.shape[1] // 4] - expected).max() < 12  # WebP loses a little
    assert shown[middle, 3 * shown.shape[1] // 4].max() < 70


def test_wrong_places_are_red():
    target, answer = mask(n1=((0, 80), (0, 50))), mask(n1=((0, 40), (0, 50)))
    target[:, 90:] = VOID
    shown = pixels(errors_uri(GREY, answer, target))
    high, wide = shown.shape[:2]
    red = shown[..., 0] - shown[..., 1] > 60
    assert red[3 * high // 4, wide // 4] and not red[high // 4, wide // 4] and not red[:, 3 * wide // 4 :].any()
    assert share_wrong(answer, target) == (40 * 50) / (80 * 90)
    assert share_wrong(answer, np.full_like(target, VOID)) is None


def test_the_largest_classes_are_named():
    target = mask(n1=((0, 40), (0, 100)), n255=((40, 60), (0, 100)))
    assert names_in(target, CLASSES) == "car 66.7 %, ground 33.3 %"
    stripes = np.repeat(np.arange(6, dtype=np.uint8), 2)[:, None]
    assert names_in(stripes, CLASSES).endswith("and 2 more")
    assert names_in(np.full((4, 4), VOID, dtype=np.uint8), CLASSES) is None


def test_the_legend_names_what_is_shown():
    assert [name for name, _ in legend(CLASSES, mask(n4=((0, 4), (0, 4)), n255=((8, 9), (0, 4))))] == ["ground", "sign"]


def test_figures_of_all_models():
    target, answer = mask(n1=((0, 80), (0, 50))), mask(n1=((0, 40), (0, 50)))
    arrays = {
        "images": GREY[None],
        "labels": target[None],
        "answers_base": answer[None],
        "answers_student": target[None],
    }
    made = figures(arrays, 0, ["base", "student"], CLASSES)
    assert [one["caption"] for one in made["answers"]] == ["target", "base", "student"]
    assert [(one["caption"], one["note"]) for one in made["errors"]] == [
        ("base", "25.0 % wrong"),
        ("student", "0.0 % wrong"),
    ]
    assert made["answers"][0]["picture"] == made["answers"][2]["picture"] != made["answers"][1]["picture"]
