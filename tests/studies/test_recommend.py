"""Advice from evidence: the nearest study, what does not fit, what costs too much, what did harm, and why."""

import json
import re
import sys

import numpy as np
import pytest
from torch import nn

import distilens
from brightness import pictures
from distilens.cli.commands import main
from distilens.foundation.errors import UserError
from distilens.runs.recipe_file import make_recipe, read_recipe
from distilens.studies import evidence as module
from distilens.studies.evidence import EVIDENCE, warnings
from distilens.studies.recommend import candidate, give_reasons, images_a_class, kind_of, recommend
from distilens.training.settings import Training


def row(name: str, methods: list[str], accuracy: float, gain: float | None, half: float = 1.0) -> dict:
    return {
        "row": name,
        "methods": methods,
        "seeds": 3,
        "accuracy": [accuracy, 0.5],
        "gain": None if gain is None else [gain, half],
    }


GUIDED = ["ce:weight=0.1", "kd"]
ROWS = [
    row("labels", ["ce"], 50, -10),
    row("kd", GUIDED, 60, None),
    row("kd + fitnet", [*GUIDED, "fitnet"], 66, 6),
    row("kd + class maps", [*GUIDED, "map_match:explainer=cam,classes=all"], 70, 10),
    row("kd + sp", [*GUIDED, "sp"], 71, 11, half=15),
]


def study(**changes) -> dict:
    return {
        "study": "few", "about": "shapes, 50 a class", "teacher": "resnet20", "student": "resnet8", "kind": "same",
        "shots": 50, "shortcut": False, "defaults": False, "ranks": True, "split": "test", "settings": {"epochs": 9},
        "rows": ROWS, **changes,
    }  # fmt: skip


