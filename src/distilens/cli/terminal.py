"""The output of commands: tables, findings, advice, or JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from distilens.foundation.notation import bracket
from distilens.report.terminal import as_table

WIDE = 240
"""The number of columns of a table that is not printed in a terminal."""


def show_scores(run) -> None:
    from distilens.report.remarks import busy_warning
    from distilens.report.table import measured_models, rows

    header, cells = rows(run.scores)
    across = list(zip(*[header, *cells], strict=True))  # one column per model fits a terminal
    Console().print(as_table(across[0], across[1:]))
    if line := busy_warning(measured_models(run.scores)):
        print(line)


def show_gallery(made) -> None:
    """Print the scores, with as many explainers side by side as the terminal allows, and the findings."""
    header, rows = made.table()
    console = Console()
    wide = [max(len(line[at]) for line in [header, *rows]) + 2 for at in range(len(header))]
    start = 1
    while start < len(header):
        stop = start + 1
        while stop < len(header) and wide[0] + sum(wide[start : stop + 1]) <= console.width:
            stop += 1
        console.print(as_table((header[0], *header[start:stop]), [[row[0], *row[start:stop]] for row in rows]))
        console.print()
        start = stop
    floors = ", ".join(label for label in header[1:] if made.floor(label))
    note = f"Mean ± half of the 95 % interval over {len(made)} images; {floors} are independent of the model."
    context = ("Only pixels outside the explained places are changed, so the scores are about the context.",)
    for line in (note, *context * made.task.dense, *made.remarks, *made.findings()):
        console.print(line, highlight=False, markup=False)


def show_comparison(folder: Path) -> None:
    """Print the table and the findings of a comparison."""
    from distilens.foundation.files import read_json
    from distilens.report import transfer_section

    scores = read_json(folder / "transfer.json")
    console = Console()
    console.print(as_table(*transfer_section.table(scores)))
    for line in (*scores["remarks"], *transfer_section.findings(scores)):
        console.print(line, highlight=False, markup=False)


def wide_console() -> Console:
    """The console for tables with many columns. Output to a file or a pipe is wide, so that no cell is broken."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=WIDE)


def print_json(content: Any) -> None:
    """Print one JSON document on stdout; NaN and infinity become null."""
    print(json.dumps(without_nan(content), indent=1, ensure_ascii=False, default=str))


def without_nan(content: Any) -> Any:
    """Plain data; NaN and infinity, which JSON does not have, become None."""
    if isinstance(content, Mapping):
        return {str(key): without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def conclude(run, *, as_json: bool = False) -> None:
    """Print the table and the path of the page, or the same as JSON, and possible next steps; in the main process only."""
    from distilens.foundation.devices import processes

    if not processes().is_main_process:
        return
    from distilens.report.concerns import concerns
    from distilens.report.page import read_log
    from distilens.report.table import headline

    page, wrong = run.folder / "report.html", concerns(run.scores, read_log(run.folder))
    if as_json:
        content = {
            "run": run.folder,
            "page": page,
            "headline": headline(run.scores),
            "concerns": wrong,
            "scores": run.scores,
        }
        print_json({key: str(value) if isinstance(value, Path) else value for key, value in content.items()})
    else:
        show_scores(run)
        print("\n".join(["", headline(run.scores), *wrong, str(page)]))
    for line in next_steps(run):
        run.say(line)


def next_steps(run) -> list[str]:
    """Useful commands for a finished run, one per line."""
    steps = [(f"open {run.folder / 'report.html'}", "in a browser: scores and maps")]
    if run.recipe.teacher and not (run.folder / "transfer.json").is_file():
        steps.append((f"distilens compare {run.folder}", "what the student learned from its teacher"))
    if not (run.folder / "export" / "export.json").is_file():
        steps.append((f"distilens export {run.folder}", "the student as a file that others run, verified"))
    steps.append(
        (
            f"distilens explain {run.folder} --explainer gradcam rise",
            "the student's maps by other explainers, each tested",
        )
    )
    steps.append((f"distilens compare {run.folder} runs/OTHER", "this student and that of another run"))
    wide = max(len(command) for command, _ in steps)
    return ["Next:", *(f"  {command.ljust(wide)}  {what}" for command, what in steps)]


def show_advice(advice, recipe: str) -> None:
    """Print what was measured under the nearest conditions, the reasons for the suggested list, and the recipe lines."""
    console = Console()
    rows = [
        (
            candidate.name,
            f"{candidate.accuracy[0]:.1f} ± {candidate.accuracy[1]:.1f}",
            "" if candidate.gain is None else f"{candidate.gain[0]:+.1f} ± {candidate.gain[1]:.1f}",
            "" if candidate.step is None else f"{candidate.step:.2f}",
            candidate.refused or "",
        )
        for candidate in advice.candidates
    ]
    console.print(as_table(("measured there", "accuracy, %", "beside kd", "step", "not for this recipe"), rows))
    console.print()
    for line in advice.reasons:
        console.print(line, highlight=False, markup=False)
    console.print()
    listed = ",".join(bracket(part) for part in advice.chosen.methods)
    quoted = ", ".join(f'"{part}"' for part in advice.chosen.methods)
    own = advice.chosen.settings
    section = "\n\n[train]\n" + "\n".join(f"{key} = {json.dumps(value)}" for key, value in own.items()) if own else ""
    console.print(f"[student]\nmethods = [{quoted}]{section}", highlight=False, markup=False, soft_wrap=True)
    changes = (f"student.methods={listed}", *(f"train.{k}={v}" for k, v in own.items()))
    sets = " ".join(f"'{change}'" for change in changes)
    console.print(f"\nor: distilens run {recipe} --set {sets}", highlight=False, markup=False, soft_wrap=True)
    trained = ", ".join(f"{key} = {value}" for key, value in advice.settings.items())
    console.print(f"\nThe measured students were trained with {trained}", highlight=False, markup=False, soft_wrap=True)
