"""Within, pages that were freed are not asked for again; afterwards they are given back."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from distilens.foundation import memory

PROGRAM = """
import contextlib, resource, sys
import psutil, torch
from distilens.foundation.memory import reuse_freed_memory

def rounds(count):
    for _ in range(count):
        parts = [torch.ones(12_000_000) for _ in range(2)]  # 48 MB: more than glibc ever keeps by itself
        del parts

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    rounds(5)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

rounds(2)
with reuse_freed_memory() if sys.argv[1] == "kept" else contextlib.nullcontext():
    rounds(20 if sys.argv[1] == "kept" else 1)  # until the blocks have found their places
    print(faults())
print(psutil.Process().memory_info().rss // 2**20)
"""


def run(mode: str, **environment: str) -> tuple[int, int]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "LD_PRELOAD"))}
    given = {**clean, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    faults, resident = map(int, done.stdout.split())
    return faults, resident


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_pages_are_asked_for_once_and_given_back():
    plain, before = run("plain")
    kept, after = run("kept")
    assert kept < plain / 10
    assert after < before + 40  # MiB: the 96 that a round used are not held


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
@pytest.mark.slow
def test_what_the_environment_says_stays():
    faults, _ = run("kept", MALLOC_TRIM_THRESHOLD_="131072")
    assert faults > 10_000


@pytest.mark.parametrize("name", [*memory.SET, ""])
def test_an_allocator_that_the_environment_sets_is_left_alone(monkeypatch, name):
    calls = []
    libc = SimpleNamespace(mallopt=lambda *given: calls.append(given), malloc_trim=lambda pad: calls.append(pad))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda path: libc)
    for each in memory.SET:
        monkeypatch.delenv(each, raising=False)
    if name:
        monkeypatch.setenv(name, "1")
    entered = False
    with memory.reuse_freed_memory():
        entered = True
    assert entered
    assert bool(calls) is not bool(name)


def test_without_glibc_nothing_is_set(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda path: SimpleNamespace())
    with memory.reuse_freed_memory():
        pass
