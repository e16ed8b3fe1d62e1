"""The verification notices what differs: answers, accuracy, maps."""

import copy

import pytest
import torch

from distilens.deploy.verification import TIE, Student, compare_gradcam, compare_outputs, verify


@pytest.fixture(scope="module")
def known(student, data):
    return Student(student, data, images=4)


def test_the_student_itself_has_no_difference(known):
    found = verify(known, known.model)
    for split in ("validation", "test"):
        answers = found["answers"][split]
        assert answers["largest"] == 0 and answers["different"] == 0 and answers["same top-1"]["share"] == 1
        assert answers["apart"]["mean"] == 0 and answers["mcnemar"]["p"] == 1
        assert answers["file"] == answers["student"]
    assert found["answers"]["test"]["n"] == len(known.data.test)
    for explainer in found["maps"]["explainers"].values():
        assert (
            explainer["cosine"]["mean"] == pytest.approx(1)
            and explainer["insertion"] == explainer["student's insertion"]
        )
    assert set(found["maps"]["floors"]) == {"random", "centre"}


def test_another_head_is_noticed_in_answers_accuracy_and_maps(known):
    other = copy.deepcopy(known.model)
    with torch.no_grad():
        for weight in other.network.fc.parameters():
            weight.neg_()
    found = verify(known, other)
    test = found["answers"]["test"]
    assert test["different"] == test["n"] and test["largest"] > 0.5
    assert test["file"]["accuracy"] != test["student"]["accuracy"]
    assert found["maps"]["explainers"]["occlusion"]["cosine"]["mean"] < 0


def test_a_tie_may_be_decided_either_way_but_nothing_else(known):
    ours = torch.tensor([[0.0, TIE], [0.0, 10 * TIE]])
    theirs = torch.tensor([[TIE, 0.0], [10 * TIE, 0.0]])
    assert compare_outputs(known, ours, ours)["different"] == 0
    found = compare_outputs(known, ours, theirs)
    assert found["different"] == 1 and found["same top-1"]["share"] == 0


def test_logits_that_are_not_finite_are_different(known):
    ours = torch.tensor([[1.0, 0.0]])
    assert compare_outputs(known, ours, torch.tensor([[float("nan"), 0.0]]))["different"] == 1


def test_without_data_examples_are_compared(student):
    found = verify(Student(student, None), student)
    assert found["answers"]["examples"]["largest"] == 0 and found["maps"] == {}


def test_grad_cam_is_compared_with_the_rounded_student(known):
    same = compare_gradcam(known, copy.deepcopy(known.model))
    assert same["cosine"]["mean"] == pytest.approx(1)


def test_agreement_with_the_teacher_is_that_of_its_logits(student, data):
    own = Student(student, data, images=0).logits["test"]
    known = Student(student, data, {"test": -own}, images=0)
    answers = verify(known, student)["answers"]
    assert answers["test"]["agreement"]["accuracy"] == 0 and "agreement" not in answers["validation"]
