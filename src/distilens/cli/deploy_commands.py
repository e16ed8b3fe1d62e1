"""The commands of students that leave the house: `export`, `predict`, `bench`."""

from __future__ import annotations

import sys
from typing import Literal

from distilens.cli.options import (
    BatchSizes,
    BenchOut,
    ClassCount,
    DataName,
    DataOfNotation,
    ExportedFile,
    ExportOut,
    Formats,
    How,
    Images,
    InputSize,
    Json,
    JsonLines,
    Manner,
    MapsFolder,
    MasksFolder,
    Measured,
    ModelOrRun,
    Pictures,
    PictureSize,
    Push,
    Runtimes,
    Threads,
    Top,
)
from distilens.cli.registry import command, join_words


@command("export")
def export(
    model: ModelOrRun,
    /,
    format: Formats = (),
    quantize: Literal["none", "int8"] = "none",
    out: ExportOut = None,
    data: DataName = None,
    pixels: Literal["float", "uint8"] = "float",
    input_size: InputSize = None,
    maps: bool = False,
    tolerance: float = 0.5,
    finetune: int = 0,
    images: Images = None,
    push: Push = None,
    json: Json = False,
    how: How = Manner(),  # noqa: B008
) -> None:
    """Write a student as files that others run, and verify that they answer as it does.

    A run's student is verified on all validation and test images of the run. A file that fails is not kept.

    Args:
        quantize: int8 also writes INT8 files, calibrated on validation images.
        pixels: The type of the input: float in [0, 1], or uint8.
        maps: The files also return class activation maps; for networks that end in pooling and a linear layer.
        tolerance: How many points of accuracy (of mIoU for a segmentation) an INT8 file may lose.
        finetune: Epochs of distillation with INT8 rounding, if an INT8 file loses more.
    """
    from distilens.cli.actions import check_model
    from distilens.cli.deploying import export_to

    check_model(model)
    plan = {
        "formats": tuple(join_words(format)) or ("onnx",),
        "quantize": quantize,
        "pixels": pixels,
        "size": input_size,
        "maps": maps,
        "tolerance": tolerance,
        "finetune": finetune,
        "images": 32 if images is None else images,
    }
    export_to(model, plan, data, out, push, as_json=json, how=how)


@command("predict")
def predict(
    file: ExportedFile,
    images: Pictures,
    /,
    top: Top = None,
    json: JsonLines = False,
    explain: MapsFolder = None,
    out: MasksFolder = None,
) -> None:
    """Answer pictures with an exported .onnx or .pte file: a line per picture, with class and probability.

    For a segmentation a line has the classes and their shares of the pixels, and --out writes the masks.

    Torch is not needed for .onnx. The predict.py beside the file is the same program, and works without distilens.

    Exit status: 1 if a picture could not be read (the others are answered), 2 if the model cannot be used.
    """
    from distilens.deploy.predict import run  # distilens.cli.main starts it without tyro

    sys.exit(run(file, images, top=top, as_json=json, explained=explain, name="distilens", out=out))


@command("bench")
def bench(
    targets: Measured,
    /,
    threads: Threads = (),
    batch: BatchSizes = (),
    rounds: int = 20,
    runtimes: Runtimes = (),
    data: DataOfNotation = None,
    classes: ClassCount = None,
    input_size: PictureSize = None,
    out: BenchOut = None,
    json: Json = False,
    how: How = Manner(),  # noqa: B008
) -> None:
    """Measure what models cost in every runtime: parameters, MACs, size, memory, latency, throughput, energy.

    All models take turns, round by round, so that their ratios are fair on a busy machine too.

    Args:
        rounds: How often every model takes its turn; an interval needs at least six.
    """
    from distilens.cli.deploying import bench_to

    options = {
        "threads": [count for group in threads for count in group] or None,
        "batches": [count for group in batch for count in group] or (1, 64),
        "rounds": rounds,
        **({"runtimes": join_words(runtimes)} if runtimes else {}),
        "data": data,
        "classes": classes,
        "size": input_size,
    }
    bench_to(targets, options, out, as_json=json, how=how)
