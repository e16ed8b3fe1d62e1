"""Do the default settings train networks of every kind? Twelve networks on three data sets, two seeds each, nothing set.

    python benchmarks/defaults.py [--out benchmarks/results]   # goes on with the rows that are missing
    python benchmarks/defaults.py --section                          # writes the table of docs/results.md

Each network is trained from random weights with labels alone (`ce`), for the default 10 epochs, or for as many as a budget
of operations allows (at least 3), so that a training takes a minute or so on a processor. A row passes if no loss is NaN, the
mean loss of the last epoch is below that of the first steps, and the 95 % interval of the test accuracy, both seeds together,
lies above chance.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

import distilens
from distilens.core import Model
from distilens.data import Data
from distilens.data.pipeline import Batches
from distilens.measure.accuracies import predict
from distilens.measure.cost import macs
from distilens.training.defaults import in_words, kind_of_model, settled

DATA = Path(__file__).parents[2] / "shared" / "data"
SETS = {  # notation, and the side that a network with a fixed input size is built for
    "cats_dogs": (f"parquet:path={DATA / 'cats_dogs'},size=96,limit=1000", 96),
    "tiny_imagenet_32": (f"parquet:path={DATA / 'tiny_imagenet_32'},classes=[0,1,2,3,4,5,6,7,8,9]", 32),
    "digits": ("digits", 32),
}
SEEDS = (0, 1)
BUDGET = 4e11
"""Multiply-accumulates of a training."""
PAGE = Path(__file__).parents[1] / "docs" / "results.md"
BEGIN, END = "<!-- made by benchmarks/defaults.py --section: begin -->", "<!-- end of defaults -->"


class PlainCNN(nn.Sequential):
    """What a user writes: three convolutions with ReLU and pooling, no normalisation."""

    def __init__(self, classes: int):
        parts: list[nn.Module] = []
        for before, after in ((3, 32), (32, 64), (64, 128)):
            parts += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        super().__init__(*parts, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128 * 16, classes))


class Mixer(nn.Module):
    """An MLP-Mixer (Tolstikhin et al. 2021) of four blocks."""

    def __init__(self, classes: int, side: int, patch: int, width: int = 64):
        super().__init__()
        places = (side // patch) ** 2
        self.stem = nn.Conv2d(3, width, patch, patch)
        self.blocks = nn.ModuleList(
            nn.ModuleList([nn.LayerNorm(width), mlp(places, 2 * places), nn.LayerNorm(width), mlp(width, 4 * width)])
            for _ in range(4)
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.stem(images).flatten(2).transpose(1, 2)
        for norm, across, norm2, within in self.blocks:  # type: ignore[misc]
            tokens = tokens + across(norm(tokens).transpose(1, 2)).transpose(1, 2)
            tokens = tokens + within(norm2(tokens))
        return self.head(tokens.mean(1))


def mlp(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


def hugging_face_vit(folder: Path, side: int) -> str:
    """A small ViT of transformers, from a folder with its configuration, as the hub has it."""
    from transformers import ViTConfig

    sizes: dict[str, Any] = {
        "hidden_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 192,
    }
    ViTConfig(
        **sizes, image_size=side, patch_size=side // 8, architectures=["ViTForImageClassification"]
    ).save_pretrained(folder)
    return f"hf:{folder},pretrained=false"


Network = Callable[[int, int, Path], Any]
NETWORKS: dict[str, Network] = {
    "timm:resnet10t": lambda classes, side, folder: "timm:resnet10t",
    "timm:mobilenetv3_small_050": lambda classes, side, folder: "timm:mobilenetv3_small_050",
    "timm:convnext_atto": lambda classes, side, folder: "timm:convnext_atto",
    "timm:vit_tiny_patch16_224": lambda classes, side, folder: f"timm:vit_tiny_patch16_224,size={side}",
    "timm:regnety_002": lambda classes, side, folder: "timm:regnety_002",
    "timm:efficientnet_lite0": lambda classes, side, folder: "timm:efficientnet_lite0",
    "torchvision:resnet18": lambda classes, side, folder: "torchvision:resnet18",
    "torchvision:shufflenet_v2_x0_5": lambda classes, side, folder: "torchvision:shufflenet_v2_x0_5",
    "hf: a small ViT": lambda classes, side, folder: hugging_face_vit(folder, side),
    "own CNN without norms": lambda classes, side, folder: PlainCNN(classes),
    "own MLP-Mixer": lambda classes, side, folder: Mixer(classes, side, side // 8),
    "resnet8 (zoo)": lambda classes, side, folder: "resnet8",
}


@dataclass
class Row:
    """One training."""

    network: str
    data: str
    seed: int
    optimizer: str
    epochs: int
    seconds: float
    first: float
    last: float
    right: int
    n: int
    classes: int
    failed: str = ""


def trained(network: str, data_name: str, seed: int) -> Row:
    """Train with nothing set but the number of epochs, and read test once."""
    notation, side = SETS[data_name]
    data = distilens.load(notation)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(seed)
        student = NETWORKS[network](len(data.classes), side, Path(folder))
        model = distilens.as_model(student, data.classes, data.size)
        usual = in_words(settled(distilens.Training(), kind_of_model(model)))
        epochs = affordable(model, data)
        begun = time.perf_counter()
        row = Row(network, data_name, seed, usual, epochs, 0.0, 0.0, 0.0, 0, len(data.test), len(data.classes))
        try:
            made, log = distilens.distill(
                model, None, data, ["ce"], settings={"epochs": epochs, "log_every": 5}, seed=seed
            )
        except distilens.UserError as error:
            row.failed = str(error)
            return row
        row.seconds = round(time.perf_counter() - begun, 1)
    losses = [one for one in log if "loss" in one]
    row.first, end = losses[0]["loss"], [one["loss"] for one in losses if one["epoch"] == epochs - 1]
    row.last = sum(end) / len(end)
    test = predict(made, Batches(data.test, 250, device="cpu"))
    row.right = int((test.argmax(1) == torch.from_numpy(data.test.labels)).sum())
    return row


def affordable(model: Model, data: Data) -> int:
    """How many epochs the budget allows, 3 to 10: three times the forward's operations for each image."""
    return max(3, min(10, int(BUDGET / (3 * macs(model) * len(data.train)))))


