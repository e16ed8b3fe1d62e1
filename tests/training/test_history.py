"""The summary of a training, from the rows of its log."""

from distilens.training.history import History, steps_of_epoch, summarize

LOSSES = [{"stage": "student", "epoch": 0, "step": step, "terms": {"ce": 1.0}} for step in (1, 7)]


def test_a_training_without_a_finished_epoch_is_told_by_its_steps():
    assert summarize(LOSSES) == "7 steps"
    assert steps_of_epoch(LOSSES) == 1
    assert repr(History(LOSSES)) == "History(student: 7 steps)"


def test_finished_epochs_are_told_with_the_best_score():
    scores = [
        {"stage": "student", "epoch": epoch, "step": 10 * (epoch + 1), "validation": {"accuracy": accuracy}}
        for epoch, accuracy in enumerate((0.25, 0.75, 0.5))
    ]
    assert summarize([*LOSSES, *scores]) == "3 epochs, validation accuracy 75.0% at best"
    assert steps_of_epoch([*LOSSES, *scores]) == 10
