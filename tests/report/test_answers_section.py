"""The page of a run: what models confuse, calibration, surest errors; which numbers are compared, and which are not there."""

import base64
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from distilens import explain
from distilens.foundation.estimate import Estimate
from distilens.foundation.metric import Metric
from distilens.report import write_report
from distilens.report.answers_section import calibration_rows
from distilens.report.cells import humanised, is_busy, latency
from distilens.report.confusion import luminance, matrix_rows, shades
from distilens.report.names import EXPLAINERS
from distilens.report.panels import map_row
from distilens.report.paths import without_places
from distilens.report.reliability import reliability_chart
from distilens.report.remarks import compare_scores, cost, describe_missing_rows, remarks
from distilens.report.table import Row, headline, measures

spec = importlib.util.spec_from_file_location("run_page", Path(__file__).with_name("test_page.py"))
assert spec is not None and spec.loader is not None
run_page = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run_page)
Parsed, fabricate, scores, predictions = run_page.Parsed, run_page.fabricate, run_page.scores, run_page.predictions
CLASSES = run_page.CLASSES


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = fabricate(tmp_path_factory.mktemp("runs") / "kd-run")
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def markup(whole: Path) -> str:
    return (whole / "report.html").read_text(encoding="utf-8")


def changed(folder: Path, **scores: object) -> Parsed:
    """The page of the run with other scores."""
    content = json.loads((folder / "scores.json").read_text()) | scores
    (folder / "scores.json").write_text(json.dumps(content))
    return Parsed(write_report(folder).read_text(encoding="utf-8"))


# --------------------------------------------------------------------------------------------------------- answers


def test_the_matrix_on_the_page_is_that_of_the_predictions(markup: str) -> None:
    test = predictions().test
    tables = re.findall(r'<table aria-labelledby="confusion-(\w+)">(.*?)</table>', markup, flags=re.DOTALL)
    assert [role for role, _ in tables] == ["teacher", "base", "student"]
    for role, table in tables:
        shown = [int(count) for count in re.findall(r"<td[^>]*>(\d+)</td>", table)]
        assert (
            shown == confusion_matrix(test.labels, test.predicted(role), labels=range(len(CLASSES))).flatten().tolist()
        )


