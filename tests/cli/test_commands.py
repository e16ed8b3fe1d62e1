"""The command line: what it accepts, what it prints, and the codes that it ends with."""

import json
import os
import re
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distilens import cli
from distilens.cli import commands
from distilens.data import SOURCES
from distilens.explain import EXPLAINERS
from distilens.foundation.errors import UserError
from distilens.foundation.files import lock_folder
from distilens.measure.corruptions import CORRUPTIONS
from distilens.measure.transfer.embeddings import EMBEDDINGS
from distilens.methods import METHODS
from distilens.models import MODELS
from distilens.runs.recipe_names import shipped_recipes
from distilens.teachers import CONTROLS, FOLLOW
from distilens.teachers.judges import JUDGES
from distilens.training.balance import BALANCES
from distilens.training.checkpoints import Interrupted


def test_all_that_is_wrong_is_said_at_once(command):
    Path("photos").mkdir()
    changes = [
        "data=folder:photoz",
        "train.epoch=1",
        "student.methods=[ce,kdd]",
        "train.optimizer=sgd:learning_rate=1",
        "nonsense",
    ]
    code, output, error = command(
        "run", "recipe.toml", "--set", *changes, "--set", "train.batch_size=many", "explain.images=0"
    )
    assert code == 2
    assert output == ""
    for text in (
        "distilens: 7 problems",
        f"--set data: path=photoz does not exist (looked from {Path.cwd()}). Did you mean 'photos'?",
        "\n  unknown key 'train.epoch'. Did you mean 'epochs'?",
        "--set student.methods: unknown method 'kdd'. Did you mean 'kd'?",
        "unknown option 'learning_rate' of optimizer 'sgd'",
        "--set takes key=value; given 'nonsense'",
        "train.batch_size: input should be a valid integer",
        "explain.images: input should be greater than or equal to 1; given 0",
    ):
        assert text in error


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["rum"], "no command rum; did you mean run?"),
        (["publish", "--help"], "no command publish"),
        (["run", "demo", "other"], "run takes one recipe; given demo, other"),
        (["demo", "other"], "demo takes no recipe; given other"),
        (["run", "demo", "--device", "gpu"], "--device is cpu, cuda, cuda:1 or mps; given 'gpu'"),
        (["run", "demo.toml"], "no file demo.toml; the shipped recipe is called demo"),
        (["run", "demo", "epochs=3"], "distilens: unknown key 'epochs'. Did you mean 'train.epochs'?"),
        (["explain", "nope"], "nope is neither a model nor a folder"),
        (["list", "methods", "kdd"], "unknown method 'kdd'. Did you mean 'kd'?"),
        (["run"], "RECIPE"),
        (["run", "recipe.toml", "--sett", "a=b"], "--set KEY=VALUE"),
        (["list", "method"], "methods"),
        (["run", "dmeo"], "Did you mean 'demo'"),
        (["run", "."], "no recipe at ."),
        (["run", "no.toml"], "no.toml is not TOML: Invalid value"),
        (["run", "bytes.toml"], "bytes.toml is not TOML"),
        (["run", "recipe.toml", "--out", "no.toml"], "may not be written"),
        (["run", "recipe.toml", "--set", "explain.explainers=[ig:steps=2,ig:steps=4]"], "two are called 'ig'"),
        (["run", "recipe.toml", "--set", "train.batch_size=0"], "greater than or equal to 1; given 0"),
        (["run", "recipe.toml", "--set", "student=3"], "student"),
        (["report", "empty"], "it has no file that a run writes"),
        (["explain", "empty"], "is not a run: it has no recipe.toml"),
        (["measure", "no.toml"], "is not a run"),
        (["explain"], "MODEL_OR_RUN"),
        (["compare"], "compare takes a run folder, two or more of them, or --models"),
        (["compare", "empty"], "empty is not a run"),
        (["compare", "empty", "--models", "a=resnet8"], "compare takes a run folder, two or more of them, or --models"),
        (["compare", "empty", "--data", "digits"], "--data and --out go with --models"),
        (["compare", "--models", "resnet8", "a=resnet8"], "--models takes name=model, such as"),
        (["compare", "--models", "a=resnet8", "--data", "digits"], "a comparison needs two or more models; given a"),
        (["compare", "--models", "a=resnet8", "b=resnet8"], "there are no images to explain: name a data set (--data"),
        (["compare", "--models", "a=resnet8", "b=resnet9", "--data", "digits"], "Did you mean 'resnet'"),
        (["compare", "--models", "a=resnet8", "b=resnet8", "--data", "digits", "--set", "taps=[lst]"], "lst"),
        (
            ["compare", "--models", "a=resnet8", "b=resnet8", "--data", "digits", "--out", "no.toml"],
            "may not be written",
        ),
        (["run", "recipe.toml", "--set", "compare.embeddings=onehot"], "Did you mean 'one_hot'"),
        (["run", "recipe.toml", "--set", "compare.sample=5"], "Did you mean 'samples'"),
        (["explain", "resnet8"], "there are no images to explain: name a data set (--data"),
        (["explain", "resnet9", "--data", "digits"], "Did you mean 'resnet'"),
        (["explain", "runs/none"], "no run and no model at runs/none"),
        (["explain", "runs/none", "--data", "digits"], "no run and no model at runs/none"),
        (["explain", "empty", "--images", "3"], "empty has no recipe.toml, so its data set is unknown"),
        (["explain", "resnet8", "--data", "digit"], "unknown data 'digit'. Did you mean 'digits'"),
        (["explain", "resnet8", "--data", "digits", "--explainer", "gradcan", "ig:step=1"], "Did you mean 'gradcam'"),
        (["explain", "resnet8", "--data", "digits", "--images", "0"], "images=0"),
        (["explain", "resnet8", "--data", "digits", "--of", "top5"], "top5"),
        (["explain", "resnet8", "--data", "digits", "--out", "no.toml"], "no.toml may not be written"),
        (["explain", "resnet8", "--data", "digits", "--out", "no.toml/deep/er"], "is a file"),
    ],
)
def test_mistakes_end_with_a_message_and_2(command, tmp_path, arguments, text):
    (tmp_path / "no.toml").write_text("name = ")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "empty").mkdir()
    code, output, error = command(*arguments)
    assert code == 2
    assert text in error
    assert output == ""
    assert not (tmp_path / "empty" / "report.html").exists()


