"""What students cost in every runtime: MobileNetV2 and its 4.12 times smaller student, ResNets, and two networks at 224 pixels.

    python benchmarks/deployment.py [--rounds 20] [--threads 1 2] [--out build/deployment]

The weights are random, since latency does not depend on them. So INT8 files are calibrated on random images, and their answers
mean nothing. Every network is exported once into the folder; a second call only measures. The result is printed as Markdown for
docs/results.md, and its numbers go to bench.json.

Needs the packages of the runtimes: pip install 'distilens[export,mobile]'.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import tyro
from rich.console import Console

from distilens.deploy.bench import FILE, Bench, bench
from distilens.deploy.exporters import EXPORTERS
from distilens.deploy.shipped import Shipped
from distilens.deploy.targets import Target
from distilens.foundation.estimate import Estimate
from distilens.foundation.files import write_atomically
from distilens.foundation.notation import safe
from distilens.models import build_model
from distilens.models.saved import load_model, save_model
from distilens.report.deployment_section import latency_table

NETWORKS = {
    "MobileNetV2 (CIFAR form)": ("mobilenetv2", 32),
    "its 4.12 × smaller student": ("shrink:blocks=5", 32),
    "ResNet-20": ("resnet20", 32),
    "ResNet-8": ("resnet8", 32),
    "ResNet-18": ("torchvision:resnet18,size=224", 224),
    "MobileNetV3-small": ("torchvision:mobilenet_v3_small,size=224", 224),
}
TEACHER, STUDENT = list(NETWORKS)[:2]
CLAIM = "140 → 13 ms (10.8 ×) for 4.12 × fewer parameters"
CLASSES = 10
CALIBRATION = 16
"""The number of random images for the ranges of INT8 activations."""
FORMATS = ("onnx", "executorch")


def main(
    out: Path = Path("build/deployment"),
    rounds: int = 20,
    pace: float = 0.25,
    threads: tuple[int, ...] = (1, 2),
    batches: tuple[int, ...] = (1,),
    networks: tuple[str, ...] = tuple(NETWORKS),
    runtimes: tuple[str, ...] = ("eager", "compiled", "onnx", "executorch", "openvino"),
) -> None:
    """Export the networks, measure them, and print the table.

    Args:
        networks: their names in the table; by default all.
    """
    console = Console(stderr=True)
    targets = [export_network(name, out / safe(NETWORKS[name][0])) for name in networks]
    made = bench(
        targets, threads=threads, batches=batches, rounds=rounds, pace=pace, runtimes=runtimes, console=console
    )
    made.write(out / FILE)
    print_markdown(made)


def export_network(name: str, folder: Path) -> Target:
    """A network with random weights, saved and exported in float and INT8, unless that was done before.

    The files are not verified: that is the work of `distilens export`, and takes long at 224 pixels.
    """
    notation, side = NETWORKS[name]
    names = tuple(map(str, range(CLASSES)))
    if not (folder / "model" / "model.json").is_file():
        torch.manual_seed(0)
        save_model(build_model(notation, names, (side, side)).eval(), folder / "model")
    shipped, files = Shipped(load_model(folder / "model").eval()), []
    for form in FORMATS:
        exporter = EXPORTERS.build(form)
        for precision, calibration in (("float32", None), ("int8", torch.rand(CALIBRATION, 3, side, side))):
            path = folder / f"{precision}{exporter.suffix}"
            if not path.is_file():
                print(f"export: {name}, {form}, {precision}", file=sys.stderr)
                about = {**shipped.about(), "precision": precision}
                write_atomically(path, lambda file, c=calibration, a=about, e=exporter: e.write(shipped, file, a, c))
            files.append(path)
    return Target(name, folder / "model", tuple(files))


def print_markdown(made: Bench) -> None:
    """The table, and the claim of the Integrated-Gradients paper beside what was measured."""
    header, rows = latency_table(made.plain())
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()
    for line in made.remarks:
        print(f"- {line}")
    for row in made.rows:
        faster = Estimate.read(row["to_first"])
        if row["name"] == STUDENT and faster:
            print(
                f"- The paper claims {CLAIM}. In {row['runtime']}, {row['threads']} thread(s), batch {row['batch']}: "
                f"{faster.with_interval('{:.2f}'.format)} ×."
            )


if __name__ == "__main__":
    tyro.cli(main)
