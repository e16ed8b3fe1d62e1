"""Evidence from finished studies: intervals, pairs, conditions, what is left out. The shipped recipes make the evidence."""

import json

import numpy as np
import pytest
from scipy import stats

from distilens.foundation.errors import UserError
from distilens.foundation.notation import Spec
from distilens.runs.recipe_file import make_recipe, read_toml
from distilens.runs.recipe_names import find_recipe
from distilens.studies import evidence
from distilens.studies.evidence import EVIDENCE
from distilens.studies.findings import gather_evidence, own_settings, training_defaults, training_of
from distilens.studies.listed import plan_listed
from distilens.studies.recommend import recommend
from distilens.studies.study import RESULT, Question, Row, Study
from distilens.studies.teachers import train_teachers
from distilens.studies.trial import train_row

SHIPPED = json.loads(EVIDENCE.read_text())["studies"]
ROWS = {
    "kd": [],
    "longer": ["train.epochs=2"],
    "maps": ['student.methods=["ce", "kd:temperature=2", "map_match"]'],
    "maps permuted": ['student.methods=["ce", "kd:temperature=2", "map_match"]', "teacher.control=permuted:only=maps"],
}


SCORES = {
    "kd": ([0.50, 0.55, 0.53], [0.48, 0.54, 0.52]),
    "longer": ([0.60, 0.61, 0.66], [0.59, 0.62, 0.64]),
    "maps": ([0.58, 0.57, 0.59], [0.55, 0.58, 0.57]),
    "maps permuted": ([0.40, 0.50, 0.45], [0.41, 0.47, 0.46]),
}
"""On validation and on test, by row and seed."""


@pytest.fixture(scope="module")
def study(place, content):
    """Four rows over three seeds. The first run of `kd` is trained; the scores are those above."""
    listed = {
        **content,
        "note": "shapes on backgrounds.",
        "data": "shapes:train=96,test=40,val_fraction=0.3,size=16,shortcut=0.9,shots=6",
        "teacher": {**content["teacher"], "train": {"epochs": 1}},
        "train": {**content["train"], "variants": 0},
        "study": {"rows": ROWS, "against": "kd"},
    }
    rows, questions, _ = plan_listed(listed)
    study = Study(place / "listed", "seeds", rows, (0, 1, 2), questions, "distilens seeds listed.toml")
    train_teachers(study)
    train_row(study, study.row("kd"), 0)
    for row in rows:
        write_scores(study, row, *SCORES[row.name])
    return study


def write_scores(study, row, validation, test=(), name="accuracy"):
    """Write the results of a row by seed, as finished runs do."""
    metric = {"name": name, "unit": "%", "higher_is_better": True}
    for seed, value in enumerate(validation):
        place = study.place(row, seed)
        place.mkdir(parents=True, exist_ok=True)
        result = {"metric": metric, "validation": {name: value}, "curve": [], "seconds": 1.0}
        (place / RESULT).write_text(json.dumps(result))
    for seed, value in enumerate(test):
        (study.place(row, seed) / "scores.json").write_text(
            json.dumps({"models": {"student": {"test": {name: value}}}})
        )


def mean_and_half(values: np.ndarray) -> list:
    half = stats.t.interval(0.95, len(values) - 1, scale=stats.sem(values))[1]
    return [pytest.approx(values.mean(), abs=1e-3), pytest.approx(half, abs=1e-3)]


def test_an_entry_has_the_form_of_the_shipped_ones(study):
    made, known = gather_evidence(study), SHIPPED[0]
    assert list(made) == list(known)
    assert list(made["rows"][0]) == list(known["rows"][0])
    assert [row["row"] for row in made["rows"]] == ["kd", "longer", "maps"]
    by_name = {row["row"]: row for row in made["rows"]}
    for name, row in by_name.items():
        values, alone = (100 * np.array(SCORES[each][1]) for each in (name, "kd"))
        assert row["accuracy"] == mean_and_half(values)
        assert row["gain"] == (None if name == "kd" else mean_and_half(values - alone))
        assert row["seeds"] == 3
    assert by_name["maps"]["methods"] == ["ce", "kd:temperature=2", "map_match"]
    assert by_name["longer"]["settings"] == {"epochs": 2}
    assert "settings" not in by_name["kd"]
    assert {key: value for key, value in made.items() if key != "rows"} == {
        "study": "listed",
        "about": "shapes on backgrounds, 6 images per class, python:study_nets:teacher teaches python:study_nets:tiny, 1 epochs",
        "teacher": "python:study_nets:teacher", "student": "python:study_nets:tiny", "kind": "other", "shots": 6,
        "shortcut": True, "defaults": False, "ranks": True, "split": "test",
        "settings": {"epochs": 1, "batch_size": 16, "precision": "float32"},
    }  # fmt: skip