HARM = study(
    kind="other",
    defaults=True,
    ranks=False,
    rows=[row("kd", ["kd"], 60, None), row("fitnet", ["kd", "fitnet"], 50, -10)],
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One for all tests here: the images are drawn once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def evidence(tmp_path, monkeypatch):
    def write(*studies, steps=None):
        path = tmp_path / "evidence.json"
        path.write_text(json.dumps({"studies": studies, "steps": steps or {}}))
        monkeypatch.setattr(module, "EVIDENCE", path)

    return write


def recipe(teacher: str | None = "resnet14", student: str = "resnet8", data: str = "shapes:train=400,test=40,size=16"):
    content = {"data": data, "student": {"model": student, "methods": ["ce"]}}
    return make_recipe(content | ({"teacher": {"model": teacher}} if teacher else {}))


def test_the_clearly_best_list_is_chosen(evidence, cache):
    evidence(study())
    advice = recommend(recipe(), cache=cache)
    assert advice.chosen.name == "kd + class maps"  # kd + sp is higher, within its interval of nothing
    assert advice.candidates[0].name == "kd + sp"
    assert "70.0 ± 0.5 % on that study's test images, +10.0 ± 1.0 points over kd" in " ".join(advice.reasons)
    assert advice.settings == {"epochs": 9}


def test_a_list_comes_with_the_settings_that_it_was_trained_with(evidence, cache):
    evidence(study(rows=[*ROWS, {**row("balanced", [*GUIDED, "at"], 80, 20), "settings": {"balance": "ratio:0.3"}}]))
    assert recommend(recipe(), cache=cache).settings == {"epochs": 9, "balance": "ratio:0.3"}


def test_where_nothing_is_clearly_better_it_is_kd(evidence, cache):
    evidence(study(rows=[ROWS[1], ROWS[4]]))
    advice = recommend(recipe(), cache=cache)
    assert advice.chosen.name == "kd"
    assert "No list that fits was better than kd" in " ".join(advice.reasons)


@pytest.mark.slow
def test_what_cannot_be_done_with_the_models_is_left_out_with_the_reason(evidence, cache):
    """A ViT ends in no mean over places: no closed-form class maps."""
    evidence(study())
    odd = recipe(teacher="timm:vit_tiny_patch16_224", data="shapes:train=400,test=40,size=32")
    advice = recommend(odd, cache=cache)
    left_out = {each.name: each.refused for each in advice.candidates if each.refused}
    assert "class maps" in " ".join(left_out)
    assert "closed-form" in left_out["kd + class maps"]
    assert advice.chosen.name == "kd + fitnet"
    assert "no more than a first guess" in " ".join(advice.reasons)


def test_the_budget_counts(evidence, cache):
    evidence(study(), steps={"kd": 1.02, "kd + fitnet": 1.1, "kd + class maps": 1.5})
    advice = recommend(recipe(), step=1.2, cache=cache)
    assert advice.chosen.name == "kd + fitnet"
    reasons = {each.name: each.refused for each in advice.candidates}
    assert reasons["kd + class maps"] == "a step costs about 1.5 times the student's own, but at most 1.2 is allowed"
    assert reasons["kd + sp"] == "its step was not measured"


@pytest.mark.slow
def test_harm_counts_where_it_was_done(evidence, cache):
    evidence(study(), HARM)
    assert recommend(recipe(), cache=cache).candidates[2].refused is None
    other = recommend(recipe(teacher="wrn-16-1"), cache=cache)
    assert (
        "worse than kd: by 10.0 ± 1.0 points where the networks are of different families"
        in {each.name: each.refused for each in other.candidates}["kd + fitnet"]
    )
    evidence(study(), study(kind="other"), HARM)  # the list itself was measured on this kind of pair, and gained
    own = recommend(recipe(teacher="wrn-16-1"), cache=cache)
    assert "kd + fitnet" in {each.name for each in own.candidates if each.refused is None}
    assert warnings() == {
        "fitnet": "with its defaults it is worse than kd: by 10.0 ± 1.0 points where the networks are of different families"
    }


@pytest.mark.parametrize(
    ("teacher", "student", "kind"),
    [
        ("resnet14", "resnet8", "same"),
        ("wrn-16-1", "resnet8", "other"),
        ("resnet14", "mobilenetv2:width=0.25", "depthwise"),
        pytest.param("timm:vit_tiny_patch16_224", "resnet8", "vit", marks=pytest.mark.slow),
        pytest.param("timm:vit_tiny_patch16_224", "timm:vit_tiny_patch16_224", "vit student", marks=pytest.mark.slow),
        (None, "resnet8", "alone"),
    ],
)
def test_the_nearest_conditions_are_taken(teacher, student, kind, evidence, cache):
    kinds = ("same", "other", "depthwise", "vit", "vit student", "alone")
    studies = [study(kind=each, about=each, rows=[ROWS[0], ROWS[1]]) for each in kinds]
    evidence(*studies, study(kind=kind, about="too many", shots=100_000), study(kind=kind, about="bias", shortcut=True))
    given = recipe(teacher, student)
    assert f"measured: {kind}." in recommend(given, cache=cache).reasons[0]
    assert "measured: bias." in recommend(given, cache=cache, localise=True).reasons[0]


def test_without_a_teacher_only_what_needs_none_is_left(evidence, cache):
    evidence(study())
    advice = recommend(recipe(teacher=None), cache=cache)
    assert advice.chosen.name == "labels"
    assert {each.name for each in advice.candidates if each.refused is None} == {"labels"}
    said = " ".join(advice.reasons)
    assert "and there is no teacher." in said
    assert "kd does not fit; of the lists that do, labels scored highest" in said
    assert "another kind" not in said


def test_a_training_set_without_labels_is_refused():
    data = distilens.from_arrays(np.zeros((40, 16, 16, 3), dtype=np.uint8), np.arange(40) % 4, classes=tuple("abcd"))
    assert images_a_class(data) == len(data.train) / 4
    data.train.rows.labels[:] = -1
    with pytest.raises(UserError, match="no training image has a label"):
        images_a_class(data)


def test_data_of_a_task_without_classes_are_refused():
    with pytest.raises(UserError, match=r"about classification, but the task of .* is brightness"):
        images_a_class(pictures())


def test_no_evidence_is_said(evidence, cache):
    evidence()
    with pytest.raises(UserError, match="no evidence at"):
        recommend(recipe(), cache=cache)
    assert warnings() == {}


class Attentive(nn.Sequential):
    """A small network with a layer of attention, as in a ViT."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 8, stride=8), nn.Flatten(), nn.Linear(16, 4))
        self.attention = nn.MultiheadAttention(4, 1)

    def forward(self, images):
        places = self[0](images).flatten(2).transpose(1, 2)
        return self[2](self.attention(places, places, places)[0].flatten(1))


def test_networks_with_attention_are_a_kind_of_their_own():
    plain = distilens.build_model("resnet8", list("abcd"), (16, 16))
    attentive = distilens.as_model(Attentive(), classes=list("abcd"), size=(16, 16))
    assert kind_of(attentive, plain) == "vit"
    assert kind_of(plain, attentive) == kind_of(attentive, attentive) == "vit student"
    assert kind_of(None, attentive) == "alone"


def test_a_list_that_the_models_refuse_is_left_out_with_the_reason(evidence, cache):
    evidence(study(rows=[*ROWS, row("deep", [*GUIDED, "fitnet:tap=layer9"], 90, 30)]))
    advice = recommend(recipe(), cache=cache)
    assert advice.chosen.name == "kd + class maps"
    assert "layer9" in {each.name: each.refused for each in advice.candidates}["deep"]


def test_if_no_list_fits_the_reason_of_each_is_said(evidence, cache):
    evidence(study(rows=ROWS[1:3]))
    with pytest.raises(UserError) as raised:
        recommend(recipe(teacher=None), cache=cache)
    needs = "it needs a teacher, but the recipe has no teacher"
    assert str(raised.value).splitlines() == ["no measured list fits:", f"kd: {needs}", f"kd + fitnet: {needs}"]


def reasons_for(shots: float = 50, localise: bool = False, **changes) -> str:
    chosen = candidate(row("kd", GUIDED, 60, None), {})
    return " ".join(give_reasons(chosen, study(**changes), shots, "same", localise))


def test_a_study_of_another_number_of_images_is_said():
    far = "You have far"
    assert f"{far} more images per class than that study" in reasons_for(201)
    assert f"{far} fewer images per class than that study" in reasons_for(12)
    assert far not in reasons_for(200) + reasons_for(12.5)


def test_the_lack_of_a_study_of_backgrounds_is_said():
    line = "There is no study of backgrounds that give classes away."
    assert line in reasons_for(localise=True)
    assert line not in reasons_for() + reasons_for(localise=True, shortcut=True)


def test_the_command_prints_the_list_and_why(evidence, tmp_path, monkeypatch, capsys):
    evidence(study(), HARM)
    monkeypatch.chdir(tmp_path)

    def printed(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["distilens", *arguments])
        main()
        return capsys.readouterr().out

    (tmp_path / "mine.toml").write_text(
        'data = "shapes:train=400,test=40,size=16"\n[teacher]\nmodel = "resnet14"\n[student]\nmodel = "resnet8"\n'
    )
    said = printed("recommend", "mine.toml")
    assert 'methods = ["ce:weight=0.1", "kd", "map_match:explainer=cam,classes=all"]' in said
    assert "images per class" in said
    told = json.loads(printed("recommend", "mine.toml", "--json"))
    assert told["chosen"]["methods"] == ["ce:weight=0.1", "kd", "map_match:explainer=cam,classes=all"]
    assert len(told["candidates"]) == len(ROWS)
    changed = re.search(r"--set '(.*)'", said)[1]
    taken = read_recipe("mine.toml", [changed]).student.methods
    assert taken == ("ce:weight=0.1", "kd", "map_match:explainer=cam,classes=all")
    assert "WARNING" in printed("list", "methods")
    own = {"balance": "ratio:0.3", "optimizer": "sgd:lr=0.05,momentum=0.9"}
    evidence(study(rows=[ROWS[1], {**row("balanced", [*GUIDED, "at"], 80, 20), "settings": own}]))
    changes = re.findall(r"'(.*?)'", printed("recommend", "mine.toml").split("distilens run")[1].split("\n")[0])
    made = read_recipe("mine.toml", changes)
    assert (made.student.methods, made.train.balance) == ((*GUIDED, "at"), "ratio:0.3")
    assert made.train.optimizer == "sgd:lr=0.05,momentum=0.9"


def test_what_is_shipped_is_read():
    """Every list of the evidence can be built, and says what it was measured on."""
    from distilens.methods import build_methods

    found = json.loads(EVIDENCE.read_text())
    assert found["studies"]
    for each in found["studies"]:
        assert each["rows"]
        for line in each["rows"]:
            assert build_methods(line["methods"])
            assert Training(**{**each["settings"], **line.get("settings", {})})
