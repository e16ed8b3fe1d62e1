"""Workers share a search on a real PostgreSQL: one is killed, the database goes away and comes back, or stays away.

The workers are processes with the real command line. Only the pauses are shorter than a user's.
"""

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from distilens.runs.recipe_file import make_recipe
from distilens.studies.study import read_study

pytest.importorskip("optuna", reason="Optuna is not installed")
psycopg = pytest.importorskip("psycopg", reason="psycopg, which speaks with PostgreSQL, is not installed")
INITDB = shutil.which("initdb") or next(map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))[-1:]), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(INITDB is None, reason="PostgreSQL's server is not installed: no initdb is found"),
]

PASSWORD = "pa55word"
NETS = """
import time
from torch import nn
from study_nets import layers

class Slow(nn.Sequential):
    def forward(self, images):
        if self.training:
            time.sleep(0.15)
        return super().forward(images)

def slow(classes):
    return Slow(*layers(classes))
"""
LAUNCHER = """
import runpy
from distilens.studies import search, search_database
search_database.HEARTBEAT, search_database.RETRIES, search.PAUSE = 1, {retries}, 0.1
runpy.run_module("distilens", run_name="__main__", alter_sys=True)
"""
SEEDS = 2


class Server:
    """A PostgreSQL of the test's own, on a free port."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="distilens-"))
        self.folder.chmod(0o755)
        (self.folder / "password").write_text(PASSWORD)
        self.user = {}
        if os.getuid() == 0:  # which PostgreSQL refuses
            other = pwd.getpwnam("nobody")
            self.user = {"user": other.pw_uid, "group": other.pw_gid, "extra_groups": []}
            for path in (self.folder, self.folder / "password"):
                os.chown(path, other.pw_uid, other.pw_gid)
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        options = ("--auth=scram-sha-256", "--username=me", f"--pwfile={self.folder / 'password'}", "--no-sync")
        self.call("initdb", *options)

    def call(self, program, *options):
        command = [str(Path(INITDB).with_name(program)), "-D", str(self.folder / "data"), *options]
        subprocess.run(command, check=True, cwd=self.folder, stdout=subprocess.DEVNULL, timeout=120, **self.user)

    def start(self):
        settings = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder} -c fsync=off"
        self.call("pg_ctl", "start", "-w", "-l", str(self.folder / "log"), "-o", settings)

    def stop(self):
        """As a crash: connections are cut."""
        self.call("pg_ctl", "stop", "-w", "-m", "immediate")

    def make_database(self, name):
        """An empty database; returns its address."""
        with psycopg.connect(self.address("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.address(name).replace("postgresql", "postgresql+psycopg")

    def address(self, name):
        return f"postgresql://me:{PASSWORD}@127.0.0.1:{self.port}/{name}"

    def ask(self, name, query) -> list:
        with psycopg.connect(self.address(name)) as connection:
            return connection.execute(query).fetchall()


@pytest.fixture(scope="module")
def server():
    made = Server()
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(made.folder)


class Workers:
    """Processes with the same command; what they write is kept. Those that still run in the end are killed."""

    def __init__(self, place, content, address, trials, *, retries=8):
        (place / "slow_nets.py").write_text(NETS)
        slow = {**content, "student": {**content["student"], "model": "python:slow_nets:slow"}}
        slow["train"] = {**content["train"], "epochs": 4}
        (place / "recipe.toml").write_text(make_recipe(slow).to_toml())
        (place / "launcher.py").write_text(LAUNCHER.format(retries=retries))
        space = ("--space", "kd.temperature=1..8", "train.optimizer.lr=0.001..0.3:log", "--trials", str(trials))
        words = (str(place / "recipe.toml"), *space, "--seeds", str(SEEDS), "--storage", address, "-q")
        self.command = [sys.executable, str(place / "launcher.py"), "sweep", *words]
        self.all, self.stack = [], ExitStack()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for worker in self.all:
            worker.kill()
            worker.wait()
        self.stack.close()

    def start(self, folder):
        """A worker in a folder; returns it."""
        folder.mkdir(exist_ok=True)
        path = folder / f"worker-{len(self.all)}.log"
        log = self.stack.enter_context(open(path, "w"))  # noqa: SIM115  # closed with the stack
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        worker = subprocess.Popen(self.command, cwd=folder, env=environment, stdout=log, stderr=log)
        worker.log = path
        self.all.append(worker)
        return worker

    def ends(self, *workers) -> list[int]:
        """The exit codes of workers that end by themselves."""
        return [worker.wait(timeout=600) for worker in workers]


def trials_in(server, name) -> list:
    """Number, state, settings, and notes of all trials, as the database has them."""
    query = """
        SELECT number, state::text,
            (SELECT json_object_agg(param_name, param_value) FROM trial_params WHERE trial_params.trial_id = trials.trial_id),
            (SELECT json_object_agg(key, value_json::json) FROM trial_user_attributes AS notes
                WHERE notes.trial_id = trials.trial_id),
            (SELECT count(*) FROM trial_intermediate_values AS seen WHERE seen.trial_id = trials.trial_id)
        FROM trials ORDER BY number"""  # fmt: skip
    return [
        {"number": number, "state": state, "settings": settings, "notes": notes or {}, "epochs": epochs}
        for number, state, settings, notes, epochs in server.ask(name, query)
    ]


def until(found, seconds=300):
    """What is found at last."""
    start = time.monotonic()
    while not (value := found()):
        assert time.monotonic() - start < seconds
        time.sleep(0.05)
    return value


def trained_by(server, name, process):
    """The trial that a process trains, after its first epoch."""
    try:
        trials = trials_in(server, name)
    except psycopg.errors.UndefinedTable:
        return None
    mine = [trial for trial in trials if trial["notes"].get("worker", "").endswith(f":{process.pid}")]
    return next((trial for trial in mine if trial["state"] == "RUNNING" and trial["epochs"]), None)


def check_trials(trials, count):
    """Check that the trials are all there, none twice, and that each lost one was trained with its settings by another worker.

    Returns the lost ones.
    """
    assert [trial["number"] for trial in trials] == list(range(len(trials)))
    assert {trial["state"] for trial in trials} <= {"COMPLETE", "PRUNED", "FAIL"}
    finished = [trial for trial in trials if trial["state"] != "FAIL"]
    assert len(finished) == count
    settings = [tuple(sorted(trial["settings"].items())) for trial in finished]
    assert len(set(settings)) == count
    lost = [trial for trial in trials if trial["state"] == "FAIL" and "surplus" not in trial["notes"]]
    assert not [trial for trial in lost if "failed" in trial["notes"]]
    for trial in lost:
        if trial["settings"]:
            assert tuple(sorted(trial["settings"].items())) in settings
    return lost


def check_result(folder, trials):
    """Check that the chosen setting was trained on fresh seeds, and read on test once."""
    study = read_study(folder)
    complete = [trial for trial in trials if trial["state"] == "COMPLETE"]
    scores = {trial["number"]: trial["notes"]["validation"]["accuracy"] for trial in complete}
    best = max(scores, key=scores.get)
    assert [row.name for row in study.rows] == ["as given", f"chosen, trial {best}"]
    assert study.seeds == tuple(range(SEEDS))
    assert [(entry["rows"], entry["seeds"]) for entry in study.readings] == [
        (["as given", f"chosen, trial {best}"], list(range(SEEDS)))
    ]
    assert all((study.place(row, seed) / "scores.json").is_file() for row, seed in study.jobs)
    assert len(json.loads((folder / "trials.json").read_text())["trials"]) == len(trials) - len(
        [trial for trial in trials if trial["state"] == "FAIL"]
    )
    assert (folder / "study.html").is_file()


def check_no_password(place):
    """Check that no file has the address of the database; those of this test are left out."""
    own = {"launcher.py"}
    files = [path for path in place.rglob("*") if path.is_file() and path.name not in own]
    assert files
    assert [path for path in files if PASSWORD.encode() in path.read_bytes()] == []


def test_four_workers_in_one_folder_and_one_is_killed(server, place, content, tmp_path):
    address, count, start = server.make_database("one"), 12, time.monotonic()
    with Workers(place, content, address, count) as workers:
        started = [workers.start(tmp_path) for _ in range(4)]
        victim = started[1]
        killed = until(lambda: trained_by(server, "one", victim))
        victim.send_signal(signal.SIGKILL)
        others = [worker for worker in started if worker is not victim]
        assert workers.ends(*others) == [0, 0, 0], [worker.log.read_text() for worker in others]
        assert victim.wait() == -signal.SIGKILL
    trials = trials_in(server, "one")
    lost = check_trials(trials, count)
    assert killed["number"] in [trial["number"] for trial in lost]
    heir = next(trial for trial in trials if trial["notes"].get("heir of") == killed["number"])
    assert heir["settings"] == killed["settings"]
    assert heir["notes"]["worker"] != killed["notes"]["worker"]
    assert heir["epochs"] < 4  # another worker continued its training
    folder = tmp_path / "runs" / "small-search"
    result = json.loads((folder / "runs" / heir["notes"]["run"] / "result.json").read_text())
    assert result["fingerprint"] == trained_alone(tmp_path / "alone", place, heir["notes"]["changes"])
    check_result(folder, trials)
    check_no_password(tmp_path)
    print(f"\n{count} trials by {workers_of(trials)} workers in {time.monotonic() - start:.0f} s; lost: {len(lost)}")


ALONE = """
import json, sys
from pathlib import Path
from distilens.runs.recipe_file import make_recipe, read_recipe
from distilens.studies.search import TUNING
from distilens.studies.study import Row, Study
from distilens.studies.teachers import train_teachers, with_own_training
from distilens.studies.trial import train_row

