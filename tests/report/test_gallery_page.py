"""The page of a gallery: what it says, that it is safe and self-contained, and that a browser can use it."""

import dataclasses
import importlib.util
import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from distilens.report import charts, gallery_page
from distilens.report.gallery_page import Answers, Column, Content, Line, Row, brief, format_short, page_cell

spec = importlib.util.spec_from_file_location("run_page", Path(__file__).with_name("test_page.py"))
assert spec is not None and spec.loader is not None
run_page = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run_page)
Parsed, SCRIPT, note_foreign_request = run_page.Parsed, run_page.SCRIPT, run_page.note_foreign_request

FLOORS = ("random", "centre")


def content(count: int = 4, labels: tuple[str, ...] = ("gradcam", "ig"), *, side: int = 32) -> Content:
    """Numbers and noise; the first map of the first explainer is empty, the second image has no label, the third no mask."""
    generator = np.random.default_rng(0)
    masks = np.zeros((count, side, side), dtype=np.uint8)
    masks[:, side // 4 : side // 2, side // 4 : side // 2] = 255
    masks[2:3] = 0
    columns = []
    for label in (*labels, *FLOORS):
        maps = generator.normal(size=(count, 8, 8)).astype(np.float32)
        if label == labels[0]:
            maps[0] = 0
        columns.append(Column(label, f"{label}:{SCRIPT}", label.startswith("ig"), label in FLOORS, maps))
    shares = [0.0, 0.5, 1.0]
    return Content(
        model=f"net {SCRIPT}",
        facts=[("model", "net"), ("data", SCRIPT), ("images", "some")],
        remarks=["its weights are random"],
        findings=[f"{labels[0]} is above the floors", "ig is NOT above the floors"],
        measures=[
            Line(
                "insertion AUC",
                "↑",
                "higher is better",
                "what it is",
                {c.label: ("0.512", "[0.4 to 0.6]") for c in columns},
            ),
            Line("complexity", "", "", "what it is", {c.label: ("0.1", "") for c in columns}),
        ],
        columns=columns,
        curves={
            column.label: {"shares": shares, "insertion": [0.1, at / 20, 0.9], "deletion": [0.9, 0.2, 0.01]}
            for at, column in enumerate(columns)
        },
        images=generator.integers(0, 256, (count, side, side, 3), dtype=np.uint8),
        masks=masks,
        rows=[
            Row(100 + at, None if at == 1 else SCRIPT, "cat", "dog", "51.2 %", None if at == 1 else at % 2 == 0)
            for at in range(count)
        ],
    )


def test_images_that_are_files_are_named():
    named = content()
    rows = [dataclasses.replace(row, name=f"pets/{at}.jpg") for at, row in enumerate(named.rows)]
    page = gallery_page.page(dataclasses.replace(named, rows=rows, model="net from /home/me/runs/net"))
    assert "pets/0.jpg" in Parsed(page).text
    assert "of pets/1.jpg, strongest" in page
    assert "Image 100" not in page
    assert "/home/me" not in page
    assert "net from net" in page
    assert "pets/0.jpg" in gallery_page.notebook(dataclasses.replace(named, rows=rows))


def dense_content(*, targets: bool = True) -> Content:
    """The same of a segmentation: the explained places are a square; a tenth of the target is void, a quarter is wrong."""
    made = content()
    answers = np.zeros((4, 32, 32), dtype=np.uint8)
    answers[:, :, 16:] = 1
    truth = answers.copy()
    truth[:, 16:, 16:] = 2
    truth[:, :4] = 255
    names = (SCRIPT, "road", "a car with a long name", "never seen")
    return dataclasses.replace(made, dense=Answers(names, answers, truth if targets else None))


def test_a_segmentation_shows_its_classes_and_what_is_changed():
    page = Parsed(gallery_page.page(dense_content()))
    alternatives = [attributes["alt"] for attributes in page.with_tag("img")]
    assert sum(words.startswith("The target on image") for words in alternatives) == 4
    # 16 x 16 of the 28 x 32 places that are not void
    assert (
        sum(re.match("The predicted classes on image .*, 28.6 % wrong", words) is not None for words in alternatives)
        == 4
    )
    assert "The line on a map is the outline of the places that are explained." in page.text
    assert "Only pixels outside them are changed" in page.text
    assert "Line chart of confidence by other pixels put back (%)." in page.text
    assert "a car with a long name" in page.text and "never seen" not in page.text
    assert "evidence mask" not in page.text and "no mask" not in page.text
    assert not page.with_tag("script")
    alone = Parsed(gallery_page.page(dense_content(targets=False)))
    assert not any((image["alt"] or "").startswith("The target") for image in alone.with_tag("img"))
    assert "a car with a long name" not in alone.text
    assert "never seen" not in Parsed(gallery_page.notebook(dense_content())).text


@pytest.fixture(scope="module")
def markup() -> str:
    return gallery_page.page(content())


@pytest.fixture(scope="module")
def parsed(markup: str):
    return Parsed(markup)


@pytest.mark.parametrize(
    "words",
    [
        "ig is NOT above the floors",
        "its weights are random",
        "↑ higher is better",
        "floors: independent of the model",
        "Means over 4 images, with 95 % intervals",
        "0.512[0.4 to 0.6]",
        "no label",
        "no mask",
        "empty map",
        "✓ right",
        "✗ wrong",
        "explained: cat",
        "Signed maps (ig) are drawn by their absolute value, others by their positive part.",
        "The line is the outline of the evidence mask.",
        "Line chart of confidence by pixels put back (%).",
    ],
)
def test_the_page_says(parsed, words: str) -> None:
    assert words in parsed.text


def test_the_table_is_accessible_and_the_floors_stand_apart(parsed) -> None:
    heads = parsed.with_tag("th")
    assert [head["colspan"] for head in heads if head["scope"] == "colgroup"] == ["2", "2"]
    assert sum(head["scope"] == "row" for head in heads) == 2
    assert sum(head["scope"] == "col" for head in heads) == 1 + 4
    cells = [cell.get("class") for cell in parsed.with_tag("td")][1:]
    assert cells == [None, None, "floor edge", "floor"] * 2


def test_a_row_an_image_and_a_picture_an_explainer(parsed) -> None:
    rows = [attributes for attributes in parsed.with_tag("li") if "data-index" in attributes]
    assert [row["data-index"] for row in rows] == ["100", "101", "102", "103"]
    alternatives = [attributes["alt"] for attributes in parsed.with_tag("img")]
    assert len(alternatives) == 4 * 4 - 1 - 1  # image, mask, two maps; one mask and one map are not there
    assert sum("ig map of image" in words for words in alternatives) == 4
    assert not any("random map" in words for words in alternatives)


def test_names_are_text_never_markup(parsed) -> None:
    assert not parsed.with_tag("script")
    assert parsed.text.count(SCRIPT) >= 6
    assert not Parsed(gallery_page.notebook(content())).with_tag("script")


def test_nothing_is_loaded_from_elsewhere(markup: str, parsed) -> None:
    assert not re.search(r"https?:", markup)
    for _, attributes in parsed.elements:
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("data:", "#"))