def test_a_loss_that_is_no_number_ends_with_1_and_can_be_mended(command, tmp_path):
    broken = ["train.optimizer=sgd:lr=1e20", "train.log_every=1"]
    for _ in range(2):
        code, output, error = command("run", "recipe.toml", "--set", *broken)
        assert code == 1
        assert output == ""
        assert re.search(
            r"^distilens: the loss of base is not finite in epoch 1 \(ce=\w+\), on the images .* \[\d",
            error,
            re.MULTILINE,
        )
    assert not (tmp_path / "runs" / "tiny" / "base" / "model.safetensors").exists()
    code, _, error = command("report", "runs/tiny")
    assert code == 0, error
    code, _, error = command("run", "recipe.toml")
    assert code == 0, error


def test_changes_may_be_many_and_come_twice(command, tmp_path):
    changes = ["--set", "train.epochs=1", "name=other", "--set", "data.train=80"]
    assert command("run", "recipe.toml", *changes)[0] == 0
    text = (tmp_path / "runs" / "other" / "recipe.toml").read_text()
    assert "epochs = 1" in text
    assert "train=80" in text
    code, output, error = command("validate", "recipe.toml", "--set", "train.epochs=7", "--no-time", "--full")
    assert code == 0, error
    assert "epochs = 7" in output


def test_the_commands_of_a_run_do_not_do_again_what_is_there(command, tmp_path):
    code, output, _ = command("run", "recipe.toml", "--out", "one")
    assert code == 0
    assert "The student (" in output
    assert output.rstrip().endswith("one/report.html")
    for name, stages in (("train", ["base", "student"]), ("measure", ["measure"]), ("explain", ["explain"])):
        code, _, error = command(name, "one")
        assert code == 0
        assert error.splitlines() == [f"{stage}: already done" for stage in stages]
    (tmp_path / "one" / "report.html").unlink()
    assert command("report", "one")[:2] == (0, "one/report.html\n")
    assert (tmp_path / "one" / "report.html").exists()