content = with_own_training(read_recipe(Path("recipe.toml")).model_dump(mode="json", exclude_none=True))
row = Row("one", make_recipe(content, json.loads(sys.argv[2])).model_dump(exclude_none=True))
study = Study(Path(sys.argv[1]), "search", (row,), (TUNING,))
train_teachers(study)
print(train_row(study, row, TUNING)["fingerprint"])
"""


def trained_alone(folder, place, changes) -> str:
    """The student's fingerprint after a training with the same settings that nobody stops, in a process like a worker's."""
    command = [sys.executable, "-c", ALONE, str(folder), json.dumps(changes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def workers_of(trials) -> int:
    """How many workers have finished trials."""
    return len({trial["notes"]["worker"] for trial in trials if trial["state"] != "FAIL"})


def test_workers_without_a_common_disk_and_the_database_restarts(server, place, content, tmp_path):
    address, count, start = server.make_database("apart"), 9, time.monotonic()
    with Workers(place, content, address, count) as workers:
        started = [workers.start(tmp_path / name) for name in ("a", "b", "c")]
        *others, victim = started
        killed = until(lambda: trained_by(server, "apart", victim))
        victim.send_signal(signal.SIGKILL)
        until(lambda: trained_by(server, "apart", others[0]))
        server.stop()
        time.sleep(3)
        server.start()
        assert workers.ends(*others) == [0, 0], [worker.log.read_text() for worker in others]
    trials = trials_in(server, "apart")
    lost = check_trials(trials, count)
    assert killed["number"] in [trial["number"] for trial in lost]
    assert workers_of(trials) >= 2
    folders = [tmp_path / name / "runs" / "small-search" for name in ("a", "b")]
    for folder in folders:  # each machine shows the result
        check_result(folder, trials)
    first, second = ([study.result(*job)["fingerprint"] for job in study.jobs] for study in map(read_study, folders))
    assert first == second
    check_no_password(tmp_path)
    print(f"\n{count} trials by {workers_of(trials)} workers in {time.monotonic() - start:.0f} s; lost: {len(lost)}")


def test_the_database_stays_away_and_the_same_command_continues(server, place, content, tmp_path):
    address, count, start = server.make_database("away"), 6, time.monotonic()
    folder = tmp_path / "runs" / "small-search"
    with Workers(place, content, address, count, retries=2) as workers:
        started = [workers.start(tmp_path) for _ in range(2)]
        until(lambda: all(trained_by(server, "away", worker) for worker in started))  # both at once
        server.stop()
        try:
            assert workers.ends(*started) == [2, 2]
            for worker in started:
                said = worker.log.read_text()
                assert "the database of the search went away: " in said
                assert "Finished trials are kept; the same command goes on with the search" in said
                assert "Traceback" not in said
            kept = {path: path.stat().st_mtime_ns for path in folder.glob("runs/trial-*/result.json")}
            assert len(kept) >= 2  # they were trained to the end
        finally:
            server.start()
        before = trials_in(server, "away")
        running = {trial["number"] for trial in before if trial["state"] == "RUNNING"}
        assert 1 <= len(running) <= 2  # one of them may have ended in the moment before
        again = [workers.start(tmp_path) for _ in range(2)]
        assert workers.ends(*again) == [0, 0], [worker.log.read_text() for worker in again]
    trials = trials_in(server, "away")
    lost = check_trials(trials, count)
    assert running <= {trial["number"] for trial in lost}
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # and not a second time
    check_result(folder, trials)
    check_no_password(tmp_path)
    print(f"\n{count} trials by {workers_of(trials)} workers in {time.monotonic() - start:.0f} s; lost: {len(lost)}")
