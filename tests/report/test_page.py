"""The page of a run: what it says, that it is safe and self-contained, and that a browser can use it."""

import copy
import functools
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from distilens.foundation.errors import UserError
from distilens.measure.answers import errors_of, score_answers
from distilens.measure.predictions import Predictions, SplitPredictions
from distilens.report import charts, page, pictures, table, write_report
from distilens.report.cells import NOTHING
from distilens.report.remarks import remarks
from distilens.tasks import as_task

SCRIPT = "<script>alert(1)</script>"
CLASSES = ["cat", "dog & wolf", SCRIPT, "ship"]


class Parsed(HTMLParser):
    """The elements of a page with their attributes, the text outside style and script, and the scripts."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.inside = ""
        self.feed(markup)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts.append(data)
        elif self.inside != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def with_tag(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def model(accuracy: float, parameters: int, *, similarity: float | None, agreement: float | None) -> dict:
    def share(value: float, count: int) -> dict:
        return {"accuracy": value, "n": count, "low": value - 0.02, "high": value + 0.02}

    return {
        "model": "resnet20",
        "validation": share(accuracy + 0.01, 5000),
        "test": share(accuracy, 1234),
        "agreement": None if agreement is None else share(agreement, 1234),
        "maps": {
            "gradcam": {
                "similarity": similarity,
                "low": None if similarity is None else similarity - 0.01,
                "high": None if similarity is None else similarity + 0.01,
                "n": 200,
                "empty": 3,
                "energy_in_mask": 0.61,
            }
        },
        "parameters": parameters,
        "macs": 12_345_678,
        "latency_ms": {"median": 1.234, "low": 1.1, "high": 1.4, "batch": 1, "device": "cpu"},
    }


def scores(student: float = 0.712, base: float = 0.651) -> dict:
    paired = {"mean": 0.12, "low": 0.1, "high": 0.14, "n": 197, "empty": 3}
    found = {
        "data": {"name": "cifar10", "classes": CLASSES, "train": 45000, "validation": 5000, "test": 10000},
        "models": {
            "teacher": model(0.915, 272_474, similarity=None, agreement=None),
            "base": model(base, 77_850, similarity=0.71, agreement=0.64),
            "student": model(student, 77_850, similarity=0.83, agreement=0.73),
        },
    }
    found["models"]["student"]["maps"]["gradcam"]["more_than_base"] = paired
    for role, answers in scored_answers().items():
        found["models"][role] |= {key: answers[key] for key in ("confusion", "calibration", "temperature", "top5")}
    return found | {"errors": copy.deepcopy(errors_of(predictions()))}


@functools.cache
def predictions() -> Predictions:
    """Answers of three models, drawn: the teacher's are mostly right."""

    def split(count: int, seed: int) -> SplitPredictions:
        random = np.random.default_rng(seed)
        labels = random.integers(0, len(CLASSES), count)
        right = 3 * np.eye(len(CLASSES))[labels]
        roles = {"teacher": 2.0, "base": 0.4, "student": 0.8}
        logits = {
            role: (share * right + random.normal(size=right.shape)).astype(np.float32) for role, share in roles.items()
        }
        return SplitPredictions(labels, np.arange(count), logits, None, count)

    return Predictions(as_task(CLASSES), split(60, 0), split(40, 1))


@functools.cache
def scored_answers() -> dict[str, dict]:
    return score_answers(predictions())


