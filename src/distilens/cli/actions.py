"""The actions of the commands, after their arguments are parsed.

Names are checked before torch is imported, so that a wrong name is refused at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distilens.cli.options import Manner
from distilens.foundation.errors import UserError, nearest
from distilens.foundation.files import explain_missing_recipe
from distilens.runs.recipe_names import find_recipe

if TYPE_CHECKING:
    from distilens.runs.recipe import Recipe
    from distilens.runs.run import Run


def recipe_of(name: str, changes: Sequence[str], how: Manner) -> Recipe:
    """A recipe, completely checked, on the chosen device.

    Raises:
        UserError: the recipe has errors; the message lists all of them.
    """
    recipe = outline_of(name, changes)
    from distilens.runs.recipe_file import check_together

    check_together(recipe, changes, where=name)
    how.choose_device()
    return recipe


def outline_of(name: str, changes: Sequence[str]) -> Recipe:
    """A recipe without the checks between its parts. Its name is looked up first, because that takes no time."""
    find_recipe(name)
    from distilens.runs.recipe_file import read_outline

    return read_outline(name, changes, look=True)


def run_recipe(name: str, changes: Sequence[str], out: Path | None, again: bool, *, as_json: bool, how: Manner) -> None:
    """Run a recipe in a folder, or beside a finished run with other settings."""
    recipe = outline_of(name, changes)
    folder = out or Path("runs") / recipe.name
    how.say(f"distilens: {name} → {folder}")
    from distilens.runs.recipe_file import check_together

    check_together(recipe, changes, where=name)
    how.choose_device()
    from distilens.cli.terminal import conclude
    from distilens.runs.run import Run, folder_for
    from distilens.runs.stages import run_all

    place = folder if again else folder_for(folder, recipe)
    made = Run(place, recipe, how.console)
    if place != folder:
        made.say(
            f"{folder} is a finished run with other settings: this run goes to {place} (--again overwrites the old one)"
        )
    run_all(made)
    conclude(made, as_json=as_json)


def recipe_or_run(name: str, changes: Sequence[str], out: Path | None, how: Manner, *, stored: bool = False) -> Run:
    """An existing run, or a new run of a recipe. With `stored`, a new run reads stored answers of its teacher."""
    if (Path(name) / "recipe.toml").is_file():
        if changes or out:
            raise UserError(f"{name} is a run with its own recipe: --set and --out are only for recipes")
        return run_at(Path(name), how)
    recipe = outline_of(name, changes)
    if stored and recipe.teacher and recipe.teacher.answers.startswith("live"):
        changes = [*changes, "teacher.answers=stored"]
    recipe = recipe_of(name, changes, how)
    from distilens.runs.run import Run

    return Run(out or Path("runs") / recipe.name, recipe, how.console)


def run_at(folder: Path, how: Manner) -> Run:
    """A run folder.

    Raises:
        UserError: it is not a run.
    """
    check_run(folder)
    how.choose_device()
    from distilens.runs.run import load_run

    return load_run(folder, console=how.console)


def check_run(folder: Path) -> None:
    """Raise a `UserError` if the folder is not a run. The message gives the nearest name of a run."""
    if (folder / "recipe.toml").is_file():
        return
    if folder.exists():
        raise UserError(explain_missing_recipe(folder))
    known = {
        path.parent.name: path.parent for place in (Path("runs"), folder.parent) for path in place.glob("*/recipe.toml")
    }
    near = get_close_matches(folder.name, known, n=1, cutoff=0.5)
    meant = f" Did you mean {known[near[0]]}?" if near else ""
    raise UserError(
        f"{folder} is not a run: there is no such folder.{meant} (To make a run: distilens run RECIPE --out {folder})"
    )


def share_of(text: str) -> tuple[int, int]:
    """`2/8` as (1, 8)."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UserError(f"--part must be like 2/8, the second of eight shares; given {text!r}")
    return int(number) - 1, int(count)


def check_model(name: str) -> None:
    """Raise a `UserError` if a text is neither the name of a model nor a folder."""
    from distilens.foundation.notation import Spec
    from distilens.models import MODELS

    spec = Spec.parse(name)
    if spec.name in MODELS.entries or Path(name).is_dir() or "/" in name:
        return
    runs = [str(path.parent) for path in Path("runs").glob("*/recipe.toml")]
    meant = f"{MODELS.hint(spec.name)}{nearest(spec.name, [*sorted(MODELS.entries), *runs])}"
    raise UserError(f"{name} is neither a model nor a folder.{meant} For all models: distilens list models")


