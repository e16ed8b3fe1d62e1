"""How faithful each explainer is, and what it costs, on the test images of a data set; and how completeness grows with steps.

    python benchmarks/faithfulness.py run:runs/cifar,part=teacher parquet:path=data/cifar10 [--images 200]

Prints the gallery's table as markdown, then the residual of Integrated Gradients (what is missing from completeness, as a
share of the logit's gain over the baseline) by steps and rule: median and maximum over the images.
"""

from __future__ import annotations

from typing import Annotated

import tyro
from rich.console import Console
from tyro.conf import Positional

from distilens.explain import EXPLAINERS, in_chunks
from distilens.measure.maps.gallery import gallery
from distilens.models import build_model

EXPLAINED = (
    "gradcam",
    "gradcam:tap=layer2",
    "gradcam++",
    "layercam",
    "layercam:tap=layer2",
    "hirescam",
    "eigencam",
    "gradient",
    "smoothgrad",
    "ig:steps=32",
    "ig:steps=32,baseline=mean",
    "expected_gradients",
    "occlusion",
    "rise",
)


def main(
    model: Annotated[Positional[str], tyro.conf.arg(metavar="MODEL")],
    data: Annotated[Positional[str], tyro.conf.arg(metavar="DATA")],
    /,
    explainers: tuple[str, ...] = EXPLAINED,
    images: int = 200,
    residuals: int = 64,
) -> None:
    found = gallery(model, data, explainers, images=images, console=Console(stderr=True))
    header, rows = found.table()
    across = [list(column) for column in zip(header, *rows, strict=True)]  # an explainer a line
    print("| " + " | ".join(across[0]) + " |\n|" + "---|" * len(across[0]))
    for line in across[1:]:
        print("| " + " | ".join(line) + " |")
    print()
    for remark in (*found.remarks, *found.findings()):
        print("-", remark)
    network = build_model(model, (), (32, 32))
    some, target = found.images[:residuals], found.target[:residuals]
    print(f"\n|residual| / |gain| of ig on {len(some)} images, median (maximum)\n")
    print("| steps | gauss | trapezoid | riemann |\n|---|---|---|---|")
    for steps in (8, 16, 32, 64, 128):
        cells = []
        for rule in ("gauss", "trapezoid", "riemann"):
            found_maps = in_chunks(EXPLAINERS.build(f"ig:steps={steps},rule={rule}"), network, some, target)
            assert found_maps.residual is not None
            gain = found_maps.maps.sum((1, 2)) - found_maps.residual
            missed = (found_maps.residual / gain).abs()
            cells.append(f"{missed.median():.4f} ({missed.max():.3f})")
        print(f"| {steps} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
