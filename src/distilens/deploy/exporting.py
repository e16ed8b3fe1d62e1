"""Export a student: write it in several formats, verify each file, and keep only those that answer as the student does."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from distilens.data import as_data
from distilens.data.splits import Data
from distilens.deploy import predict as predictor
from distilens.deploy.card import write_cards
from distilens.deploy.exported import FILE, Exported, Refused, read_exported
from distilens.deploy.exporters import EXPORTERS
from distilens.deploy.job import Finetune, Job, Say, remove
from distilens.deploy.plan import Plan, Quantize
from distilens.deploy.shipped import Pixels, Shipped, check_alone, with_entrance
from distilens.deploy.verification import Student
from distilens.foundation.errors import UserError
from distilens.foundation.files import explain_disk_errors, write_json, write_text
from distilens.models.model import Model
from distilens.models.objects import as_model as model_of


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

    The file returns `logits` and `probabilities`; for a segmentation `logits [b classes h w]` and `mask [b h w]`, of the size of
    its input.

    Args:
        model: a `Model`, or any module from normalised images to logits (see `as_model`).
        out: a file (`student.onnx`, `.pte`, `.pt2`), or a folder for all formats.
        data: what the files are verified and calibrated on: a notation, `Data`, or what `as_data` takes. Without data they are
            compared on example images, and INT8 is refused.
        classes: names of the classes of a bare module; by default those of the data.
        size: height and width for a bare module.
        formats: the formats for a folder; by default `onnx`.
        quantize: `int8` also writes an INT8 file; for a file as `out`, that file is INT8.
        pixels: what the file takes: `float` in [0, 1] or `uint8`.
        input_size: height and width that the file takes; it resizes to the model's size.
        maps: the file also returns the class maps.
        tolerance: points of accuracy (in a segmentation of mIoU) that INT8 may lose.

    Raises:
        UserError: the model cannot be exported, or the file does not answer as the model does. No file remains then.

    Example:
        >>> import distilens, tempfile
        >>> model = distilens.build_model("resnet8", ["cat", "dog"], (32, 32)).eval()
        >>> found = distilens.export(model, tempfile.mkdtemp() + "/student.pt2")
        >>> print(*(path.name for path in found.paths()))
        student.pt2
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
    check_alone(model)
    model = copy.deepcopy(model).cpu().eval()  # the user's model keeps its mode and its device
    shipped = Shipped(model, pixels=plan.pixels, size=plan.size, maps=plan.maps)
    if plan.quantize == "int8" and data is None:
        raise UserError("INT8 needs images to find the ranges of the activations: name the data (data=, --data)")
    if data is not None and data.task.dense != model.task.dense:
        names = {True: "a class for each place", False: "one answer per image"}
        raise UserError(
            f"{model.name} gives {names[model.task.dense]}, but the data {data.name} have {names[data.task.dense]}: name the "
            "data that it was trained on"
        )
    if data is not None and data.task.outputs != model.task.outputs:
        raise UserError(
            f"{model.name} has {model.task.outputs} outputs, but the data {data.name} have {data.task.outputs}: name the "
            "data that it was trained on"
        )
    as_it_is = shipped.size == model.size and plan.pixels == "float"
    seen = model if as_it_is else with_entrance(model, shipped.size, plan.pixels)
    student = Student(seen, data, teacher or {}, plan.images)
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
        found = with_earlier(found)
        write_json(folder / FILE, found.plain())
        write_text(folder / "predict.py", Path(predictor.__file__).read_text())
        write_cards(folder, found.plain(), scores)
    return found


def with_earlier(found: Exported) -> Exported:
    """Also the files of an earlier export of the same student with the same input. Those of another student are removed."""
    before = read_exported(found.folder)
    if before is None:
        return found
    new = {entry["file"] for entry in found.files}
    kept = [entry for entry in before.files if entry["file"] not in new and not entry.get("refused")]
    # a list that someone else wrote must not name files outside the folder
    kept = [entry for entry in kept if is_inside(found.folder, str(entry["file"]))]
    if before.about != found.about:
        for entry in kept:
            remove(found.folder / entry["file"])
        kept = []
    return replace(found, files=(*kept, *found.files))


def is_inside(folder: Path, name: str) -> bool:
    """Whether a name is that of an exported file that lies directly in the folder."""
    endings = {EXPORTERS.build(kind).suffix for kind in EXPORTERS.entries}
    return (
        Path(name).name == name and (folder / name).exists() and (name == "hub" or Path(name).suffix in endings - {""})
    )
