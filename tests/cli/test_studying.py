"""The commands of studies: what they print, what they refuse, and that the same command goes on."""

import csv
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from distilens.cli import commands, studying
from distilens.cli.options import bytes_of, seconds_of
from distilens.cli.studying import hidden
from distilens.foundation.errors import UserError

TEACHER = """
[teacher]
model = "python:cli_nets:tiny"
[teacher.train]
epochs = 1
"""
COMMANDS = ("ablate", "compress", "sweep", "seeds", "study")


@pytest.fixture
def study(command):
    """The commands in a folder with a recipe of two methods and a teacher."""
    text = (
        Path("recipe.toml")
        .read_text()
        .replace('methods = ["ce"]', 'methods = ["ce", "kd"]')
        .replace("epochs = 2", "epochs = 1")
    )
    Path("recipe.toml").write_text(text + TEACHER)
    Path("lonely.toml").write_text(Path("recipe.toml").read_text().replace('"ce", "kd"', '"ce"').replace(TEACHER, ""))
    return command


def test_an_ablation_from_the_command_line(study):
    words = ("train.batch_size=20", "ablate", "recipe.toml", "--seeds", "2", "--no-test", "-q", "--json")
    code, output, error = study("ablate", words[0], *words[2:])
    assert (code, error) == (0, "")
    found = json.loads(output)
    assert [row["name"] for row in found["rows"]] == ["base", "all", "without ce"]
    assert (found["split"], found["done"], found["total"], found["seeds"]) == ("validation", 6, 6, [0, 1])
    folder = Path("runs/tiny-ablation")
    plan = json.loads((folder / "study.json").read_text())
    assert plan["command"].startswith("distilens ablate train.batch_size=20 recipe.toml")
    assert {row["recipe"]["train"]["batch_size"] for row in plan["rows"]} == {20}
    assert plan["rows"][1]["recipe"]["teacher"]["answers"] == "stored"

    times = {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")}
    code, output, error = study("ablate", "recipe.toml", "--seeds=2", "-q", "--set", "train.batch_size=20")
    assert (code, error) == (0, "")
    assert "accuracy, test" in output
    assert "what kd adds (all − base)" in output
    assert str(folder / "study.html") in output.replace("\n", "")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")} == times
    assert len(json.loads((folder / "study.json").read_text())["readings"]) == 1

    code, output, _ = study("study", str(folder), "--csv")
    lines = list(csv.DictReader(io.StringIO(output)))
    assert (code, len(lines), {line["split"] for line in lines}) == (0, 6, {"test"})
    code, output, _ = study("study", str(folder), "--latex")
    assert output.startswith(r"\begin{tabular}")
    code, _, error = study("ablate", "recipe.toml", "--seeds", "2")
    assert code == 2
    assert "holds a study of another recipe" in error


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["ablate", "recipe.toml", "--seeds", "0"], "--seeds and --jobs are at least 1; given 0 and 1"),
        (["ablate", "recipe.toml", "--jobs", "-1"], "--seeds and --jobs are at least 1; given 5 and -1"),
        (["ablate", "recipe.toml", "--first", "-3"], "--first is at least 0; given -3"),
        (["ablate", "recipe.toml", "--seeds", "many"], "--seeds"),
        (["ablate", "recipe.toml", "--seed", "3"], "--seed"),
        (["ablate", "dmeo"], "Did you mean 'demo'"),
        (["ablate"], "RECIPE"),
        (["ablate", "recipe.toml", "lonely.toml"], "ablate takes one recipe"),
        (["ablate", "lonely.toml"], "this recipe has no [teacher]"),
        (["ablate", "recipe.toml", "--controls"], "no method of this recipe reads any"),
        (["ablate", "recipe.toml", "epochs=1"], "Did you mean 'train.epochs'?"),
        (["compress", "recipe.toml", "--latency", "soon"], "a time is like 5ms, 90s, 30m or 2h; given 'soon'"),
        (["compress", "recipe.toml", "--size", "0"], "--latency and --size are above 0; given None s and 0 bytes"),
        (["ablate", "recipe.toml", "--until", "0"], "--until is above 0, and --most from 2 to 1000; given 0 and 20"),
        (["compress", "lonely.toml"], "this recipe has no [teacher]"),
        (["compress", "recipe.toml", "--factors", "1", "2"], "factors are numbers above 1"),
        (["compress", "recipe.toml", "--factors", "two"], "--factors"),
        (["compress", "recipe.toml"], "name the networks to choose students from (--family"),
        (["seeds"], "name at least one recipe"),
        (["seeds", "recipe.toml", "other/recipe.toml"], "no file"),
        (["seeds", "recipe.toml", "recipe.toml"], "two have the same"),
        (["study", "nowhere"], "nowhere is not a study: it has no study.json"),
        (["study"], "STUDY"),
        (["studdy", "x"], "did you mean study?"),
        (["sweep", "recipe.toml"], "name what is searched: --space"),
        (["sweep", "recipe.toml", "--space", "kd.temperature=8..1"], "from the smaller to the larger number; given 8..1"),
        (["sweep", "recipe.toml", "--space", "kd.temprature=1..8"], "Did you mean 'temperature'?"),
        (["sweep", "recipe.toml", "--space", "kd.weight=1..2", "--trials", "0"], "--trials and --timeout are above 0"),
        (["sweep", "recipe.toml", "--space", "kd.weight=1..2", "--timeout", "soon"], "a time is like 5ms, 90s, 30m or 2h"),
        (["sweep", "recipe.toml", "--space", "kd.weight=1..2", "--sampler", "grid"], "--sampler"),
        (["sweep", "recipe.toml", "--space", "kd.weight=1..2", "--objectives", "speed"], "unknown objective 'speed'"),
        (["sweep", "recipe.toml", "--space", "kd.weight=1..2", "--first", "998"], "seed 1000 is the seed of all trials"),
        (["sweep", "recipe.toml", "--space", "kd.weight=1..2", "--seeds", "0"], "--seeds and --jobs are at least 1"),
    ],
)  # fmt: skip
def test_mistakes(study, words, text):
    if words[0] == "sweep":
        pytest.importorskip("optuna")
    code, output, error = study(*words)
    assert (code, output) == (2, "")
    assert text in error
    assert not list(Path().glob("runs/*/study.json"))