def write_maps(path: Path, count: int, *, masks: bool, grid: int, seed: int = 0) -> None:
    """Maps of three models on random images: on every fourth the models disagree; the student's first map is empty."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, len(CLASSES), count)
    arrays = {
        "index": np.arange(100, 100 + count),
        "images": np.random.default_rng(7).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8),
        "labels": np.where(np.arange(count) == 1, -1, labels),
        "targets": labels,
    }
    if masks:
        arrays["masks"] = np.zeros((count, 32, 32), dtype=np.uint8)
        arrays["masks"][1:, 8:20, 10:26] = 1
    for role in ("teacher", "base", "student"):
        values = generator.normal(size=(count, grid, grid)).astype(np.float32)
        values[0] = values[0] if role != "student" else 0.0
        differs = (np.arange(count) % 4 == 3) & (role == "base")
        arrays[f"maps_{role}"] = values
        arrays[f"prediction_{role}"] = np.where(differs, (labels + 1) % len(CLASSES), labels)
        arrays[f"confidence_{role}"] = np.full(count, 0.876, dtype=np.float32)
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **arrays)


def write_log(path: Path) -> None:
    lines = []
    for stage in ("teacher", "base", "student"):
        for step in range(0, 2000, 50):
            terms = {"ce": 2 * math.exp(-step / 900) + 0.1}
            if stage == "student":
                terms |= {"kd": 30 * math.exp(-step / 500) + 1, "map_match": 0.4 * math.exp(-step / 700) + 0.05}
            row = {"stage": stage, "epoch": step // 200, "step": step, "terms": terms, "loss": sum(terms.values())}
            lines.append(row | {"learning_rate": 0.1, "images_per_second": 900})
        for epoch in range(10):
            accuracy = {"teacher": 0.92, "base": 0.66, "student": 0.72}[stage] - 0.5 * math.exp(-epoch / 2)
            validation = {"accuracy": accuracy, "loss": 1.0}
            lines.append({"stage": stage, "epoch": epoch, "step": 200 * (epoch + 1), "validation": validation})
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")


def fabricate(folder: Path, *, count: int = 8) -> Path:
    """A complete run folder made of numbers and noise."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.toml").write_text('# <b>bold</b>\nteacher = "resnet20"\nstudent = "resnet8"\n')
    about = {
        "machine": "2-core Xeon",
        "seconds": {"teacher": 95, "student": 4000.0},
        "versions": {"torch": "2.9", SCRIPT: "1"},
        "seeds": {"data and weights": 0, "variants": 0},
        "git": None,
        "fingerprints": [{"teacher": "3f2a"}],
    }
    (folder / "about.json").write_text(json.dumps(about))
    (folder / "scores.json").write_text(json.dumps(scores()))
    index = np.array([one["index"] for one in scores()["errors"]])
    drawn = np.random.default_rng(2).integers(0, 256, (len(index), 32, 32, 3), dtype=np.uint8)
    np.savez(folder / "errors.npz", index=index, images=drawn)
    write_log(folder / "metrics.jsonl")
    write_maps(folder / "maps" / "gradcam.npz", count, masks=True, grid=8)
    write_maps(folder / "maps" / "ig.npz", count, masks=True, grid=32, seed=1)
    return folder


