"""The commands of studies: `ablate`, `compress`, `sweep`, `seeds`, `study`."""

from __future__ import annotations

from distilens.cli.options import (
    Changes,
    Controls,
    Factors,
    Family,
    How,
    Json,
    LargestSize,
    LongestTime,
    Manner,
    Objectives,
    OfStudies,
    RecipeName,
    RecipeNames,
    SamplerName,
    Space,
    Storage,
    StudyFolder,
    StudyOptions,
    Subsets,
    Timeout,
    Trials,
    bytes_of,
    seconds_of,
)
from distilens.cli.registry import changes_of, command, join_words


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
