"""Pictures as Python objects: what their numbers mean."""

import numpy as np
import pytest

from distilens.data.pictures import as_uint8, open_picture
from distilens.foundation.errors import UserError


def test_numbers_of_every_type_become_bytes():
    black_and_white = np.array([[True, False], [False, True]])
    assert as_uint8(black_and_white, 0, 1, "they").tolist() == [[255, 0], [0, 255]]
    assert as_uint8(np.array([0.0, 0.5, 1.0]), 0, 1, "they").tolist() == [0, 128, 255]
    assert as_uint8(np.array([0, 7, 255]), 0, 255, "they").tolist() == [0, 7, 255]


def test_what_is_no_picture_is_refused():
    with pytest.raises(UserError, match="a picture is a tensor, an array, a Pillow image or a path; given a int"):
        open_picture(3)
