"""Ratios compare the same rounds; a row knows what it is compared to."""

from pathlib import Path

from distilens.deploy.bench_rows import Timed, goals_of, ratio, row_of
from distilens.deploy.targets import Candidate


def timed(name: str, runtime: str, milliseconds: list[float], precision: str = "float32") -> Timed:
    path = Path(f"{name}.{runtime}.{precision}")
    candidate = Candidate(name, runtime, path, (3, 8, 8), precision=precision, cost={"parameters": 1, "macs": 2})
    return Timed(candidate, 1, [[time, time, 9 * time] for time in milliseconds])


def test_ratios_are_of_the_same_round_so_a_slow_second_does_not_count():
    slow = [1.0, 1.0, 10.0, 1.0, 1.0, 7.0, 1.0, 1.0]
    eager, fast = timed("net", "eager", [4 * s for s in slow]), timed("net", "onnx", slow)
    found = ratio(fast, eager)
    assert (found.value, found.low, found.high, found.n) == (4.0, 4.0, 4.0, 8)
    assert ratio(eager, fast).value == 0.25


def test_a_row_is_compared_to_its_own_network_in_eager_and_to_the_first_in_its_runtime():
    rounds = [1.0] * 6
    entries = [
        timed("a", "eager", [6 * r for r in rounds]),
        timed("a", "onnx", rounds, "int8"),
        timed("b", "eager", [2 * r for r in rounds]),
        timed("b", "onnx", [0.5 * r for r in rounds], "int8"),
        timed("b", "onnx", rounds),
    ]
    rows = [row_of(entry, entries, 1, None) for entry in entries]
    assert [row["faster"] and row["faster"]["mean"] for row in rows] == [None, 6.0, None, 4.0, 2.0]
    assert [row["to_first"] and row["to_first"]["mean"] for row in rows] == [None, None, 3.0, 2.0, None]
    assert [row["runtime"] for row in rows][1:2] == ["ONNX Runtime INT8"]
    first, second = goals_of(rows)
    assert "6.00 [6.00 to 6.00]" in first
    assert first.endswith("is reached.")
    assert "b in ONNX Runtime INT8: 4.00" in second
    for low, high, verdict in ((1.8, 1.95, "not reached"), (1.8, 2.1, "undecided"), (None, None, "undecided")):
        row = {**rows[1], "faster": {"mean": 1.9, "low": low, "high": high, "n": 6}}
        assert goals_of([row])[0].endswith(f"is {verdict}.")
