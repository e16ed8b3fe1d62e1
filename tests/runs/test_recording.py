"""Answers recorded ahead of time are those that a training records by itself, whoever records them, and however it ends."""

import json
import os
import re
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from distilens.cli import commands
from distilens.foundation.errors import UserError
from distilens.foundation.notation import Entry
from distilens.methods import METHODS, build_methods
from distilens.models import MODELS
from distilens.runs.recipe_file import make_recipe
from distilens.runs.recording import Recorder, record, verify
from distilens.runs.run import Run, load_run, lock_run
from distilens.runs.training import train_stage, train_teacher
from distilens.teachers import LiveTeacher
from distilens.teachers import records as store
from distilens.teachers.records import sums
from distilens.training.loop import train
from distilens.training.settings import Training

NETS = """
from torch import nn
from distilens.methods.kd import KD

def tiny(classes):
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes),
    )
    nn.init.normal_(network[-1].weight, std=3.0)  # so that images and variants are told apart
    return network

class Asks(KD):
    def __init__(self, *, needs: str):
        super().__init__()
        self.needs = ("logits", *needs.split(";"))
"""

RECIPE = {
    "name": "recorded",
    "data": "shapes:train=120,test=40,size=16",
    "teacher": {"model": "python:recorded_nets:tiny", "answers": "stored", "train": {"epochs": 1}},
    "student": {"model": "python:recorded_nets:tiny", "methods": ["ce", "kd"]},
    "train": {"epochs": 3, "batch_size": 20, "precision": "float32", "workers": 0, "log_every": 1},
    "explain": {"explainers": ["gradcam"], "images": 4, "measured": 8},
}
IMAGES, TRAINED = 120, 104  # of the set, and of those the ones that are trained on


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A working directory with data and a run whose teacher is trained."""
    place = tmp_path_factory.mktemp("recording")
    (place / "recorded_nets.py").write_text(NETS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.syspath_prepend(str(place))
        run = Run(Path("runs/taught"), make_recipe(RECIPE))
        with lock_run(run):
            train_teacher(run)
    yield place
    sys.modules.pop("recorded_nets", None)


@pytest.fixture
def place(taught, tmp_path, monkeypatch):
    """A copy of it, in which one is; the method `asks` learns from logits, and asks for more."""
    monkeypatch.setitem(METHODS.entries, "asks", Entry("recorded_nets:Asks"))
    shutil.copytree(taught, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def another(name: str, *changes: str) -> Run:
    """A run with the same teacher, and answers of its own."""
    own = ["teacher.model=run:runs/taught,part=teacher", f"teacher.answers=stored:path=runs/{name}/answers"]
    return Run(Path("runs") / name, make_recipe(RECIPE, [*own, *changes]), Console(file=StringIO(), width=200))


def folder_of(run: Run) -> Path:
    return run.folder / "answers"


def said(run: Run) -> str:
    text = run.console.file.getvalue()
    run.console.file.truncate(0)
    run.console.file.seek(0)
    return text


def records_of(run: Run | Path) -> dict[str, dict[int, bytes]]:
    """Every whole record in a run's answers, by need and number; all are checked."""
    folder = run if isinstance(run, Path) else folder_of(run)
    found = {}
    for path in sorted(folder.glob("*.json")):
        about = json.loads(path.read_text())
        dtype = np.dtype([(name, kind, tuple(shape)) for name, kind, shape in about["record"]])
        content = path.with_suffix(".bin").read_bytes() if path.with_suffix(".bin").exists() else b""
        records = np.frombuffer(content[: len(content) // dtype.itemsize * dtype.itemsize], dtype)
        seal = int(store.key_of(about), 16) & 0xFFFFFFFF
        valid = np.flatnonzero(records["sum"] == sums(records, np.arange(len(records)), seal))
        found[about["need"]] = {int(row): records[row].tobytes() for row in valid}
    return found


def agree(part: dict, whole: dict, *, atleast: int = 1) -> None:
    """All that the one has, the other has as well, and it is the same."""
    assert part.keys() <= whole.keys()
    for need, records in part.items():
        assert len(records) >= atleast, need
        assert all(whole[need].get(row) == content for row, content in records.items()), need


CAM = "student.methods=[asks:needs=[maps:gradcam:of=canonical]]"
MAPS = "student.methods=[ce,asks:needs=[maps:gradcam:of=canonical;maps:ig:steps=2,target=label;scores:confidence]]"


# ahead of time, and by training


@pytest.mark.parametrize("changes", [["train.batch_size=20"], ["train.batch_size=7", "seed=3", "train.variants=2"]])
def test_recording_ahead_and_by_training_give_the_same_bytes(place, changes):
    ahead, by_training = another("ahead", "train.batch_size=48", MAPS), another("lazy", *changes, MAPS)
    record(ahead)
    train_stage(by_training)
    whole, part = records_of(ahead), records_of(by_training)
    assert sorted(map(len, whole.values())) == [TRAINED, TRAINED, 3 * TRAINED, 3 * TRAINED]
    agree(part, whole, atleast=100)
    for path in folder_of(by_training).glob("*.json"):
        assert path.read_bytes() == (folder_of(ahead) / path.name).read_bytes()


def test_training_on_what_was_recorded_asks_the_teacher_nothing(place, monkeypatch):
    run = another("ahead")
    record(run)
    before = records_of(run)
    live = another("live", "teacher.answers=live")
    train_stage(live)
    monkeypatch.setattr(LiveTeacher, "__call__", lambda *given: pytest.fail("the teacher was asked"))
    for changes in ([], ["seed=5"], ["train.variants=3"], ["train.epochs=2", "train.variants=1"]):
        other = another("ahead", *changes)
        train_stage(other)
        assert records_of(other) == before
        if not changes:
            ours, theirs = ([row["terms"] for row in one.metrics.rows() if "terms" in row] for one in (other, live))
            assert len(ours) == len(theirs) == 30  # of base and student
            for one, two in zip(ours, theirs, strict=True):
                assert one == pytest.approx(two, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("choice", ["shots=4", "limit=40"])
def test_what_is_recorded_for_all_serves_a_run_with_few_images(place, monkeypatch, choice):
    run = another("ahead")
    record(run)
    few = another("few", f"data=shapes:train=120,test=40,size=16,{choice}", "train.batch_size=8")
    shutil.copytree(folder_of(run), folder_of(few))
    with lock_run(few):
        train_teacher(few)
    monkeypatch.setattr(LiveTeacher, "__call__", lambda *given: pytest.fail("the teacher was asked"))
    model = load_run("runs/taught").model("teacher")
    train(model, build_methods(["kd"]), few.data, Training(**RECIPE["train"]), teacher=few.teacher())
    assert records_of(few) == records_of(run)


def test_a_teacher_of_another_run_keeps_its_answers_for_all(place):
    changes = ["teacher.model=run:runs/taught"]
    first = Run(Path("runs/first"), make_recipe(RECIPE, changes))
    record(first)
    answers = Path("runs/taught/teacher/answers")
    assert len(records_of(answers)["logits"]) == 3 * TRAINED
    second = Run(Path("runs/second"), make_recipe(RECIPE, [*changes, "seed=2"]), Console(file=StringIO(), width=200))
    record(second)
    row = next(line.split() for line in said(second).splitlines() if line.startswith("logits "))
    assert row[-4:-2] == ["312", "0"]  # there, to record
    assert not (first.folder / "teacher" / "answers").exists()


def test_a_teacher_of_another_run_serves_the_run_folder_too(place):
    run = Run(Path("runs/first"), make_recipe(RECIPE, ["teacher.model=run:runs/taught"]))
    record(run)
    assert verify(load_run(run.folder), 5)  # by its own recipe.toml, with every option written out


def test_a_model_is_the_same_one_however_its_notation_is_written(place):
    short, long = (
        Run(
            Path(f"runs/{name}"), make_recipe(RECIPE, [f"teacher.model={model}", "teacher.answers=stored:path=answers"])
        )
        for name, model in (("short", "resnet8"), ("long", str(MODELS.resolve("resnet8"))))
    )
    record(short)
    before = records_of(Path("answers"))
    record(long)
    assert records_of(Path("answers")) == before


def test_recording_again_finds_all_there(place):
    run = another("ahead")
    record(run, variants=2)
    before = {path: path.stat().st_mtime_ns for path in folder_of(run).iterdir()}
    first = records_of(run)
    assert {need: len(records) for need, records in first.items()} == {"logits": 2 * TRAINED}
    record(run, variants=2)
    assert before == {path: path.stat().st_mtime_ns for path in folder_of(run).iterdir()}
    record(run)  # as many as the run shows
    agree(first, records_of(run))
    assert len(records_of(run)["logits"]) == 3 * TRAINED


def test_without_augmentation_one_variant_is_recorded(place):
    run = another("ahead", "train.augment=none")
    record(run)
    assert len(records_of(run)["logits"]) == TRAINED


@pytest.mark.parametrize("parts", [2, pytest.param(7, marks=pytest.mark.slow)])
def test_parts_are_disjoint_and_together_all(place, parts):
    whole = another("whole", CAM)
    record(whole)
    together: dict[str, dict[int, bytes]] = {}
    run = another("parts", CAM)
    for part in range(parts):
        alone = another(f"part{part}", CAM)
        record(alone, part=(part, parts))
        for need, records in records_of(alone).items():
            assert not records.keys() & together.setdefault(need, {}).keys()
            together[need] |= records
        record(run, part=(part, parts))
        assert records_of(run) == together
    assert together == records_of(whole)


def test_again_throws_away_and_records_anew(place):
    run, other = another("ahead"), another("other", "train.augment=crop:padding=1")
    record(other)
    shutil.copytree(folder_of(other), folder_of(run))
    with pytest.raises(UserError, match="padding: recorded 1, this run 4") as error:
        record(run)
    command = re.search(r"Record them again: distilens (.*)", str(error.value))[1]
    assert command == "record runs/ahead --again"
    record(run, again=True)
    whole = another("whole")
    record(whole)
    assert records_of(run) == records_of(whole)


# checking


def test_verify_finds_what_is_right_and_what_is_not(place):
    run = another("ahead", CAM)
    record(run)
    assert len(records_of(run)) == 2
    said(run)
    before = {path: path.stat().st_mtime_ns for path in folder_of(run).iterdir()}
    assert verify(run, 30)
    rows = [line.split() for line in said(run).splitlines() if line.startswith(("logits ", "maps:"))]
    assert [row[-4:] for row in rows[-2:]] == [["30", "30", "0", "0"]] * 2
    assert before == {path: path.stat().st_mtime_ns for path in folder_of(run).iterdir()}
    # records with right sums of wrong content
    path = folder_of(run) / "logits.bin"
    about = json.loads(path.with_suffix(".json").read_text())
    dtype = np.dtype([(name, kind, tuple(shape)) for name, kind, shape in about["record"]])
    records = np.frombuffer(path.read_bytes(), dtype).copy()
    records["values"] = np.roll(records["values"], 1, axis=1)
    records["sum"] = np.where(
        records["sum"], sums(records, np.arange(len(records)), int(store.key_of(about), 16) & 0xFFFFFFFF), 0
    )
    path.write_bytes(records.tobytes())
    assert not verify(run, 30)
    row = next(line.split() for line in said(run).splitlines() if line.startswith("logits "))
    assert row[1] == "30" and int(row[3]) > 20


def damage(run: Run) -> str:
    """Break a record; returns its name."""
    path, image = folder_of(run) / "logits.bin", int(run.data.train.index[5])
    content = bytearray(path.read_bytes())
    content[(image + IMAGES) * 24 + 12] ^= 1
    path.write_bytes(content)
    said(run)
    return f"image {image} variant 0"


def test_recording_names_damage_once_and_mends_it(place):
    run = another("ahead")
    record(run)
    whole, name = records_of(run), damage(run)
    record(run)
    lines = [line for line in said(run).splitlines() if "damaged records" in line]
    assert len(lines) == 1 and lines[0].count(name) == 1
    assert records_of(run) == whole
    record(run)
    assert "damaged records" not in said(run)


def test_verify_says_what_is_damaged(place):
    run = another("ahead")
    record(run)
    name = damage(run)
    verify(run, 3)
    assert name in said(run)


def test_verify_of_what_is_not_recorded_is_not_a_success(place):
    with pytest.raises(UserError):
        verify(another("nothing"), 3)


def test_a_number_below_1_is_refused_and_nothing_is_recorded(place):
    run = another("ahead")
    with pytest.raises(UserError, match="the number of variants must be at least 1; given 0"):
        record(run, variants=0)
    with pytest.raises(UserError, match="a number of answers of at least 1"):
        verify(run, 0)
    assert not folder_of(run).exists()


# mistakes


def command(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["distilens", "record", *arguments])
    code = 0
    try:
        commands.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, capsys.readouterr().err


def test_the_command_records_verifies_and_says_what_is_wrong(place, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    load_folder = ["runs/taught"]
    code, error = command(monkeypatch, capsys, *load_folder)
    assert code == 0, error
    assert "recorded in runs/taught/teacher/answers" in error
    assert len(records_of(Path("runs/taught/teacher/answers"))["logits"]) == 3 * TRAINED
    assert command(monkeypatch, capsys, "runs/taught", "--part", "2/2", "--variants", "1")[0] == 0
    code, error = command(monkeypatch, capsys, "runs/taught", "--verify", "5")
    assert code == 0 and "same bytes" in error
    for arguments, text in (
        (["runs/taught", "--part", "3/2"], "part"),
        (["runs/taught", "--part", "0/2"], "part"),
        (["runs/taught", "--part", "x"], "part"),
        (["nowhere"], "no recipe at nowhere"),
    ):
        code, error = command(monkeypatch, capsys, *arguments)
        assert code == 2 and text in error and "Traceback" not in error, arguments


def test_nothing_to_record_is_said(place):
    with pytest.raises(UserError, match=r"without a teacher: name one in \[teacher\]"):
        record(
            Run(
                Path("runs/none"),
                make_recipe({**RECIPE, "teacher": None, "student": {"model": "resnet8", "methods": ["ce"]}}),
            )
        )
    with pytest.raises(UserError, match="the student's methods need nothing from a teacher"):
        record(another("ce", "student.methods=[ce]"))


def test_a_disk_without_room_is_refused_before_anything_is_recorded(place, monkeypatch):
    run = another("ahead")
    usage = shutil._ntuple_diskusage(0, 0, store.SPARE + 24 * 3 * TRAINED - 1)  # a byte short
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(UserError, match=r"the disk is full: [78]\.\d kB of answers"):
            record(run)
    assert records_of(run) in ({}, {"logits": {}})
    record(run)
    assert len(records_of(run)["logits"]) == 3 * TRAINED


# killed, and many at once

SERVER = """
# Runs `distilens record` in forks of one process that has imported everything.
import json, os, random, shutil, sys, time
from pathlib import Path
import distilens.cli.commands as cli
from distilens import explain
from distilens.runs import recording, stages
import distilens.methods.kd, recorded_nets

def begin(arguments):
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        sys.argv = ["distilens", "record", *arguments]
        sys.stderr = open(f"error.{os.getpid()}", "w")
        cli.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.stderr.flush()
        os._exit(code)

def end(child):
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return [code, Path(f"error.{child}").read_text() if Path(f"error.{child}").exists() else ""]

def kill(arguments, file, sizes):
    "Kill it a little after its file has grown to each of some sizes, and copy what is there."
    file, chance = Path(file), random.Random(0)
    for number, size in enumerate(sizes):
        child = begin(arguments)
        while not (file.exists() and file.stat().st_size >= size):
            assert os.waitpid(child, os.WNOHANG) == (0, 0), Path(f"error.{child}").read_text()
            time.sleep(0.0005)
        time.sleep(chance.random() * 0.01)
        os.kill(child, 9)
        assert end(child)[0] == -9
        shutil.copytree(file.parent, f"killed.{number}")

job = json.loads(sys.argv[1])
if "kill" in job:
    print(json.dumps(kill(**job["kill"])))
else:
    print(json.dumps([[end(child) for child in [begin(one) for one in commands]] for commands in job["rounds"]]))
"""


def serve(place: Path, **job) -> list:
    (place / "server.py").write_text(SERVER)
    line = [sys.executable, "server.py", json.dumps(job)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(place)}
    done = subprocess.run(line, cwd=place, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_killed_at_random_moments_it_goes_on_and_ends_with_the_same_bytes(place):
    changes = ["data=shapes:train=400,test=40,size=16", "train.epochs=8", "train.batch_size=16"]
    whole, run = another("whole", *changes), written(another("killed", *changes))
    record(whole)
    expected = records_of(whole)
    size = (folder_of(whole) / "logits.bin").stat().st_size
    parts = np.sort(np.random.default_rng(0).uniform(0.1, 0.85, 5))
    serve(
        place,
        kill={"arguments": ["runs/killed"], "file": "runs/killed/answers/logits.bin", "sizes": list(parts * size)},
    )
    before = 0
    for number in range(len(parts)):
        found = records_of(place / f"killed.{number}")
        agree(found, expected)
        assert len(found["logits"]) >= before  # nothing that was there is lost
        before = len(found["logits"])
    total = len(expected["logits"])
    assert total / 2 < before < total, "the kills tested nothing"
    recorder = Recorder(run)
    tasks = recorder.tasks()
    assert sum(task.missing for task in tasks) == total - before
    recorder.record(tasks, None)
    assert recorder.teacher.recorded == total - before  # nothing is recorded twice
    assert records_of(run) == expected
    assert verify(run, 50)


@pytest.fixture(scope="module")
def crowds(taught, tmp_path_factory):
    """Where two and three processes filled a folder at once, and three recorded each its part of one run."""
    place = tmp_path_factory.mktemp("crowds")
    shutil.copytree(taught, place, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        commands = []
        for count in (2, 3):
            answers = f"teacher.answers=stored:path=runs/by{count}/answers"
            runs = [written(another(f"own{number}of{count}", answers)) for number in range(count)]
            commands.append([[str(run.folder)] for run in runs])
        folder = written(another("parts")).folder
        commands.append([[str(folder), "--part", f"{part}/3"] for part in (1, 2, 3)])
        return place, serve(place, rounds=commands)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_processes_without_a_launcher_fill_one_folder(place, crowds, count):
    there, ended = crowds
    assert [code for code, _ in ended[count - 2]] == [0] * count, ended
    whole = another("whole")
    record(whole)
    assert records_of(there / f"runs/by{count}/answers") == records_of(whole)


@pytest.mark.slow
def test_parts_of_one_run_can_be_recorded_at_once(place, crowds):
    there, ended = crowds
    assert [code for code, _ in ended[2]] == [0, 0, 0], ended
    whole = another("whole")
    record(whole)
    assert records_of(there / "runs/parts/answers") == records_of(whole)


def written(run: Run) -> Run:
    """A run whose recipe is in its folder, for other processes."""
    run.folder.mkdir()
    (run.folder / "recipe.toml").write_text(run.recipe.to_toml())
    return run


BOTH = """
# Records a run's answers, then trains another run, which records its own.
import sys
from distilens import cli

for words in (["record", "runs/ahead"], ["train", "runs/lazy"]):
    sys.argv = ["distilens", *words]
    cli.main()

from distilens.foundation.devices import processes

print(processes().process_index, "of", processes().num_processes)
"""


@pytest.mark.slow
def test_two_processes_of_a_launch_record_what_one_does(place):
    (place / "both.py").write_text(BOTH)
    runs = {name: written(another(name)) for name in ("ahead", "lazy")}
    # not accelerate's own launcher, which starts one process on processors, however many are asked for
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    line = [sys.executable, *launcher, "both.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(place)}
    done = subprocess.run(line, cwd=place, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(done.stdout.splitlines()[-2:]) == ["0 of 2", "1 of 2"]
    whole = another("whole")
    record(whole)
    assert records_of(runs["ahead"]) == records_of(whole)
    agree(records_of(runs["lazy"]), records_of(whole), atleast=3 * 95)


def test_one_part_does_not_throw_away_what_the_others_recorded(place):
    run = another("ahead")
    record(run)
    before = records_of(run)
    with pytest.raises(UserError, match="again deletes the records of all parts"):
        record(run, part=(1, 3), again=True)
    assert records_of(run) == before


def test_of_two_methods_logits_the_fuller_are_recorded(place):
    run = another("ahead", "student.methods=[ce,kd:top=3,[kd:as=whole]]")
    record(run)
    assert list(records_of(run)) == ["logits"]
    assert verify(run, 5)
