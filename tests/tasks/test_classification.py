"""Classification: its loss, its accuracy from sums, its differences."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from distilens.foundation.errors import UserError
from distilens.foundation.estimate import share_apart, share_of
from distilens.tasks import Classification, as_task

TASK = as_task("abcd")
LOGITS, OTHERS = torch.randn(2, 60, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(-1, 4, (60,), generator=torch.Generator().manual_seed(1))
KNOWN = LABELS >= 0


def test_it_is_its_classes():
    assert TASK == Classification(("a", "b", "c", "d")) != as_task("abdc")
    assert (TASK.outputs, TASK.summary, as_task(TASK)) == (4, "4 classes", TASK)
    assert [TASK.describe(number) for number in (2, -1)] == ["c", ""]


def test_an_answer_is_the_most_probable_class():
    answers = TASK.predict(LOGITS)
    assert torch.equal(answers, LOGITS.argmax(1))
    surest = TASK.confidence(LOGITS, answers)
    for number in range(4):
        assert (TASK.confidence(LOGITS, torch.full((60,), number)) <= surest).all()


def test_the_loss_is_the_cross_entropy():
    losses = TASK.loss(LOGITS, LABELS)
    assert torch.allclose(losses[KNOWN], cross_entropy(LOGITS[KNOWN], LABELS[KNOWN], reduction="none"))
    assert not losses[~KNOWN].any()
    for wrong in (torch.full((60,), 4), torch.full((60,), -2), LABELS[:5], LABELS.float()):
        with pytest.raises(UserError, match="ce"):
            TASK.loss(LOGITS, wrong)


def test_sums_of_parts_give_the_accuracy_of_all():
    hits = LOGITS[KNOWN].argmax(1) == LABELS[KNOWN]
    parts = zip(LOGITS.split(7), LABELS.split(7), strict=True)
    sums = sum(TASK.tally(*part) for part in parts)
    assert TASK.score(sums) == {"accuracy": share_of(hits)} and TASK.value(sums) == share_of(hits).value
    assert TASK.score(torch.zeros(3))["accuracy"].value is None


def test_a_difference_is_on_the_same_images():
    hits = [logits[KNOWN].argmax(1) == LABELS[KNOWN] for logits in (LOGITS, OTHERS)]
    assert TASK.apart(LOGITS, OTHERS, LABELS) == share_apart(*hits)


def test_what_is_explained():
    top = TASK.explained(LOGITS)
    assert torch.equal(top, LOGITS.argmax(1)) and torch.equal(TASK.scalar(LOGITS, top), LOGITS.amax(1))
    assert torch.allclose(TASK.confidence(LOGITS, top), LOGITS.softmax(1).amax(1))


def test_a_logit_that_is_nan_is_never_right():
    logits = torch.tensor([[float("nan"), 1.0], [0.0, 1.0]])
    assert as_task("ab").values(logits, torch.tensor([0, 1])).tolist() == [False, True]