@pytest.mark.parametrize("name", COMMANDS)
def test_help(study, name):
    code, output, _ = study(name, "--help")
    assert code == 0
    assert "None" not in output
    assert "()" not in output


@pytest.mark.slow
def test_a_sweep_keeps_the_password_to_itself(study, tmp_path):
    pytest.importorskip("optuna")
    (tmp_path / "pa55word").mkdir()
    address = f"sqlite:///{tmp_path}/pa55word/shared.db"
    words = ("--space", "kd.temperature=1..8", "--trials", "2", "--seeds", "1", "--no-test", "-q")
    for option in (("--storage", address), (f"--storage={address}",)):
        code, output, error = study("sweep", "recipe.toml", *words, *option)
        assert (code, error) == (0, "")
        assert "as given" in output
        assert "on validation in the search" in output
    folder = Path("runs/tiny-search")
    assert not (folder / "search.db").exists()
    kept = {name: (folder / name).read_text() for name in ("study.json", "search.json", "trials.json", "study.html")}
    assert "DATABASE" in kept["study.json"]
    assert all("pa55word" not in text for text in kept.values())
    assert [path for path in folder.rglob("*") if path.is_file() and b"pa55word" in path.read_bytes()] == []
    assert len(list((folder / "runs").glob("trial-*"))) == 2


def test_the_address_is_hidden_in_any_form():
    words = ["sweep", "--storage", "postgresql://u:p@h/d", "--storage=postgresql://u:p@h/d", "x"]
    assert hidden(words, "postgresql://u:p@h/d") == ["sweep", "--storage", "DATABASE", "--storage=DATABASE", "x"]
    assert hidden(["a"], None) == ["a"]


@pytest.mark.parametrize("name", ["ablate", "compress", "sweep", "seeds"])
def test_a_wrong_name_is_refused_before_torch(name, tmp_path):
    code = (
        "import sys; from distilens.cli import commands; sys.argv = ['distilens', *sys.argv[1:]]\n"
        "try: commands.main()\n"
        "except SystemExit as stop: print(stop.code, 'torch' in sys.modules, 'optuna' in sys.modules)"
    )
    words = [name, "dmeo", *(["--space", "kd.weight=1..2"] if name == "sweep" else [])]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(commands.__file__).parents[2])},
    )
    assert done.stdout.strip() == "2 False False"
    assert "Did you mean 'demo'" in done.stderr


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(None, None), ("90", 90), ("90s", 90), ("30m", 1800), ("2h", 7200), (" 1.5 h", 5400), ("0s", 0), ("5ms", 0.005)],
)
def test_times(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "-1h", "1d", "1h30m", "inf", "1e3s"])
def test_what_is_not_a_time(text):
    with pytest.raises(UserError, match="a time is like 5ms, 90s, 30m or 2h"):
        seconds_of(text)


def test_sizes():
    given = (None, "500kB", "2MB", "1MiB", "12")
    assert [bytes_of(text) for text in given] == [None, 500_000, 2_000_000, 2**20, 12]
    for text in ("", "big", "-3kB"):
        with pytest.raises(UserError, match="a size is like 500kB, 2MB or 1MiB"):
            bytes_of(text)


def test_two_recipes_over_seeds(study):
    code, output, error = study(
        "seeds", "lonely.toml", "recipe.toml", "train.batch_size=20", "--seeds", "1", "--no-test", "-q", "--json"
    )
    assert (code, error) == (0, "")
    found = json.loads(output)
    assert [row["name"] for row in found["rows"]] == ["lonely", "recipe"]
    assert found["questions"][0]["about"] == "what recipe gains over lonely"
    assert found["questions"][0]["p"] is None


ROOT = Path(__file__).parents[2]


def named_commands() -> list[str]:
    """The commands of studies that the shipped recipes and the pages of results name."""
    recipes = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "recipes" / "studies").glob("*.toml"))
    pages = " ".join(
        (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("which", "results", "answers")
    )
    lines = re.findall(r"^#\s+(distilens seeds .+)$", recipes, re.M)
    inline = re.findall(r"`(distilens (?:seeds|ablate) [^`]+)`", pages)
    return sorted({" ".join(each.split()) for each in (*lines, *inline)})


@pytest.mark.slow
@pytest.mark.parametrize("line", named_commands())
def test_the_commands_of_our_tables_can_be_planned(command, line, monkeypatch):
    planned = []
    for name in ("cifar10", "camvid"):
        Path("data", name).mkdir(parents=True)

    def run_study(kind, name, plan, options, *, as_json, how):
        planned.append((kind, plan(), options.numbers))

    monkeypatch.setattr(studying, "run_study", run_study)
    code, _, error = command(*shlex.split(line)[1:])
    assert (code, error) == (0, "")
    ((_, (rows, _), seeds),) = planned
    assert rows
    assert len(seeds) in (1, 3, 5)
