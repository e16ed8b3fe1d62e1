"""The page of a study, its table and its sentences, for every case."""

import csv
import io
import re

import pytest

from distilens.report.study_page import (
    as_csv_text,
    as_latex_text,
    latex,
    page,
    question_table,
    sentences,
    table,
    write_study_page,
)

NO_EFFECT = "what kd adds (all − base): +0.10 ± 1.00 points: no effect is shown (p = 0.05 by Holm)."
HOSTILE = "<script>alert(1)</script>"
NONE = {"mean": None, "low": None, "high": None, "n": 0}


def mean(value, half=None, n=3):
    return {
        "mean": value,
        "low": None if half is None else value - half,
        "high": None if half is None else value + half,
        "n": n,
    }


def row(name, score, half=0.02, **changes):
    made = {
        "name": name, "about": "", "methods": ["ce", "kd"], "control": None, "facts": {}, "value": mean(score, half),
        "values": {"0": score, "1": score}, "validation": mean(score, half), "agreement": mean(0.8, 0.05),
        "maps": {"gradcam": mean(0.9, 0.01)}, "energy": {}, "shift": {}, "seconds": 12.4, "parameters": 12345, "macs": 10,
        "curve": [mean(0.2, 0.1), mean(score, half)], "diverged": [], "failed": None,
        "runs": {"0": "runs/a-0", "1": "runs/a-1"}, "read": [0], "cost": None,
    }  # fmt: skip
    return {**made, **changes}


def question(value, half, p, more=None, **changes):
    made = {
        "row": "all", "against": "base", "about": "what kd adds", **mean(value, half), "p": p, "check": None,
        "effect": {"value": 1.5, "low": 0.5, "high": 2.5}, "test": "paired t", "seeds": [3, 3], "deviation": 0.01,
        "p by Holm": p, "more seeds": more, "decision": None,
    }  # fmt: skip
    return {**made, **changes}


def content(rows=None, questions=(), **changes):
    made = {
        "kind": "distilens verdict 1", "study": "ablation", "name": "small", "command": "distilens ablate r.toml",
        "metric": {"name": "accuracy", "unit": "%", "higher_is_better": True}, "split": "test", "seeds": [0, 1, 2],
        "done": 6, "total": 6,
        "readings": [{"when": "2026-01-01T00:00:00+00:00", "command": "distilens x", "rows": ["base", "all"], "seeds": [0]}],
        "rows": rows or [row("base", 0.7), row("all", 0.75)], "questions": list(questions), "shift": [], "learning": [],
        "search": None, "until": None, "budget": None,
    }  # fmt: skip
    return {**made, **changes}


@pytest.mark.parametrize(
    ("decision", "said"),
    [
        ("better", "+1.80 ± 0.60 points with 3 seeds: a gain."),
        ("worse", "with 3 seeds: a loss."),
        ("no difference of that size", "with 3 seeds: any difference is smaller than 0.5 points."),
        ("undecided", "with 3 seeds: not decided with 20 seeds at most."),
    ],
)
def test_a_study_that_adds_seeds_says_its_decision(decision, said):
    entry = question(0.018, 0.006, None, decision=decision)
    given = content(questions=[entry], until={"points": 0.5, "most": 20})
    assert sentences(given)[-1].endswith(said)
    header, rows = question_table(given, given["questions"])
    assert dict(zip(header, rows[0], strict=True))["decision"] == decision
    assert "There are no p-values" in page(given)
    assert "There are no p-values" not in page(content(questions=[question(0.018, 0.006, 0.01)]))


def test_the_best_student_for_a_budget_is_named():
    small = row("4 ×", 0.71, cost={"milliseconds": 1.234, "bytes": 200_000})
    given = content(rows=[small], budget={"text": "5 ms", "best": "4 ×"})
    assert sentences(given)[-1] == (
        "The best student within 5 ms is 4 ×: 71.00 ± 2.00 % on validation; 1.23 ms for one image, 200.0 kB."
    )
    header, rows = table(given)
    cells = dict(zip(header, rows[0], strict=True))
    assert (cells["ms per image"], cells["weights"]) == ("1.23", "200.0 kB")
    nobody = content(rows=[small], budget={"text": "1 ms", "best": None})
    assert sentences(nobody)[-1] == "No student is within 1 ms: larger factors give smaller ones."


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (question(0.018, 0.006, 0.004), "what kd adds (all − base): +1.80 ± 0.60 points: a gain (p = 0.004 by Holm)."),
        (question(-0.018, 0.006, 1e-9), "what kd adds (all − base): −1.80 ± 0.60 points: a loss (p = below 0.0001 by Holm)."),
        (
            question(0.001, 0.01, 0.4, 1),
            "what kd adds (all − base): +0.10 ± 1.00 points: no effect is shown (p = 0.4 by Holm; 1 more seed would settle a "
            "difference of 1 point).",
        ),
        (
            question(0.001, 0.01, 0.4, 1200),
            "what kd adds (all − base): +0.10 ± 1.00 points: no effect is shown (p = 0.4 by Holm; 1,200 more seeds would settle "
            "a difference of 1 point).",
        ),
        (question(0.001, 0.01, 0.05, 0), NO_EFFECT),
        (question(0.02, None, None), "what kd adds (all − base): +2.00 points; not tested."),
        ({**question(0, 0, None), "mean": None}, "what kd adds (all − base): not measured yet."),
    ],
)  # fmt: skip
def test_a_sentence_for_each_case(entry, said):
    assert sentences(content(questions=[entry])) == [said]


