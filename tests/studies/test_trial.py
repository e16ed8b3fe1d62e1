"""The files of a training: a copy becomes a link to the same bytes only; a result is read while its sources are the same."""

import os

from distilens.studies.study import Row, Study
from distilens.studies.trial import share_file, train_row


def test_a_finished_training_is_read_while_its_sources_are_the_same(place, content):
    (place / "changing_nets.py").write_text((place / "study_nets.py").read_text())
    alone = {key: value for key, value in content.items() if key != "teacher"}
    row = Row("a", {**alone, "student": {"model": "python:changing_nets:tiny", "methods": ["ce"]}})
    study = Study(place / "read", "seeds", (row,), (0,))
    first = train_row(study, row, 0)
    assert train_row(study, row, 0) == first  # with its seconds
    with open(place / "changing_nets.py", "a") as file:
        file.write("# another network\n")
    assert train_row(study, row, 0)["sources"] != first["sources"]


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
