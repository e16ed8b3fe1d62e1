"""Accuracy by class, beside what guessing gives."""

import pytest
import torch

from distilens.measure.accuracies import balanced, by_class, commonest
from distilens.report.remarks import against_base, remarks
from distilens.report.table import by_class as class_rows
from distilens.report.table import imbalance, measures

LABELS = torch.tensor([0] * 19 + [1] + [-1])
GUESSED = torch.tensor([[1.0, 0.0, 0.0]]).expand(21, 3)
NAMES = ("healthy", "ill", "unseen")


def test_guessing_the_commonest_class():
    classes = by_class(GUESSED, LABELS, NAMES)
    assert classes["healthy"]["accuracy"] == 1
    assert classes["healthy"]["n"] == 19
    assert classes["ill"]["accuracy"] == 0
    assert classes["unseen"] is None
    assert balanced(classes) == 0.5
    assert commonest(LABELS, NAMES) == {"class": "healthy", "share": 0.95, "n": 20}
    assert commonest(torch.tensor([-1]), NAMES) is None
    assert balanced({"none": None}) is None


def scores(share):
    entry = {"accuracy": 0.95, "n": 20, "low": 0.76, "high": 0.99}
    model = {"model": "tiny", "test": entry, "balanced": 0.5}
    return {
        "data": {"classes": ["healthy", "ill"], "commonest": {"class": "healthy", "share": share, "n": 20}},
        "models": {"base": model, "student": model},
    }


def test_an_imbalance_is_said_beside_the_accuracies():
    assert "Guessing the most common class, healthy, for every image would be right for 95.0 %" in " ".join(
        remarks(scores(0.95))
    )
    assert "accuracy balanced over classes, test" in [row.title for row in measures(scores(0.95))]
    assert imbalance(scores(0.55)) is None
    assert "accuracy balanced over classes, test" not in [row.title for row in measures(scores(0.55))]


@pytest.mark.parametrize("old", [{"models": {}}, {"data": {"classes": ["a", "b"]}, "models": {}}])
def test_scores_of_earlier_versions_have_no_commonest_class(old):
    assert imbalance(old) is None


def test_classes_on_the_page_the_least_known_first():
    def model(*right: int) -> dict:
        found = {f"class {number}": {"accuracy": one / 9, "n": 9} for number, one in enumerate(right)}
        return {"model": "tiny", "by class": found | {"none": None}}

    scores = {"models": {"teacher": model(9, 8, 7), "student": model(5, 6, 2)}}
    lines, count = class_rows(scores)
    assert count == 3
    assert [(name, [value for value, _ in cells]) for name, cells in lines] == [
        ("class 2", ["77.8 %", "22.2 %"]),
        ("class 0", ["100.0 %", "55.6 %"]),
        ("class 1", ["88.9 %", "66.7 %"]),
    ]
    assert [name for name, _ in class_rows(scores, most=1)[0]] == ["class 2"]
    assert class_rows({"models": {"student": {"model": "tiny"}}}) == ([], 0)


NOT = "These images do not show whether the student's Integrated Gradients maps are more like the teacher's than the base's"
MORE = "Integrated Gradients maps are more like the teacher's than the base's are: the cosine differs by +0.020 [+0.010"


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-0.01, 0.05, NOT),
        (0.01, 0.03, MORE),
        (-0.05, -0.01, "The student's Integrated Gradients maps are less like"),
        (None, None, NOT),
    ],
)
def test_likeness_is_judged_by_differences_of_the_same_images(low, high, words):
    mean = 0.02 if low is None else (low + high) / 2
    said = against_base("ig", {"mean": mean, "low": low, "high": high, "n": 9, "empty": 0})
    assert words in said
    assert said.endswith("on the same images.")


def test_scores_of_earlier_versions_say_nothing_of_maps():
    assert against_base("ig", None) is None
    assert against_base("ig", {"mean": None, "n": 0}) is None