def test_sentences_about_the_state():
    rows = [row("base", 0.7, diverged=[0, 2]), row("all", 0.75, failed="no such layer")]
    assert sentences(content(rows, done=2, seeds=[0])) == [
        "2 of 6 runs are finished: these numbers are preliminary.",
        "One seed has no interval: nothing is tested. At least two seeds are needed (--seeds).",
        "base: the loss was no longer finite with seed 0, 2; it counts as the untrained student.",
        "all was left out: no such layer.",
    ]


def test_another_unit_has_no_points():
    metric = {"name": "error", "unit": "lux", "higher_is_better": False}
    (line,) = sentences(content(questions=[question(0.5, 0.1, 0.01)], metric=metric))
    assert line == "what kd adds (all − base): +0.500 ± 0.100 lux: a gain (p = 0.01 by Holm)."
    header, rows = table(content([row("worse", 0.9), row("better", 0.2)], metric=metric))
    assert header[1] == "error, test"
    assert [cells[:2] for cells in rows] == [["better", "0.200 ± 0.020 lux"], ["worse", "0.900 ± 0.020 lux"]]


def test_the_best_row_is_first_and_missing_values_are_dashes():
    nothing = row(
        "later", 0, value=NONE, agreement=None, maps={}, seconds=None, parameters=None, curve=[], runs={}, values={}
    )
    header, rows = table(content([nothing, row("base", 0.7), row("all", 0.75)]))
    assert header == [
        "row", "accuracy, test", "seeds", "agreement with the teacher", "maps like the teacher's", "parameters", "s per training",
    ]  # fmt: skip
    assert rows[0] == ["all", "75.00 ± 2.00 %", "3", "80.0 ± 5.0 %", "gradcam 0.900 ±0.010", "12,345", "12"]
    assert rows[2] == ["later", "–", "0", "", "", "", ""]
    assert table(content([nothing]))[0] == ["row", "accuracy, test", "seeds"]


def test_the_table_of_questions():
    made = content(questions=[question(0.018, 0.006, 0.004, 0), {**question(0, 0, None), "mean": None}])
    _, (first, second) = question_table(made, made["questions"])
    assert first == [
        "what kd adds: all − base",
        "+1.80 ± 0.60 points",
        "0.004",
        "0.004",
        "–",
        "1.50 [0.50 to 2.50]",
        "3",
        "0",
    ]
    assert second[1:4] == ["–", "–", "–"]


def test_hostile_names_are_escaped_everywhere():
    rows = [row(HOSTILE, 0.7, control=HOSTILE, failed=HOSTILE, methods=[HOSTILE]), row("all", 0.75)]
    asked = [question(0.018, 0.006, 0.004, row=HOSTILE, about=HOSTILE)]
    text = page(content(rows, asked, name=HOSTILE, command=HOSTILE, study=HOSTILE))
    assert HOSTILE not in text
    assert "&lt;script&gt;" in text
    assert re.findall(r"<script", text) == []


def test_the_page_asks_nobody():
    text = page(content(questions=[question(0.018, 0.006, 0.004)]))
    assert "default-src 'none'" in text
    assert not re.findall(r"""(?:src|href)=["'](?:https?:|//)""", text)
    assert "url(" not in text
    assert len(text) < 3_000_000


def test_only_measured_runs_are_linked():
    text = page(content())
    assert '<a href="runs/a-0/report.html">0</a>' in text
    assert "runs/a-1/report.html" not in text


def test_sections_appear_with_their_content():
    whole = page(content(questions=[question(0.018, 0.006, 0.004)]))
    assert 'href="#gains"' in whole
    assert 'href="#learning"' in whole
    assert "The test split was read on 2026-01-01" in whole
    short = page(content([row("base", 0.7, curve=[])], readings=[], split="validation"))
    assert 'id="gains"' not in short
    assert 'id="learning"' not in short
    assert "The test split was not read" in short


def test_an_empty_study_has_a_page(tmp_path):
    rows = [
        row("base", 0, value=NONE, validation=NONE, agreement=None, maps={}, curve=[], runs={}, values={}, seconds=None)
    ]
    asked = [{**question(0, 0, None), "mean": None}]
    path = write_study_page(tmp_path, content(rows, asked, done=0, split="validation", readings=[]))
    assert path.name == "study.html"
    assert "0 of 6 runs are finished" in path.read_text(encoding="utf-8")


def test_a_compression_curve_is_ordered_by_size():
    rows = [
        row("2 ×", 0.6, facts={"taught": True, "ratio": 2.0}),
        row("2 ×, labels only", 0.5, facts={"taught": False, "ratio": 2.0}),
        row("4 ×", 0.7, facts={"taught": True, "ratio": 4.0}),
        row("4 ×, labels only", 0, value=NONE, facts={"taught": False, "ratio": 4.0}),
    ]
    made = content(rows, study="compression")
    _, cells = table(made)
    assert [line[0] for line in cells] == ["2 ×", "2 ×, labels only", "4 ×", "4 ×, labels only"]
    assert "Compression" in page(made)


