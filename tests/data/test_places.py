"""How the places of a segmentation are spread."""

import numpy as np
import pytest

from distilens.data import Rows, Source, from_arrays, subset
from distilens.data.places import describe_places, paint, shares_of, written_share
from distilens.tasks import VOID, Segmentation


@pytest.fixture
def data():
    targets = np.zeros((20, 4, 5), dtype=np.uint8)
    targets[:, 0] = 1  # a quarter, without the void column a quarter too
    targets[:, :, 4] = VOID
    targets[7] = VOID
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 5, 3), dtype=np.uint8)
    return subset(
        Source(Rows(images, targets), Rows(images[:2], targets[:2]), None, Segmentation(("a", "b")), "x"), "x"
    )


def test_shares_are_of_the_places_that_are_not_void(data):
    assert shares_of(data.test) == {"a": 0.75, "b": 0.25, "void": 0.2}
    void = (data.train.targets == VOID).mean()
    assert shares_of(data.train) == {"a": 0.75, "b": 0.25, "void": pytest.approx(void)}


def test_they_are_said_for_each_split(data):
    lines = describe_places(data)
    assert lines[0].startswith(
        "train: 18 images, 17 of them with labels; places: a 75 %, b 25 %; void 24 % of all places"
    )
    assert lines[2] == "test: 2 images; places: a 75 %, b 25 %; void 20 % of all places"
    assert describe_places(from_arrays(np.zeros((10, 4, 4, 3), np.uint8), np.arange(10) % 2)) == []


def test_a_notebook_shows_shares_and_masks(data):
    shown = data._repr_html_()
    assert shown.count("<figure") == 5 and "75 %" in shown and "void" in shown
    assert "a 75%, b 25%" in shown.replace("\xa0", " ") or "<figcaption>" in shown


@pytest.mark.parametrize(
    ("share", "words"),
    [(0, "0 %"), (0.0004, "under 0.1 %"), (0.0123, "1.2 %"), (0.0996, "10 %"), (0.256, "26 %"), (1, "100 %")],
)
def test_shares_in_words(share, words):
    assert written_share(share) == words


def test_classes_are_painted_in_different_colours():
    picture = paint(np.array([[0, 1, 2, VOID]], dtype=np.uint8), 3)
    assert picture.shape == (1, 4, 3) and len({tuple(one) for one in picture[0].tolist()}) == 4
    assert picture[0, 3].tolist() == [255, 255, 255]
