"""Where a result comes from is written once a stage, and no later command rewrites it."""

from pathlib import Path
from types import SimpleNamespace

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