def test_csv_comes_back():
    rows = [row('a, "b"\nc', 0.7, values={"0": 0.7, "1": None}), row("all", 0.75, control="permuted")]
    lines = list(csv.DictReader(io.StringIO(as_csv_text(content(rows)))))
    assert [(line["row"], line["seed"], line["accuracy"]) for line in lines[:2]] == [
        ('a, "b"\nc', "0", "0.7"),
        ('a, "b"\nc', "1", ""),
    ]
    assert (lines[2]["control"], lines[2]["methods"], lines[2]["split"]) == ("permuted", "ce; kd", "test")


def test_latex_is_escaped():
    assert (
        latex(r"50 % & a_b \ ~^{}#$") == r"50 \% \& a\_b \textbackslash{} \textasciitilde{}\textasciicircum{}\{\}\#\$"
    )
    text = as_latex_text(content([row("kd_layer & 4 ×", 0.7)]))
    assert text.startswith(r"\begin{tabular}{lrrrrrr}")
    assert r"kd\_layer \& 4 $\times$ & 70.00 $\pm$ 2.00 \% & 3 &" in text
    lines = [line for line in text.splitlines() if line.endswith(r"\\") or r"\\ \midrule" in line]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {6}


STATES = [("complete", [0.6]), ("complete", [0.7]), ("pruned", [0.3]), ("fail", None), ("running", None)]


def search(**changes):
    trials = [
        {
            "number": number,
            "state": state,
            "settings": {"kd.temperature": 1.0 + number, "methods": HOSTILE if number % 2 else "[ce]"},
            "values": values,
            "validation": None,
            "seconds": 1.0,
        }
        for number, (state, values) in enumerate(STATES)
    ]
    made = {
        "objectives": ["score"],
        "space": ["kd.temperature=1..8", HOSTILE],
        "trials": trials,
        "front": [1],
        "importance": {"kd.temperature": 0.25, HOSTILE: 0.75},
    }
    return {**made, **changes}


def test_the_section_of_a_search():
    text = page(content(study="search", search=search()))
    assert "2 finished, 1 stopped early by validation, 1 impossible to train, 1 running" in text
    assert HOSTILE not in text
    assert "<td>25 %</td>" in text
    assert "Pareto" not in text
    several = search(objectives=["score", "size"], importance={})
    for trial in several["trials"]:
        trial["values"] = trial["values"] and [*trial["values"], 1000 + trial["number"]]
    text = page(content(study="search", search=several))
    assert "Pareto front" in text
    assert "Importance" not in text
    assert page(content(study="search", search=search(trials=[])))


@pytest.mark.parametrize(
    ("fresh", "said"),
    [(0.700, "3.0 points of it were luck"), (0.73, "nothing of it was luck"), (0.75, "nothing of it was luck")],
)
def test_how_much_was_luck(fresh, said):
    old = row("chosen, trial 1", 0.1, facts={"validation in the search": {"accuracy": 0.9}})
    chosen = row(
        "chosen, trial 7", 0.7, facts={"validation in the search": {"accuracy": 0.73}}, validation=mean(fresh, 0.01)
    )
    (line,) = sentences(content([row("as given", 0.7), old, chosen]))
    assert line == (
        f"The chosen setting had 73.0% on validation in the search, and has {100 * fresh:.1f}% on fresh seeds: {said}."
    )
    unfinished = {**chosen, "validation": NONE}
    assert sentences(content([row("as given", 0.7), unfinished])) == []


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_a_browser_shows_the_page(tmp_path, scheme, browser):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    long = "a method with a very long name, and another one, " * 3
    rows = [row(long, 0.7), *(row(f"without {n}", 0.6 + n / 100) for n in range(8))]
    made = content(
        rows,
        [question(0.018, 0.006, 0.004, row=long)],
        study="search",
        search=search(),
        command=f"distilens {'x' * 300}",
    )
    path = write_study_page(tmp_path, made)
    view = browser.new_page(color_scheme=scheme, viewport={"width": 400, "height": 900})
    requests = []
    view.on("request", lambda request: requests.append(request.url))
    view.goto(path.as_uri())
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert view.evaluate("document.documentElement.scrollWidth") <= 400
    found = axe.Axe().run(view)
    assert found.response["violations"] == [], found.generate_report()
    view.close()


def test_maps_on_the_evidence_and_learning_have_a_place():
    rows = [row("base", 0.7, energy={"gradcam": mean(0.453, 0.048)}), row("all", 0.75)]
    header, cells = table(content(rows))
    place = header.index("maps on the evidence")
    assert [line[place] for line in cells] == ["", "gradcam 45.3 ± 4.8 %"]
    faster = "The same questions about the mean of the learning curve"
    assert faster not in page(content())
    text = page(content(learning=[question(0.018, 0.006, 0.004)]))
    assert faster in text
    assert "Table of questions about learning" in text
