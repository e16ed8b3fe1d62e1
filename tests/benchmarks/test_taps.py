"""The table of families in docs/taps.md: what it says of some of them is what is found."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "taps.md"


@pytest.fixture(scope="module")
def bench():
    pytest.importorskip("timm")
    pytest.importorskip("transformers")
    spec = importlib.util.spec_from_file_location("bench_taps", ROOT / "benchmarks" / "taps.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_taps"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["bench_taps"]


@pytest.mark.slow
def test_the_page_has_a_row_for_every_family(bench):
    assert list(bench.rows_in(PAGE.read_text())) == [name for name, _ in bench.all_models()]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        "torchvision:resnet18",
        "torchvision:vit_b_32",
        "torchvision:swin_t",
        "hf:Swin",
        "hf:Dinov2",
        "hf:Segformer",
        "timm:convnext_atto",
        "timm:hiera_tiny_224",
        "timm:levit_128s",
        "timm:mobilenetv3_small_050",
        "timm:vit_tiny_patch16_224",
        "timm:xcit_nano_12_p8_224",
    ],
)
def test_what_the_page_says_of_a_family_is_found_again(bench, name):
    make = dict(bench.all_models())[name]
    assert bench.row_of(name, make) == bench.rows_in(PAGE.read_text())[name]
