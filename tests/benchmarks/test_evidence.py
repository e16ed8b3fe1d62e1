"""The tables of docs/which.md, from the verdicts of studies."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from scipy import stats

from distilens.studies.evidence import EVIDENCE
from distilens.studies.statistics import holm

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "which.md").read_text(encoding="utf-8")
SHIPPED = json.loads(EVIDENCE.read_text())["studies"]


@pytest.fixture(scope="module")
def script():
    """The module benchmarks/evidence.py, with the modules beside it."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import evidence

        yield evidence
        for name in set(sys.modules) - before:
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(ROOT / "benchmarks")):
                del sys.modules[name]


def verdict_of(study: dict) -> dict:
    """What the verdict of a shipped study would be: its means and intervals, and p-values that follow from them."""

    def entry(mean: float, half: float) -> dict:
        return {"mean": mean / 100, "low": (mean - half) / 100, "high": (mean + half) / 100}

    compared = [row for row in study["rows"] if row["gain"]]
    p = {}
    for row in compared:
        (mean, half), freedom = row["gain"], row["seeds"] - 1
        p[row["row"]] = float(2 * stats.t.sf(abs(mean) / half * stats.t.ppf(0.975, freedom), freedom))
    corrected = holm(p)
    return {
        "split": study["split"],
        "rows": [
            {"name": row["row"], "methods": row["methods"], "control": None,
             "value": {**entry(*row["accuracy"]), "n": row["seeds"]}}
            for row in study["rows"]
        ],
        "questions": [
            {"row": row["row"], "against": "kd", **entry(*row["gain"]), "p by Holm": corrected[row["row"]]}
            for row in compared
        ],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("number", "heading"),
    [(0, "50 images per class"), (1, "200 images per class"), (3, "Another family"), (4, "A ViT as the teacher")],
)
def test_a_table_is_that_of_the_page(script, number, heading):
    """All but the last column, in which the page abbreviates."""
    made = cells_of(script.markdown(verdict_of(SHIPPED[number])))
    assert len(made) == 2 + len(SHIPPED[number]["rows"])
    assert made == cells_of(PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0])


def cells_of(text: str) -> list[list[str]]:
    """The first five cells of each line of the tables in a text."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:6]] for line in lines]


def test_the_table_of_defaults_has_the_rows_of_the_page(script):
    lines = script.side_by_side([study for study in SHIPPED if study["defaults"]]).splitlines()
    for line in lines[2:]:
        assert line in PAGE.splitlines(), line


def test_a_control_stands_in_the_list(script):
    content = verdict_of(SHIPPED[3])
    content["rows"][1]["control"] = "permuted:only=maps"
    assert "`, `permuted:only=maps` |" in script.markdown(content)


def test_steps_are_read_from_what_was_printed(script, tmp_path, monkeypatch):
    ours = SimpleNamespace(OURS=("student alone", "kd stored", "kd + gradcam"))
    monkeypatch.setitem(sys.modules, "step", ours)  # it imports the peers, which may not be installed
    (tmp_path / "steps.txt").write_text(
        "      student alone   1,200 images/s    0.95 of the floor's time\n"
        "          kd stored   1,000 images/s    1.08 of the floor's time\n"
        "       kd + gradcam     900 images/s    1.13 of the floor's time\n"
        "      somebody else     900 images/s    2.00 of the floor's time\n"
    )
    assert script.costs(tmp_path / "steps.txt") == {
        "labels": 0.95, "kd": 1.08, "kd + gradcam": 1.13, "kd standardised": 1.08, "kd + gradcam++": 1.13, "kd, balanced": 1.08,
    }  # fmt: skip