def test_shades_go_with_the_share_of_the_class_and_can_be_read() -> None:
    (row, nothing) = matrix_rows([[1, 99, 0], [0, 0, 0]], ["a", "b"])
    assert [cell["level"] for cell in row["cells"]] == [1, 10, 0]
    assert [cell["hit"] for cell in row["cells"]] == [True, False, False]
    assert [cell["level"] for cell in nothing["cells"]] == [0, 0, 0]
    for ground, ink in shades():
        light, dark = sorted((luminance(bytes.fromhex(each[1:])) for each in (ground, ink)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_of_many_classes_the_page_shows_the_pairs_alone(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "run", count=2)
    models = scores()["models"]
    for model in models.values():
        model["confusion"]["matrix"] = None
    found = changed(folder, models=models)
    assert "Most often confused by the student" in found.text
    assert "Which classes are confused" not in found.text


def test_the_reliability_diagram_is_told_in_words() -> None:
    bins = [
        {"low": 0.8, "high": 1.0, "count": 40, "confidence": 0.93, "accuracy": 0.5},
        {"low": 0, "high": 0.2, "count": 0},
    ]
    chart = Parsed(reliability_chart("a", "<b>", bins, 0))
    assert "confidence 80 to 100 %: right 50 %, mean confidence 93 %, 40 images." in chart.text
    assert len(chart.with_tag("rect")) == 2
    assert reliability_chart("a", "t", [], 0) == ""


def test_errors_stand_with_their_picture_and_the_others_answers(whole: Path, markup: str) -> None:
    listed = scores()["errors"]
    table = re.search(r'<table class="scores errors".*?</table>', markup, flags=re.DOTALL)
    found = Parsed(table[0])
    assert len(found.with_tag("tr")) == 1 + len(listed)
    alternatives = [each["alt"] for each in found.with_tag("img")]
    assert alternatives == [f"Test image {one['name']}, labelled {one['label']}" for one in listed]
    assert all(f"{100 * one['confidence']:.1f} %" in found.text for one in listed)


def test_lost_or_foreign_pictures_leave_the_table(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "run", count=2)
    np.savez(folder / "errors.npz", index=np.array([99_999]), images=np.zeros((1, 8, 8, 3), dtype=np.uint8))
    assert "Most confident errors of the student" in changed(folder).text
    (folder / "errors.npz").unlink()
    assert "image " + str(scores()["errors"][0]["index"]) in changed(folder).text
    assert "It has no errors on the test split." in changed(folder, errors=[]).text
    assert "The errors were not recorded. Make them with distilens measure run." in changed(folder, errors=None).text


def test_a_run_of_an_earlier_version_says_what_measures_it(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "run", count=2)
    models = scores()["models"]
    for model in models.values():
        for key in ("confusion", "calibration", "temperature", "top5"):
            del model[key]
    found = changed(folder, models=models)
    assert "and the most confident errors yet. Make it with distilens measure run." in found.text


# ------------------------------------------------------------------------------------------------ the table's rows


@pytest.mark.parametrize(
    ("better", "low", "high", "winner", "words"),
    [
        ("higher", 0.01, 0.03, "student", "student better"),
        ("higher", -0.03, -0.01, "base", "base better"),
        ("lower", -0.03, -0.01, "student", "student better"),
        ("lower", 0.0, 0.03, None, "not significant"),
        ("", 0.01, 0.03, None, "not significant"),
        ("higher", None, None, None, ""),
    ],
)
def test_the_better_one_is_told_by_the_interval_of_the_difference(better, low, high, winner, words) -> None:
    row = Row("accuracy", {}, better, Estimate(0.02, low, high, 9), in_points=True)
    assert row.winner == winner
    value, about = row.difference
    assert value == "+2.0 points"
    assert words in about and ("better" in about) == (winner is not None)
    assert Row("cost", {}, "lower").difference == ("–", "")


def with_difference(low: float, high: float) -> dict:
    content = scores()
    content["models"]["student"]["more than base"] = {
        "test": {"mean": (low + high) / 2, "low": low, "high": high, "n": 1234}
    }
    return content


def test_what_the_images_do_not_settle_is_no_finding(tmp_path: Path) -> None:
    settled, open_ = with_difference(0.04, 0.08), with_difference(-0.01, 0.13)
    assert not headline(settled).endswith("on these images.")
    assert headline(open_).endswith(
        "above the same network trained without a teacher – a difference that is not significant on these images."
    )
    assert any(line.startswith("The student is right more often than the base") for line in remarks(settled))
    assert any(
        "The test split does not show" in line and "+6.0 points [−1.0 to +13.0]" in line for line in remarks(open_)
    )
    bold = {}
    for name, content in (("settled", settled), ("open", open_)):
        found = changed(fabricate(tmp_path / name, count=2), models=content["models"])
        bold[name] = [one for one in found.with_tag("td") if "better" in (one.get("class") or "").split()]
    # the maps' difference is settled in both
    assert (len(bold["settled"]), len(bold["open"])) == (2, 1)


def cells(content: dict, title: str) -> dict:
    return next(row.cells for row in measures(content) if row.title == title)


def test_maps_that_are_all_empty_are_said_not_dropped() -> None:
    content = scores()
    empty = {
        "similarity": None,
        "low": None,
        "high": None,
        "n": 200,
        "empty": 200,
        "energy_in_mask": None,
        "masks": True,
    }
    content["models"]["base"]["maps"]["gradcam"] = empty
    assert cells(content, "same places as the teacher (Grad-CAM)")["base"] == ("no map", "all 200 are empty")
    assert cells(content, "on the object (Grad-CAM)")["base"] == ("no map", "all 200 are empty")
    for role in ("teacher", "student"):
        content["models"][role]["maps"]["gradcam"] = dict(empty) | ({"empty": 3} if role == "student" else {})
    alike = cells(content, "same places as the teacher (Grad-CAM)")
    assert alike["student"] == ("no map", "of the teacher: all 200 are empty")
    assert alike["teacher"] == ("–", "")


def test_maps_that_are_never_there_for_both_models_are_said() -> None:
    content = scores()
    half = {"similarity": None, "low": None, "high": None, "n": 200, "energy_in_mask": 0.5, "masks": True}
    for role, count in (("teacher", 150), ("student", 50)):
        content["models"][role]["maps"]["gradcam"] = {**half, "empty": count}
    alike = cells(content, "same places as the teacher (Grad-CAM)")
    assert alike["student"] == ("no map", "there is no image for which both models have a map")


def test_a_temperature_without_labels_is_said_and_one_at_the_limit_too() -> None:
    known = {"value": 1.25, "n": 1200, "ece": {"value": 0.02}}
    models = {
        "teacher": {"temperature": {"value": None}},
        "base": {"temperature": known},
        "student": {"temperature": {**known, "at limit": True}},
    }
    assert dict(calibration_rows(models))["best temperature"] == [
        ("–", "no labelled image to fit it"),
        ("1.25", "fitted on 1,200 validation images"),
        ("1.25", "at the limit of the search: no best value found"),
    ]


@pytest.mark.parametrize(("count", "words"), [(999.94e9, "999.9 G"), (999.96e9, "1.0 T"), (2.5e12, "2.5 T")])
def test_large_numbers_are_short(count: float, words: str) -> None:
    assert humanised(count) == words


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-0.5, 0.7, "does not show which of student and base has the better error: they differ by +0.100 years"),
        (0.1, 0.7, "The student has a worse error than the base"),
        (-0.7, -0.1, "The student has a better error than the base"),
    ],
)
def test_errors_are_compared_in_their_unit(low: float, high: float, words: str) -> None:
    difference = Estimate((low + high) / 2, low, high, 90)
    assert words in compare_scores(difference, "test", Metric("error", "years", higher_is_better=False))


