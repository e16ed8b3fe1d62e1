"""The problems of a recipe that are found before torch is imported."""

import pytest

from distilens.foundation.errors import UserError
from distilens.runs.recipe_file import make_recipe
from distilens.runs.recipe_problems import missing_places


def test_folders_that_do_not_exist_are_named_with_their_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    content = {"data": "folder:path=photoz", "teacher": {"data": "folder:path=photos"}}
    (problem,) = missing_places(content)
    assert problem.startswith("data: path=photoz does not exist")
    assert problem.endswith("Did you mean 'photos'?")
    (problem,) = missing_places({"data": "shapes", "teacher": {"data": "folder:path=none"}})
    assert problem.startswith("teacher.data: path=none does not exist")


@pytest.mark.parametrize("data", ["foldr:path=none", "folder:path=[none", "folder:path=none,colour=red"])
def test_a_wrong_notation_of_the_data_is_reported_once(data):
    assert missing_places({"data": data}) == []
    with pytest.raises(UserError) as raised:
        make_recipe({"data": data, "student": {"model": "resnet8"}})
    assert str(raised.value).count("data:") == 1
