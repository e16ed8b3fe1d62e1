"""The run folder: whole files or none, keys, the lock, what killed processes leave."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest

from distilens.foundation import files
from distilens.foundation.errors import UserError
from distilens.foundation.files import (
    HOST,
    check_disk,
    lock_file,
    lock_folder,
    read_json,
    remove_unfinished,
    write_atomically,
    write_text,
)
from distilens.foundation.fingerprints import file_key, key_of
from distilens.training.log import Metrics


def raising(error: OSError):
    def write(temporary):
        temporary.write_text("half")
        raise error

    return write


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EACCES, "may not be written: Permission denied"),
        (errno.EROFS, "may not be written: Read-only file system"),
    ],
)
def test_what_cannot_be_written_is_said_and_the_old_file_stays(tmp_path, number, text):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(UserError, match=text):
        write_atomically(path, raising(OSError(number, os.strerror(number))))
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["file.txt"]


def test_a_folder_that_may_not_be_made_is_said(tmp_path, monkeypatch):
    def denied(path, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files.Path, "mkdir", denied)
    with pytest.raises(UserError, match="may not be written"):
        write_text(tmp_path / "new" / "file.txt", "text")
    with pytest.raises(UserError, match="may not be written"):
        Metrics(tmp_path / "new" / "metrics.jsonl").append(step=1)


def test_a_file_where_a_folder_should_be_is_said(tmp_path):
    (tmp_path / "run").write_text("a file")
    for act in (
        lambda: write_text(tmp_path / "run" / "file.txt", "text"),
        lambda: lock_folder(tmp_path / "run").__enter__(),
    ):
        with pytest.raises(UserError, match=r"may not be written: (Not a directory|File exists)"):
            act()


def test_a_mistake_in_the_writer_is_not_hidden(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write_atomically(tmp_path / "file", lambda path: 1 / 0)
    assert not list(tmp_path.iterdir())


def test_json_that_is_cut_short_says_what_to_do(tmp_path):
    (tmp_path / "scores.json").write_text('{"mod')
    with pytest.raises(UserError, match=r"scores.json is not whole JSON .*: delete it"):
        read_json(tmp_path / "scores.json")
    (tmp_path / "scores.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"scores.json is not whole JSON .*: delete it"):
        read_json(tmp_path / "scores.json")
    assert read_json(tmp_path / "none.json") is None


def test_metrics_are_cut_back(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    assert metrics.rows() == []
    for step in range(4):
        metrics.append(step=step, text="Größe")
    with open(metrics.path, "a") as file:
        file.write('{"step": 4, "te')
    metrics.keep(lambda row: row["step"] < 2)
    metrics.append(step=7)
    assert [row["step"] for row in metrics.rows()] == [0, 1, 7]
    assert [json.loads(line)["step"] for line in metrics.path.read_text().splitlines()] == [0, 1, 7]
    Metrics(None).append(step=1)
    Metrics(None).keep(lambda row: False)
    assert Metrics(None).rows() == []


def test_keys(tmp_path):
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1}) != key_of({"a": 1, "b": 3})
    assert len(key_of(1)) == 16
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"12")
    second.write_bytes(b"3")
    before = file_key([first, second])
    first.write_bytes(b"1")
    second.write_bytes(b"23")
    assert file_key([first, second]) != before


HOLD = """
import sys, time
from pathlib import Path
from distilens.foundation.files import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_is_between_processes_and_a_killed_one_leaves_none(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=f"another process is at work in {tmp_path}: wait for it, or choose"),
            lock_folder(tmp_path),
        ):
            pass
        process.kill()
    with lock_folder(tmp_path):
        pass


def test_a_lock_is_waited_for(tmp_path):
    """Also between threads of one process."""
    order, locked = [], threading.Event()

    def hold():
        with lock_file(tmp_path / "new" / ".lock"):
            locked.set()
            time.sleep(0.1)
            order.append("first")

    thread = threading.Thread(target=hold)
    thread.start()
    locked.wait(10)
    with pytest.raises(BlockingIOError), lock_file(tmp_path / "new" / ".lock", wait=False):
        pass
    with lock_file(tmp_path / "new" / ".lock"):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_what_killed_processes_were_writing_is_removed_and_nothing_else(tmp_path):
    (tmp_path / "student").mkdir()
    dead = [
        tmp_path / f".scores.json.0f3a.{HOST}.999999999",
        tmp_path / "student" / f".model.safetensors.{HOST}.999999999",
    ]
    alive = [
        tmp_path / f".recipe.toml.0f3a.{HOST}.{os.getpid()}",
        tmp_path / ".recipe.toml.0f3a.0123abcd.999999999",  # of another machine
        tmp_path / ".measure.json",
        tmp_path / "a.999999999",
    ]
    for path in (*dead, *alive):
        path.write_text("half")
    remove_unfinished(tmp_path)
    assert not any(path.exists() for path in dead)
    assert all(path.exists() for path in alive)


def test_a_disk_with_too_little_space_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 0, 5000))
    check_disk(tmp_path, 5000, "answers", "Make room")
    check_disk(tmp_path, 4000, "answers", "Make room", spare=1000)
    message = r"the disk is full: 5\.0 kB of answers must be written in .*, but 5\.0 kB are free\. Make room$"
    with pytest.raises(UserError, match=message) as error:
        check_disk(tmp_path, 5001, "answers", "Make room")
    assert error.value.__cause__.errno == errno.ENOSPC
    with pytest.raises(UserError, match=r"but 5\.0 kB are free \(1\.0 kB of it stay free\)\. Make room$"):
        check_disk(tmp_path, 4001, "answers", "Make room", spare=1000)