def test_grey_images_are_drawn_like_coloured_ones() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 1), dtype=np.uint8)
    arrays = {"index": np.array([7]), "labels": np.array([0])}
    drawn = [
        map_row({**arrays, "images": images}, 0, [], ["cat"], signed=False, differs=False)
        for images in (grey, grey.repeat(3, axis=3))
    ]
    assert drawn[0] == drawn[1]
    assert drawn[0]["label"] == "cat"


def test_rows_that_are_not_there_are_named_with_the_reason() -> None:
    content = scores()
    assert "label among the top five (there are 4 classes)" in describe_missing_rows(content)
    for model in content["models"].values():
        model["maps"]["gradcam"]["energy_in_mask"] = None
        model["agreement"] = None
    assert "on the object (the data do not say where" in describe_missing_rows(content)
    assert "same answer as the teacher (no teacher was measured)" in describe_missing_rows(content)
    content["models"]["base"]["calibration"]["not finite"] = 7
    assert "the base's likelihood and calibration for 7 images" in describe_missing_rows(content)
    assert describe_missing_rows({}) is None


def test_a_perfect_teacher_makes_two_rows_the_same() -> None:
    content = scores()
    content["models"]["teacher"]["test"]["accuracy"] = 1.0
    assert not any("both rows are equal" in line for line in remarks(content))
    for role in ("base", "student"):
        content["models"][role]["agreement"] = content["models"][role]["test"]
    assert any("both rows are equal" in line for line in remarks(content))


def test_a_busy_machine_is_said() -> None:
    calm, slow = ({"median": 3.0, "low": 2.9, "high": high, "batch": 1, "device": "cpu"} for high in (4.0, 109.0))
    assert not is_busy(calm) and is_busy(slow) and not is_busy(None)
    assert latency(slow)[1] == "[2.9 to 109], batch 1, cpu, this machine was busy"
    content = scores()
    content["models"]["student"]["latency_ms"] = slow
    assert any("busy while the latency of student was measured" in line for line in remarks(content))


def test_what_it_cost_stands_together() -> None:
    content = scores()
    content["models"]["student"]["latency_ms"] = {"median": 0.5}
    assert cost(content, {"teacher": 20, "base": 14.6, "student": 15, "measure": 9}) == (
        "training took 50 s in all; the student needs 3.5 times fewer parameters, 2.5 times less time than the teacher"
    )
    assert cost({}, {}) is None


def test_every_explainer_has_a_name() -> None:
    assert set(explain.EXPLAINERS.entries) <= set(EXPLAINERS)


# ---------------------------------------------------------------------------- once, nowhere on the machine, on paper


