"""What editors and type checkers see of the package: signatures, types and docstrings of every public name."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jedi
import pytest

import distilens

CALL = """
import distilens
student, log = distilens.distill("resnet8", "resnet20", "shapes", ["ce"], settings={"epochs": 1})
reveal_type(student)
reveal_type(log)
distilens.distill("resnet8", "resnet20", "shapes", epoch=1)
"""


def test_the_stub_names_what_can_be_imported():
    assert sorted(distilens.__all__) == sorted(set(dir(distilens)) - {"__version__"})
    assert all(getattr(distilens, name) is not None for name in distilens.__all__)


def test_all_measures_can_be_imported_and_stand_in_the_reference():
    page = (Path(__file__).parents[1] / "docs" / "reference.md").read_text(encoding="utf-8")
    for name in distilens.measure.__all__:
        made = getattr(distilens.measure, name)
        assert callable(made), f"{name} is a module, not a function"
        assert f"::: {made.__module__}.{name}\n" in page


@pytest.mark.slow
def test_pyright_sees_types_and_wrong_arguments(tmp_path):
    (tmp_path / "call.py").write_text(CALL)
    pyright = shutil.which("pyright", path=str(Path(sys.executable).parent)) or shutil.which("pyright")
    if pyright is None:
        pytest.skip("pyright is not installed")
    command = [pyright, "--outputjson", "--pythonpath", sys.executable, "call.py"]
    found = json.loads(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout)
    said = {(one["range"]["start"]["line"], one["severity"]): one["message"] for one in found["generalDiagnostics"]}
    assert said[3, "information"] == 'Type of "student" is "Model"'
    assert said[4, "information"] == 'Type of "log" is "History"'
    assert said[5, "error"] == 'No parameter named "epoch"'
    assert len(said) == 3


def test_jedi_completes_names_and_shows_signatures():
    script = jedi.Script("import distilens\ndistilens.dis")
    assert [name.name for name in script.complete(2, 13)] == ["distill"]
    (signature,) = jedi.Script("import distilens\ndistilens.distill(").get_signatures(2, 18)
    assert {"student", "teacher", "data", "methods"} <= {param.name for param in signature.params}
    assert "Train" in signature.docstring(raw=True)