SMALL = ["--data", "shapes:train=64,test=40,size=16", "--images", "3"]


def test_a_model_is_explained_in_several_ways(command, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    code, output, error = command(
        "explain", "python:cli_nets:tiny", *SMALL, "--explainer", "gradcam", "ig:steps=2", "--explainer", "ig:steps=3"
    )
    assert code == 0, error
    lines = output.splitlines()
    assert lines[0].split() == ["measure", "gradcam", "ig-steps-2", "ig-steps-3", "random", "random-grid-7"]
    assert max(map(len, lines)) <= 100
    assert [line.split()[:2] for line in lines if line.startswith("insertion")] == [["insertion", "AUC"]] * 2
    assert "the floors" in output
    assert lines[-1] == "maps/python-cli_nets-tiny/index.html"
    folder = tmp_path / "maps" / "python-cli_nets-tiny"
    assert (folder / "index.html").is_file()
    assert len(list(folder.glob("*.npz"))) == 6
    assert "explain: gradcam" in error


def test_an_explanation_without_tests_of_sanity_and_of_the_labels(command, tmp_path):
    options = ["--no-sanity", "--no-prepare", "--of", "label", "--out", "there"]
    code, output, error = command("explain", "resnet8", *SMALL, "--explainer", "gradcam", *options)
    assert code == 0, error
    assert "stability" not in output
    assert "resnet8 has random weights, since nothing was loaded" in output
    assert output.rstrip().endswith("there/index.html")


def test_a_run_is_explained_as_its_recipe_says_or_in_several_ways(command, tmp_path):
    assert command("run", "recipe.toml", "--out", "one")[0] == 0
    before = (tmp_path / "one" / "maps" / "gradcam.npz").read_bytes()
    code, output, error = command("explain", "one", "--explainer", "gradcam", "--images", "2")
    assert code == 0, error
    assert output.rstrip().endswith("maps/one/index.html")
    assert (tmp_path / "one" / "maps" / "gradcam.npz").read_bytes() == before
    code, output, error = command("explain", "run:one,part=base", "--images", "2", "--no-sanity")
    assert code == 0, error
    assert output.rstrip().endswith("maps/run-one-part-base/index.html")
    (tmp_path / "one" / "student" / "model.safetensors").write_bytes(b"broken")
    code, _, error = command("explain", "one", "--images", "2")
    assert code == 2
    assert "is not a whole safetensors file" in error


FEW = ("--set", "samples=16", "reference=8", "images=2", "measured=4", "sets=1")


def test_a_run_is_compared_and_its_page_shows_it(command, tmp_path):
    assert command("run", "recipe.toml")[0] == 0
    code, output, error = command("compare", "runs/tiny", *FEW)
    assert code == 0, error
    assert "RS: student − base" in output
    assert output.rstrip().endswith("runs/tiny/report.html")
    assert "What was distilled" in (tmp_path / "runs" / "tiny" / "report.html").read_text()
    scores = (tmp_path / "runs" / "tiny" / "transfer.json").read_text()
    code, _, error = command("compare", "runs/tiny", *FEW)
    assert (code, "compare: already done" in error) == (0, True)
    code, _, error = command("compare", "runs/tiny", *FEW, "features=flat")
    assert (code, "compare: what it depends on has changed" in error) == (0, True)
    assert (tmp_path / "runs" / "tiny" / "transfer.json").read_text() != scores


def test_models_of_any_kind_are_compared_with_a_page_of_their_own(command, tmp_path):
    named = ("one=python:cli_nets:tiny", "other=resnet8")
    data = "shapes:train=64,test=40,val_fraction=0.3,size=16"
    code, output, error = command("compare", "--models", *named, "--data", data, *FEW, "--out", "side/by")
    assert code == 0, error
    assert "RS, one without other" in output
    assert "random weights" in output
    assert output.rstrip().endswith("side/by/index.html")
    assert "one · other" in (tmp_path / "side" / "by" / "index.html").read_text()
    assert sorted(path.name for path in (tmp_path / "side" / "by" / "transfer").iterdir())


@pytest.mark.slow
def test_students_of_several_runs_are_compared(command, tmp_path):
    for name, seed in (("one", "0"), ("two", "1")):
        changes = ("seed=" + seed, "train.epochs=1", "explain.explainers=[gradcam]")
        code, output, error = command("run", "recipe.toml", *changes, "--out", f"runs/{name}", "--json", "-q")
        assert (code, error) == (0, "")
        found = json.loads(output)
        assert found["run"] == f"runs/{name}"
        assert found["scores"] == json.loads((tmp_path / "runs" / name / "scores.json").read_text())
    code, output, error = command("compare", "runs/one", "runs/two", *FEW, "--json")
    assert code == 0, error
    found = json.loads(output)
    assert found["page"] == "compare/one-two/index.html"
    assert list(found["models"]) == ["one", "two"]
    assert found["models"]["one"] != found["models"]["two"]
    assert found.items() >= json.loads((tmp_path / "compare" / "one-two" / "transfer.json").read_text()).items()
    code, output, error = command("measure", "runs/one", "--json", "-q")
    assert (code, error) == (0, "")
    assert set(json.loads(output)["scores"]["models"]) == {"base", "student"}
    recipe = tmp_path / "runs" / "two" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("train=64", "train=80"))
    for runs, text in (
        (("runs/one", "runs/two"), "these runs have different data (runs/one: shapes:"),
        (("runs/one", "runs/one"), "two of these are the same run"),
        (
            ("runs/one", "runs/tow"),
            "runs/tow is not a run: there is no such folder. Did you mean runs/two?",
        ),
    ):
        code, output, error = command("compare", *runs, *FEW)
        assert (code, output) == (2, "")
        assert text in error


