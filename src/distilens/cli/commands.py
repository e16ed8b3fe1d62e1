"""The command line: one function per command. Torch is imported inside the functions they call, so `--help` is fast."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import tyro

from distilens.cli.options import (
    Again,
    BatchSizes,
    BenchOut,
    Changes,
    ClassCount,
    CompareSettings,
    Controls,
    DataName,
    DataOfNotation,
    Explainers,
    ExportedFile,
    ExportOut,
    Factors,
    Family,
    Formats,
    Full,
    How,
    Images,
    InputSize,
    Json,
    JsonLines,
    Kind,
    LargestSize,
    LongestTime,
    Manner,
    MapsFolder,
    MapsOut,
    Measured,
    ModelOrRun,
    MostOfAStep,
    NamedModels,
    Objectives,
    OfStudies,
    Out,
    PageOut,
    PartName,
    Pictures,
    PictureSize,
    Push,
    RecipeName,
    RecipeNames,
    RunFolder,
    RunsToCompare,
    Runtimes,
    SamplerName,
    Seed,
    Share,
    Space,
    Storage,
    StudyFolder,
    StudyOptions,
    Subsets,
    Target,
    Threads,
    Timeout,
    Top,
    Trials,
    Variants,
    Verify,
    bytes_of,
    seconds_of,
)
from distilens.cli.words import START, order_words, overview, parse_plainly
from distilens.foundation.errors import UserError

app = tyro.extras.SubcommandApp()
COMMANDS: dict[str, Callable[..., Callable[[], None]]] = {}
"""The commands by name. Only the given command is parsed, which takes half the time of parsing all."""


def command(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command: tyro parses the words, and `main` calls it afterwards."""

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
    how: How = Manner(),  # noqa: B008  # frozen
) -> None:
    """Run all stages of a recipe: teacher, base, student, measure, explain, report.

    Stages that are done and still valid are skipped, so the same command resumes a stopped run. A finished run with other
    settings is not overwritten: the new one goes to `runs/NAME-2`.
    """
    from distilens.cli.actions import run_recipe

    run_recipe(recipe, changes_of(set_, seed), out, again, as_json=json, how=how)


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

    The teacher has seen many images; the student sees few, with backgrounds that reveal the class.
    """
    from distilens.cli.actions import run_recipe

    run_recipe("demo", changes_of(set_, seed), out, again, as_json=json, how=how)


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
    """Record the teacher's answers that a recipe's (or a run's) methods need, so that training reads them.

    Existing records are kept.

    Under accelerate's or torch's launcher every process records its share.

    Args:
        again: Delete existing records, and record everything again.
    """
    from distilens.cli.actions import recipe_or_run, share_of

    made = recipe_or_run(recipe, changes_of(set_, seed), out, how, stored=True)  # for a run that reads stored answers
    from distilens.runs import recording

    if verify == 0:
        recording.record(made, variants=variants, part=share_of(part), again=again)
    elif not recording.verify(made, verify):
        raise UserError("recorded answers differ from the teacher's answers now: record them again with --again")


@command("codebook")
def codebook(recipe: RecipeName, /, set_: Changes = (), out: Out = None, how: How = Manner()) -> None:  # noqa: B008
    """Make the codebooks of the teacher's features that a recipe's (or a run's) methods need, and print their paths.

    A run makes them itself. This command makes them in advance; it trains the teacher first if there is none.
    """
    from distilens.cli.actions import recipe_or_run

    made = recipe_or_run(recipe, changes_of(set_), out, how)
    from distilens.runs.training import collect_alone

    for path in collect_alone(made):
        print(path)


@command("train")
def train(run: RunFolder, /, how: How = Manner()) -> None:  # noqa: B008
    """Train the models of a run that are not trained yet: teacher, base, student."""
    from distilens.cli.actions import run_at

    opened = run_at(run, how)
    from distilens.runs.run import lock_run
    from distilens.runs.training import train_stage

    with lock_run(opened):
        train_stage(opened)


@command("measure")
def measure(run: RunFolder, /, json: Json = False, how: How = Manner()) -> None:  # noqa: B008
    """Score a run's models: accuracy, agreement, similarity of maps, cost."""
    from distilens.cli.actions import run_at

    opened = run_at(run, how)
    from distilens.cli.terminal import print_json, show_scores
    from distilens.runs.run import lock_run
    from distilens.runs.stages import measure_stage

    with lock_run(opened):
        measure_stage(opened)
    if json:
        print_json({"run": str(run), "scores": opened.scores})
    else:
        show_scores(opened)


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
    """Explain any model's answers with several explainers, and measure how far each can be trusted.

    Writes maps, scores and a page. For a run folder without options it makes the maps of the run's recipe.

    Args:
        sanity: Measure whether maps depend on the model's weights and are stable; takes most of the time.
        prepare: Explain a copy of the model with folded batch norms: equal up to rounding, and faster.
    """
    from distilens.cli.actions import check_explainers, check_model, explain_model, explain_run

    check_model(model)
    names = join_words(explainer)
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

    How much of one model's features another one has (FSS), how much of the task they contain (RS), what distillation added,
    lost and left out, and where in the images. The result is a section of the run's page, or a page of its own.
    """
    from distilens.cli import actions

    named, folders = join_words(models), list(runs)
    if bool(folders) == bool(named):
        raise UserError(
            "compare takes a run folder, two or more of them, or --models NAME=MODEL NAME=MODEL ... and --data"
        )
    if len(folders) > 1:
        named, data = actions.students_of(folders, data)
    if named:
        actions.compare_models(named, data, join_words(set_), out or actions.page_of(named), json, how)
    elif data or out:
        raise UserError("a run is compared on its own data and in its own folder: --data and --out go with --models")
    else:
        actions.compare_run(folders[0], join_words(set_), json, how)


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
        tolerance: How many points of accuracy an INT8 file may lose.
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
    top: Top = 1,
    json: JsonLines = False,
    explain: MapsFolder = None,
) -> None:
    """Answer pictures with an exported .onnx or .pte file: a line per picture, with class and probability.

    Torch is not needed for .onnx. The predict.py beside the file is the same program, and works without distilens.

    Exit status: 1 if a picture could not be read (the others are answered), 2 if the model cannot be used.
    """
    from distilens.deploy.predict import run  # distilens.cli.main starts it without tyro

    sys.exit(run(file, images, top=top, as_json=json, explained=explain, name="distilens"))


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


@command("ablate")
def ablate(
    recipe: RecipeName,
    /,
    set_: Changes = (),
    all_: Subsets = False,
    controls: Controls = False,
    options: OfStudies = StudyOptions(),  # noqa: B008  # frozen
    json: Json = False,
    how: How = Manner(),  # noqa: B008  # frozen
) -> None:
    """Train a recipe without each of its methods in turn, over several seeds, and say what each method adds.

    The base and plain kd are trained too. All rows share the teacher's stored answers. The same command continues a stopped
    study.
    """
    from distilens.cli import studying

    studying.ablate(recipe, changes_of(set_), options, subsets=all_, controls=controls, as_json=json, how=how)


@command("compress")
def compress(
    recipe: RecipeName,
    /,
    set_: Changes = (),
    factors: Factors = (2.0, 4.0, 8.0),
    family: Family = None,
    latency: LongestTime = None,
    size: LargestSize = None,
    options: OfStudies = StudyOptions(),  # noqa: B008  # frozen
    json: Json = False,
    how: How = Manner(),  # noqa: B008  # frozen
) -> None:
    """Train students of several sizes under a recipe's teacher and with labels only: accuracy against compression."""
    from distilens.cli import studying

    budget = {"latency": seconds_of(latency), "size": bytes_of(size)}
    studying.compress(
        recipe, changes_of(set_), options, factors=factors, family=family, **budget, as_json=json, how=how
    )


@command("sweep")
def sweep(
    recipe: RecipeName,
    /,
    set_: Changes = (),
    space: Space = (),
    trials: Trials = 50,
    timeout: Timeout = None,
    sampler: SamplerName = "tpe",
    objectives: Objectives = ("score",),
    storage: Storage = None,
    options: OfStudies = StudyOptions(),  # noqa: B008  # frozen
    json: Json = False,
    how: How = Manner(),  # noqa: B008  # frozen
) -> None:
    """Search settings of a recipe by validation; then train the chosen one with fresh seeds, and read only these on test.

    Any number of processes with the same command (and folder, or --storage) share one search.
    """
    from distilens.cli import studying

    searched = {
        "space": tuple(join_words(space)),
        "trials": trials,
        "timeout": seconds_of(timeout),
        "sampler": sampler,
        "objectives": objectives,
    }
    studying.sweep(recipe, changes_of(set_), options, searched, storage, as_json=json, how=how)


@command("seeds")
def seeds_(
    recipes: RecipeNames,
    /,
    set_: Changes = (),
    options: OfStudies = StudyOptions(),  # noqa: B008  # frozen
    json: Json = False,
    how: How = Manner(),  # noqa: B008  # frozen
) -> None:
    """Train recipes with several seeds, and compare them with the first."""
    from distilens.cli import studying

    studying.compare_seeds(recipes, changes_of(set_), options, as_json=json, how=how)


@command("study")
def study(
    folder: StudyFolder,
    /,
    json: Json = False,
    csv: bool = False,
    latex: bool = False,
) -> None:
    """Show a study, also while it runs: its table and its page.

    Args:
        csv: Print one line per row and seed.
        latex: Print the table for a paper.
    """
    from distilens.cli.studying import show_study
    from distilens.studies.study import read_study

    show_study(read_study(folder), as_json=json, as_csv=csv, as_latex=latex)


@command("report")
def report(run: RunFolder, /) -> None:
    """Write a run's page from its existing results."""
    from distilens.report import write_report

    if not run.is_dir():
        raise UserError(f"no run at {run}: there is no such folder")
    if not any(
        (run / name).exists()
        for name in ("recipe.toml", "about.json", "metrics.jsonl", "scores.json", "maps", "transfer.json")
    ):
        raise UserError(f"{run} is not a run: it has no file that a run writes")
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
    """Check a recipe without training: an estimate of time and memory, the cost of each method, shapes, parameters, MACs.

    Args:
        time: Time a few steps of each training for the estimate.
    """
    from distilens.cli.actions import recipe_of

    checked = recipe_of(recipe, changes_of(set_, seed), how)
    from distilens.cli.inspection import show_inspection
    from distilens.cli.terminal import print_json
    from distilens.runs.inspection import inspect_recipe

    inspected = inspect_recipe(checked, timed=time)
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
    """Recommend methods for a recipe's data, models and budget, with reasons, from measurements.

    Args:
        localise: The student must look at the object: backgrounds may reveal the class.
    """
    from distilens.cli.actions import recipe_of

    checked = recipe_of(recipe, changes_of(set_), Manner())
    import dataclasses

    from distilens.cli.terminal import print_json, show_advice
    from distilens.studies.recommend import recommend

    advice = recommend(checked, step=step, localise=localise)
    if json:
        print_json(dataclasses.asdict(advice))
    else:
        show_advice(advice, recipe)


@command("list")
def list_(kind: Kind, name: PartName = None, /, json: Json = False) -> None:
    """List the parts of a kind, one line each with options and purpose; or print everything about one."""
    from distilens.cli.listing import show_list, show_part

    if name is None:
        show_list(kind, as_json=json)
    else:
        show_part(kind, name, as_json=json)


def join_words(groups: tuple[tuple[str, ...], ...]) -> list[str]:
    """The words of an option that may be given several times."""
    return [word for group in groups for word in group]


def changes_of(set_: tuple[tuple[str, ...], ...], seed: int | None = None) -> list[str]:
    """The changes of a recipe."""
    return [*join_words(set_), *([] if seed is None else [f"seed={seed}"])]


def begin(words: list[str]) -> None:
    """Execute a command line.

    Raises:
        UserError: a mistake in it.
    """
    if not words:
        print(START, end="")
        return
    if words[0] in ("--version", "-V"):
        from distilens import __version__

        print(f"distilens {__version__}")
        return
    if words[0] in ("--help", "-h"):
        print(overview(COMMANDS))
        return
    if words[0].startswith("-"):
        parse_plainly(lambda: app.cli(prog="distilens", args=words), "")
        return
    command, *rest = order_words(words, list(COMMANDS))
    parse_plainly(lambda: tyro.cli(COMMANDS[command], prog=f"distilens {command}", args=rest), command)()


def main() -> None:
    """The command `distilens`: exits with 2 on a user's mistake, with 130 on Ctrl-C."""
    # threads that spin while waiting slow down a second run: each gets 0.12 of its speed instead of 0.54 on two cores
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
