"""What is shipped: a wheel with templates and recipes, constraints without hosts, a help that answers at once."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_templates_recipes_and_the_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in (
        "distilens/report/template.html.j2",
        "distilens/deploy/card.md.j2",
        "distilens/recipes/demo.toml",
        "distilens/recipes/cifar10-resnet20-resnet8.toml",
        "distilens/py.typed",
    ):
        assert wanted in names
    entry = next(name for name in names if name.endswith("entry_points.txt"))
    assert "distilens = distilens.cli:main" in zipfile.ZipFile(wheel).read(entry).decode()
    assert not [name for name in names if name.startswith("tests")]


def test_constraints_pin_versions_and_name_no_hosts():
    lines = (ROOT / "constraints.txt").read_text().split()
    assert all(re.fullmatch(r"[A-Za-z0-9_.\-]+==[A-Za-z0-9.!+]+", line) for line in lines)
    pinned = {line.split("==")[0].lower() for line in lines}
    assert {"torch", "torchvision", "timm", "accelerate", "numpy", "tyro", "pydantic"} <= pinned


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["validate", "--help"], ["list", "--help"]])
def test_help_does_not_import_torch(arguments):
    code = (
        "import sys\n"
        "from distilens.cli import main\n"
        f"sys.argv = ['distilens', *{arguments!r}]\n"
        "try:\n    main()\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "assert 'torch' not in sys.modules, 'torch was imported for a help text'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: distilens" in done.stdout


@pytest.mark.parametrize("given", [None, "ACTIVE"])
def test_threads_wait_without_spinning_unless_the_user_says_so(given):
    code = """
import os, sys
from distilens import cli
sys.argv = ["distilens", "--help"]
cli.main()
print(os.environ["OMP_WAIT_POLICY"], "torch" in sys.modules)
"""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": given} if given else {}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f"{given or 'PASSIVE'} False"