def test_a_run_says_at_once_what_it_does_and_in_the_end_what_can_be_done_next(command, tmp_path):
    code, _, error = command("run", "recipe.toml", "train.epochs=1", "--seed", "3", "--device", "cpu")
    assert code == 0, error
    lines = error.splitlines()
    assert lines[0] == "distilens: recipe.toml → runs/tiny"
    after = lines[lines.index("Next:") :]
    assert after[1].split()[:2] == ["open", "runs/tiny/report.html"]
    assert any("distilens explain runs/tiny --explainer" in line for line in after)
    assert "seed = 3" in (tmp_path / "runs" / "tiny" / "recipe.toml").read_text()


def test_json_is_all_that_is_printed(command):
    code, output, error = command("validate", "recipe.toml", "--no-time", "--json", "train.epochs=5")
    assert code == 0, error
    found = json.loads(output)
    assert found["recipe"]["train"]["epochs"] == 5
    assert found["cost"] is None
    code, output, _ = command("list", "methods", "--json")
    assert {row["name"] for row in json.loads(output)} == set(METHODS)
    code, output, _ = command("list", "methods", "kd", "--json")
    assert {each["option"] for each in json.loads(output)["options"]} == set(METHODS.options("kd"))


@pytest.mark.parametrize(
    ("arguments", "text"), [((), "distilens demo"), (("--version",), "distilens "), (("-V",), "distilens ")]
)
def test_without_a_command_it_says_what_there_is(command, arguments, text):
    code, output, error = command(*arguments)
    assert (code, error) == (0, "")
    assert text in output


def test_stopping_an_explanation_leaves_no_file(command, tmp_path, monkeypatch):
    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("distilens.measure.maps.faithfulness.Perturbed.between", stopped)
    code, output, error = command("explain", "resnet8", *SMALL)
    assert (code, output) == (130, "")
    assert error.endswith("distilens: stopped\n")
    assert not (tmp_path / "maps").exists()


