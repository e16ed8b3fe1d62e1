"""Data from a function of the user's own."""

import pytest

from distilens.data import load
from distilens.foundation.errors import UserError

CODE = """
import numpy as np

constant = 3

def make():
    return np.zeros((40, 8, 8, 3), dtype=np.uint8), np.arange(40) % 2
"""


def test_a_function_makes_the_data_and_what_cannot_be_called_is_refused(tmp_path, monkeypatch):
    (tmp_path / "data_of_my_own.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    assert len(load("python:data_of_my_own:make", tmp_path / "cache").classes) == 2
    with pytest.raises(UserError, match="python:data_of_my_own:constant is not callable: it is a int"):
        load("python:data_of_my_own:constant", tmp_path / "cache")
