"""The README's and the docs' examples do what they say."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest

from distilens.cli import commands as command_line
from distilens.runs.recipe_names import shipped_recipes

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[str]:
    """The Python of a page, but for what needs a run that is there already."""
    found = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    return [text for text in found if "needs a run" not in text]


SOME = ("README", "python")
"""The pages whose examples run with the quick tests."""


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of lightning, with a newer torch than it knows
@pytest.mark.filterwarnings("ignore:Found .* in eval mode")  # of lightning: they are the teacher's
@pytest.mark.filterwarnings("ignore:.*it may know nothing of these data")  # teachers of an epoch or none
@pytest.mark.filterwarnings("ignore:.*how its pixels are normalised")
@pytest.mark.filterwarnings("ignore:'pin_memory':UserWarning")  # of transformers' loaders, without a GPU
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[] if page.stem in SOME else [pytest.mark.slow], id=page.stem)
        for page in PAGES
        if blocks(page)
    ],
)
def test_python_examples_run(page, tmp_path, monkeypatch):
    """One after the other, as a reader would: a block may use what those above it made."""
    monkeypatch.chdir(tmp_path)
    example = types.ModuleType("example")  # a dataclass looks its module up
    monkeypatch.setitem(sys.modules, "example", example)
    names = vars(example)
    for number, code in enumerate(blocks(page)):
        exec(compile(code, f"{page.name}, example {number}", "exec"), names)


def commands() -> list[str]:
    fenced = [block for page in PAGES for block in re.findall(r"```\n(.*?)```", page.read_text(), re.DOTALL)]
    return sorted(set(re.findall(r"^distilens [a-z]+.*$", "\n".join(fenced), re.MULTILINE)))


def test_the_pages_show_commands():
    assert len(commands()) >= 4


@pytest.mark.parametrize("command", commands())
def test_commands_in_the_pages_parse(command, monkeypatch):
    """Each command is known with its options; what it starts is stopped at the door."""
    called = []
    for name, function in list(command_line.COMMANDS.items()):
        monkeypatch.setitem(command_line.COMMANDS, name, recorder(function, called))
    command_line.begin(shlex.split(command)[1:])
    assert len(called) == 1


def recorder(function, called):
    @functools.wraps(function)
    def record(*args, **options):
        return lambda: called.append(function.__name__)

    return record


def test_the_command_table_names_every_command():
    table = (ROOT / "README.md").read_text()
    for name in ("run", "demo", "codebook", "train", "measure", "explain", "compare", "report", "validate", "list"):
        assert re.search(rf"`(distilens )?{name}\b", table), name


def test_make_targets_in_the_pages_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        name
        for page in [*PAGES, ROOT / "CONTRIBUTING.md"]
        for name in re.findall(r"^make (\w+)", page.read_text(), re.M)
    }
    assert named
    assert named <= targets


def test_shipped_recipes_are_named_in_the_readme():
    assert {path.stem for path in shipped_recipes()} >= {"demo", "cifar10-resnet20-resnet8"}


@pytest.mark.slow
@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_examples_run(example, tmp_path):
    done = subprocess.run([sys.executable, example], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
