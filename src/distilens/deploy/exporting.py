"""Export a student: write it in several formats, verify each file, and keep only those that answer as the student does."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from distilens import __version__
from distilens.data import as_data
from distilens.data.pipeline import batch_at
from distilens.data.splits import Data
from distilens.deploy import predict as predictor
from distilens.deploy.card import write_cards
from distilens.deploy.exporters import EXPORTERS, Exporter, as_model
from distilens.deploy.fake_quantization import fake_quantize
from distilens.deploy.shipped import Pixels, Shipped
from distilens.deploy.verification import Student, compare_gradcam, verify
from distilens.foundation.errors import UserError
from distilens.foundation.files import explain_disk_errors, read_json, write_json, write_text
from distilens.foundation.notation import Spec
from distilens.measure.scores import draw_positions
from distilens.models.model import Model
from distilens.models.objects import as_model as model_of

FILE = "export.json"
KIND = "distilens exports 1"
CALIBRATION = 256
"""The number of validation images for the ranges of INT8 activations."""

Quantize = Literal["none", "int8"]
Finetune = Callable[[Model, Tensor], Model]
Say = Callable[[str], object]


@dataclass(frozen=True)
class Plan:
    """What to export.

    Attributes:
        formats: the formats, in notation.
        quantize: `int8` also makes an INT8 file for every format that can hold one.
        pixels: the type of the input: `float` in [0, 1], or `uint8`.
        size: height and width of the input, if they differ from the network's own.
        maps: the files also return class activation maps.
        tolerance: how many points of accuracy an INT8 file may lose.
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


@dataclass(frozen=True)
class Exported:
    """The files of an export and how they were verified: what `export.json` holds.

    Attributes:
        folder: where the files are.
        about: the student's description.
        files: one entry per file, also for refused ones (`refused` says why, and there is no file).
        data: the name of the data; None if the files were compared on example images only.
    """

    folder: Path
    about: Mapping[str, Any]
    files: tuple[Mapping[str, Any], ...] = ()
    data: str | None = None
    tolerance: float = 0.5

    @property
    def refused(self) -> list[Mapping[str, Any]]:
        """The entries of the files that were not kept."""
        return [entry for entry in self.files if entry.get("refused")]

    def paths(self) -> list[Path]:
        """The files."""
        return [self.folder / entry["file"] for entry in self.files if not entry.get("refused")]

    def plain(self) -> dict[str, Any]:
        """The content of `export.json`."""
        return {
            "kind": KIND,
            "distilens": __version__,
            "student": dict(self.about),
            "data": self.data,
            "tolerance": self.tolerance,
            "files": [dict(entry) for entry in self.files],
        }

    def __repr__(self) -> str:
        kept = ", ".join(entry["file"] for entry in self.files if not entry.get("refused"))
        return f"Exported({str(self.folder)!r}: {kept or 'no file'})"


def read_exported(folder: Path) -> Exported | None:
    """The export in a folder; None if there is none."""
    content = read_json(folder / FILE)
    if not isinstance(content, dict) or content.get("kind") != KIND:
        return None
    return Exported(folder, content["student"], tuple(content["files"]), content["data"], content["tolerance"])


def export(
    model: Any,
    out: str | Path,
    *,
    data: Any = None,
    classes: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    formats: Sequence[str] | None = None,
    quantize: Quantize = "none",
    pixels: Pixels = "float",
    input_size: tuple[int, int] | None = None,
    maps: bool = False,
    tolerance: float = 0.5,
) -> Exported:
    """Export any model, verified: `distilens.export(model, "student.onnx", data="folder:path=photos")`.

    Args:
        model: a `Model`, or any module from normalised images to logits (see `as_model`).
        out: a file (`student.onnx`, `.pte`, `.pt2`), or a folder for all formats.
        data: what the files are verified and calibrated on: a notation, `Data`, or what `as_data` takes. Without data they are
            compared on example images, and INT8 is refused.
        classes: names of the classes of a bare module; by default those of the data.
        size: height and width for a bare module.
        formats: the formats for a folder; by default `onnx`.
        quantize: `int8` also writes an INT8 file; for a file as `out`, that file is INT8.
        pixels, input_size, maps, tolerance: see `Plan`.

    Raises:
        UserError: the model cannot be exported, or the file does not answer as the model does. No file remains then.

    Example:
        >>> import distilens, tempfile
        >>> model = distilens.build_model("resnet8", ["cat", "dog"], (32, 32)).eval()
        >>> found = distilens.export(model, tempfile.mkdtemp() + "/student.pt2")
        >>> [path.name for path in found.paths()]
        ['student.pt2']
    """
    given = as_data(data) if data is not None else None
    made = model_of(model, classes or given, size)
    out = Path(out)
    endings = {EXPORTERS.build(name).suffix: name for name in EXPORTERS.entries if EXPORTERS.build(name).suffix}
    if out.suffix and out.suffix not in endings:
        raise UserError(f"{out}: unknown ending {out.suffix!r}; known: {', '.join(endings)}, or a folder")
    if out.suffix and formats:
        raise UserError(f"{out} names its format by its ending: leave formats= out, or give a folder")
    plan = Plan(
        (endings[out.suffix],) if out.suffix else tuple(formats or ("onnx",)),
        quantize,
        pixels,
        input_size,
        maps,
        tolerance,
    )
    folder, stem = (out.parent, out.stem) if out.suffix else (out, "student")
    found = export_model(
        made, folder, plan, given, stem=stem, only_int8=bool(out.suffix) and quantize == "int8", complete=not out.suffix
    )
    if found.refused:
        raise Refused(found)
    return found


