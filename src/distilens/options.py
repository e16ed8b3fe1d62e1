"""The options of the command line, as annotated types: how each is written, and what `--help` says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

Changes = Annotated[
    UseAppendAction[tuple[tuple[str, ...], ...]],
    arg(name="set", metavar="KEY=VALUE ...", help="Change the recipe, for example train.epochs=3 or data.limit=500."),
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
    arg(metavar="N", help="How many are drawn from the test split.", help_behavior_hint="(default: 32)"),
]
Target = Annotated[
    Literal["top1", "label"] | None,
    arg(
        metavar="top1|label",
        help="The class that is explained: the model's first one, or the label.",
        help_behavior_hint="(default: top1)",
    ),
]
MapsOut = Annotated[
    Path | None,
    arg(metavar="PATH", help="The folder to write.", help_behavior_hint="(default: maps/MODEL)"),
]
Variants = Annotated[
    int | None,
    arg(metavar="K", help="Of each image.", help_behavior_hint="(default: as many as the run shows)"),
]
Share = Annotated[
    str,
    arg(
        metavar="I/N",
        help="This machine's share, where N machines record that are not one launch.",
        help_behavior_hint="",
    ),
]
Verify = Annotated[
    int,
    arg(metavar="N", help="Make N recorded answers of each kind again and compare.", help_behavior_hint=""),
]
CompareSettings = Annotated[
    UseAppendAction[tuple[tuple[str, ...], ...]],
    arg(
        name="set",
        metavar="KEY=VALUE ...",
        help="Change how, as a recipe's [compare] says it, for example samples=500 or taps=[layer1,last].",
        help_behavior_hint="(default: the recipe's)",
    ),
]
NamedModels = Annotated[
    UseAppendAction[tuple[tuple[str, ...], ...]],
    arg(
        metavar="NAME=MODEL ...",
        help="Models that are not one run's; those called teacher, base and student have what they do not share named.",
        help_behavior_hint="(default: the run's)",
    ),
]
MostOfAStep = Annotated[
    float | None,
    arg(
        metavar="X",
        help="The most that a step may cost, as a multiple of the student's own.",
        help_behavior_hint="(default: any)",
    ),
]
RunOrNone = Annotated[Positional[Path | None], arg(metavar="RUN", help="A run folder.", help_behavior_hint="")]
PageOut = Annotated[
    Path | None,
    arg(metavar="PATH", help="The folder to write.", help_behavior_hint="(default: the run's, or compare)"),
]
RunFolder = Annotated[Positional[Path], arg(metavar="RUN", help="A run folder.")]
