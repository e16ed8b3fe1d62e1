"""Where a result comes from is written once a stage, and no later command rewrites it."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from distilens.runs import provenance
from distilens.runs.recipe_file import make_recipe


def run_of(origins):
    data = SimpleNamespace(fingerprint="f")
    recipe = make_recipe({"data": "shapes", "student": {"model": "resnet8"}})
    seconds = dict.fromkeys(origins, 1.0)
    return SimpleNamespace(
        recipe=recipe, data=data, teacher_data=data, seconds=seconds, origins=origins, folder=Path("nowhere")
    )


def where(commit):
    return {"versions": {"torch": "2.9"}, "python": "3.11", "machine": {"cores": 2}, "git": commit}


def test_a_run_done_at_once_says_it_once():
    origins = {stage: where("a") for stage in ("base", "student", "measure")}
    said = provenance.about_run(run_of(origins))
    assert said["git"] == "a"
    assert "origins" not in said
    assert provenance.origins_in(said) == origins


def test_later_commands_do_not_rewrite_what_the_student_was_trained_with():
    origins = {"base": where("a"), "student": where("b"), "compare": where(None)}
    said = provenance.about_run(run_of(origins))
    assert said["git"] == "b"
    assert [(one["stages"], one["git"]) for one in said["origins"]] == [
        (["base"], "a"),
        (["student"], "b"),
        (["compare"], None),
    ]
    assert provenance.origins_in(said) == origins


def test_a_run_that_has_done_nothing_yet_says_where_it_is():
    said = provenance.about_run(run_of({}))
    assert said["versions"]["torch"]
    assert provenance.origins_in({}) == {}


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGES", ("torch", "no-such-package-anywhere"))
    assert list(provenance.origin.__wrapped__()["versions"]) == ["torch"]


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 5)])
def test_without_an_answer_of_git_there_is_no_commit(monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    assert provenance.git_commit() is None


def test_the_commit_says_whether_files_were_changed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert provenance.git_commit() is None
    own = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run([*own, "init", "-q"], check=True)
    subprocess.run([*own, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert provenance.git_commit() == commit
    (tmp_path / "new.txt").touch()
    assert provenance.git_commit() == f"{commit} with changes"
