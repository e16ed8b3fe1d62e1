"""What to export: formats, INT8, the form of the input, and what is allowed to differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distilens.deploy.exporters import EXPORTERS, Exporter
from distilens.deploy.shipped import Pixels
from distilens.foundation.errors import UserError
from distilens.foundation.notation import Spec

Quantize = Literal["none", "int8"]


@dataclass(frozen=True)
class Plan:
    """What to export.

    Attributes:
        formats: the formats, in notation.
        quantize: `int8` also makes an INT8 file for every format that can hold one.
        pixels: the type of the input: `float` in [0, 1], or `uint8`.
        size: height and width of the input, if they differ from the network's own.
        maps: the files also return class activation maps.
        tolerance: how many points of accuracy (in a segmentation of mIoU) an INT8 file may lose.
        finetune: epochs of quantisation-aware distillation, if an INT8 file loses more; 0 turns it off.
        images: the number of test images whose maps are compared; 0 compares no maps.
    """

    formats: tuple[str, ...] = ("onnx",)
    quantize: Quantize = "none"
    pixels: Pixels = "float"
    size: tuple[int, int] | None = None
    maps: bool = False
    tolerance: float = 0.5
    finetune: int = 0
    images: int = 32

    def __post_init__(self) -> None:
        if not self.formats:
            raise UserError(f"name a format to export to: {', '.join(EXPORTERS.entries)}")
        if min(self.tolerance, self.finetune, self.images) < 0:
            raise UserError("tolerance, finetune and images are at least 0")

    def exporters(self) -> dict[str, Exporter]:
        """The exporters by name.

        Raises:
            UserError: a format is unknown, its packages are missing, or no format can hold INT8.
        """
        made = {Spec.parse(part).name: EXPORTERS.build(part) for part in self.formats}
        for exporter in made.values():
            exporter.check_installed()
        if self.quantize == "int8" and not any(exporter.quantizes for exporter in made.values()):
            able = ", ".join(name for name in EXPORTERS.entries if EXPORTERS.build(name).quantizes)
            raise UserError(f"{', '.join(made)} cannot hold INT8: name a format that can ({able})")
        return made
