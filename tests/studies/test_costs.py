"""What the students of a compression curve cost, and the best one for a budget."""

import json

import pytest

from distilens.foundation.errors import UserError
from distilens.foundation.metric import ACCURACY, Metric
from distilens.measure import parameters
from distilens.studies import costs
from distilens.studies.costs import FILE, Budget, best_for_budget, measure_costs
from distilens.studies.study import Row, Study
from distilens.studies.trial import run_of
from distilens.studies.verdict import judge_study
from distilens.studies.work import train_study


def row(name, score, milliseconds, size):
    cost = {"milliseconds": milliseconds, "bytes": size}
    return {"name": name, "validation": {"mean": score, "low": None, "high": None, "n": 1}, "cost": cost}


ROWS = [row("large", 0.9, 8.0, 900), row("middle", 0.8, 4.0, 500), row("small", 0.7, 1.0, 100)]


@pytest.mark.parametrize(
    ("budget", "best"),
    [
        (Budget(latency=0.005), "middle"),
        (Budget(latency=0.004), "middle"),
        (Budget(latency=0.0039), "small"),
        (Budget(size=500), "middle"),
        (Budget(latency=0.005, size=499), "small"),
        (Budget(latency=0.1), "large"),
        (Budget(size=99), None),
    ],
)
def test_the_best_row_within_a_budget(budget, best):
    found = best_for_budget([{**ROWS[0], "name": "unknown", "cost": None}, *ROWS], budget, ACCURACY)
    assert (found and found["name"]) == best


def test_a_lower_error_is_better():
    found = best_for_budget(ROWS, Budget(size=1000), Metric("error", "years", False))
    assert found is not None
    assert found["name"] == "small"


def test_a_budget_in_words():
    assert str(Budget(0.005, 500_000)) == "5 ms and 500.0 kB"
    assert (str(Budget(0.0005)), str(Budget(size=100))) == ("0.5 ms", "100 bytes")
    assert not Budget()
    for wrong in ({"latency": 0.0}, {"size": 0}):
        with pytest.raises(UserError, match="are above 0"):
            Budget(**wrong)


def test_each_network_is_measured_once(place, content, monkeypatch):
    """Costs are kept, a new budget is noted, and the verdict names the best student."""
    taught = Row("2 ×", content, facts={"model": "tiny", "taught": True, "ratio": 2.0})
    alone = Row("2 ×, labels only", content, facts={"model": "tiny", "taught": False, "ratio": 2.0})
    study = Study(place / "costs", "compression", (taught, alone), (0,))
    train_study(study)
    measure_costs(study, Budget())
    assert judge_study(study)["budget"] is None
    found = json.loads((study.folder / FILE).read_text())["networks"]
    assert list(found) == ["tiny"]
    student = run_of(study, taught, 0).models()["student"]
    assert 4 * parameters(student) < found["tiny"]["bytes"] < 4 * parameters(student) + 4000
    assert 0 < found["tiny"]["milliseconds"] < 1000

    monkeypatch.setattr(costs, "latency", None)
    measure_costs(study, Budget(size=10**6))
    assert json.loads((study.folder / FILE).read_text())["networks"] == found
    verdict = judge_study(study)
    scores = {row["name"]: row["validation"]["mean"] for row in verdict["rows"]}
    assert verdict["budget"] == {"text": "1.0 MB", "best": max(scores, key=scores.__getitem__)}
    assert verdict["rows"][0]["cost"] == found["tiny"]
