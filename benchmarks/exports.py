"""Export many networks to ONNX and ExecuTorch, float and INT8, and verify each file: the table of docs/deploy.md.

The weights are random unless a network is named by its saved folder, so that parity is measured, not accuracy. The images are
those of `shapes` or random. Each network is a row; a format that cannot take it says why.

    python benchmarks/exports.py [--networks resnet20 timm:resnet18 ...] [--formats onnx executorch] [--out exports.json]
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from distilens.data import Data, as_data
from distilens.deploy.exporting import export_model
from distilens.deploy.plan import Plan
from distilens.foundation.errors import UserError
from distilens.models import MODELS, build_model

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
            files = list(found.files)
        except UserError as error:
            files = [{"format": form, "precision": "", "refused": str(error)}]
        for entry in files:
            test = (entry.get("answers") or {}).get("test") or {}
            rows.append({
                "network": name, "format": form, "precision": entry["precision"], "bytes": entry.get("bytes"),
                "largest": test.get("largest"), "same": (test.get("same top-1") or {}).get("share"),
                "refused": entry.get("refused"), "batch": entry.get("batch"), "seconds": round(time.perf_counter() - start, 1),
            })  # fmt: skip
    return rows


def warm_norms(model: torch.nn.Module, data: Data) -> None:
    """Give batch norms statistics of the images: with those of a fresh network, deep ones answer the same for all."""
    images, _ = data.train.pixels(np.arange(32))
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(images.float() / 255 if images.dtype == torch.uint8 else images)
    model.eval()


def main(
    networks: tuple[str, ...] = (), formats: tuple[str, ...] = ("onnx", "executorch"), out: Path | None = None
) -> None:
    """Export all networks, print a line per file, and write the rows to a file."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        asked = networks or (*ZOO, *OTHERS, "hf:vit")
        for name in asked:
            notation = hugging_face_vit(Path(folder) / "vit") if name == "hf:vit" else name
            for row in try_network(name, notation, formats, Path(folder) / "out"):
                rows.append(row)
                print(json.dumps(row), flush=True)
            if out is not None:
                out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    tyro.cli(main)