def measure(out: Path) -> None:
    """Train all that is missing; a row is written when it is there."""
    path = out / "defaults.json"
    out.mkdir(parents=True, exist_ok=True)
    rows = json.loads(path.read_text()) if path.is_file() else []
    have = {(row["network"], row["data"], row["seed"]) for row in rows}
    wanted = [(n, d, s) for d in reversed(SETS) for n in NETWORKS for s in SEEDS if (n, d, s) not in have]
    for number, (network, data, seed) in enumerate(wanted, 1):
        row = trained(network, data, seed)
        rows.append(vars(row))
        part = path.with_suffix(".part")
        part.write_text(json.dumps(rows, indent=1))
        part.replace(path)
        print(f"{number}/{len(wanted)} {row}", flush=True)


def section(path: Path) -> str:
    """The table: a line for each network, a cell for each data set."""
    rows = [Row(**row) for row in json.loads(path.read_text())]
    lines = ["| network | optimizer | " + " | ".join(SETS) + " |", "|---|---|" + "---|" * len(SETS)]
    passed = total = 0
    for network in NETWORKS:
        cells, optimizer = [], ""
        for data in SETS:
            both = [row for row in rows if (row.network, row.data) == (network, data)]
            if len(both) < len(SEEDS):
                cells.append("not measured")
                continue
            optimizer, total = both[0].optimizer.split(",one_cycle")[0], total + 1
            text, good = cell(both)
            passed += good
            cells.append(text)
        lines.append(f"| {network} | `{optimizer.split(', one_cycle')[0]}` | " + " | ".join(cells) + " |")
    return f"**{passed} of {total} learn.**\n\n" + "\n".join(lines) + "\n"


def cell(both: list[Row]) -> tuple[str, bool]:
    """Test accuracy of both seeds with the interval, the losses, the epochs; and whether it passes."""
    failed = next((row.failed for row in both if row.failed), "")
    if failed:
        return f"**failed**: {failed}", False
    right, n, chance = sum(row.right for row in both), sum(row.n for row in both), 1 / both[0].classes
    low = binomtest(right, n).proportion_ci(method="wilson")
    fell = all(row.last < row.first for row in both)
    good = fell and low.low > chance
    losses = ", ".join(f"{row.first:.2f} → {row.last:.2f}" for row in both)
    text = f"{100 * right / n:.1f} % [{100 * low.low:.1f}, {100 * low.high:.1f}]; {losses}; {both[0].epochs} epochs"
    return (text if good else f"**{text}**"), good


def write_section(path: Path) -> str:
    page, made = PAGE.read_text(encoding="utf-8"), section(path)
    before, _, rest = page.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{PAGE} has no place for the section: it stands between {BEGIN} and {END}")
    PAGE.write_text(f"{before}{BEGIN}\n{made}{END}{after}", encoding="utf-8")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--section", action="store_true", help="write the table of docs/results.md, and end")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.section:
        print(write_section(options.out / "defaults.json"))
    else:
        measure(options.out)


if __name__ == "__main__":
    main()
