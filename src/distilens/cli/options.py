"""The options of the command line as annotated types: how each is written, and its text in `--help`."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from distilens.foundation.errors import UserError
from distilens.foundation.kinds import REGISTRIES

if TYPE_CHECKING:
    from rich.console import Console

Changes = Annotated[
    UseAppendAction[tuple[tuple[str, ...], ...]],
    arg(
        name="set",
        metavar="KEY=VALUE ...",
        help="Change the recipe, for example train.epochs=3 or data.limit=500; works without --set too.",
    ),
]
RecipeName = Annotated[Positional[str], arg(metavar="RECIPE", help="A TOML file, or the name of a shipped recipe.")]
Out = Annotated[
    Path | None,
    arg(metavar="PATH", help="The run folder.", help_behavior_hint="(default: runs/NAME, after the recipe)"),
]
ModelOrRun = Annotated[
    Positional[str],
    arg(
        metavar="MODEL_OR_RUN", help="A model, for example timm:resnet18,pretrained=true or file:..., or a run folder."
    ),
]
DataName = Annotated[
    str | None,
    arg(
        metavar="DATA",
        help="The data set, for example folder:path=pictures.",
        help_behavior_hint="(default: the run's)",
    ),
]
Explainers = Annotated[
    UseAppendAction[tuple[tuple[str, ...], ...]],
    arg(metavar="EXPLAINER ...", help="By name, for example ig:steps=64.", help_behavior_hint="(default: gradcam ig)"),
]
Images = Annotated[
    int | None,
    arg(metavar="N", help="Number of random images from the test split.", help_behavior_hint="(default: 32)"),
]
Of = Annotated[
    str | None,
    arg(
        metavar="WHAT",
        help="What to explain: top1 (the predicted class), label or class:NAME; in a segmentation the places of this class, or "
        "box:x0,y0,x1,y1 or point:x,y.",
        help_behavior_hint="(default: top1)",
    ),
]
MapsOut = Annotated[
    Path | None,
    arg(metavar="PATH", help="The folder to write.", help_behavior_hint="(default: maps/MODEL)"),
]
Formats = Annotated[
    UseAppendAction[tuple[tuple[str, ...], ...]],
    arg(
        name="format",
        metavar="FORMAT ...",
        help="onnx, executorch, pt2, safetensors; see distilens list formats.",
        help_behavior_hint="(default: onnx)",
    ),
]
ExportOut = Annotated[
    Path | None,
    arg(metavar="DIR", help="The folder to write.", help_behavior_hint="(default: RUN/export, or export/MODEL)"),
]
InputSize = Annotated[
    tuple[int, int] | None,
    arg(
        metavar="HEIGHT WIDTH",
        help="The size of the pictures that the file takes; it resizes them itself.",
        help_behavior_hint="(default: the network's own)",
    ),
]
Measured = Annotated[
    Positional[tuple[str, ...]],
    arg(
        metavar="RUN|FILE|MODEL ...",
        help="Run folders, exported files, folders of saved models or of exports, model notations.",
        help_behavior_hint="",
    ),
]
Threads = Annotated[
    UseAppendAction[tuple[tuple[int, ...], ...]],
    arg(metavar="N ...", help="Numbers of threads.", help_behavior_hint="(default: 1 2, as far as there are cores)"),
]
BatchSizes = Annotated[
    UseAppendAction[tuple[tuple[int, ...], ...]],
    arg(name="batch", metavar="N ...", help="Numbers of images per call.", help_behavior_hint="(default: 1 64)"),
]
Runtimes = Annotated[
    UseAppendAction[tuple[tuple[str, ...], ...]],
    arg(
        metavar="NAME ...",
        help="Of eager, compiled, pt2, onnx, executorch, openvino.",
        help_behavior_hint="(default: all)",
    ),
]
BenchOut = Annotated[
    Path | None,
    arg(
        metavar="FILE", help="The file to write.", help_behavior_hint="(default: bench.json beside the exported files)"
    ),
]
ClassCount = Annotated[
    int | None,
    arg(metavar="N", help="The number of classes of a model notation without data.", help_behavior_hint=""),
]
PictureSize = Annotated[
    tuple[int, int] | None,
    arg(
        metavar="HEIGHT WIDTH",
        help="The size of the pictures for a model notation without data.",
        help_behavior_hint="(default: the network's own)",
    ),
]
DataOfNotation = Annotated[
    str | None,
    arg(
        metavar="DATA",
        help="The data set that gives a model notation its classes and its size.",
        help_behavior_hint="",
    ),
]
Push = Annotated[
    str | None,
    arg(
        metavar="OWNER/NAME",
        help="Upload the safetensors folder to this repository of the Hugging Face hub.",
        help_behavior_hint="(default: nothing is uploaded)",
    ),
]
ExportedFile = Annotated[Positional[str], arg(metavar="FILE", help="The exported model, .onnx or .pte.")]
Pictures = Annotated[
    Positional[tuple[str, ...]], arg(metavar="IMAGES", help="Pictures, folders, and patterns such as 'photos/*.jpg'.")
]
Top = Annotated[
    int | None,
    arg(
        metavar="K",
        help="The number of classes per picture: 1; in a segmentation all that occur.",
        help_behavior_hint="",
    ),
]
MasksFolder = Annotated[
    Path | None,
    arg(
        metavar="DIR", help="Of a segmentation: write the mask of each picture into this folder.", help_behavior_hint=""
    ),
]
MapsFolder = Annotated[
    Path | None,
    arg(metavar="DIR", help="Write a picture of each answer's map into this folder.", help_behavior_hint=""),
]
JsonLines = Annotated[FlagCreatePairsOff[bool], arg(help="Print one JSON object per picture.", help_behavior_hint="")]
Variants = Annotated[
    int | None,
    arg(
        metavar="K",
        help="Augmented variants to record per image.",
        help_behavior_hint="(default: as many as the run shows)",
    ),
]
Share = Annotated[
    str,
    arg(
        metavar="I/N",
        help="The share of this machine, if N machines record in separate launches.",
        help_behavior_hint="",
    ),
]
Verify = Annotated[
    int,
    arg(metavar="N", help="Recompute N recorded answers of each kind and compare.", help_behavior_hint=""),
]
CompareSettings = Annotated[
    UseAppendAction[tuple[tuple[str, ...], ...]],
    arg(
        name="set",
        metavar="KEY=VALUE ...",
        help="Change the settings of the comparison ([compare] in a recipe), for example samples=500 or taps=[layer1,last].",
        help_behavior_hint="(default: the recipe's)",
    ),
]
NamedModels = Annotated[
    UseAppendAction[tuple[tuple[str, ...], ...]],
    arg(
        metavar="NAME=MODEL ...",
        help="The models to compare, if they are not those of a run. If named teacher, base and student, their "
        "differences are labelled distilled, residual, missed.",
        help_behavior_hint="(default: the run's)",
    ),
]
MostOfAStep = Annotated[
    float | None,
    arg(
        metavar="X",
        help="Maximum cost of a step, as a multiple of the student's own.",
        help_behavior_hint="(default: any)",
    ),
]
RunsToCompare = Annotated[
    Positional[tuple[Path, ...]],
    arg(metavar="RUN", help="A run folder; with several, their students are compared.", help_behavior_hint=""),
]
PageOut = Annotated[
    Path | None,
    arg(
        metavar="PATH",
        help="The folder to write.",
        help_behavior_hint="(default: the folder of the one run, else compare/NAME-NAME)",
    ),
]
RunFolder = Annotated[Positional[Path], arg(metavar="RUN", help="A run folder.")]
Again = Annotated[
    FlagCreatePairsOff[bool], arg(help="Overwrite a finished run that has other settings.", help_behavior_hint="")
]
Json = Annotated[
    FlagCreatePairsOff[bool],
    arg(help="Print one JSON document instead of tables, and nothing else on stdout.", help_behavior_hint=""),
]
Seed = Annotated[int | None, arg(metavar="N", help="Short for seed=N.", help_behavior_hint="(default: the recipe's)")]
Quiet = Annotated[
    FlagCreatePairsOff[bool],
    arg(aliases=["-q"], help="Show no progress; results still go to stdout.", help_behavior_hint=""),
]
DeviceName = Annotated[
    str | None,
    arg(
        metavar="DEVICE",
        help="Where to compute: cpu, cuda, cuda:1, mps.",
        help_behavior_hint="(default: a GPU, if any)",
    ),
]
Full = Annotated[FlagCreatePairsOff[bool], arg(help="Print the whole recipe too.", help_behavior_hint="")]
KINDS = (*REGISTRIES, "recipes")
if TYPE_CHECKING:
    OneKind = str
else:
    OneKind = Literal[KINDS]  # a tuple stands for its items
Kind = Annotated[
    Positional[OneKind],
    arg(metavar="KIND", help=f"{', '.join(KINDS)}."),
]
PartName = Annotated[
    Positional[str | None], arg(metavar="NAME", help="Print everything about this one.", help_behavior_hint="")
]


@dataclass(frozen=True)
class Manner:
    """Output and device of a command.

    Attributes:
        quiet: show no progress.
        device: where to compute; None: a GPU, if any.
    """

    quiet: Quiet = False
    device: DeviceName = None

    def __post_init__(self) -> None:
        if self.device is not None and not re.fullmatch(r"cpu|mps|(cuda|xpu)(:\d+)?", self.device):
            raise UserError(f"--device is cpu, cuda, cuda:1 or mps; given {self.device!r}")

    @property
    def console(self) -> Console | None:
        """The console for progress; None if quiet."""
        from rich.console import Console

        return None if self.quiet else Console(stderr=True)

    def say(self, text: str) -> None:
        """Print a line of progress."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def choose_device(self) -> None:
        """Make the following code compute on the given device, through accelerate's environment variables.

        Raises:
            UserError: the device does not exist.
        """
        if self.device is None:
            return
        import torch

        kind, _, number = self.device.partition(":")
        if kind == "cpu":
            os.environ["ACCELERATE_USE_CPU"] = "true"
            return
        there = getattr(torch, kind, None)
        count = there.device_count() if there is not None and there.is_available() else 0
        if int(number or 0) >= count:
            raise UserError(
                f"--device {self.device}: this machine has {count or 'no'} {kind} device{'s' * (count > 1)}"
            )
        os.environ["ACCELERATE_TORCH_DEVICE"] = self.device


