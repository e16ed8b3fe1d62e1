"""A metric: its direction, its words, and back from a file."""

from distilens.foundation.metric import ACCURACY, Metric

ERROR = Metric("error", "years", higher_is_better=False)


def test_its_direction():
    assert (ACCURACY.better, ERROR.better) == ("higher", "lower")
    assert max([0.2, 0.5], key=ACCURACY.rank) == 0.5 and max([0.2, 0.5], key=ERROR.rank) == 0.2


def test_there_and_back():
    assert Metric.read(None) == ACCURACY and Metric.read(ERROR.plain()) == ERROR


def test_words():
    assert ACCURACY.written(0.5) == "50.0%" and ERROR.written(0.51234) == "0.5123 years"
    assert Metric("score").written(3) == "3"
    assert ACCURACY.is_share and not ERROR.is_share