def test_landmarks_headings_and_alternatives(parsed) -> None:
    tags = [tag for tag, _ in parsed.elements]
    assert all(tags.count(tag) == 1 for tag in ("h1", "main", "nav", "table"))
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(levels))
    assert all(attributes.get("alt") for attributes in parsed.with_tag("img"))
    identifiers = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    for _, attributes in parsed.elements:
        named = f"{attributes.get('aria-labelledby') or ''} {attributes.get('aria-describedby') or ''}"
        assert set(named.split()) <= set(identifiers)


@pytest.mark.slow
def test_the_page_stays_small() -> None:
    many = gallery_page.page(content(256, ("gradcam", "ig", "ig-2", "rise"), side=64))
    assert len(many.encode()) < 10_000_000


def test_more_images_than_fit_are_cut_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery_page, "PICTURE_BYTES", 60_000)
    cut = Parsed(gallery_page.page(content(30)))
    rows = [attributes for attributes in cut.with_tag("li") if "data-index" in attributes]
    assert 0 < len(rows) < 30
    assert f"The first {len(rows)} of 30 images are shown" in cut.text


def test_no_more_lines_are_drawn_than_can_be_told_apart() -> None:
    some = content(2, tuple("abcdefgh"))
    drawn = gallery_page.labels_to_chart(some)
    assert drawn == ["d", "e", "f", "g", "h", "centre"]  # the highest, and the best floor; in the order of the table
    assert len(drawn) == charts.COLOURS
    text = Parsed(gallery_page.page(some)).text
    assert (
        "The charts show d, e, f, g, h, centre: the explainers with the highest insertion AUC, and the best floor."
        in text
    )


