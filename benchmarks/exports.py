"""Export many networks to ONNX and ExecuTorch, float and INT8, and verify each file: a table of docs/results.md.

The weights are random unless a network is named by its saved folder, so that parity is measured, not accuracy. The images are
those of `shapes` or random. Each network is a row; a format that cannot take it says why.

Each file is also measured with one image and one thread, beside the network in PyTorch. Networks whose rows are in the file
already are not done again.

    python benchmarks/exports.py [--networks resnet20 timm:resnet18 ...] [--formats onnx executorch]
    python benchmarks/exports.py --table    # the rows as a table
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro

from distilens.data import Data, as_data
from distilens.deploy.bench import bench
from distilens.deploy.exporting import export_model
from distilens.deploy.plan import Plan
from distilens.deploy.targets import Target
from distilens.foundation.errors import UserError
from distilens.foundation.files import readable, write_json
from distilens.foundation.notation import safe
from distilens.models import MODELS, build_model
from distilens.models.saved import save_model

OTHERS = (
    "timm:resnet18",
    "timm:mobilenetv3_small_050",
    "timm:efficientnet_b0",
    "timm:convnext_atto",
    "timm:deit_tiny_patch16_224",
    "timm:swin_tiny_patch4_window7_224",
    "torchvision:mobilenet_v2",
    "torchvision:shufflenet_v2_x0_5",
)
ZOO = tuple(
    name
    for name, entry in MODELS.entries.items()
    if entry.target.startswith("distilens.models.zoo") and name not in ("resnet", "wrn", "shrink")
)
CLASSES = 10
RESULTS = Path(__file__).parent / "results" / "exports.json"


def make_images(side: int, count: int = 48) -> Data:
    """Smooth random images with random labels: enough to calibrate INT8 and to compare answers."""
    random = np.random.default_rng(0)
    coarse = torch.from_numpy(random.random((count * 2, 3, 8, 8), dtype=np.float32))
    large = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    pixels = (large * 255).round().byte().permute(0, 2, 3, 1).numpy()
    labels = np.arange(count * 2) % CLASSES
    return as_data(((pixels[:count], labels[:count]), (pixels[count:], labels[count:])))


def hugging_face_vit(folder: Path) -> str:
    """A small ViT of transformers with random weights, in a local folder."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    shape = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 192}
    config = ViTConfig(**shape, image_size=96, num_labels=CLASSES)
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 96, "width": 96}).save_pretrained(folder)
    return f"hf:{folder}"


def try_network(name: str, notation: str, formats: tuple[str, ...], out: Path) -> list[dict[str, Any]]:
    """The rows of a network: one per file, or the reason why there is none."""
    torch.manual_seed(0)
    side = 32 if name in ZOO else 96 if name == "hf:vit" else 224
    data = make_images(side)
    model = build_model(notation, data.classes, data.size).eval()
    warm_norms(model, data)
    rows = []
    for form in formats:
        start = time.perf_counter()
        try:
            found = export_model(model, out, Plan((form,), "int8", tolerance=100, images=0), data)
            files = [entry for entry in found.files if entry["format"] == form]  # not those of the format before
        except UserError as error:
            files = [{"format": form, "precision": "", "refused": str(error)}]
        for entry in files:
            test = (entry.get("answers") or {}).get("test") or {}
            rows.append({
                "network": name, "format": form, "precision": entry["precision"], "file": entry.get("file"),
                "bytes": entry.get("bytes"), "largest": test.get("largest"),
                "same": (test.get("same top-1") or {}).get("share"), "refused": entry.get("refused"),
                "batch": entry.get("batch"), "seconds": round(time.perf_counter() - start, 1),
            })  # fmt: skip
    save_model(model, out / "model")
    files = tuple(out / row["file"] for row in rows if not row["refused"])
    target = Target(name, out / "model", files)
    made = bench(target, threads=(1,), batches=(1,), rounds=6, pace=0.1, runtimes=("eager", "onnx", "executorch"))
    medians = {row["file"]: row["median"] for row in made.rows}
    return [{**row, "median": medians.get(row["file"]), "eager": medians.get(None)} for row in rows]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown: a line per network."""
    kinds = [(form, precision) for form in ("onnx", "executorch") for precision in ("float32", "int8")]
    names = {"onnx": "ONNX", "executorch": "pte"}
    header = ["network", "PyTorch, ms"]
    header += [f"{names[form]} {'INT8' if precision == 'int8' else 'float'}" for form, precision in kinds]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for network in dict.fromkeys(row["network"] for row in rows):
        own = {(row["format"], row["precision"]): row for row in rows if row["network"] == network}
        eager = next((row["eager"] for row in own.values() if row.get("eager")), None)
        cells = [cell(own.get(kind) or own.get((kind[0], ""))) for kind in kinds]
        lines.append("| " + " | ".join([f"`{network}`", f"{eager:.2f}" if eager else "", *cells]) + " |")
    return "\n".join(lines)


def cell(row: dict[str, Any] | None) -> str:
    """One file: size, largest difference of a probability or the share of equal top classes, milliseconds."""
    if row is None or row["refused"]:
        return f"not kept: {row['refused']}" if row else ""
    parity = f"{row['largest']:.0e}" if row["precision"] == "float32" else f"{100 * row['same']:.0f} %"
    return ", ".join([readable(row["bytes"]), parity, *([f"{row['median']:.2f} ms"] if row.get("median") else [])])


def warm_norms(model: torch.nn.Module, data: Data) -> None:
    """Give batch norms statistics of the images: with those of a fresh network, deep ones answer the same for all."""
    images, _ = data.train.pixels(np.arange(32))
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(images.float() / 255 if images.dtype == torch.uint8 else images)
    model.eval()


def main(
    networks: tuple[str, ...] = (),
    formats: tuple[str, ...] = ("onnx", "executorch"),
    out: Path = RESULTS,
    as_table: Annotated[bool, tyro.conf.arg(name="table")] = False,
) -> None:
    """Export all networks, print a line per file, and write the rows to a file; or print the table of such a file."""
    rows: list[dict[str, Any]] = json.loads(out.read_text()) if out.is_file() else []
    if as_table:
        print(table(rows))
        return
    done = {row["network"] for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        for name in networks or (*ZOO, *OTHERS, "hf:vit"):
            if name in done:
                continue
            notation = hugging_face_vit(Path(folder) / "vit") if name == "hf:vit" else name
            for row in try_network(name, notation, formats, Path(folder) / safe(name)):
                rows.append(row)
                print(json.dumps(row), flush=True)
            write_json(out, rows)


if __name__ == "__main__":
    tyro.cli(main)
