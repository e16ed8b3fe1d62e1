"""The plan of a study: what is refused, what a second command may add, and how a study's file is read."""

import json
import threading
from dataclasses import replace

import pytest

from distilens.foundation.errors import UserError
from distilens.studies.study import (
    FILE,
    Question,
    Row,
    Study,
    Until,
    continue_study,
    read_study,
    seeded,
    without_teacher,
)

DATA = {"data": "digits:size=16", "student": {"model": "resnet8", "methods": ["ce"]}}


def make(folder, names=("a", "b"), seeds=(0, 1), kind="ablation", **changes) -> Study:
    rows = tuple(Row(name, {**DATA, "note": changes.get(name, "")}) for name in names)
    return Study(folder, kind, rows, seeds, (Question(names[0], names[-1], "what it adds"),), "distilens ablate")


def test_a_study_is_read_as_it_was_written(tmp_path):
    study = make(tmp_path)
    study.save()
    assert read_study(tmp_path) == study
    assert study.jobs == [(row, seed) for seed in (0, 1) for row in study.rows]
    assert study.place(study.row("b"), 1) == tmp_path / "runs" / "b-1"


@pytest.mark.parametrize(
    ("names", "seeds", "message"),
    [
        (("a b", "a-b"), (0,), "each row once"),
        (("a", "a"), (0,), "each row once"),
        (("a",), (), "needs a row and a seed"),
        (("a",), (1, 1), "different whole numbers"),
        (("a",), (0, -1), "different whole numbers of at least 0; given 0, -1"),
    ],
)
def test_contradictions_are_refused(tmp_path, names, seeds, message):
    with pytest.raises(UserError, match=message):
        make(tmp_path, names, seeds)


def test_more_seeds_and_rows_are_added(tmp_path):
    first = make(tmp_path)
    first.save()
    reading = {"when": "then", "command": "c", "rows": ["a"], "seeds": [0]}
    (tmp_path / FILE).write_text(json.dumps({**first.plain(), "readings": [reading]}))
    both = continue_study(make(tmp_path, ("b", "c"), (1, 2)))
    assert [row.name for row in both.rows] == ["a", "b", "c"]
    assert both.seeds == (0, 1, 2)
    assert both.readings == (reading,)
    assert [(question.row, question.against) for question in both.questions] == [("a", "b"), ("b", "c")]
    assert continue_study(first).questions == first.questions


def test_fewer_seeds_keep_what_is_there(tmp_path):
    make(tmp_path).save()
    assert continue_study(make(tmp_path, seeds=(0,))).seeds == (0, 1)


def test_several_processes_add_to_one_study(tmp_path):
    """Each knows its own row and reading only; none overwrites another's."""
    make(tmp_path, ("a",)).save()

    def add(name):
        reading = {"when": name, "command": "c", "rows": [name], "seeds": [0]}
        replace(make(tmp_path, ("a", name)), readings=(reading,)).save()

    names = [f"row {number}" for number in range(8)]
    workers = [threading.Thread(target=add, args=(name,)) for name in names]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    study = read_study(tmp_path)
    assert {row.name for row in study.rows} == {"a", *names}
    assert {reading["when"] for reading in study.readings} == {question.against for question in study.questions[1:]}
    assert len(study.readings) == len(names)
    study.save()
    assert read_study(tmp_path) == study


def test_tuples_and_lists_are_the_same_recipe(tmp_path):
    row = Row("a", {**DATA, "student": {"model": "resnet8", "methods": ("ce",)}})
    study = Study(tmp_path, "seeds", (row,), (0,))
    study.save()
    assert continue_study(study).rows == read_study(tmp_path).rows


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"a": "changed"}, "another recipe: its row a differs"),
        ({"kind": "seeds"}, r"another kind \(ablation\)"),
        ({"names": ("x", "y")}, "other rows: "),
        ({"names": ("a", "b", "A b", "a-b")}, None),
        ({"names": ("a", "c d")}, None),
    ],
)
def test_another_study_in_the_folder_is_refused(tmp_path, other, message):
    make(tmp_path).save()
    before = (tmp_path / FILE).read_bytes()
    if message is None:
        continue_study(make(tmp_path, **other))
    else:
        with pytest.raises(UserError, match=message):
            continue_study(make(tmp_path, **other))
    assert (tmp_path / FILE).read_bytes() == before


def test_an_added_row_with_the_folder_of_another_is_refused(tmp_path):
    make(tmp_path, ("a", "b c")).save()
    with pytest.raises(UserError, match="each row once"):
        continue_study(make(tmp_path, ("a", "b-c")))


WHOLE = {
    "kind": "distilens study 1",
    "study": "seeds",
    "command": "",
    "rows": [{"name": "a", "recipe": {}}],
    "seeds": [0],
    "questions": [],
    "readings": [],
    "until": {"points": 0.5, "most": 9},
    "more": [["a", 1]],
}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "3",
        "null",
        '"text"',
        "{}",
        json.dumps({**WHOLE, "kind": "another"}),
        json.dumps({**WHOLE, "rows": 3}),
        json.dumps({**WHOLE, "rows": [{"name": "a"}]}),
        json.dumps({**WHOLE, "seeds": ["x"]}),
        json.dumps({**WHOLE, "until": 3}),
        json.dumps({**WHOLE, "more": [["a"]]}),
        json.dumps({**WHOLE, "more": [["z", 1]]}),
        json.dumps({**WHOLE, "questions": [{"row": "z", "against": "a", "about": ""}]}),
    ],
)
def test_a_foreign_or_damaged_file_is_named(tmp_path, text):
    (tmp_path / FILE).write_text(json.dumps(WHOLE))
    read = read_study(tmp_path)
    assert (read.kind, read.until, read.jobs) == ("seeds", Until(0.5, 9), [(read.rows[0], 0), (read.rows[0], 1)])
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UserError, match=FILE):
        read_study(tmp_path)


def test_a_folder_without_a_study_is_named(tmp_path):
    with pytest.raises(UserError, match=r"is not a study: it has no study\.json"):
        read_study(tmp_path / "nowhere")


def test_a_seed_also_chooses_few_images():
    assert seeded({**DATA, "data": "digits:limit=60"}, 3)["data"] == "digits:limit=60,draw=3"
    assert seeded({**DATA, "data": "digits:few=16"}, 3)["data"] == "digits:few=16,draw=3"
    assert seeded({**DATA, "data": "digits:shots=5"}, 3)["data"] == "digits:shots=5,draw=3"
    assert seeded({**DATA, "data": "digits:limit=60,draw=1"}, 3)["data"] == "digits:limit=60,draw=1"
    assert seeded(DATA, 3) == {**DATA, "seed": 3}


def test_without_a_teacher_a_recipe_keeps_the_rest():
    content = {**DATA, "teacher": {"model": "resnet8"}}
    assert without_teacher(content, ("kd",)) == {**DATA, "student": {"model": "resnet8", "methods": ["kd"]}}
    assert "teacher" in content
