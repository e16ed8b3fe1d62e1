"""The GPU measurement, tried without a GPU: it goes through its parts, goes on where it was cut, and makes the page's section."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GPU = ROOT / "benchmarks" / "gpu.py"


@pytest.fixture
def parts(monkeypatch):
    """The modules of the measurement that need nothing but the standard library."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from gpu_parts import results, tables

    return results, tables


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(GPU), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200)


@pytest.mark.slow
def test_it_measures_what_is_missing_and_writes_each_row(parts, tmp_path):
    results, _ = parts
    file, kept = results.Results(tmp_path / "out/gpu.json"), {"images_per_second": -1}
    file.of_device("CPU, tiny sizes")
    file.put("data", "crop · 16", kept)
    file.put("data", "none · 16", {"cut": "the process ended in this row"})
    done = run("--device", "cpu", "--minutes", "1", "--only", "data", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = file.rows("data")
    assert rows.pop("crop · 16") == kept, "what was measured is not measured again"
    assert {"none · 16", "crop:mix=cutmix · 16"} <= rows.keys()
    assert all(row["images_per_second"] > 0 for row in rows.values())
    assert "Data on the device" in (tmp_path / "out/gpu.md").read_text()


@pytest.mark.slow
def test_it_goes_through_all_parts_in_a_tiny_form(tmp_path):
    done = run("--device", "cpu", "--minutes", "2", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    parts = json.loads((tmp_path / "out/gpu.json").read_text())["parts"]
    assert parts.keys() == {"card", "step", "data", "accuracy", "answers", "explainers", "combinations"}
    failed = {key: row for part in parts.values() for key, row in part["rows"].items() if "failed" in row}
    assert failed == {}
    assert parts["card"]["rows"]["matrix product"]["tflops"] >= 0
    assert any("share" in row for row in parts["step"]["rows"].values())


@pytest.mark.slow
def test_without_a_gpu_it_says_so(tmp_path):
    done = run("--minutes", "1", "--out", "out", cwd=tmp_path)
    assert done.returncode == 1
    assert "there is no GPU" in done.stderr


def test_rows_of_two_cards_are_not_mixed(parts, tmp_path):
    results, _ = parts
    file = results.Results(tmp_path / "gpu.json")
    file.of_device("one card")
    file.of_device("one card")
    with pytest.raises(SystemExit, match="one card, and this is another"):
        file.of_device("another")


def test_a_row_that_was_cut_or_failed_is_not_done(parts, tmp_path):
    results, _ = parts
    file = results.Results(tmp_path / "gpu.json")
    for key, row in {"a": {"rate": 1}, "b": {"cut": "killed"}, "c": {"failed": "no memory"}}.items():
        file.put("step", key, row)
    assert [file.is_done("step", key) for key in "abcd"] == [True, False, False, False]
    assert file.open_rows("step") == ["b"]


def test_the_table_of_combinations_is_paired_by_seed(parts):
    _, tables = parts
    rows = {
        f"seed {seed}": {
            "epochs": 16, "at_once": 6, "seconds": 1.0, "validation": {"student": 90.0, "KD": 91.0},
            "test": {"student": 90.0 + seed, "KD": 91.0 + seed},
        }
        for seed in range(3)
    }  # fmt: skip
    text = tables.combinations(rows)
    assert "| KD | 92.00 ± 2.48 | +1.00 ± 0.00 |" in text
    assert "3 seeds of 16 epochs" in text


def test_the_section_of_the_page_is_what_the_results_say(parts):
    _, tables = parts
    page = tables.PAGE.read_text(encoding="utf-8")
    there = page.partition(tables.BEGIN)[2].partition(tables.END)[0].strip()
    assert there == tables.section().strip(), "run: python benchmarks/gpu.py --section"


def test_the_section_says_what_was_not_measured(parts, tmp_path):
    _, tables = parts
    assert "Not measured" in tables.section(tmp_path)
    (tmp_path / "card").mkdir()
    row = {"images_per_second": 10, "floor": 12, "share": 0.83, "waits": {"file.py:3": 1.0}, "peak_gib": 0.5}
    content = {"device": "A card", "parts": {"step": {"rows": {"kd": row, "at": {"failed": "out of memory"}}}}}
    (tmp_path / "card/gpu.json").write_text(json.dumps(content))
    text = tables.section(tmp_path)
    assert "### A card" in text
    assert "| kd | 10 | 12 | 0.83 | – | 1 | 0.5 |" in text
    assert "Waits at: file.py:3." in text
    assert "- at: out of memory" in text
    assert "CIFAR-10 to accuracy: not measured." in text


LEAN = """
import sys

for name in ("timm", "datasets", "sklearn", "scipy", "tyro", "transformers", "captum", "matplotlib"):
    sys.modules[name] = None  # importing it is an error
import pyarrow
import pyarrow.parquet
import io
from pathlib import Path
import numpy as np
import torch
from PIL import Image

def encoded(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()

chance = np.random.default_rng(0)
images = [encoded(image) for image in chance.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)]
table = pyarrow.table({"img": images, "label": [number % 2 for number in range(40)]})
Path("set").mkdir()
pyarrow.parquet.write_table(table, "set/train.parquet")

import distilens
from distilens.explain import EXPLAINERS
from distilens.measure.transfer.distance_correlation import distance_correlation
from distilens.teachers import LiveTeacher, PermutedTeacher, StoredTeacher

data = distilens.load("parquet:path=set")
teacher = LiveTeacher(distilens.build_model("resnet8", data.classes, data.size))
stored = PermutedTeacher(StoredTeacher("answers", teacher), only="maps")
student, log = distilens.distill(
    "resnet8", stored, data, ["ce", "kd", "at", "ig_overlay:explainer=[ig:steps=2]"],
    settings={"epochs": 1, "batch_size": 16},
)
distilens.save_model(student, Path("student"))
maps = EXPLAINERS.build("gradcam")(student, student.example(2)).maps
assert maps.shape[0] == 2
features = torch.randn(16, 4)
assert float(distance_correlation(features, features)) > 0.9
print("trained")
"""


@pytest.mark.slow
def test_a_zoo_model_trains_on_parquet_without_what_it_does_not_need(tmp_path):
    """What the measurement imports on a machine that has little."""
    done = subprocess.run([sys.executable, "-c", LEAN], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "trained" in done.stdout


def test_the_bundle_says_what_it_wants(tmp_path):
    done = subprocess.run(["bash", str(ROOT / "benchmarks/gpu_bundle.sh"), str(tmp_path / "bundle"), str(tmp_path)],
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 2
    assert "no train.parquet and test.parquet in" in done.stderr
    assert not (tmp_path / "bundle").exists()
