"""The README's and the docs' examples do what they say."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

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


SHORTER = {
    "run": ["data.size=32", "train.epochs=1", "explain.images=2", "explain.measured=4"],
    "export": ["--tolerance", "100"],
    "bench": ["--threads", "1", "--batch", "1", "--rounds", "2", "--runtimes", "eager", "onnx", "executorch"],
}
"""What makes the commands of the sitting quick. A student of one epoch may lose more by INT8 than is allowed by default."""


@pytest.mark.slow
def test_the_sitting_from_photographs_to_a_small_model(tmp_path):
    """The first commands of the deploy page, in order, on a few pictures."""
    for package in ("timm", "onnx", "onnxscript", "onnxruntime", "executorch", "torchao"):
        pytest.importorskip(package)
    draw_pictures(tmp_path)
    page = (ROOT / "docs" / "deploy.md").read_text()
    sitting = re.search(r"```\n(pip install.*?)```", page, re.DOTALL)
    assert sitting
    pip, *lines = sitting[1].strip().splitlines()
    for line in lines:
        program, command, *words = shlex.split(line)
        assert program == "distilens"
        words = [program, command, *words, *SHORTER.get(command, [])]
        done = subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, f"{line}: {done.stderr}"
        if command == "predict":
            assert "round.jpg" in done.stdout and ("cat" in done.stdout or "dog" in done.stdout)
    extras = re.search(r"\[(.*)\]", pip)
    assert extras
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras[1].split(",")) <= set(known)
    exported = tmp_path / "runs" / "photos" / "export"
    for row in re.findall(
        r"^\| (`.*?) \|", page.partition("`export` writes into")[2].partition("More formats")[0], re.M
    ):
        for name in re.findall(r"`(.*?)`", row):
            assert (exported / name).is_file(), name
    assert (exported / "student-int8.pte").stat().st_size < 2e6


def draw_pictures(folder: Path) -> None:
    """`pictures/cat`, `pictures/dog` and `holiday`: photographs of discs and bars."""
    random = np.random.default_rng(0)
    for name, count in (("pictures/cat", 30), ("pictures/dog", 30), ("holiday", 2)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            picture = Image.fromarray(random.integers(0, 120, (40, 48, 3), np.uint8))
            box = (10, 5, 35, 30) if name != "pictures/dog" else (5, 15, 40, 22)
            draw = ImageDraw.Draw(picture)
            (draw.ellipse if name != "pictures/dog" else draw.rectangle)(
                box, fill=(230, 200, int(random.integers(255)))
            )
            picture.save(folder / name / (f"{number}.jpg" if name != "holiday" else ("round.jpg", "other.jpg")[number]))
