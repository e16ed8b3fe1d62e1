"""What was distilled, on the page: figures with their sentences, tables, pictures; of numbers that are made up here."""

import copy
import json
import math
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from distilens.foundation.estimate import Estimate
from distilens.report import charts, transfer_section, transfer_words, write_report
from distilens.report.intervals import Line, interval_chart

CLASSES = ["cat", "dog", "<b>ship</b>"]
PAIRS = {"distilled": ("student", "base"), "residual": ("base", "student"), "missed": ("teacher", "student")}


def one(value: float, **more) -> dict:
    return {
        "value": value,
        "n": 200,
        "low": value - 0.05,
        "high": value + 0.05,
        "p": 1e-9,
        "z": 9.0,
        "notes": [],
        **more,
    }


def level(name: str, shift: float) -> dict:
    rs = [one(value + shift, of=of) for of, value in (("teacher", 0.6), ("base", 0.2), ("student", 0.4))]
    given = [one(0.3 + shift, of=of, given=other, called=called) for called, (of, other) in PAIRS.items()]
    given.append(one(0.1, of="teacher", given="base", called="teacher without base"))
    fss = [one(0.5, of="teacher", to=to, cka=0.4) for to in ("base", "student")]
    apart = [{"what": "rs", "of": "student", "than": "base", **one(0.2)}]
    return {"name": name, "taps": dict.fromkeys(("teacher", "base", "student"), name), "rs": rs, "given": given} | {
        "fss": fss,
        "apart": apart,
    }


def mean(value: float) -> dict:
    return {"mean": value, "low": value - 0.02, "high": value + 0.02, "n": 50, "empty": 0}


def comparison() -> dict:
    entries = {
        called: {"of": of, "given": given, "stability": mean(0.9) | {"sets": 3}}
        for called, (of, given) in PAIRS.items()
    }
    tests = {key: mean(0.5) for key in ("insertion", "floor", "above_floor", "energy_in_mask", "mask_share")}
    last = {called: {**copy.deepcopy(entry), **tests, "empty": 1, "n": 50} for called, entry in entries.items()}
    last["distilled"]["energy_above_residual"] = mean(0.1)
    states = [{"epoch": epoch, "rs": one(epoch / 20), "fss": one(epoch / 10)} for epoch in (2, 4, 6)]
    return {
        "models": {name: {"model": f"{name}net", "weights": "3f2a"} for name in ("teacher", "base", "student")},
        "data": "pets",
        "classes": CLASSES,
        "split": "test",
        "n": 200,
        "settings": {"embeddings": "one_hot", "explained": False, "full": False, "biased": False, "features": "pooled"},
        "remarks": [],
        "levels": [level("layer1", -0.1), level("layer3", 0.0), {**level("logits", 0.1)}],
        "maps": {
            "reference": {"n": 128, "index": [1, 2], "sets": 3, "shared": 0.05, "measured": 50},
            "levels": {"layer1": entries, "layer3": last},
        },
        "growth": {"level": "layer3", "n": 100, "models": {"base": states, "student": states}},
    }


def fabricate(folder: Path) -> Path:
    (folder / "transfer").mkdir(parents=True)
    (folder / "transfer.json").write_text(json.dumps(comparison()))
    generator = np.random.default_rng(0)
    arrays = {
        "index": np.arange(4),
        "images": generator.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8),
        "labels": np.arange(4) % 3,
        "signed": np.array(False),
        "roles": np.array(list(PAIRS)),
    }
    for called in PAIRS:
        arrays |= {f"maps_{called}": generator.random((4, 8, 8)), f"prediction_{called}": np.arange(4) % 3}
    for name in ("layer1", "layer3"):
        np.savez(folder / "transfer" / f"{name}.npz", **arrays)
    return folder


def test_the_section_says_all_of_it(tmp_path: Path):
    page = write_report(fabricate(tmp_path / "run")).read_text()
    for words in (
        "What was distilled",
        "At layer3 the student&#39;s features contain more about the task than the base&#39;s",
        "+0.200 [+0.150 to +0.250]",
        "<b>distilled</b> is what the student knows and the base does not",
        "Similarity to the teacher over training (FSS)",
        "The interval of a point is at most ±0.050",
        "All are above 0.8, so single maps can be read.",
        "energy on the evidence",
        "50.0 %",
        "1 of 50",
        "the same number per class",
        "&lt;b&gt;ship&lt;/b&gt;",
        "layer3 map: distilled on image 0",
        "p (shown from 0.001)",
    ):
        assert words in page, words
    assert page.index("layer3</h3>") < page.index("layer1</h3>")
    assert "teacher without base" not in page
    assert 'href="#transfer"' in page


def test_a_run_that_was_not_compared_says_how(tmp_path: Path):
    (tmp_path / "run").mkdir()
    page = write_report(tmp_path / "run").read_text()
    assert "What was distilled" not in page
    (tmp_path / "run" / "transfer.json").write_text("{")
    page = write_report(tmp_path / "run").read_text()
    assert "transfer.json cannot be read" in page
    assert "distilens compare" in page


def test_a_damaged_file_of_maps_leaves_the_rest(tmp_path: Path):
    folder = fabricate(tmp_path / "run")
    (folder / "transfer" / "layer1.npz").write_bytes(b"no maps")
    page = write_report(folder).read_text()
    assert "layer1.npz cannot be read" in page
    assert "layer3 map: distilled" in page


