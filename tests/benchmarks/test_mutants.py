"""The faults that mutants.py makes: in code alone, spread over the functions, and the same for the same seed."""

import ast
import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "mutants.py"
SOURCE = '''"""A module of 3 lines."""

LIMIT = 3


def small(x: int = 4) -> "1 + 1":
    """Whether x < 3 + 4."""
    if x < 0:
        raise ValueError(f"{x + 1} is below 0, or {2 * 3}")
    return x < 2 and x != -1


class Thing:
    size: int = 5

    def __repr__(self):
        return "thing" * 3

    def grown(self, by):
        return self.size + by / 2.5, not by
'''


@pytest.fixture(scope="module")
def mutants():
    spec = importlib.util.spec_from_file_location("mutants", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_fault_is_one_other_expression_in_a_function(mutants):
    made = list(mutants.faults(SOURCE, 100, 0))
    assert len({text for _, text in made}) == len(made) == 13
    healthy = SOURCE.splitlines()
    for number, text in made:
        ast.parse(text)
        changed = [place + 1 for place, (a, b) in enumerate(zip(healthy, text.splitlines(), strict=True)) if a != b]
        assert changed == [number]
        assert number in (6, 8, 10, 20)
        assert '"1 + 1"' in text and 'f"{x + 1} is below 0, or {2 * 3}"' in text


def test_a_few_faults_are_spread_over_the_functions_and_seeded(mutants):
    made = [list(mutants.faults(SOURCE, 2, seed)) for seed in (0, 0, 1, 2, 3)]
    assert made[0] == made[1]
    assert len({str(each) for each in made}) > 2
    for two in made:
        assert sorted(number == 20 for number, _ in two) == [False, True]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a + b", {"a - b"}),
        ("a < b", {"a <= b", "a >= b"}),
        ("a == b", {"a != b"}),
        ("a and b", {"a or b"}),
        ("-a", {"a"}),
        ("not a", {"a"}),
        ("3", {"4"}),
        ("0.0", {"1.0"}),
        ("2.5", {"5.0"}),
        ("True", {"False"}),
    ],
)
def test_what_becomes_of_an_expression(mutants, before, after):
    found = {
        next(text for _, text in mutants.faults(f"def f(a, b):\n    return {before}\n", 1, seed)) for seed in range(9)
    }
    assert found == {f"def f(a, b):\n    return ({each})\n" for each in after}
