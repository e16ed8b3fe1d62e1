"""Listing folders."""

import re

import pytest

from distilens.data.sources.tree import list_folder
from distilens.foundation.errors import UserError


def test_a_folder_is_listed_by_name_and_one_that_cannot_be_read_is_said(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / name).touch()
    assert [entry.name for entry in list_folder(str(tmp_path))] == ["a", "b", "c"]
    for name, reason in (("gone", "No such file or directory"), ("a", "Not a directory")):
        with pytest.raises(UserError, match=re.escape(f"the folder {tmp_path / name} cannot be read: {reason}")):
            list_folder(str(tmp_path / name))