def test_the_demo_is_the_shipped_recipe(command, monkeypatch):
    ran = []
    monkeypatch.setattr("distilens.cli.actions.run_recipe", lambda *given, **options: ran.append((given, options)))
    assert command("demo", "--set", "train.epochs=3", "--seed", "4", "--out", "there", "--json")[0] == 0
    ((given, options),) = ran
    assert given == ("demo", ["train.epochs=3", "seed=4"], Path("there"), False)
    assert options["as_json"]


def test_answers_that_differ_from_the_records_are_an_error(command, monkeypatch):
    monkeypatch.setattr("distilens.runs.recording.verify", lambda run, count: count < 5)
    Path("taught.toml").write_text(Path("recipe.toml").read_text() + '[teacher]\nmodel = "resnet8"\n')
    code, _, error = command("record", "taught.toml", "--verify", "5")
    assert code == 2
    assert "recorded answers differ from the teacher's answers now: record them again with --again" in error
    assert command("record", "taught.toml", "--verify", "4")[0] == 0


def test_the_words_of_bench_are_its_settings(command, monkeypatch):
    asked = []
    monkeypatch.setattr("distilens.cli.deploying.bench_to", lambda *given, **options: asked.append((given, options)))
    assert command("bench", "resnet8", "--data", "digits")[0] == 0
    words = ["--threads", "1", "2", "--batch", "4", "--rounds", "6", "--runtimes", "eager", "--out", "x.json", "--json"]
    assert command("bench", "resnet8", "resnet14", *words)[0] == 0
    ((targets, usual, out), how), ((others, own, place), json_) = asked
    assert (targets, out, how["as_json"]) == (("resnet8",), None, False)
    assert (usual["threads"], usual["batches"], usual["rounds"], usual["data"]) == (None, (1, 64), 20, "digits")
    assert "runtimes" not in usual, "by default all"
    assert (others, place, json_["as_json"]) == (("resnet8", "resnet14"), Path("x.json"), True)
    assert (own["threads"], own["batches"], own["rounds"], own["runtimes"]) == ([1, 2], [4], 6, ["eager"])