def test_maps_that_change_with_the_set_are_not_to_be_read_one_by_one():
    scores = comparison()
    for entry in scores["maps"]["levels"]["layer1"].values():
        entry["stability"]["mean"] = 0.3
    said = transfer_words.reliability(scores)
    assert "correlate 0.30 (distilled at layer1) to 0.90 (distilled at layer3)" in said
    assert (
        "Above 0.8 are distilled at layer3, residual at layer3, missed at layer3. Do not read single maps of the others"
        in said
    )
    for entry in scores["maps"]["levels"]["layer3"].values():
        entry["stability"]["mean"] = 0.5
    assert "None reach 0.8" in transfer_words.reliability(scores)
    assert "flatters" not in transfer_words.reliability(scores)
    scores["maps"]["reference"]["shared"] = 0.5
    assert "3 other reference sets (they share 50 % of their images, which raises the correlation), the maps" in (
        transfer_words.reliability(scores)
    )


def test_models_of_other_names(tmp_path: Path):
    scores = comparison()
    scores["models"] = {name: {"model": "net", "weights": "1"} for name in ("a", "b")}
    given = [one(0.1, of="a", given="b", called="a without b"), one(0.2, of="b", given="a", called="b without a")]
    for each in scores["levels"]:
        each |= {
            "taps": {"a": "x", "b": "y"},
            "rs": [one(0.3, of="a"), one(0.5, of="b")],
            "given": copy.deepcopy(given),
            "fss": [one(0.4, of="a", to="b", cka=0.4)],
            "apart": [],
        }
    scores["maps"], scores["growth"] = {}, {}
    assert transfer_words.findings(scores) == [
        "At logits the features of b contain most about the task: RS 0.500 [0.450 to 0.550]."
    ]
    scores["levels"][-1]["rs"][1]["low"] = -0.1
    assert "no model's features are significantly related to the task: RS 0.500" in transfer_words.findings(scores)[0]
    (tmp_path / "transfer.json").write_text(json.dumps(scores))
    page = transfer_section.page(tmp_path)
    assert "a without b" in page
    assert "<h1>a · b</h1>" in page


def test_a_further_model_is_shown_by_what_it_misses():
    scores = comparison()
    for each in scores["levels"]:
        each["given"] += [
            one(0.2, of="teacher", given="assisted", called="teacher without assisted"),
            one(0.2, of="assisted", given="base", called="assisted without base"),
        ]
    titles = [title for title, _ in transfer_section.rows(scores)]
    assert "RS, teacher without assisted" in titles
    assert "RS, missed" in titles
    assert not {"RS, teacher without base", "RS, assisted without base"} & set(titles)


def test_intervals_are_drawn_to_scale_and_said_in_words():
    rows = [Line("first", Estimate(0.5, 0.4, 0.6), 0), Line("second", Estimate(-0.1), 1)]
    svg = interval_chart("chart-x", "Title <i>", [("here", rows), ("nothing", [])], x_label="score")
    assert "Title &lt;i&gt;" in svg
    assert "here first 0.500 [0.400 to 0.600]; here second −0.100." in svg
    assert "nothing" not in svg
    assert svg.count('class="line series-0"') == 1
    assert svg.count('class="marker') == 2
    assert (
        interval_chart("x", "t", [("a", [Line("b", Estimate(math.nan)), Line("c", Estimate(None))])], x_label="") == ""
    )


def test_whose_answer_stands_below_a_map(tmp_path: Path):
    folder = fabricate(tmp_path / "run")
    path = next((folder / "transfer").glob("*.npz"))
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays.pop("answers_of", None)  # as earlier versions wrote it
    roles = [str(role) for role in arrays["roles"]]
    for role in roles:
        arrays[f"prediction_{role}"] = arrays["labels"]
    np.savez(path, **arrays)
    earlier = transfer_section.page(folder)
    for judge in ("student", "base", "teacher"):
        assert f"</span> {judge} right" in earlier
    np.savez(path, **arrays, answers_of=np.array(["a model"] * len(roles)))
    assert "</span> a model right" in transfer_section.page(folder)


def test_a_chart_can_stand_alone():
    chart = charts.line_chart("c", "A & B", [charts.Series("one", [1, 2], [3, 4])], x_label="x", y_label="y")
    root = ElementTree.fromstring(charts.standalone(chart))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.find("{http://www.w3.org/2000/svg}title").text == "A & B"
    assert "stroke: #0068a8" in root.find("{http://www.w3.org/2000/svg}style").text


def test_no_torch_is_needed(tmp_path: Path):
    folder = fabricate(tmp_path / "run")
    command = "import sys; from pathlib import Path; from distilens.report import transfer_section as t; "
    command += "t.page(Path(sys.argv[1])); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", command, str(folder)], check=True)


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_a_browser_shows_it(tmp_path: Path, scheme: str, browser):
    folder = fabricate(tmp_path / "run")
    (folder / "index.html").write_text(transfer_section.page(folder))
    write_report(folder)
    complaints: list[str] = []
    view = browser.new_page(color_scheme=scheme)
    view.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    view.on("pageerror", lambda error: complaints.append(str(error)))
    for name in ("index.html", "report.html"):
        view.goto((folder / name).as_uri())
        for width in (400, 1280):
            view.set_viewport_size({"width": width, "height": 900})
            assert view.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
            for chosen in ("layer1", "layer3"):
                view.get_by_role("radio", name=chosen).check()
                shown = [panel.inner_text().split("\n")[0] for panel in view.locator("#transfer .panel:visible").all()]
                assert shown == [chosen]
        overlapping = """[...document.querySelectorAll('#transfer svg.chart')].filter(chart => {
            const boxes = [...chart.querySelectorAll('text')].map(text => text.getBoundingClientRect());
            return boxes.some((a, i) => boxes.slice(i + 1).some(b =>
                a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 2 && b.top < a.bottom - 2));
        }).length"""
        assert view.evaluate(overlapping) == 0
    assert complaints == []
