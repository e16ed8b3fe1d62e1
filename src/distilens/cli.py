"""The command line: a function a command. Torch is imported inside them, so that `--help` answers at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro
from rich.console import Console
from tyro.conf import Positional

from distilens.errors import UserError
from distilens.options import (
    Changes,
    CompareSettings,
    DataName,
    Explainers,
    Images,
    MapsOut,
    ModelOrRun,
    MostOfAStep,
    NamedModels,
    Out,
    PageOut,
    RecipeName,
    RunFolder,
    RunOrNone,
    Share,
    Target,
    Variants,
    Verify,
)
from distilens.terminal import conclude, show_advice, show_comparison, show_gallery, show_parts, show_scores

if TYPE_CHECKING:
    from distilens.recipe import Recipe

app = tyro.extras.SubcommandApp()


@app.command
def run(recipe: RecipeName, /, set_: Changes = (), out: Out = None, again: bool = False) -> None:
    """Take a recipe through all its stages: teacher, base, student, measure, explain, report.

    What is there already and still valid is skipped, so the same command goes on where it was stopped. A finished run with
    other settings is kept: the new one goes to `runs/NAME-2`.

    Args:
        again: Train over a finished run with other settings.
    """
    found = read(recipe, set_)
    carry_out(found, out or Path("runs") / found.name, again)


@app.command
def demo(set_: Changes = (), out: Path = Path("runs/demo"), again: bool = False) -> None:
    """Distil a student from generated images in a minute or two, and show whether it looks at the object.

    The teacher has seen many images; the student sees few, on backgrounds that give the class away.

    Args:
        again: Train over a finished run with other settings.
    """
    carry_out(read("demo", set_), out, again)


def carry_out(recipe: Recipe, folder: Path, again: bool) -> None:
    """Run a recipe in a folder, or beside a finished run with other settings."""
    from distilens.run import Run, folder_for
    from distilens.stages import run_all

    console = Console(stderr=True)
    place = folder if again else folder_for(folder, recipe)
    if place != folder:
        console.print(
            f"{folder} is a finished run with other settings: this one goes to {place} (--again trains over the old one)",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    made = Run(place, recipe, console)
    run_all(made)
    conclude(made)


@app.command
def record(
    recipe: RecipeName,
    /,
    set_: Changes = (),
    out: Out = None,
    variants: Variants = None,
    part: Share = "1/1",
    verify: Verify = 0,
    again: bool = False,
) -> None:
    """Record the teacher's answers that a recipe's (or a run's) methods ask for, so that training reads them.

    What is there is kept.

    Under accelerate's or torch's launcher all processes record, each its share.

    Args:
        again: Throw away what is recorded, and record all of it anew.
    """
    from distilens import recording

    made = recipe_or_run(recipe, set_, out, stored=True)  # what is recorded is for a run that reads it
    if verify == 0:
        recording.record(made, variants=variants, part=share_of(part), again=again)
    elif not recording.verify(made, verify):
        raise UserError("recorded answers are not what the teacher says now: record them --again")


@app.command
def codebook(recipe: RecipeName, /, set_: Changes = (), out: Out = None) -> None:
    """Make the codebooks of the teacher's features that a recipe's (or a run's) methods ask for, and print where they are.

    A run makes them by itself; this makes them ahead of time, and trains the teacher first where it is not there.
    """
    from distilens.roles import codebooks

    for path in codebooks(recipe_or_run(recipe, set_, out)):
        print(path)


def recipe_or_run(name: str, set_: tuple[tuple[str, ...], ...], out: Path | None, *, stored: bool = False):
    """A run that is there, or a new one of a recipe; with `stored`, one that reads its teacher's answers."""
    from distilens.run import Run, load_run

    if (Path(name) / "recipe.toml").is_file():
        if set_ or out:
            raise UserError(f"{name} is a run, which says all itself: --set and --out go with a recipe")
        return load_run(name, console=Console(stderr=True))
    found = read(name, set_)
    if stored and found.teacher and found.teacher.answers.startswith("live"):
        found = read(name, (*set_, ("teacher.answers=stored",)))
    return Run(out or Path("runs") / found.name, found, Console(stderr=True))


def share_of(text: str) -> tuple[int, int]:
    """`2/8` as (1, 8)."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UserError(f"--part is like 2/8, the second of eight shares; given {text!r}")
    return int(number) - 1, int(count)


@app.command
def train(run: RunFolder, /) -> None:
    """Train what a run's recipe says and is not trained yet: teacher, base, student."""
    from distilens.roles import train_stage
    from distilens.run import at_work, load_run

    found = load_run(run, console=Console(stderr=True))
    with at_work(found):
        train_stage(found)


@app.command
def measure(run: RunFolder, /) -> None:
    """Score a run's models: accuracy, agreement, likeness of maps, cost."""
    from distilens.run import at_work, load_run
    from distilens.stages import measure_stage

    found = load_run(run, console=Console(stderr=True))
    with at_work(found):
        measure_stage(found)
    show_scores(found)


@app.command
def explain(
    model: ModelOrRun,
    /,
    data: DataName = None,
    explainer: Explainers = (),
    images: Images = None,
    target: Target = None,
    out: MapsOut = None,
    sanity: bool = True,
    prepare: bool = True,
) -> None:
    """Explain any model's answers in several ways, and say how far each of the explanations can be believed.

    Writes maps, scores and a page. A run folder without any option gets the maps that its recipe asks for.

    Args:
        sanity: Measure whether maps depend on the model's weights, and are stable; takes most of the time.
        prepare: Explain a copy of the model with folded batch norms: the same to rounding, and faster.
    """
    plain = (data, explainer, images, target, out, sanity, prepare) == (None, (), None, None, None, True, True)
    if plain and Path(model).is_dir() and not (Path(model) / "model.json").is_file():
        explain_run(Path(model))
        return
    from distilens.files import locked
    from distilens.gallery import check_writable, gallery
    from distilens.specs import safe

    folder = out or Path("maps") / safe(model)
    check_writable(folder)
    made = gallery(
        model,
        data,
        [part for group in explainer for part in group] or ("gradcam", "ig"),
        images=32 if images is None else images,
        target=target or "top1",
        sanity=sanity,
        prepared=prepare,
        console=Console(stderr=True),
    )
    with locked(folder):
        page = made.save(folder)
    show_gallery(made)
    print(f"\n{page}")


def explain_run(folder: Path) -> None:
    """The explain stage of a run: the maps of its models on the same test images."""
    from distilens.run import at_work, load_run
    from distilens.stages import explain_stage

    found = load_run(folder, console=Console(stderr=True))
    with at_work(found):
        explain_stage(found)


@app.command(name="compare")
def compare_(
    run: RunOrNone = None,
    /,
    models: NamedModels = (),
    data: DataName = None,
    set_: CompareSettings = (),
    out: PageOut = None,
) -> None:
    """Compare what models know: a run's teacher, base and student, or any others by name.

    How much of one's features is in another's (FSS), how much of the task is in them (RS), what distillation brought, lost and
    left, and where in the images that is. Becomes a section of the run's page, or a page of its own.
    """
    named = [part for group in models for part in group]
    changes = [part for group in set_ for part in group]
    if (run is None) == (not named):
        raise UserError("compare takes a run folder, or --models NAME=MODEL NAME=MODEL ... and --data")
    if named:
        compare_models(named, data, changes, out or Path("compare"))
        return
    assert run is not None
    if data or out:
        raise UserError("a run is compared on its own data and in its own folder: --data and --out go with --models")
    from distilens.run import at_work, load_run
    from distilens.stages import compare_stage, report_stage

    found = load_run(run, console=Console(stderr=True))
    how = changed_compare(found.recipe.compare, changes)
    with at_work(found):
        compare_stage(found, how)
        page = report_stage(found)
    show_comparison(run)
    print(f"\n{page}")


def changed_compare(part, changes: list[str]):
    """A recipe's settings with some changed; None where nothing is."""
    from distilens.comparison import compare_part, settings_of

    return compare_part({**(part.model_dump() if part else {}), **settings_of(changes)}) if changes else None


def compare_models(named: list[str], data: str | None, changes: list[str], out: Path) -> None:
    """Models by name, with a page of their own."""
    from distilens.comparison import compare, models_named, settings_of
    from distilens.files import locked
    from distilens.gallery import check_writable

    models, how = models_named(named), settings_of(changes)
    check_writable(out)
    made = compare(models, data, how, console=Console(stderr=True))
    with locked(out):
        page = made.save(out)
    show_comparison(out)
    print(f"\n{page}")


@app.command
def report(run: RunFolder, /) -> None:
    """Write a run's page from what is there."""
    from distilens.report import write_report

    if not run.is_dir():
        raise UserError(f"no run at {run}: there is no such folder")
    if not any(
        (run / name).exists()
        for name in ("recipe.toml", "about.json", "metrics.jsonl", "scores.json", "maps", "transfer.json")
    ):
        raise UserError(f"{run} is not a run: nothing that a run writes is there")
    print(write_report(run))


@app.command
def validate(recipe: RecipeName, /, set_: Changes = (), time: bool = True) -> None:
    """Resolve a recipe without training: every option, shapes, parameters, MACs, an estimate of time and memory.

    Args:
        time: Time a few steps of each training for the estimate.
    """
    from distilens.validate import inspect_recipe

    inspect_recipe(read(recipe, set_), Console(), timed=time)


@app.command(name="recommend")
def recommend_(recipe: RecipeName, /, set_: Changes = (), step: MostOfAStep = None, localise: bool = False) -> None:
    """Say which methods suit a recipe's data, models and budget, by what was measured, and why.

    Args:
        localise: It matters that the student looks at the object: backgrounds may give classes away.
    """
    from distilens.recommend import recommend

    show_advice(recommend(read(recipe, set_), step=step, localise=localise), recipe)


@app.command(name="list")
def list_(
    kind: Positional[
        Literal[
            "methods",
            "models",
            "data",
            "explainers",
            "judges",
            "follow",
            "controls",
            "balances",
            "embeddings",
            "recipes",
        ]
    ],
    /,
) -> None:
    """List what there is of a kind, a line each, with options and source."""
    show_parts(kind)


def read(name: str, changes: tuple[tuple[str, ...], ...]):
    from distilens.recipe_file import read_recipe

    return read_recipe(name, [change for group in changes for change in group])


def main() -> None:
    """The command `distilens`: exits with 2 on a mistake of the user's, with 130 on Ctrl-C."""
    # threads that wait by spinning take the processor from a second run: 0.12 of the speed each instead of 0.54 on two cores
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app.cli(prog="distilens", description="Train small image models under the guidance of large ones.")
    except UserError as error:
        print(f"distilens: {error}", file=sys.stderr)
        sys.exit(getattr(error, "code", 2))
    except KeyboardInterrupt as stop:
        print(f"distilens: {str(stop) or 'stopped'}", file=sys.stderr)
        sys.exit(getattr(stop, "code", 130))
    except BrokenPipeError:
        sys.exit(141)


if __name__ == "__main__":
    main()