def test_recommend_reads_it(study, tmp_path, monkeypatch, content):
    made = gather_evidence(study)
    monkeypatch.setattr(evidence, "EVIDENCE", tmp_path / "evidence.json")
    evidence.EVIDENCE.write_text(json.dumps({"studies": [made], "steps": {}}))
    advice = recommend(make_recipe(content), cache=tmp_path)
    assert {each.name for each in advice.candidates} == {"kd", "longer", "maps"}
    assert made["about"] in advice.reasons[0]


def finished(folder, metric="accuracy", **by_row) -> Study:
    """A study with such validation scores."""
    recipe = {"data": "digits", "student": {"model": "resnet8", "methods": ["ce"]}}
    rows = tuple(Row(name, recipe) for name in by_row)
    asked = tuple(Question(name, "kd", "") for name in by_row if "kd" in by_row and name not in ("kd", "unasked"))
    study = Study(folder, "seeds", rows, (0, 1, 2, 3), asked)
    for name, values in by_row.items():
        write_scores(study, study.row(name), values, name=metric)
    return study


@pytest.mark.parametrize(
    ("study", "text"),
    [
        ({"base": [0.5] * 4}, "a gain over the row kd, which needs at least 3 seeds; finished: 0"),
        ({"kd": [0.5, 0.6]}, "a gain over the row kd, which needs at least 3 seeds; finished: 2"),
        ({"kd": [0.5, 0.6, 0.7], "metric": "mIoU"}, "is about accuracy, but this is mIoU"),
    ],
)
def test_what_is_no_evidence(tmp_path, study, text):
    with pytest.raises(UserError, match=text):
        gather_evidence(finished(tmp_path, **study))


def test_a_row_of_few_seeds_or_without_a_question_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("distilens.studies.findings.describe_conditions", lambda study: {})
    three = [0.6, 0.7, 0.9]
    made = gather_evidence(finished(tmp_path, kd=[0.5, 0.6, 0.7, 0.8], at=[0.6, 0.7], vid=three, unasked=three))
    assert [(row["row"], row["seeds"]) for row in made["rows"]] == [("kd", 4), ("vid", 3)]
    assert made["rows"][1]["gain"][0] == pytest.approx(13.333)
    assert made["split"] == "validation"


RECIPES = {
    "few": ("few-lists", []),
    "two hundred": ("few-leading", ["data.shots=200", "train.epochs=30"]),
    "shortcut, shorter": ("shapes-lists", []),
    "few, wrn-16-2": ("few-leading", ["teacher.model=wrn-16-2"]),
    "few, vit": ("few-vit", []),
    "defaults": ("few-defaults", []),
    "defaults, wrn-16-2": ("few-defaults", ["teacher.model=wrn-16-2"]),
    "defaults, mobile": ("few-defaults", ["student.model=mobilenetv2:width=0.25"]),
    "defaults, vit": ("few-defaults-vit", []),
}


@pytest.mark.parametrize("known", SHIPPED, ids=lambda known: known["about"])
def test_the_shipped_recipes_make_the_shipped_evidence(known):
    """Methods, settings, data and models of every row; the teacher of a study is trained once."""
    other = known["teacher"] == "wrn-16-2" and known["kind"] == "other"
    name, changes = RECIPES[known["study"] + (", wrn-16-2" if other else "")]
    planned, _, _ = plan_listed(read_toml(find_recipe(name)), changes)
    rows = {row.name: row for row in planned if "control" not in (row.recipe.get("teacher") or {})}
    listed = {row["row"] for row in known["rows"]}
    assert listed == set(rows) if name != "few-leading" else listed <= set(rows)
    usual = training_of(rows["kd"])
    assert {key: value for key, value in usual.items() if value != training_defaults()[key]} == known["settings"]
    for row in known["rows"]:
        recipe = rows[row["row"]].recipe
        assert recipe["student"]["methods"] == row["methods"]
        assert own_settings(rows[row["row"]], usual) == ({"settings": row["settings"]} if "settings" in row else {})
        assert (recipe["teacher"]["model"], recipe["student"]["model"]) == (known["teacher"], known["student"])
        data = Spec.parse(recipe["data"]).options
        assert (int(data["shots"]), "shortcut" in data) == (known["shots"], known["shortcut"])