def parsed(folder: Path) -> Parsed:
    return Parsed(write_report(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = fabricate(tmp_path_factory.mktemp("runs") / "kd-run")
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def whole_page(whole: Path) -> Parsed:
    return Parsed((whole / "report.html").read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------------------ what it says


@pytest.mark.parametrize(
    "words",
    [
        "The student (77,850 parameters, 3.5 times fewer than the teacher) reaches 71.2 % on the test split, "
        "6.1 points above the same network trained without a teacher.",
        "71.2 %[69.2 to 73.2], n = 1,234",
        "0.830[0.820 to 0.840], n = 200, 3 empty",
        "61.0 %n = 200",
        "77.9 k",
        "12.3 M",
        "1.23 ms[1.1 to 1.4], batch 1, cpu",
        "One seed; the interval is over test images, not over seeds.",
        "base is the control: the same student, seed and schedule, trained without a teacher.",
        "The student's Grad-CAM maps are more like the teacher's than the base's are: the cosine differs by +0.120 [+0.100 to "
        "+0.140], n = 197 on the same images.",
        "cifar10, 4 classes",
        "train 45,000, validation 5,000, test 10,000",
        "teacher 1 min 35 s, student 1 h 7 min",
        "distilens run recipe.toml --out kd-run",
        'teacher = "resnet20"',
        "3f2a",
        "On 2 of 8 images teacher, base, student do not predict the same class; these come first.",
        "Signed maps are drawn by their absolute value",
        "Maps are drawn by their positive part",
        "dog & wolf",
        "87.6 %",
        "no label",
        "no mask",
    ],
)
def test_the_page_says(whole_page: Parsed, words: str) -> None:
    assert words in whole_page.text


@pytest.mark.parametrize(
    ("student", "base", "words"),
    [
        (
            0.712,
            0.651,
            "reaches 71.2 % on the test split, 6.1 points above the same network trained without a teacher.",
        ),
        (
            0.600,
            0.651,
            "reaches 60.0 % on the test split, 5.1 points below the same network trained without a teacher.",
        ),
        (0.6513, 0.651, "the same as the same network trained without a teacher (to 0.1 points)."),
    ],
)
def test_headline_compares_with_the_control(student: float, base: float, words: str) -> None:
    assert table.headline(scores(student, base)).endswith(words)


def test_headline_says_less_when_less_is_known() -> None:
    content = scores()
    del content["models"]["base"]
    content["models"]["student"]["test"] = None
    content["models"]["teacher"]["parameters"] = 50_000
    assert table.headline(content) == (
        "The student (77,850 parameters, 1.6 times more than the teacher) reaches 72.2 % on the validation split; "
        "the same network without a teacher has not been measured."
    )
    assert table.headline({"models": {"teacher": content["models"]["teacher"]}}) == "No student has been measured yet."


def test_overlapping_intervals_are_pointed_out() -> None:
    assert any("overlap" in remark for remark in remarks(scores(0.66, 0.65)))
    assert not any("overlap" in remark for remark in remarks(scores(0.75, 0.65)))


def test_table_has_one_row_per_model_and_a_cell_per_column() -> None:
    header, lines = table.rows(scores())
    assert [line[0] for line in lines] == ["teacher", "base", "student"]
    assert {len(line) for line in lines} == {len(header)}
    student = dict(zip(header, lines[2], strict=True))
    assert student["accuracy, test ↑"] == "71.2 % [69.2 to 73.2], n = 1,234"
    assert student["same places as the teacher (Grad-CAM) ↑"] == "0.830 [0.820 to 0.840], n = 200, 3 empty"
    assert dict(zip(header, lines[0], strict=True))["same answer as the teacher, test ↑"] == NOTHING


def test_table_of_nothing_is_empty() -> None:
    assert table.rows({})[1] == []


def test_rows_on_which_the_models_disagree_come_first(whole_page: Parsed) -> None:
    rows = [attributes for attributes in whole_page.with_tag("li") if "data-index" in attributes]
    assert [row["data-index"] for row in rows[:8]] == ["103", "107", "100", "101", "102", "104", "105", "106"]
    assert ["data-differs" in row for row in rows] == [True] * 2 + [False] * 6 + [True] * 2 + [False] * 6


def test_an_empty_map_is_said_not_drawn(whole_page: Parsed) -> None:
    assert re.findall(r"empty map(?! is)", whole_page.text) == ["empty map"] * 2
    assert "An empty map is nowhere above zero: it marks no place." in whole_page.text
    assert "An empty map is zero everywhere: it marks no place." in whole_page.text
    alternatives = [attributes["alt"] or "" for attributes in whole_page.with_tag("img")]
    assert not any("map of the student on image 100" in words for words in alternatives)
    assert any("Grad-CAM map of the teacher on image 100" in words for words in alternatives)


def test_right_and_wrong_are_told_by_words_and_marks(whole_page: Parsed) -> None:
    # Two explainers, 8 images of which one has no label; the base is wrong on two of them. And the surest errors.
    told = [right for one in scores()["errors"] for role, right in one["right"].items() if role != "student"]
    assert whole_page.text.count("✗ wrong") == 2 * 2 + told.count(False)
    assert whole_page.text.count("✓ right") == 2 * (7 * 3 - 2) + told.count(True)


def test_charts_have_titles_descriptions_and_every_stage(whole_page: Parsed) -> None:
    identifiers = {attributes.get("id") for _, attributes in whole_page.elements}
    drawn = [attributes for attributes in whole_page.with_tag("svg") if "chart" in (attributes.get("class") or "")]
    assert len(drawn) == 7
    for chart in drawn:
        assert chart["role"] == "img"
        assert set((chart["aria-labelledby"] or "").split()) <= identifiers
    assert "student: 22 % at epoch 1, 71.4 % at epoch 10." in whole_page.text
    assert "kd: 31 at step 0" in whole_page.text


# -------------------------------------------------------------------------------------------- safe, self-contained


def test_names_are_text_never_markup(whole_page: Parsed) -> None:
    assert SCRIPT in whole_page.text
    assert not any("alert" in script for script in whole_page.scripts)
    assert len(whole_page.with_tag("script")) == 1
    assert "<b>bold</b>" in whole_page.text


def test_names_in_charts_are_escaped() -> None:
    chart = charts.line_chart("a", SCRIPT, [charts.Series(SCRIPT, [0, 1], [1, 2])], x_label=SCRIPT, y_label=SCRIPT)
    assert "<script" not in chart
    assert Parsed(chart).text.count(SCRIPT) >= 4


def test_nothing_is_loaded_from_elsewhere(whole: Path, whole_page: Parsed) -> None:
    assert not re.search(r"https?:", (whole / "report.html").read_text(encoding="utf-8"))
    for _, attributes in whole_page.elements:
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("data:", "#"))


def test_landmarks_headings_and_alternatives(whole_page: Parsed) -> None:
    tags = [tag for tag, _ in whole_page.elements]
    assert whole_page.with_tag("html")[0]["lang"] == "en"
    assert all(tags.count(tag) == 1 for tag in ("h1", "main", "nav"))
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(levels))
    assert all(attributes.get("alt") for attributes in whole_page.with_tag("img"))
    identifiers = [attributes["id"] for _, attributes in whole_page.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))


