"""The files of a training: a copy becomes a link to the same bytes only."""

import os

from distilens.studies.trial import share_file


def test_equal_files_are_stored_once(tmp_path):
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(b"weights")
    copy.write_bytes(b"weights")
    share_file(source, copy)
    assert copy.samefile(source)
    share_file(source, copy)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "source"]


def test_other_files_stay(tmp_path):
    source, copy = tmp_path / "source", tmp_path / "copy"
    copy.write_bytes(b"weights")
    share_file(source, copy)
    source.write_bytes(b"others!")
    share_file(source, copy)
    assert copy.read_bytes() == b"weights"
    assert not copy.samefile(source)


def test_without_links_the_copy_stays(tmp_path, monkeypatch):
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(b"weights")
    copy.write_bytes(b"weights")

    def refuse(*_arguments):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    share_file(source, copy)
    assert copy.read_bytes() == b"weights"
    assert not copy.samefile(source)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "source"]
