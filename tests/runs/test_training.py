"""The key of the files that a model is made from."""

import pytest

from distilens.runs.training import source_key


def test_an_edited_file_of_weights_is_another_model(tmp_path):
    path = tmp_path / "weights.pt"
    assert source_key(f"file:{path}") is None
    path.write_bytes(b"a")
    before = source_key(f"file:{path}")
    path.write_bytes(b"b")
    assert source_key(f"file:{path}") != before is not None


@pytest.mark.parametrize("part", ["resnet8", "timm:resnet18", "hf:google/vit"])
def test_a_model_without_files_has_no_key(part):
    assert source_key(part) is None
