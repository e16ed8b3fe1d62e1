"""The command line: a function a command. Torch is imported inside what they call, so that `--help` answers at once."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

import tyro

from distilens.errors import UserError
from distilens.options import (
    Again,
    Changes,
    CompareSettings,
    DataName,
    Explainers,
    Full,
    How,
    Images,
    Json,
    Kind,
    Manner,
    MapsOut,
    ModelOrRun,
    MostOfAStep,
    NamedModels,
    Out,
    PageOut,
    PartName,
    RecipeName,
    RunFolder,
    RunsToCompare,
    Seed,
    Share,
    Target,
    Variants,
    Verify,
)
from distilens.words import START, ordered, told_plainly

app = tyro.extras.SubcommandApp()
ABOUT = "Train small image models under the guidance of large ones. distilens --version prints the version."
COMMANDS: dict[str, Callable[..., Callable[[], None]]] = {}
"""By name; a command that is named is read alone, which takes half the time of reading all."""


def command(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command: tyro reads its words, and `main` calls it afterwards."""

    def registered(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def later(*arguments: object, **options: object) -> Callable[[], None]:
            return functools.partial(function, *arguments, **options)

        app.command(name=name)(later)
        COMMANDS[name] = later
        return function

    return registered


@command("run")
def run(
    recipe: RecipeName,
    /,
    set_: Changes = (),
    out: Out = None,
    again: Again = False,
    seed: Seed = None,
    json: Json = False,
    how: How = Manner(),  # noqa: B008  # it is frozen
) -> None:
    """Take a recipe through all its stages: teacher, base, student, measure, explain, report.

    What is there already and still valid is skipped, so the same command goes on where it was stopped. A finished run with
    other settings is kept: the new one goes to `runs/NAME-2`.
    """
    from distilens.actions import carry_out

    carry_out(recipe, changes_of(set_, seed), out, again, as_json=json, how=how)


@command("demo")
def demo(
    set_: Changes = (),
    out: Path = Path("runs/demo"),
    again: Again = False,
    seed: Seed = None,
    json: Json = False,
    how: How = Manner(),  # noqa: B008
) -> None:
    """Distil a student from generated images in a minute or two, and show whether it looks at the object.

    The teacher has seen many images; the student sees few, on backgrounds that give the class away.
    """
    from distilens.actions import carry_out

    carry_out("demo", changes_of(set_, seed), out, again, as_json=json, how=how)


@command("record")
def record(
    recipe: RecipeName,
    /,
    set_: Changes = (),
    out: Out = None,
    variants: Variants = None,
    part: Share = "1/1",
    verify: Verify = 0,
    again: bool = False,
    seed: Seed = None,
    how: How = Manner(),  # noqa: B008
) -> None:
    """Record the teacher's answers that a recipe's (or a run's) methods ask for, so that training reads them.

    What is there is kept.

    Under accelerate's or torch's launcher all processes record, each its share.

    Args:
        again: Throw away what is recorded, and record all of it anew.
    """
    from distilens.actions import recipe_or_run, share_of

    made = recipe_or_run(recipe, changes_of(set_, seed), out, how, stored=True)  # it is for a run that reads them
    from distilens import recording

    if verify == 0:
        recording.record(made, variants=variants, part=share_of(part), again=again)
    elif not recording.verify(made, verify):
        raise UserError("recorded answers are not what the teacher says now: record them --again")


@command("codebook")
def codebook(recipe: RecipeName, /, set_: Changes = (), out: Out = None, how: How = Manner()) -> None:  # noqa: B008
    """Make the codebooks of the teacher's features that a recipe's (or a run's) methods ask for, and print where they are.

    A run makes them by itself; this makes them ahead of time, and trains the teacher first where it is not there.
    """
    from distilens.actions import recipe_or_run

    made = recipe_or_run(recipe, changes_of(set_), out, how)
    from distilens.roles import codebooks

    for path in codebooks(made):
        print(path)


@command("train")
def train(run: RunFolder, /, how: How = Manner()) -> None:  # noqa: B008
    """Train what a run's recipe says and is not trained yet: teacher, base, student."""
    from distilens.actions import run_at

    found = run_at(run, how)
    from distilens.roles import train_stage
    from distilens.run import at_work

    with at_work(found):
        train_stage(found)


@command("measure")
def measure(run: RunFolder, /, json: Json = False, how: How = Manner()) -> None:  # noqa: B008
    """Score a run's models: accuracy, agreement, likeness of maps, cost."""
    from distilens.actions import run_at

    found = run_at(run, how)
    from distilens.run import at_work
    from distilens.stages import measure_stage
    from distilens.terminal import print_json, show_scores

    with at_work(found):
        measure_stage(found)
    if json:
        print_json({"run": str(run), "scores": found.scores})
    else:
        show_scores(found)


@command("explain")
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
    how: How = Manner(),  # noqa: B008
) -> None:
    """Explain any model's answers in several ways, and say how far each of the explanations can be believed.

    Writes maps, scores and a page. A run folder without any option gets the maps that its recipe asks for.

    Args:
        sanity: Measure whether maps depend on the model's weights, and are stable; takes most of the time.
        prepare: Explain a copy of the model with folded batch norms: the same to rounding, and faster.
    """
    from distilens.actions import check_explainers, check_model, explain_model, explain_run

    check_model(model)
    names = joined(explainer)
    check_explainers(names)
    plain = (data, explainer, images, target, out, sanity, prepare) == (None, (), None, None, None, True, True)
    if plain and Path(model).is_dir() and not (Path(model) / "model.json").is_file():
        explain_run(Path(model), how)
        return
    options = {"images": 32 if images is None else images, "target": target or "top1", "sanity": sanity}
    explain_model(model, data, names, out, how, **options, prepared=prepare)