def test_each_picture_is_embedded_once_and_keeps_its_words(markup: str) -> None:
    uris = re.findall(r"data:image/[a-z]+;base64,[\w+/=]+", markup)
    assert len(uris) == len(set(uris)) > 20
    found = Parsed(markup)
    stored = {each["id"] for each in found.with_tag("image")}
    used = [each["href"].removeprefix("#") for each in found.with_tag("use")]
    assert set(used) == stored
    assert len(used) >= 2 * len(stored)  # two explainers show the same images
    assert all(each.get("aria-label") for each in found.with_tag("svg") if each.get("class", "").startswith("picture"))
    assert any(each.get("aria-label", "").startswith("Image 103, labelled") for each in found.with_tag("svg"))


PLACES = [
    ("folder:path=/home/me/my-pets,size=64", "folder:path=my-pets,size=64"),
    ("folder:/Users/me/pets", "folder:pets"),
    ('path = "/mnt/big/set v2/"', 'path = "set v2/"'),
    ("run:~/runs/demo,part=teacher", "run:demo,part=teacher"),
    (r"folder:path=C:\Users\me\pets", "folder:path=pets"),
    (
        "https://example.org/home/me and 3/4 images/s, train/cat",
        "https://example.org/home/me and 3/4 images/s, train/cat",
    ),
    ("the class /m/01g317", "the class /m/01g317"),
    ("</home>", "</home>"),
]


@pytest.mark.parametrize(("text", "shown"), PLACES)
def test_paths_are_shown_by_their_last_part(text: str, shown: str) -> None:
    assert without_places(text) == shown


def test_no_place_of_this_machine_is_on_the_page(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "run", count=2)
    place = tmp_path / "pets"
    place.mkdir()
    (folder / "recipe.toml").write_text(f'data = "folder:path={place},size=32"\n')
    (folder / "about.json").write_text(
        json.dumps({"seconds": {}, "from": str(place), "versions": {"distilens": "1.2"}})
    )
    content = scores()
    content["data"] |= {
        "name": f"folder:path={place}",
        "remarks": [f"the set is read inside of {place}/a/"],
        "note": str(place),
    }
    content["models"]["student"]["model"] = f"file:{place}/net.pt"
    page = changed(folder, **content)
    everything = (folder / "report.html").read_text(encoding="utf-8")
    assert str(tmp_path) not in everything
    assert "folder:path=pets" in page.text
    assert "pip install distilens==1.2" in page.text
    (link,) = (each for each in page.with_tag("a") if "download" in each)
    saved = base64.b64decode(link["href"].partition("base64,")[2]).decode()
    assert (link["download"], saved) == ("recipe.toml", 'data = "folder:path=pets,size=32"\n')


def test_files_are_named_where_images_are_files(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "run", count=2)
    path = folder / "maps" / "gradcam.npz"
    with np.load(path) as stored:
        arrays = dict(stored)
    np.savez(path, **arrays, names=np.array(["cat/one.jpg", "cat/two.jpg"]))
    found = changed(folder)
    assert "cat/one.jpg" in found.text
    assert any("map of the teacher on cat/one.jpg" in (each.get("alt") or "") for each in found.with_tag("img"))
    assert "Image 100" in found.text  # of the explainer whose file names none


def test_on_paper_nothing_is_hidden_or_cut(whole: Path, browser) -> None:
    view = browser.new_page(viewport={"width": 700, "height": 900})
    view.goto((whole / "report.html").as_uri())
    assert view.locator(".panel:visible").count() == 1
    shapes = view.evaluate(
        "[...document.querySelectorAll('svg.picture')].map(one => one.getBoundingClientRect()).filter(one => one.width)"
        ".map(one => [one.width, one.height])"
    )
    assert all(abs(width - height) < 1 < width for width, height in shapes)
    view.emulate_media(media="print")
    assert view.locator(".panel:visible").count() == 2
    cut = view.evaluate(
        "[...document.querySelectorAll('pre, .wide')].filter(one => getComputedStyle(one).overflowX != 'visible').length"
    )
    assert cut == 0
    assert view.evaluate("document.documentElement.scrollWidth") <= 700
    view.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert view.locator("details:not([open])").count() == 0
    view.evaluate("dispatchEvent(new Event('afterprint'))")


@pytest.mark.slow
def test_axe_finds_no_violation(whole: Path, browser) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    for scheme, width in (("light", 1280), ("dark", 400)):
        view = browser.new_context(
            color_scheme=scheme, viewport={"width": width, "height": 900}, bypass_csp=True
        ).new_page()
        view.goto((whole / "report.html").as_uri())
        view.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        found = axe.Axe().run(view).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []
