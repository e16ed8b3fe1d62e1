"""What is said of a training that went wrong."""

import pytest

from distilens.report.concerns import concerns, rising_loss


def rows(*losses: dict, stage: str = "base"):
    return [
        {"stage": stage, "epoch": epoch, "step": 10 * epoch + 10, "terms": terms} for epoch, terms in enumerate(losses)
    ]


def shares(accuracy: float, n: int = 400, **more):
    return {"test": {"accuracy": accuracy, "low": accuracy - 0.03, "high": accuracy + 0.03, "n": n}, **more}


DATA = {"classes": ["a", "b"], "commonest": {"class": "a", "share": 0.5}}


def test_a_loss_that_rises_is_said_with_its_numbers():
    (said,) = concerns({}, rows({"ce": 17.4}, {"ce": 30.0}, {"ce": 39.9}))
    assert "loss of the base did not fall" in said and "ce 17.4 → 39.9" in said and "lower learning rate" in said


@pytest.mark.parametrize(
    "losses",
    [
        [{"ce": 2.0}, {"ce": 1.0}],
        [{"ce": 2.0, "kd": 0.1}, {"ce": 1.0, "kd": 3.0}],  # kd warms up
        [{"ce": 2.0}],
        [],
        [{"ce": 2.0}, {"kd": 9.0}],
    ],
)
def test_other_losses_are_not(losses):
    assert concerns({}, rows(*losses)) == []


def test_the_mean_of_the_last_epoch_counts():
    noisy = [*rows({"ce": 2.0}, {"ce": 2.5}), {"stage": "base", "epoch": 1, "step": 30, "terms": {"ce": 1.0}}]
    assert rising_loss(noisy, "base") is None  # 1.75
    assert rising_loss(rows({"ce": 2.0, "kd": 1.0}, {"ce": 3.0, "kd": 2.0}), "student")


def test_models_that_guess_are_named_once():
    scores = {"data": DATA, "models": {"teacher": shares(0.52), "base": shares(0.9), "student": shares(0.47)}}
    (said,) = concerns(scores, [])
    assert "right for 50.0 %: teacher 52.0 %" in said and "student 47.0 %" in said and "base" not in said
    assert "learns nothing from a teacher" in said and "train.epochs=" in said
    uneven = {"data": {**DATA, "commonest": {"class": "a", "share": 0.9}}, "models": {"base": shares(0.91)}}
    (said,) = concerns(uneven, [])
    assert "teacher" not in said
    assert concerns({"data": DATA, "models": {"base": shares(0.9)}}, []) == []


def test_a_student_below_the_base_is_said_where_the_images_settle_it():
    def scores(low: float, high: float):
        apart = {"test": {"mean": (low + high) / 2, "low": low, "high": high, "n": 400}}
        return {"data": DATA, "models": {"base": shares(0.9), "student": shares(0.8, **{"more than base": apart})}}

    (said,) = concerns(scores(-0.15, -0.05), [])
    assert "10.0 points below the base" in said and "weight" in said
    assert concerns(scores(-0.15, 0.01), []) == []
    assert concerns(scores(0.01, 0.05), []) == []


def test_a_student_with_a_larger_error_than_the_base_is_said_in_its_unit():
    def scores(low: float, high: float):
        apart = {"test": {"mean": (low + high) / 2, "low": low, "high": high, "n": 400}}
        data = {"metric": {"name": "mean absolute error", "unit": "years", "higher_is_better": False}}
        return {"data": data, "models": {"base": {}, "student": {"more than base": apart}}}

    (said,) = concerns(scores(0.5, 1.5), [])
    assert said.startswith(
        "The methods harmed the student: it is worse than the base, by a mean absolute error of 1 years"
    )
    assert concerns(scores(-0.5, 1.5), []) == concerns(scores(-1.5, -0.5), []) == []
