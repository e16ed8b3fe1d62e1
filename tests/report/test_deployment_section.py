"""The page's Deployment section: what was exported, what was refused and why, what it costs."""

import json

import pytest

from distilens.report import write_report
from distilens.report.deployment_section import section

HOSTILE = "<script>alert(1)</script>"


def estimate(name: str, value: float) -> dict:
    return {name: value, "n": 200, "low": value - 0.02, "high": value + 0.02}


def entry(file: str, precision: str, refused: str | None = None) -> dict:
    answers = {
        "n": 200,
        "largest": 0.012,
        "mean": 0.001,
        "same top-1": estimate("share", 0.97),
        "metric": "accuracy",
        "student": estimate("accuracy", 0.8),
        "file": estimate("accuracy", 0.79),
        "apart": estimate("mean", -0.01),
    }
    alike = {"cosine": estimate("mean", 0.95), "rank correlation": estimate("mean", 0.93)}
    maps = {
        "n": 32,
        "explainers": {"occlusion": {**alike, "insertion": estimate("mean", 0.6)}},
        "floors": {"random": estimate("mean", 0.4)},
    }
    about = {"file": file, "format": "onnx", "precision": precision, "bytes": 123_456, "batch": None}
    return {**about, "finetuned": 5, "refused": refused, "answers": {"test": answers}, "maps": maps}


def exported() -> dict:
    refused = f"INT8 loses 3.00 points of accuracy {HOSTILE}"
    files = [entry("student.onnx", "float32"), entry("student-int8.onnx", "int8", refused)]
    return {
        "kind": "distilens exports 1",
        "student": {"fingerprint": "f00"},
        "data": "pets",
        "tolerance": 0.5,
        "files": files,
    }


def bench() -> dict:
    row = {"name": "student.onnx", "runtime": "ONNX Runtime", "fingerprint": "f00", "threads": 1, "batch": 64}
    return {"rows": [{**row, "median": 1.25, "p95": 2.5, "images_per_second": 51_200.0, "memory": 2e6}]}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (folder / "export").mkdir(parents=True)
    write(folder, exported(), bench())
    return folder


def write(folder, made, measured=None):
    (folder / "export" / "export.json").write_text(json.dumps(made))
    (folder / "export" / "bench.json").write_text(json.dumps(measured))


def page(folder) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def test_the_page_shows_files_reasons_maps_and_latency(run):
    text = page(run)
    assert '<a href="#deployment">Deployment</a>' in text
    for cell in ("123.5 kB", "97.0 %", "79.0 %", "−1.00 [−3.00 to 1.00] points", "1.25", "51,200", "2.00 MB"):
        assert f"<td>{cell}</td>" in text
    assert '<th scope="row">student-int8.onnx (not kept)</th>' in text
    assert "<li>student-int8.onnx is not kept: INT8 loses 3.00 points of accuracy &lt;script&gt;" in text
    assert HOSTILE not in text
    assert "0.950 [0.930 to 0.970], n = 200" in text


def test_without_an_export_the_page_names_the_command(tmp_path):
    folder = tmp_path / "my run"
    folder.mkdir()
    assert section(folder) == {"missing": {"problem": None, "command": "distilens export 'my run'"}}
    model = {"model": "resnet8", "test": estimate("accuracy", 0.8)}
    (folder / "scores.json").write_text(json.dumps({"data": {}, "models": {"student": model}}))
    text = page(folder)
    assert "<code>distilens export &#39;my run&#39;</code>" in text
    assert "#deployment" not in text


@pytest.mark.parametrize(
    "made", [{"files": 3}, {"files": [{}]}, {"files": [{"file": "a", "answers": [], "bytes": 1}]}, {}]
)
def test_a_foreign_export_is_named(run, made):
    write(run, made)
    assert "export.json does not hold an export of this version" in page(run)


def test_a_damaged_export_is_named(run):
    (run / "export" / "export.json").write_text('{"files": ')
    text = page(run)
    assert "export.json cannot be read" in text
    assert "<code>distilens export run</code>" in text


@pytest.mark.parametrize(
    "measured", [{"rows": [{}]}, {"rows": 1}, {"rows": [{**bench()["rows"][0], "median": "x"}]}, {}]
)
def test_a_foreign_bench_leaves_the_files(run, measured):
    write(run, exported(), measured)
    text = page(run)
    assert "bench.json does not hold measurements of this version" in text
    assert "<code>distilens bench run</code>" in text
    assert "97.0 %" in text


def test_measurements_of_another_student_are_not_shown(run):
    write(run, {**exported(), "student": {"fingerprint": "new"}}, bench())
    text = page(run)
    assert "bench.json was measured with another student" in text
    assert "51,200" not in text


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_a_browser_shows_the_section_without_scripts(run, scheme, browser):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    page(run)
    context = browser.new_context(
        color_scheme=scheme, java_script_enabled=False, viewport={"width": 400, "height": 900}
    )
    view = context.new_page()
    view.goto((run / "report.html").as_uri())
    assert view.get_by_role("region", name="Table of exported files").is_visible()
    assert view.get_by_role("region", name="Table of latency").is_visible()
    context.close()
    view = browser.new_page(color_scheme=scheme, viewport={"width": 400, "height": 900})
    view.goto((run / "report.html").as_uri())
    assert view.evaluate("document.documentElement.scrollWidth") <= 400
    found = axe.Axe().run(view)
    assert found.response["violations"] == [], found.generate_report()
    view.close()
