"""What commands print: tables, findings, advice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from distilens.specs import bracket


def as_table(header: Sequence[str], rows: list) -> Table:
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in header:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table


def show_scores(run) -> None:
    from distilens.report.table import rows

    header, cells = rows(run.scores)
    across = list(zip(*[header, *cells], strict=True))  # a model a column: it fits a terminal
    Console().print(as_table(across[0], across[1:]))


def show_gallery(made) -> None:
    """The scores, as many explainers side by side as the terminal is wide, and what they come to."""
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
    said = f"Mean ± half of the 95 % interval over {len(made)} images; {floors} know nothing of the model."
    for line in (said, *made.remarks, *made.findings()):
        console.print(line, highlight=False, markup=False)


def show_comparison(folder: Path) -> None:
    """The table and the findings of what was compared."""
    from distilens.files import read_json
    from distilens.report import transfer_section

    scores = read_json(folder / "transfer.json")
    console = Console()
    console.print(as_table(*transfer_section.table(scores)))
    for line in (*scores["remarks"], *transfer_section.findings(scores)):
        console.print(line, highlight=False, markup=False)


def conclude(run) -> None:
    """The table and the page, printed by one process."""
    from distilens.train import processes

    if not processes().is_main_process:
        return
    from distilens.report.table import headline

    show_scores(run)
    print(f"\n{headline(run.scores)}\n{run.folder / 'report.html'}")


def show_advice(advice, recipe: str) -> None:
    """What was measured under the nearest conditions, why one list is suggested, and how a recipe says it."""
    console = Console()
    rows = [
        (
            each.name,
            f"{each.accuracy[0]:.1f} ± {each.accuracy[1]:.1f}",
            "" if each.gain is None else f"{each.gain[0]:+.1f} ± {each.gain[1]:.1f}",
            "" if each.step is None else f"{each.step:.2f}",
            each.refused or "",
        )
        for each in advice.candidates
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
    sets = " ".join(f"'{each}'" for each in (f"student.methods={listed}", *(f"train.{k}={v}" for k, v in own.items())))
    console.print(f"\nor: distilens run {recipe} --set {sets}", highlight=False, markup=False, soft_wrap=True)
    trained = ", ".join(f"{key} = {value}" for key, value in advice.settings.items())
    console.print(f"\nStudents were trained there with {trained}", highlight=False, markup=False, soft_wrap=True)


def show_parts(kind: str) -> None:
    """What there is of a kind, a line each."""
    console = Console()
    if kind == "recipes":
        import tomllib

        from distilens.recipe_file import shipped

        rows = [(path.stem, tomllib.loads(path.read_text()).get("note", "")) for path in shipped()]
        console.print(as_table(("recipe", "what it does"), rows))
        return
    from distilens.balance import BALANCES
    from distilens.data import SOURCES
    from distilens.embeddings import EMBEDDINGS
    from distilens.explain import EXPLAINERS
    from distilens.methods import METHODS
    from distilens.models import MODELS
    from distilens.teachers import CONTROLS, FOLLOW
    from distilens.teachers.judges import JUDGES

    kinds = {"methods": METHODS, "models": MODELS, "data": SOURCES, "explainers": EXPLAINERS}
    kinds |= {"judges": JUDGES, "follow": FOLLOW, "controls": CONTROLS, "balances": BALANCES, "embeddings": EMBEDDINGS}
    registry = kinds[kind]
    rows = registry.table()
    if kind == "methods":
        from distilens.recommend import warnings

        harm = warnings()
        rows = [
            (name, how, f"{what} WARNING: {harm[name]}" if name in harm else what, by) for name, how, what, by in rows
        ]
    console.print(as_table((registry.kind, "options", "what it does", "source"), rows))