class Refused(UserError):  # noqa: N818  # some files were refused
    """Some files do not answer as the student does; the others are there."""

    def __init__(self, found: Exported):
        self.found = found
        super().__init__("; ".join(f"{entry['file']} is not kept: {entry['refused']}" for entry in found.refused))


def export_model(
    model: Model,
    folder: Path,
    plan: Plan,
    data: Data | None = None,
    *,
    stem: str = "student",
    about: Mapping[str, Any] | None = None,
    teacher: Mapping[str, Tensor] | None = None,
    finetune: Finetune | None = None,
    only_int8: bool = False,
    complete: bool = True,
    scores: Mapping[str, Any] | None = None,
    say: Say = lambda text: None,
) -> Exported:
    """Write and verify the files of a plan. A file is renamed to its final name only if it passes.

    Args:
        model: the finished student.
        folder: where the files go.
        data: for verification and calibration.
        stem: the name of the files before their ending.
        about: further metadata (the recipe's fingerprint, how pictures become pixels).
        teacher: the teacher's logits by split, for the agreement.
        finetune: makes a student whose weights lose less by rounding, from a student and calibration images.
        only_int8: write no float file.
        complete: also write `export.json`, `predict.py` and the model card.
        scores: the run's scores, for the card.
        say: receives what happens.

    Raises:
        UserError: the student cannot be exported.
    """
    exporters = plan.exporters()
    shipped = Shipped(model.eval(), pixels=plan.pixels, size=plan.size, maps=plan.maps)
    if plan.quantize == "int8" and data is None:
        raise UserError("INT8 needs images to find the ranges of the activations: name the data (data=, --data)")
    if data is not None and data.task.outputs != model.task.outputs:
        raise UserError(
            f"{model.name} has {model.task.outputs} outputs, but the data {data.name} have {data.task.outputs}: name the "
            "data that it was trained on"
        )
    student = Student(model, data, teacher or {}, plan.images)
    job = Job(folder, stem, plan, {**shipped.about(), **(about or {})}, student, finetune, say)
    entries: list[dict[str, Any]] = []
    with explain_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, exporter in exporters.items():
        if not only_int8:
            entries.append(job.export_float(name, exporter, shipped))
        if plan.quantize == "int8" and exporter.quantizes:
            entries.append(job.export_int8(name, exporter, shipped))
    found = Exported(folder, job.about, tuple(entries), data and data.name, plan.tolerance)
    if complete:
        write_json(folder / FILE, found.plain())
        write_text(folder / "predict.py", Path(predictor.__file__).read_text())
        write_cards(folder, found.plain(), scores)
    return found


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
                refused = f"its top class differs from the student's on {wrong:,} of {n:,} images"
            return self.finish(entry, temporary, found, refused)

    def export_int8(self, name: str, exporter: Exporter, shipped: Shipped) -> dict[str, Any]:
        """Write and verify an INT8 file, fine-tuned if it loses too much; returns its entry."""
        file = f"{self.stem}-int8{exporter.suffix}"
        self.say(f"export: {file}")
        entry: dict[str, Any] = {"file": file, "format": name, "precision": "int8", "finetuned": 0}
        with self.unfinished(file) as temporary:
            found = self.write_int8(exporter, temporary, shipped)
            entry["before finetuning"] = None
            if self.plan.finetune and self.finetune and self.loss(found, ("validation",)) > self.plan.tolerance:
                lost = self.loss(found, ("validation",))
                self.say(
                    f"export: INT8 loses {lost:.2f} points on validation, more than {self.plan.tolerance:g}: fine-tuning under "
                    f"the teacher for {self.plan.finetune} epochs"
                )
                entry |= {"finetuned": self.plan.finetune, "before finetuning": found["answers"]}
                remove(temporary)
                found = self.write_int8(exporter, temporary, self.tune(shipped))
            lost, refused = self.loss(found, ("validation", "test")), None
            if lost > self.plan.tolerance:
                more = "" if entry["finetuned"] else ". Fine-tune it (--finetune 5), or allow more (--tolerance)"
                refused = f"INT8 loses {lost:.2f} points of accuracy, and {self.plan.tolerance:g} are allowed{more}"
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
            self.kept["images"] = batch_at(split, draw_positions(split, CALIBRATION)).images.cpu()
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

    def loss(self, found: Mapping[str, Any], splits: Sequence[str]) -> float:
        """The points that a file loses in the task's metric, at most over some splits; 0 if nothing has a target."""
        metric = self.student.model.task.metric
        lost = [0.0]
        for split in splits:
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
        entry |= {"bytes": size_of(temporary), "refused": refused, **found}
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