@command("compare")
def compare_(
    runs: RunsToCompare = (),
    /,
    models: NamedModels = (),
    data: DataName = None,
    set_: CompareSettings = (),
    out: PageOut = None,
    json: Json = False,
    how: How = Manner(),  # noqa: B008
) -> None:
    """Compare what models know: a run's teacher, base and student, the students of several runs, or any models by name.

    How much of one's features is in another's (FSS), how much of the task is in them (RS), what distillation brought, lost and
    left, and where in the images that is. Becomes a section of the run's page, or a page of its own.
    """
    from distilens import actions

    named, folders = joined(models), list(runs)
    if bool(folders) == bool(named):
        raise UserError(
            "compare takes a run folder, two or more of them, or --models NAME=MODEL NAME=MODEL ... and --data"
        )
    if len(folders) > 1:
        named, data = actions.students_of(folders, data)
    if named:
        actions.compare_models(named, data, joined(set_), out or actions.page_of(named), json, how)
    elif data or out:
        raise UserError("a run is compared on its own data and in its own folder: --data and --out go with --models")
    else:
        actions.compare_run(folders[0], joined(set_), json, how)


@command("report")
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


@command("validate")
def validate(
    recipe: RecipeName,
    /,
    set_: Changes = (),
    time: bool = True,
    full: Full = False,
    seed: Seed = None,
    json: Json = False,
    how: How = Manner(),  # noqa: B008
) -> None:
    """Look at a recipe without training: an estimate of time and memory, what each method costs, shapes, parameters, MACs.

    Args:
        time: Time a few steps of each training for the estimate.
    """
    from distilens.actions import recipe_of

    found = recipe_of(recipe, changes_of(set_, seed), how)
    from distilens.inspection import show_inspection
    from distilens.terminal import print_json
    from distilens.validate import inspect_recipe

    inspected = inspect_recipe(found, timed=time)
    if json:
        print_json(inspected.plain())
    else:
        show_inspection(inspected, full=full)


@command("recommend")
def recommend_(
    recipe: RecipeName,
    /,
    set_: Changes = (),
    step: MostOfAStep = None,
    localise: bool = False,
    json: Json = False,
) -> None:
    """Say which methods suit a recipe's data, models and budget, by what was measured, and why.

    Args:
        localise: It matters that the student looks at the object: backgrounds may give classes away.
    """
    from distilens.actions import recipe_of

    found = recipe_of(recipe, changes_of(set_), Manner())
    import dataclasses

    from distilens.recommend import recommend
    from distilens.terminal import print_json, show_advice

    advice = recommend(found, step=step, localise=localise)
    if json:
        print_json(dataclasses.asdict(advice))
    else:
        show_advice(advice, recipe)


@command("list")
def list_(kind: Kind, name: PartName = None, /, json: Json = False) -> None:
    """List what there is of a kind, a line each with options and purpose; or all that is known of one."""
    from distilens.listing import show_list, show_part

    if name is None:
        show_list(kind, as_json=json)
    else:
        show_part(kind, name, as_json=json)


def joined(groups: tuple[tuple[str, ...], ...]) -> list[str]:
    """The words of an option that may come several times."""
    return [word for group in groups for word in group]


def changes_of(set_: tuple[tuple[str, ...], ...], seed: int | None = None) -> list[str]:
    """The changes of a recipe."""
    return [*joined(set_), *([] if seed is None else [f"seed={seed}"])]


def begin(words: list[str]) -> None:
    """Carry out a command line.

    Raises:
        UserError: whatever is wrong with it.
    """
    if not words:
        print(START, end="")
        return
    if words[0] in ("--version", "-V"):
        from distilens import __version__

        print(f"distilens {__version__}")
        return
    if words[0].startswith("-"):
        told_plainly(lambda: app.cli(prog="distilens", description=ABOUT, args=words), "")
        return
    command, *rest = ordered(words, list(COMMANDS))
    told_plainly(lambda: tyro.cli(COMMANDS[command], prog=f"distilens {command}", args=rest), command)()


def main() -> None:
    """The command `distilens`: exits with 2 on a mistake of the user's, with 130 on Ctrl-C."""
    # threads that wait by spinning take the processor from a second run: 0.12 of the speed each instead of 0.54 on two cores
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        begin(sys.argv[1:])
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
