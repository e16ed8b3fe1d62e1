"""The actions of `export`, `predict` and `bench`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distilens.cli.options import Manner
from distilens.foundation.errors import UserError

if TYPE_CHECKING:
    from distilens.deploy.exported import Exported
    from distilens.deploy.plan import Plan


def export_to(
    model: str,
    options: Mapping[str, Any],
    data: str | None,
    out: Path | None,
    push: str | None,
    *,
    as_json: bool,
    how: Manner,
) -> None:
    """Export a run's student, or any model, and print the table of the verification.

    Raises:
        UserError: it cannot be exported, or a file does not answer as the student does.
    """
    check_formats(options["formats"], push)
    from distilens.deploy.exported import Refused
    from distilens.deploy.plan import Plan

    plan = Plan(**options)
    plan.exporters()
    how.choose_device()
    is_run = (Path(model) / "recipe.toml").is_file()
    try:
        made = (
            export_of_run(Path(model), plan, data, out, how) if is_run else export_of_model(model, plan, data, out, how)
        )
    except Refused as refusal:
        show_exported(refusal.found, as_json=as_json)
        raise
    show_exported(made, as_json=as_json)
    if push:
        from distilens.deploy.hub import push_to_hub

        print(push_to_hub(made.folder / "hub", push))


def check_formats(formats: tuple[str, ...], push: str | None) -> None:
    """Raise a `UserError` for an unknown format, before torch is imported."""
    from distilens.foundation.catalogue import catalogue

    known = catalogue("formats")
    names = [known.resolve(part).name for part in formats]
    if push and "safetensors" not in names:
        raise UserError("--push uploads the folder of the format safetensors: --format safetensors")
    if push:
        from distilens.deploy.hub import check_push

        check_push(push)


def export_of_run(folder: Path, plan: Plan, data: str | None, out: Path | None, how: Manner) -> Exported:
    """Export the student of a run."""
    if data is not None:
        raise UserError("a run is exported with its own data: leave --data out")
    from distilens.cli.actions import run_at
    from distilens.runs.run import lock_run
    from distilens.runs.stages import export_stage, report_stage

    run = run_at(folder, how)
    with lock_run(run):
        try:
            return export_stage(run, plan, out)
        finally:
            if out is None and (folder / "report.html").is_file():
                report_stage(run)


def export_of_model(model: str, plan: Plan, data: str | None, out: Path | None, how: Manner) -> Exported:
    """Export a saved model, or a model by notation."""
    from distilens.data import load
    from distilens.deploy.exported import Refused
    from distilens.deploy.exporting import export_model
    from distilens.foundation.notation import safe
    from distilens.measure.maps.images import built_model, run_folder
    from distilens.models.saved import load_model

    if plan.finetune:
        raise UserError("--finetune needs the run's teacher and recipe: export the run instead of the model")
    loaded = load(data) if data is not None else None
    if loaded is not None:
        made, remarks = built_model(model, run_folder(model), loaded)
    elif (Path(model) / "model.json").is_file():
        made, remarks = load_model(model), ()
    else:
        raise UserError(f"{model} needs the data it was trained on: --data folder:path=pictures")
    for line in remarks:
        how.say(line)
    found = export_model(made.cpu(), out or Path("export") / safe(Path(model).name), plan, loaded, say=how.say)
    if found.refused:
        raise Refused(found)
    return found


def show_exported(found: Exported, *, as_json: bool) -> None:
    """Print the table of an export, or its JSON."""
    from distilens.cli.terminal import print_json, wide_console
    from distilens.report.deployment_section import conclusions, refusals, table
    from distilens.report.terminal import as_table

    if as_json:
        print_json(found.plain())
        return
    console = wide_console()
    console.print(as_table(*table(found.plain())))
    for line in (*refusals(found.plain()), *conclusions(found.plain())):
        console.print(line, highlight=False, markup=False)
    console.print(str(found.folder), highlight=False, markup=False)


def bench_to(
    targets: Sequence[str], options: Mapping[str, Any], out: Path | None, *, as_json: bool, how: Manner
) -> None:
    """Measure models in every runtime, write `bench.json`, and print the table.

    Raises:
        UserError: there is nothing to measure.
    """
    from distilens.cli.terminal import print_json, wide_console
    from distilens.deploy.bench import bench
    from distilens.deploy.targets import place_for
    from distilens.report.deployment_section import latency_table
    from distilens.report.terminal import as_table

    if how.device not in (None, "cpu"):
        raise UserError(f"bench measures on the CPU, which all runtimes share; given --device {how.device}")
    place = out or place_for(targets)
    if place is not None and place.is_dir():
        raise UserError(f"--out takes a file; {place} is a folder: --out {place / 'bench.json'}")
    made = bench(targets, **options, console=how.console)
    if place is not None:
        made.write(place)
        show_cost(place.parent)
    if as_json:
        print_json(made.plain())
        return
    console = wide_console()
    console.print(as_table(*latency_table(made.plain())))
    for line in made.remarks:
        console.print(line, highlight=False, markup=False)
    saved = str(place) if place else "Not saved, since the targets lie in several places: --out FILE saves it."
    console.print(saved, highlight=False, markup=False)


def show_cost(folder: Path) -> None:
    """Write the card of an export anew, and the page of its run, so that they show what `bench` measured."""
    from distilens.deploy.card import write_cards
    from distilens.deploy.exported import read_exported
    from distilens.foundation.files import read_json
    from distilens.report import write_report

    exported = read_exported(folder)
    if exported is None:
        return
    run = folder.parent
    is_run = (run / "recipe.toml").is_file()
    write_cards(folder, exported.plain(), read_json(run / "scores.json") if is_run else None)
    if is_run and (run / "report.html").is_file():
        write_report(run)