def test_curves_have_linear_axes(markup: str) -> None:
    assert "log scale" not in markup


def test_only_floors_and_no_masks() -> None:
    some = content(2)
    some = dataclasses.replace(some, masks=None, columns=[column for column in some.columns if column.floor])
    page = Parsed(gallery_page.page(some))
    assert sum("random map" in (image["alt"] or "") for image in page.with_tag("img")) == 2
    assert "evidence mask" not in page.text


def test_a_notebook_shows_eight_images() -> None:
    shown = Parsed(gallery_page.notebook(content(12)))
    assert len(shown.with_tag("img")) == 8 * 3 - 1
    assert "The first 8 of 12 images" in shown.text
    assert {"html", "head", "style", "link"}.isdisjoint({tag for tag, _ in shown.elements})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0.000"),
        (0.51234, "0.512"),
        (0.0213, "0.021"),
        (0.00021, "0.00021"),
        (3.14159, "3.14"),
        (1234.5, "1,234"),
    ],
)
def test_numbers(value, text) -> None:
    assert format_short(value) == text


def test_cells() -> None:
    entry = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 8, "empty": 0}
    assert brief(entry, as_percent=False) == "0.500 ±0.100"
    assert brief(entry, as_percent=True) == "50.0 ±10.0 %"
    assert brief(None, as_percent=True) == "–"
    assert page_cell(entry, True) == ("50.0 %", "[40.0 to 60.0]")
    assert page_cell(entry | {"empty": 2}, False) == ("0.500", "[0.400 to 0.600], n = 8")
    assert page_cell(entry | {"low": None, "high": None}, False) == ("0.500", "")


@pytest.mark.parametrize(
    ("kind", "scheme"),
    [("classes", "light"), ("places", "light"), pytest.param("classes", "dark", marks=pytest.mark.slow)],
)
def test_a_browser_shows_the_page(markup: str, tmp_path: Path, kind: str, scheme: str, browser) -> None:
    path = tmp_path / "index.html"
    path.write_text(markup if kind == "classes" else gallery_page.page(dense_content()), encoding="utf-8")
    complaints: list[str] = []
    context = browser.new_context(color_scheme=scheme, java_script_enabled=True)
    view = context.new_page()
    view.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    view.on("pageerror", lambda error: complaints.append(str(error)))
    view.on("request", lambda request: note_foreign_request(complaints, request))
    view.goto(path.as_uri())
    for width in (390, 1280):
        view.set_viewport_size({"width": width, "height": 900})
        assert view.evaluate("document.documentElement.scrollWidth") <= width
        widths = view.evaluate("[...document.querySelectorAll('.pictures img')].map(image => image.clientWidth)")
        assert min(widths) >= 80
    ground, ink = view.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        ".map(colour => colour.match(/\\d+/g).map(Number).reduce((sum, part) => sum + part))"
    )
    assert (ground > ink) == (scheme == "light")
    broken = view.evaluate("[...document.images].filter(image => image.complete && !image.naturalWidth).length")
    assert broken == 0
    assert complaints == []
