"""The cache of decoded data: a folder is there whole, or not at all."""

import errno
import os

import pytest

from distilens.data.cache import cached_folder
from distilens.foundation.errors import UserError


def write(folder):
    (folder / "images").write_text("pixels")


def test_a_folder_is_written_once(tmp_path):
    folder = cached_folder(tmp_path, "key", write)
    assert (folder / "images").read_text() == "pixels"
    assert cached_folder(tmp_path, "key", lambda unfinished: pytest.fail("it is there")) == folder
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize(("code", "kind"), [(errno.EIO, OSError), (errno.ENOSPC, UserError)])
def test_a_failed_write_leaves_nothing(tmp_path, code, kind):
    def fail(folder):
        write(folder)
        raise OSError(code, "the disk fails")

    with pytest.raises((OSError, UserError)) as raised:
        cached_folder(tmp_path, "key", fail)
    assert raised.type is kind, "only a full disk has a message of its own"
    assert list(tmp_path.iterdir()) == []


def test_of_two_processes_the_first_one_writes_the_folder(tmp_path):
    def slow(folder):
        write(folder)
        (tmp_path / "key").mkdir()
        (tmp_path / "key" / "images").write_text("pixels of the other")

    folder = cached_folder(tmp_path, "key", slow)
    assert (folder / "images").read_text() == "pixels of the other"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_folder_that_cannot_be_named_is_an_error(tmp_path, monkeypatch):
    def refuse(old, new):
        raise OSError(errno.EPERM, "not permitted")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OSError, match="not permitted"):
        cached_folder(tmp_path, "key", write)
    assert list(tmp_path.iterdir()) == []
