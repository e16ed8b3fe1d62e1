"""The actions of `ablate`, `seeds`, `compress` and `study`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distilens.cli.actions import outline_of, recipe_of
from distilens.cli.options import Manner, StudyOptions
from distilens.foundation.errors import UserError

if TYPE_CHECKING:
    from distilens.studies.study import Question, Row, Study

    Rows = tuple[tuple[Row, ...], tuple[Question, ...]]


def content_of(name: str, changes: Sequence[str], how: Manner) -> dict[str, Any]:
    """A checked recipe as plain data. The teacher's answers are stored unless the recipe or a change says otherwise."""
    outline = outline_of(name, changes)
    if outline.teacher and "answers" not in outline.teacher.model_fields_set:
        changes = [*changes, "teacher.answers=stored"]
    return recipe_of(name, changes, how).model_dump(mode="json", exclude_none=True)


def run_study(
    kind: str,
    name: str,
    plan: Callable[[], Rows],
    options: StudyOptions,
    *,
    as_json: bool,
    how: Manner,
    measure: Callable[[Study], None] = lambda study: None,
) -> None:
    """Plan, train, judge and show a study. The same command continues a stopped one.

    Args:
        measure: what else is measured when all rows are trained.
    """
    from distilens.studies.reading import read_test
    from distilens.studies.study import Study, Until, continue_study
    from distilens.studies.until import train_until

    until = None if options.until is None else Until(options.until, options.most)
    rows, questions = plan()
    command = shlex.join(["distilens", *sys.argv[1:]])
    folder = options.out or Path("runs") / f"{name}-{kind}"
    seeds = options.numbers
    study = continue_study(Study(folder, kind, rows, seeds, questions, command, until=until))
    how.say(f"distilens: {len(study.rows)} rows × {len(study.seeds)} seeds → {folder}")
    study = train_until(study, jobs=options.jobs, console=how.console)
    measure(study)
    if not options.no_test:
        study = read_test(study, [row.name for row in study.rows], command, how.console)
    show_study(study, as_json=as_json)


def ablate(
    recipe: str,
    changes: Sequence[str],
    options: StudyOptions,
    *,
    subsets: bool,
    controls: bool,
    as_json: bool,
    how: Manner,
) -> None:
    """Train a recipe's list of methods, shorter lists and controls, and say what each method adds."""
    content = content_of(recipe, changes, how)

    def plan() -> Rows:
        from distilens.studies.ablation import plan_ablation

        return plan_ablation(content, subsets=subsets, controls=controls)

    run_study("ablation", content["name"], plan, options, as_json=as_json, how=how)


def compare_seeds(
    recipes: Sequence[str], changes: Sequence[str], options: StudyOptions, *, as_json: bool, how: Manner
) -> None:
    """Train several recipes, or the rows of a study's recipe, with the same seeds, and compare them."""
    if not recipes:
        raise UserError("name at least one recipe: distilens seeds RECIPE ...")
    from distilens.runs.recipe_file import read_toml
    from distilens.runs.recipe_names import find_recipe

    table = read_toml(find_recipe(recipes[0])) if len(recipes) == 1 else {}
    if "study" in table:
        how.choose_device()
        from distilens.studies.listed import plan_listed

        rows, questions, count = plan_listed(table, changes, where=recipes[0])
        name = str(table.get("name", Path(recipes[0]).stem))
        return run_study(
            "seeds",
            name,
            lambda: (rows, questions),
            replace(options, seeds=options.seeds or count),
            as_json=as_json,
            how=how,
        )
    contents: Mapping[str, dict[str, Any]] = {Path(name).stem: content_of(name, changes, how) for name in recipes}
    if len(contents) < len(recipes):
        raise UserError(f"recipes are told apart by their file names, but two have the same: {', '.join(recipes)}")

    def plan() -> Rows:
        from distilens.studies.seeds import plan_seeds

        return plan_seeds(contents)

    run_study("seeds", next(iter(contents)), plan, options, as_json=as_json, how=how)


def compress(
    recipe: str,
    changes: Sequence[str],
    options: StudyOptions,
    *,
    factors: Sequence[float],
    family: str | None,
    latency: float | None,
    size: int | None,
    as_json: bool,
    how: Manner,
) -> None:
    """Train students of several sizes, with and without the teacher, and name the best one for a budget."""
    content = content_of(recipe, changes, how)
    from distilens.studies.costs import Budget, measure_costs

    budget = Budget(latency, size)

    def plan() -> Rows:
        from distilens.data import load
        from distilens.studies.compression import plan_compression

        return plan_compression(content, factors, load(content["data"]), family)

    run_study(
        "compression",
        content["name"],
        plan,
        options,
        as_json=as_json,
        how=how,
        measure=lambda study: measure_costs(study, budget),
    )


def show_study(study: Study, *, as_json: bool = False, as_csv: bool = False, as_latex: bool = False) -> None:
    """Judge a study, write its page, and print its table."""
    from distilens.cli.terminal import print_json, wide_console
    from distilens.report.study_page import as_csv_text, as_latex_text, sentences, table, write_study_page
    from distilens.report.terminal import as_table
    from distilens.studies.verdict import judge_study

    content = judge_study(study)
    page = write_study_page(study.folder, content)
    if as_json:
        print_json(content)
    elif as_csv or as_latex:
        print((as_csv_text if as_csv else as_latex_text)(content), end="")
    else:
        console = wide_console()
        console.print(as_table(*table(content)))
        for line in sentences(content):
            console.print(line, highlight=False, markup=False)
        console.print(str(page), highlight=False, markup=False)


def sweep(
    recipe: str,
    changes: Sequence[str],
    options: StudyOptions,
    search_options: Mapping[str, Any],
    storage: str | None,
    *,
    as_json: bool,
    how: Manner,
) -> None:
    """Search settings by validation, train the chosen one with fresh seeds, and read only these students on test."""
    content = content_of(recipe, changes, how)
    from distilens.studies.search import TUNING, Search, chosen_row, run_search, with_chosen, write_trials
    from distilens.studies.search_database import import_optuna

    import_optuna()
    search = Search(content, **search_options)
    read_space_of(search)
    seeds = options.numbers
    if TUNING in seeds:
        raise UserError(f"seed {TUNING} is the seed of all trials: fresh seeds are others (--first)")
    from distilens.studies.reading import read_test
    from distilens.studies.study import Row, Study, Until, continue_study
    from distilens.studies.until import train_until

    until = None if options.until is None else Until(options.until, options.most)
    command = shlex.join(["distilens", *hidden(sys.argv[1:], storage)])
    folder = options.out or Path("runs") / f"{content['name']}-search"
    study = Study(
        folder, "search", (Row("as given", search.content, "the recipe before the search"),), seeds, (), command
    )
    how.say(f"distilens: {search.trials} trials → {folder}")
    shared = run_search(study, search, storage=storage, console=how.console)
    write_trials(folder, search, shared)
    study = continue_study(replace(with_chosen(study, chosen_row(search, shared)), until=until))
    study = train_until(study, jobs=options.jobs, console=how.console)
    if not options.no_test:
        study = read_test(study, [row.name for row in study.rows], command, how.console)
    show_study(study, as_json=as_json)


def read_space_of(search: Any) -> None:
    """Check the space before anything is trained."""
    _ = search.dimensions


def hidden(words: Sequence[str], storage: str | None) -> list[str]:
    """The words of a command without the address of a database, which may hold a password."""
    return [word.replace(storage, "DATABASE") if storage else word for word in words]
