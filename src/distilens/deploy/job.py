"""The work of an export: write each file under a temporary name, verify it, and rename it if it passes."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distilens.data.pipeline import batch_at
from distilens.deploy.exporters import Exporter, as_model
from distilens.deploy.fake_quantization import fake_quantize
from distilens.deploy.plan import Plan
from distilens.deploy.shipped import Shipped
from distilens.deploy.verification import Student, compare_gradcam, verify
from distilens.foundation.errors import UserError
from distilens.foundation.files import explain_disk_errors
from distilens.measure.scores import draw_positions
from distilens.models.model import Model

CALIBRATION = 256
"""The number of validation images for the ranges of INT8 activations."""
FEWEST, MOST_PIXELS = 16, 2**25
"""In a segmentation, whose images are large: fewer images, so that they have about this many pixels together, but at least 16."""

Finetune = Callable[[Model, Tensor], Model]
Say = Callable[[str], object]


@dataclass
class Job:
    """The work of one export: its folder, its student, and what INT8 files share."""

    folder: Path
    stem: str
    plan: Plan
    about: dict[str, Any]
    student: Student
    finetune: Finetune | None
    say: Say
    tuned: Shipped | None = None
    kept: dict[str, Any] = field(default_factory=dict)

    def export_float(self, name: str, exporter: Exporter, shipped: Shipped) -> dict[str, Any]:
        """Write and verify a float file; returns its entry."""
        file = f"{self.stem}{exporter.suffix}" if exporter.suffix else "hub"
        self.say(f"export: {file}")
        entry = {"file": file, "format": name, "precision": "float32"}
        with self.unfinished(file) as temporary:
            exporter.write(shipped, temporary, self.about)
            found = self.check(exporter, temporary, shipped)
            wrong = sum(answers["different"] for answers in found["answers"].values())
            refused = None
            if wrong:
                n = sum(answers["n"] for answers in found["answers"].values())
                answer = "mask" if self.student.model.task.dense else "top class"
                refused = f"its {answer} differs from the student's on {wrong:,} of {n:,} images"
            return self.finish(entry, temporary, found, refused)

    def export_int8(self, name: str, exporter: Exporter, shipped: Shipped) -> dict[str, Any]:
        """Write and verify an INT8 file, fine-tuned if it loses too much; returns its entry."""
        file = f"{self.stem}-int8{exporter.suffix}"
        self.say(f"export: {file}")
        entry: dict[str, Any] = {"file": file, "format": name, "precision": "int8", "finetuned": 0}
        with self.unfinished(file) as temporary:
            entry["before finetuning"] = None
            try:
                found = self.write_int8(exporter, temporary, shipped)
            except UserError as error:  # such as a file that its own runtime does not take: the float file is kept
                nothing = {"batch": None, "answers": {}, "maps": None}
                return self.finish(entry, temporary, nothing, str(error).replace(str(temporary), "the file"))
            lost = self.loss(found)
            if self.plan.finetune and self.finetune and lost > self.plan.tolerance:
                self.say(
                    f"export: INT8 loses {lost:.2f} points, more than {self.plan.tolerance:g}: fine-tuning under the teacher for "
                    f"{self.plan.finetune} epochs"
                )
                entry |= {"finetuned": self.plan.finetune, "before finetuning": found["answers"]}
                remove(temporary)
                found = self.write_int8(exporter, temporary, self.tune(shipped))
                lost = self.loss(found)
            refused = None
            if lost > self.plan.tolerance:
                more = "" if entry["finetuned"] else ". Fine-tune it (--finetune 5), or allow more (--tolerance)"
                metric = self.student.model.task.metric.name
                refused = f"INT8 loses {lost:.2f} points of {metric}, and {self.plan.tolerance:g} are allowed{more}"
            return self.finish(entry, temporary, found, refused)

    def write_int8(self, exporter: Exporter, path: Path, shipped: Shipped) -> dict[str, Any]:
        """Write an INT8 file and verify it."""
        exporter.write(shipped, path, {**self.about, "precision": "int8"}, self.calibration())
        found = self.check(exporter, path, shipped)
        if found["maps"]:
            simulated = fake_quantize(shipped.source, self.images())
            found["maps"]["explainers"]["gradcam"] = compare_gradcam(self.student, simulated)
        return found

    def tune(self, shipped: Shipped) -> Shipped:
        """The fine-tuned student; all INT8 files share it."""
        if self.tuned is None:
            assert self.finetune is not None
            tuned = self.finetune(shipped.source, self.images())
            self.tuned = Shipped(tuned, pixels=self.plan.pixels, size=self.plan.size, maps=self.plan.maps)
        return self.tuned

    def images(self) -> Tensor:
        """The images for calibration, in [0, 1], at the size of the data: of the validation split, else of train."""
        if "images" not in self.kept:
            data = self.student.data
            assert data is not None
            split = data.validation if len(data.validation) else data.train
            count = CALIBRATION
            if split.task.dense:
                height, width = split.rows.images.shape[1:3]
                count = min(CALIBRATION, max(FEWEST, MOST_PIXELS // (height * width)))
            self.kept["images"] = batch_at(split, draw_positions(split, count)).images.cpu()
        return self.kept["images"]

    def calibration(self) -> Tensor:
        """The images for calibration, of the type and size of the file's input."""
        images = self.images()
        height, width = self.about["input"]["size"]
        if images.shape[-2:] != (height, width):
            images = torch.nn.functional.interpolate(
                images, (height, width), mode="bilinear", antialias=True, align_corners=False
            )
        return (images * 255).round().byte() if self.plan.pixels == "uint8" else images.contiguous()

    def check(self, exporter: Exporter, path: Path, shipped: Shipped) -> dict[str, Any]:
        """Verify a file in its runtime."""
        runtime = exporter.open(path)
        return {"batch": runtime.batch, **verify(self.student, as_model(runtime, self.student.model))}

    def loss(self, found: Mapping[str, Any]) -> float:
        """The points that a file loses in the task's metric, on validation or test if more; 0 if nothing has a target."""
        metric = self.student.model.task.metric
        lost = [0.0]
        for split in ("validation", "test"):
            apart = found["answers"].get(split, {}).get("apart")
            if apart:
                lost.append(-apart["mean"] * (100 if metric.higher_is_better else -100))
        return max(lost)

    @contextlib.contextmanager
    def unfinished(self, file: str) -> Iterator[Path]:
        """A temporary name beside the file, with its ending; nothing remains there, whatever happens."""
        temporary = self.folder / f".{uuid.uuid4().hex[:8]}.{file}"
        try:
            with explain_disk_errors(self.folder / file):
                yield temporary
        finally:
            remove(temporary)

    def finish(
        self, entry: dict[str, Any], temporary: Path, found: dict[str, Any], refused: str | None
    ) -> dict[str, Any]:
        """Rename a file that passed; its entry with size and verification."""
        final = self.folder / entry["file"]
        entry |= {"bytes": size_of(temporary) if temporary.exists() else 0, "refused": refused, **found}
        remove(final)
        if refused is None:
            temporary.rename(final)
        return entry


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """The bytes of a file, or of the weights in a folder."""
    return (path / "model.safetensors").stat().st_size if path.is_dir() else path.stat().st_size