@pytest.mark.slow
def test_64_images_with_two_explainers_stay_under_10_mb(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "run", count=64)
    path = write_report(folder)
    assert path.stat().st_size < 10_000_000
    assert Parsed(path.read_text(encoding="utf-8")).text.count("On 16 of 64 images") == 2


def test_more_pictures_than_fit_are_cut_and_said(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "PICTURE_BYTES", 200_000)
    (panel, _) = page.explanations(whole)["panels"]
    assert 0 < panel["shown"] < panel["count"] == 8


def test_reporting_does_not_import_torch(whole: Path) -> None:
    command = "import sys; from pathlib import Path; from distilens.report import write_report; "
    command += "write_report(Path(sys.argv[1])); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", command, str(whole)], check=True)


# ------------------------------------------------------------------------------------------------ what is missing


def test_an_empty_folder_says_which_commands_fill_it(tmp_path: Path) -> None:
    folder = tmp_path / "my run"
    folder.mkdir()
    text = parsed(folder).text
    assert "distilens measure 'my run'" in text
    assert "distilens explain 'my run'" in text
    assert str(tmp_path) not in text
    assert "distilens run recipe.toml --out 'my run'" in text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("scores.json", "distilens measure"),
        ("metrics.jsonl", "This run has no log."),
        ("maps", "distilens explain"),
        ("recipe.toml", "This run has no recipe."),
        ("about.json", "Nothing is recorded"),
    ],
)
def test_one_missing_file_leaves_the_rest(tmp_path: Path, name: str, words: str) -> None:
    folder = fabricate(tmp_path / "run", count=2)
    shutil.rmtree(folder / name) if name == "maps" else (folder / name).unlink()
    page_without = parsed(folder)
    assert words in page_without.text
    assert sum(attributes.get("class") == "missing" for attributes in page_without.with_tag("p")) == 1