How = Annotated[Manner, arg(name="")]
SeedCount = Annotated[
    int | None,
    arg(metavar="N", help="The number of seeds for every row.", help_behavior_hint="(default: 5, or the study's own)"),
]
FirstSeed = Annotated[int, arg(metavar="N", help="The first seed.", help_behavior_hint="(default: 0)")]
Jobs = Annotated[
    int,
    arg(metavar="N", help="How many runs are trained at once, as far as cores and memory go.", help_behavior_hint=""),
]
NoTest = Annotated[
    FlagCreatePairsOff[bool],
    arg(help="Do not read the test split: the table shows validation.", help_behavior_hint=""),
]
StudyOut = Annotated[
    Path | None,
    arg(metavar="DIR", help="The study's folder.", help_behavior_hint="(default: runs/NAME-ablation, ...)"),
]
UntilPoints = Annotated[
    float | None,
    arg(
        metavar="POINTS",
        help="Add seeds to undecided rows until a difference of this size is shown or excluded.",
        help_behavior_hint="(default: no seed is added)",
    ),
]
MostSeeds = Annotated[
    int, arg(metavar="N", help="With --until: the largest number of seeds.", help_behavior_hint="(default: 20)")
]
SEEDS = 5
"""How many seeds a study has by default."""


@dataclass(frozen=True)
class StudyOptions:
    """What all studies take.

    Attributes:
        seeds: how many seeds; None for the study's own number, or `SEEDS`.
        first: the first seed; fresh ones confirm what others chose.
        jobs: how many runs are trained at once.
        no_test: whether the test split stays unread.
        until: the difference that matters, in points: seeds are added until it is shown or excluded.
        most: with `until`, the largest number of seeds.
        out: the study's folder.
    """

    seeds: SeedCount = None
    first: FirstSeed = 0
    jobs: Jobs = 1
    no_test: NoTest = False
    until: UntilPoints = None
    most: MostSeeds = 20
    out: StudyOut = None

    def __post_init__(self) -> None:
        count = SEEDS if self.seeds is None else self.seeds
        if min(count, self.jobs) < 1:
            raise UserError(f"--seeds and --jobs are at least 1; given {count} and {self.jobs}")
        if self.first < 0:
            raise UserError(f"--first is at least 0; given {self.first}")

    @property
    def numbers(self) -> tuple[int, ...]:
        """The seeds."""
        return tuple(range(self.first, self.first + (self.seeds or SEEDS)))


