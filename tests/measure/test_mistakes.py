"""What is taken for what, the surest errors."""

import math

import pytest
import torch
from sklearn.metrics import confusion_matrix, top_k_accuracy_score

from distilens.measure.accuracies import right, top_k
from distilens.measure.mistakes import MATRIX_CLASSES, confused, confusion, most_confused, worst_errors

NAMES = ("cat", "dog", "ship", "unseen")


def test_the_matrix_is_scikit_learns():
    logits, labels = torch.randn(300, 4), torch.randint(0, 3, (300,))
    found = confusion(logits, labels)
    assert found.tolist() == confusion_matrix(labels, logits.argmax(1), labels=range(4)).tolist()
    assert found.diagonal().sum() == right(logits, labels).sum()
    assert found[3].sum() == 0  # a class without images


def test_top_k_is_scikit_learns():
    logits, labels = torch.randn(300, 8), torch.randint(0, 8, (300,))
    expected = top_k_accuracy_score(labels, logits, k=5, labels=range(8))
    assert top_k(logits, labels, 5)["accuracy"] == pytest.approx(expected)
    assert top_k(logits, torch.full((300,), -1), 5) is None


def test_answers_with_nan_are_neither_right_nor_in_the_matrix():
    logits = torch.tensor([[math.nan, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    assert right(logits, torch.zeros(2, dtype=torch.long)).tolist() == [False, True]
    assert confusion(logits, torch.zeros(2, dtype=torch.long)).sum() == 1


def test_the_pairs_most_often_confused():
    matrix = torch.tensor([[5, 3, 0, 0], [7, 1, 2, 0], [0, 0, 9, 0], [0, 0, 0, 0]])
    labels = torch.arange(4).repeat_interleave(matrix.sum(1))
    logits = torch.eye(4)[torch.cat([torch.arange(4).repeat_interleave(counts) for counts in matrix])]
    assert confusion(logits, labels).tolist() == matrix.tolist()
    assert most_confused(logits, labels, NAMES) == [
        {"true": "dog", "given": "cat", "count": 7, "of": 10},
        {"true": "cat", "given": "dog", "count": 3, "of": 8},
        {"true": "dog", "given": "ship", "count": 2, "of": 10},
    ]
    assert len(most_confused(logits, labels, NAMES, most=1)) == 1


def test_of_many_classes_the_pairs_stand_for_the_matrix():
    many = MATRIX_CLASSES + 1
    found = confused(torch.eye(many), torch.arange(many).roll(1), [str(each) for each in range(many)])
    assert found["matrix"] is None
    assert found["pairs"][0]["count"] == 1
    assert confused(torch.eye(4), torch.arange(4), NAMES)["matrix"] == torch.eye(4).long().tolist()


def test_the_surest_errors_come_first():
    logits = torch.tensor([[9.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 5.0, 0], [math.nan, 0, 0, 0], [9.0, 0, 0, 0]])
    labels = torch.tensor([0, 0, 1, 1, -1])
    found = worst_errors({"teacher": torch.eye(5, 4), "student": logits}, labels, NAMES, of="student")
    assert [(one["row"], one["label"], one["given"]) for one in found] == [(2, "dog", "ship"), (1, "cat", "dog")]
    assert found[0]["confidence"] == pytest.approx(logits[2].softmax(0)[2].item())
    assert found[1]["right"] == {"teacher": False, "student": False}
    assert len(worst_errors({"student": logits}, labels, NAMES, of="student", most=1)) == 1