def test_predict_starts_without_the_other_commands(monkeypatch):
    ran = []
    monkeypatch.setattr("distilens.deploy.predict.main", lambda words, name: ran.append((words, name)) or 7)
    monkeypatch.setattr(commands, "main", lambda: ran.append("commands"))
    monkeypatch.setattr(sys, "argv", ["distilens", "predict", "student.onnx", "a.png"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 7
    assert ran == [(["student.onnx", "a.png"], "distilens predict")]
    monkeypatch.setattr(sys, "argv", ["distilens", "list", "methods"])
    cli.main()
    assert ran[1:] == ["commands"]


@pytest.mark.parametrize("module", ["distilens", "distilens.cli.commands"])
def test_it_starts_as_a_module(monkeypatch, capsys, module):
    monkeypatch.setattr(sys, "argv", ["distilens", "--version"])
    monkeypatch.delitem(sys.modules, module if module != "distilens" else "distilens.__main__", raising=False)
    runpy.run_module(module, run_name="__main__")
    assert capsys.readouterr().out.startswith("distilens ")


@pytest.mark.parametrize("words", [("--help",), ("-h",)])
def test_the_help_of_all_names_every_command(command, words):
    code, output, _ = command(*words)
    assert code == 0
    assert all(name in output for name in commands.COMMANDS)


def test_an_unknown_option_of_all_is_refused(command):
    code, output, error = command("--verbose")
    assert (code, output) == (2, "")
    assert "--verbose" in error


def test_a_folder_that_is_in_use_is_said(command, tmp_path):
    with lock_folder(tmp_path / "one"):
        code, _, error = command("run", "recipe.toml", "--out", "one")
    assert code == 2
    assert "another process is at work in one: wait for it, or choose another --out" in error


@pytest.mark.parametrize(
    ("raised", "code", "text"),
    [
        (UserError("it is wrong"), 2, "distilens: it is wrong\n"),
        (KeyboardInterrupt(), 130, "distilens: stopped\n"),
        (Interrupted(2, None), 130, "distilens: stopped\n"),
        (
            Interrupted(15, Path("one")),
            143,
            "distilens: stopped; the same command continues from here (one)\n",
        ),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_the_codes_that_it_ends_with(command, monkeypatch, raised, code, text):
    def fails(words):
        raise raised

    monkeypatch.setattr(commands, "begin", fails)
    assert command("list", "methods") == (code, "", text)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("methods", METHODS),
        ("models", MODELS),
        ("data", SOURCES),
        ("explainers", EXPLAINERS),
        ("judges", JUDGES),
        ("follow", FOLLOW),
        ("controls", CONTROLS),
        ("embeddings", EMBEDDINGS),
        ("balances", BALANCES),
        ("corruptions", CORRUPTIONS),
        ("recipes", [path.stem for path in shipped_recipes()]),
    ],
)
def test_list_names_every_part_with_what_it_does(command, kind, names):
    code, output, _ = command("list", kind)
    assert code == 0
    assert len(output.splitlines()) <= len(list(names)) + 4
    rows = [line.split("  ") for line in output.splitlines()]
    first = {row[0].strip().partition(":")[0] for row in rows}
    assert set(names) <= first


@pytest.mark.parametrize(
    "name",
    [
        "run",
        "demo",
        "record",
        "codebook",
        "train",
        "measure",
        "explain",
        "compare",
        "export",
        "predict",
        "bench",
        "report",
        "validate",
        "recommend",
        "list",
    ],
)
def test_every_command_has_a_help(command, name):
    code, output, error = command(name, "--help")
    assert code == 0
    assert error == ""
    assert f"usage: distilens {name}" in output
    assert "None" not in output


def test_the_help_names_every_command_with_what_it_does(command):
    code, output, error = command("--help")
    assert (code, error) == (0, "")
    for name, function in commands.COMMANDS.items():
        assert f"  {name} " in output
        assert function.__doc__.partition("\n")[0] in " ".join(output.split())
    assert command("-h")[1] == output
    code, _, error = command("--helpp")
    assert code == 2
    assert "See: distilens --help" in error


def test_the_help_answers_at_once():
    """The fastest of three, so that a busy machine does not count."""
    script = os.path.join(os.path.dirname(sys.executable), "distilens")
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([script, "--help"], capture_output=True, text=True)
        times.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
    assert min(times) < 1.0


def test_a_wrong_name_is_told_before_torch_is_imported(tmp_path):
    """Of a recipe, a run, a model, a part and a key; and lists need no torch either."""
    commands = [
        ["run", "dmeo"],
        ["train", "nowhere"],
        ["compare", "nowhere", "there"],
        ["explain", "nope"],
        ["explain", "timm:resnet10t", "--data", "digits", "--explainer", "gradcamm"],
        ["explain", "timm:resnet10t", "--data", "digits", "--explainer", "ig:stepz=3"],
        ["run", "demo", "student.methods=[ce,kdd]"],
        ["validate", "demo", "train.optimizer=sgd:learning_rate=1", "epochs=3"],
        ["list", "methods"],
        ["list", "judges", "insertion"],
    ]
    script = f"""
import contextlib, io, sys
from distilens.cli import main
for words in {commands!r}:
    sys.argv = ["distilens", *words]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            main()
        except SystemExit as stop:
            assert stop.code == 2, words
            assert words[0] != "list"
    assert "torch" not in sys.modules, words
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_output_into_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m distilens list models | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert done.stderr == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="a read-only disk is mounted by root")
def test_a_folder_that_is_read_only_is_said(command, tmp_path):
    assert command("run", "recipe.toml", "--out", "disk/one")[0] == 0
    disk = tmp_path / "disk"
    if subprocess.run(["mount", "--bind", str(disk), str(disk)], capture_output=True).returncode:
        pytest.skip("no mount here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(disk)], check=True)
        for arguments in (
            ["run", "recipe.toml", "--out", "disk/one"],
            ["run", "recipe.toml", "--out", "disk/two"],
            ["report", "disk/one"],
        ):
            code, _, error = command(*arguments)
            assert code == 2
            assert "Read-only file system" in error
    finally:
        subprocess.run(["umount", str(disk)], check=True)