def check_explainers(names: Sequence[str]) -> None:
    """Raise a `UserError` if a text is not an explainer, or has options that the explainer does not take."""
    from distilens.foundation.catalogue import catalogue

    for name in names:
        catalogue("explainers").resolve(name)


def explain_run(folder: Path, how: Manner) -> None:
    """Run the explain stage of a run: the maps of its models on the same test images."""
    run = run_at(folder, how)
    from distilens.runs.run import lock_run
    from distilens.runs.stages import explain_stage

    with lock_run(run):
        explain_stage(run)


def explain_model(
    model: str, data: str | None, explainers: Sequence[str], out: Path | None, how: Manner, **options: Any
) -> None:
    """Make and score the maps of any model, and write a page."""
    how.choose_device()
    from distilens.cli.terminal import show_gallery
    from distilens.foundation.files import lock_folder
    from distilens.foundation.notation import safe
    from distilens.measure.maps.gallery import check_writable, gallery

    folder = out or Path("maps") / safe(model)
    check_writable(folder)
    made = gallery(model, data, explainers or ("gradcam", "ig"), console=how.console, **options)
    with lock_folder(folder):
        page = made.save(folder)
    show_gallery(made)
    print(f"\n{page}")


def compare_run(run: Path, changes: list[str], as_json: bool, how: Manner) -> None:
    """Compare the models of a run, and add the comparison to its page."""
    loaded = run_at(run, how)
    from distilens.measure.transfer.settings import compare_settings, settings_of
    from distilens.runs.run import lock_run
    from distilens.runs.stages import compare_stage, report_stage

    part = loaded.recipe.compare
    changed = compare_settings({**(part.model_dump() if part else {}), **settings_of(changes)}) if changes else None
    with lock_run(loaded):
        compare_stage(loaded, changed)
        page = report_stage(loaded)
    print_comparison(run, page, as_json)


def students_of(runs: Sequence[Path], data: str | None) -> tuple[list[str], str | None]:
    """The students of several runs, named after their folders, and the data to compare them on: by default the data of all runs.

    Raises:
        UserError: one is not a run or is given twice, or the runs have different data and `data` is missing.
    """
    from distilens.foundation.notation import safe
    from distilens.runs.recipe_file import read_outline

    for run in runs:
        check_run(run)
    same_names = len({run.resolve().name for run in runs}) < len(runs)
    names = [safe(str(run)) if same_names else safe(run.resolve().name) for run in runs]
    # a model must not have the name of a role
    names = [f"run-{name}" if name in ("teacher", "base", "student") else name for name in names]
    if len(set(names)) < len(names):
        raise UserError(f"two of these are the same run: {', '.join(map(str, runs))}")
    used = {str(run): read_outline(run / "recipe.toml").data for run in runs}
    if data is None and len(set(used.values())) > 1:
        listed = "; ".join(f"{run}: {notation}" for run, notation in used.items())
        raise UserError(f"these runs have different data ({listed}). Choose the data to compare them on: --data DATA")
    return [f"{name}=run:{run},part=student" for name, run in zip(names, runs, strict=True)], data


def page_of(named: Sequence[str]) -> Path:
    """The folder for a comparison, named after its models: `compare/a-b`."""
    names = [name.partition("=")[0] for name in named]
    return Path("compare") / "-".join(names[:3] + ["more"] * (len(names) > 3))


def compare_models(
    named: list[str], data: str | None, changes: list[str], out: Path, as_json: bool, how: Manner
) -> None:
    """Compare models by name, and write a page."""
    how.choose_device()
    from distilens.foundation.files import lock_folder
    from distilens.measure.maps.gallery import check_writable
    from distilens.measure.transfer.comparison import compare, models_named
    from distilens.measure.transfer.settings import settings_of

    models, settings = models_named(named), settings_of(changes)
    check_writable(out)
    made = compare(models, data, settings, console=how.console)
    with lock_folder(out):
        page = made.save(out)
    print_comparison(out, page, as_json)


def print_comparison(folder: Path, page: Path, as_json: bool) -> None:
    """Print a comparison and the path of its page."""
    from distilens.cli.terminal import print_json, show_comparison
    from distilens.foundation.files import read_json

    if as_json:
        print_json({"page": str(page), **read_json(folder / "transfer.json")})
        return
    show_comparison(folder)
    print(f"\n{page}")