def test_damaged_files_are_named_with_the_command_that_mends_them(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "run", count=2)
    (folder / "scores.json").write_text('{"models": ')
    whole_maps = (folder / "maps" / "ig.npz").read_bytes()
    (folder / "maps" / "ig.npz").write_bytes(whole_maps[: len(whole_maps) // 2])
    text = parsed(folder).text
    assert "scores.json cannot be read" in text
    assert "ig.npz cannot be read" in text
    assert "distilens explain run" in text


def test_what_went_wrong_stands_on_top(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "run", count=2)
    assert 'class="concerns"' not in write_report(folder).read_text()
    rows = [{"stage": "base", "epoch": e, "step": e, "terms": {"ce": 17.0 + e}, "loss": 17.0 + e} for e in range(3)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    page = write_report(folder).read_text()
    box = page[page.index('class="concerns"') :]
    assert "did not fall: it ends above its start (ce 17 → 19)" in box
    assert page.index('class="lead"') < page.index('class="concerns"') < page.index('class="scores')


def test_a_truncated_log_line_is_counted_not_fatal(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "run", count=2)
    with (folder / "metrics.jsonl").open("a") as log:
        log.write('{"stage": "student", "epo')
    read = parsed(folder)
    assert "1 line of the log could not be read" in read.text
    assert "Loss of the student by step" in read.text


def test_lines_of_the_log_that_are_not_rows_are_counted(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    row = {"stage": "base", "step": 1, "terms": {"ce": 1.0}}
    log.write_text("\n".join([json.dumps(row), "", "  ", "[1, 2]", '{"step": 2}', '{"stage": 3}', '{"stage"']))
    assert page.read_records(log) == ([row], 4), "blank lines are not damage"


def test_the_sign_that_is_stored_counts_more_than_the_name(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "run", count=2)
    for name, signed in (("gradcam", True), ("ig", False)):
        path = folder / "maps" / f"{name}.npz"
        with np.load(path) as stored:
            arrays = dict(stored)
        np.savez(path, **arrays, signed=np.array(signed))
    assert [panel["signed"] for panel in page.explanations(folder)["panels"]] == [True, False]


def test_a_diverged_run_still_has_its_page(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "run", count=2)
    rows = [{"stage": "student", "step": step, "terms": {"ce": math.nan}, "loss": math.nan} for step in range(3)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert "The log has no numbers yet." in parsed(folder).text


def test_a_run_without_labels_masks_or_base(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "maps").mkdir(parents=True)
    images = np.zeros((2, 20, 40, 3), dtype=np.uint8)
    maps = np.ones((2, 4, 8), dtype=np.float32)
    np.savez(folder / "maps" / "ig.npz", index=np.arange(2), images=images, maps_student=maps)
    text = parsed(folder).text
    assert text.count("flat map") == 2
    assert "do not predict" not in text


def test_no_such_folder_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run folder at .*absent. Make one with: distilens run"):
        write_report(tmp_path / "absent")


def test_the_page_is_replaced_whole_or_not_at_all(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (whole / "report.html").read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            write_report(whole)
    assert (whole / "report.html").read_bytes() == before
    names = {path.name for path in whole.iterdir()}
    assert names == {"recipe.toml", "about.json", "scores.json", "metrics.jsonl", "maps", "errors.npz", "report.html"}


# ---------------------------------------------------------------------------------------------- pictures and charts


def test_maps_are_stretched_after_their_sign_is_settled() -> None:
    values = np.array([[-4.0, 0.0], [1.0, 2.0]])
    np.testing.assert_allclose(pictures.normalise_map(values, signed=False), [[0, 0], [0.5, 1]])
    np.testing.assert_allclose(pictures.normalise_map(values, signed=True), [[1, 0], [0.25, 0.5]])


@pytest.mark.parametrize(
    ("values", "words"),
    [(0.0, "empty map"), (-1.0, "empty map"), (3.0, "flat map"), (math.nan, "map is not finite")],
)
def test_maps_without_content_are_named(values: float, words: str) -> None:
    assert pictures.normalise_map(np.full((3, 3), values), signed=False) == words


@pytest.mark.parametrize(("shape", "larger"), [((32, 32), (160, 160)), ((20, 40), (80, 160)), ((300, 600), (80, 160))])
def test_images_are_brought_to_one_size(shape: tuple[int, int], larger: tuple[int, int]) -> None:
    assert pictures.enlarge(np.zeros((*shape, 3), dtype=np.uint8)).shape[:2] == larger


def test_enlarging_keeps_every_pixel_a_square() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(pictures.enlarge(image)[2::5, 2::5], image)


def test_the_colour_table_gets_steadily_lighter() -> None:
    luminance = pictures.TABLE @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(luminance) > -0.5).all()
    assert luminance[-1] - luminance[0] > 150


@pytest.mark.parametrize(
    ("row", "column", "place"), [(0, 0, "upper left"), (4, 4, "centre"), (8, 4, "lower centre"), (4, 8, "middle right")]
)
def test_the_strongest_place_in_words(row: int, column: int, place: str) -> None:
    values = np.zeros((9, 9))
    values[row, column] = 1
    assert pictures.strongest_place(values) == place


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.21, 0.93), (3, 3), (0, 0), (-5, 7), (0, 199), (1e-9, 2e-9)])
def test_ticks_enclose_the_values(low: float, high: float) -> None:
    found = charts.ticks(low, high)
    assert found[0] <= low + 1e-12 and found[-1] >= high - 1e-12
    assert 2 <= len(found) <= 9


def test_long_lines_are_thinned_to_means_and_gaps_stay_gaps() -> None:
    line = charts.Series("ce", list(range(1200)), [1.0, 3.0] * 600)
    thinned = charts.thin_line(line)
    assert len(thinned.x) == charts.MOST_POINTS
    assert set(thinned.y) == {2.0}
    gapped = charts.Series("ce", [0, 1, 2, 3, 4], [1.0, 2.0, math.nan, 2.0, 1.0])
    chart = charts.line_chart("a", "t", [gapped], x_label="step", y_label="loss")
    assert "nan" not in chart
    assert chart.count("<polyline") == 2 + 1  # two pieces, and the legend's sample


# ------------------------------------------------------------------------------------------------------ a browser


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_a_browser_shows_the_page(whole: Path, scheme: str, browser) -> None:
    complaints: list[str] = []
    view = browser.new_page(color_scheme=scheme)
    view.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    view.on("pageerror", lambda error: complaints.append(str(error)))
    view.on("request", functools.partial(note_foreign_request, complaints))
    view.goto((whole / "report.html").as_uri())
    for width in (400, 1280):
        view.set_viewport_size({"width": width, "height": 900})
        for name in ("Grad-CAM", "Integrated Gradients"):
            view.get_by_role("radio", name=name, exact=True).check()
            shown = [panel.inner_text().split("\n")[0] for panel in view.locator(".panel:visible").all()]
            assert shown == [name]
            assert view.evaluate("document.documentElement.scrollWidth") <= width
    broken = view.evaluate("[...document.images].filter(image => image.complete && !image.naturalWidth).length")
    assert broken == 0
    assert complaints == []


def note_foreign_request(complaints: list[str], request: object) -> None:
    address = str(getattr(request, "url", ""))
    if not address.startswith(("file:", "data:")):
        complaints.append(f"request to {address}")
