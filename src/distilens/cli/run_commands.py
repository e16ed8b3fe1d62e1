"""The commands of runs, from `run` to `list`: one function each. Torch is imported inside the functions that they call."""

from __future__ import annotations

from pathlib import Path

from distilens.cli.options import (
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
    Of,
    Out,
    PageOut,
    PartName,
    RecipeName,
    RunFolder,
    RunsToCompare,
    Seed,
    Share,
    Variants,
    Verify,
)
from distilens.cli.registry import changes_of, command, join_words
from distilens.foundation.errors import UserError


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
    of: Of = None,
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
    plain = (data, explainer, images, of, out, sanity, prepare) == (None, (), None, None, None, True, True)
    if plain and Path(model).is_dir() and not (Path(model) / "model.json").is_file():
        explain_run(Path(model), how)
        return
    options = {"images": 32 if images is None else images, "target": of or "top1", "sanity": sanity}
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
