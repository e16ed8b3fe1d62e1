"""Objects of the user's own code by `module:name`."""

from pathlib import Path

import pytest

from distilens.foundation.errors import UserError
from distilens.foundation.own_code import import_object, module_file


def test_a_module_in_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "of_my_own.py").write_text("answer = 42\n")
    monkeypatch.chdir(tmp_path)
    assert import_object("of_my_own:answer", "python") == 42
    assert module_file("of_my_own:answer") == str(Path(tmp_path, "of_my_own.py"))
    for unknown in ("no_such_module:answer", "no_such_package.module:answer", ":answer", "sys:path"):
        assert module_file(unknown) is None


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("json", "python: needs package.module:callable; given 'json'"),
        ("no_such_module:name", "python:no_such_module:name: No module named"),
        ("json:dump_", "json has no 'dump_'. Did you mean 'dump"),
    ],
)
def test_mistakes(path, words):
    with pytest.raises(UserError) as raised:
        import_object(path, "python")
    assert words in str(raised.value)