OfStudies = Annotated[StudyOptions, arg(name="")]
StudyFolder = Annotated[Positional[Path], arg(metavar="STUDY", help="A study's folder.")]
RecipeNames = Annotated[
    Positional[tuple[str, ...]], arg(metavar="RECIPES", help="TOML files, or names of shipped recipes.")
]
Factors = Annotated[
    tuple[float, ...],
    arg(
        metavar="F ...", help="How many times fewer parameters than the teacher.", help_behavior_hint="(default: 2 4 8)"
    ),
]
Family = Annotated[
    str | None,
    arg(
        metavar="MODEL",
        help="The networks to choose students from, for example mobilenetv2 (by width) or shrink.",
        help_behavior_hint="(default: the teacher without its last blocks)",
    ),
]
LongestTime = Annotated[
    str | None,
    arg(
        metavar="TIME",
        help="Name the best student that answers for one image within this time, for example 5ms.",
        help_behavior_hint="(default: any)",
    ),
]
LargestSize = Annotated[
    str | None,
    arg(
        metavar="SIZE",
        help="Name the best student whose weights are at most this large, for example 500kB.",
        help_behavior_hint="(default: any)",
    ),
]
Subsets = Annotated[
    FlagCreatePairsOff[bool], arg(name="all", help="Train every subset of the methods.", help_behavior_hint="")
]
Controls = Annotated[
    FlagCreatePairsOff[bool],
    arg(help="Also train with permuted and with random maps of the teacher.", help_behavior_hint=""),
]
Space = Annotated[
    UseAppendAction[tuple[tuple[str, ...], ...]],
    arg(
        metavar="SETTING ...",
        help="What is searched: kd.temperature=1..8, kd.weight=0.1..10:log, train.epochs=10..30:int, ig_overlay.p=0.1|0.2.",
        help_behavior_hint="(required)",
    ),
]
Trials = Annotated[
    int,
    arg(metavar="N", help="How many settings are tried, by all workers together.", help_behavior_hint="(default: 50)"),
]
Timeout = Annotated[
    str | None,
    arg(metavar="TIME", help="Begin no trial after this time: 90s, 30m, 2h.", help_behavior_hint="(default: no limit)"),
]
SamplerName = Annotated[
    Literal["tpe", "cmaes", "random"], arg(help="How settings are proposed.", help_behavior_hint="(default: tpe)")
]
Objectives = Annotated[
    tuple[str, ...],
    arg(
        metavar="NAME ...",
        help="What is searched for: score, latency, size, maps. Several give a Pareto front.",
        help_behavior_hint="(default: score)",
    ),
]
Storage = Annotated[
    str | None,
    arg(
        metavar="URL",
        help="A database that workers on several machines share, such as postgresql+psycopg://USER@HOST/NAME.",
        help_behavior_hint="(default: SQLite in the study's folder)",
    ),
]


def seconds_of(text: str | None) -> float | None:
    """`5ms`, `90s`, `30m`, `2h` or a number of seconds, in seconds.

    >>> seconds_of("1.5h")
    5400.0

    Raises:
        UserError: it is not a time.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|[smh]?)", text.strip())
    if not found:
        raise UserError(f"a time is like 5ms, 90s, 30m or 2h; given {text!r}")
    return float(found[1]) * {"": 1, "ms": 0.001, "s": 1, "m": 60, "h": 3600}[found[2]]


def bytes_of(text: str | None) -> int | None:
    """`500kB`, `2MB`, `1MiB` or a number of bytes, in bytes.

    >>> bytes_of("500kB")
    500000

    Raises:
        UserError: it is not a size.
    """
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return None if text is None else int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise UserError(f"a size is like 500kB, 2MB or 1MiB; given {text!r}") from None
