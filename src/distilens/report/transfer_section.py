"""The section "What was distilled": tables, charts, pictures and sentences. Plain data in, text out; does not import torch.

The scores come from a comparison (`transfer.json`), the maps from its arrays (`transfer/<level>.npz`).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distilens.foundation.estimate import NOTHING, Estimate, decimals
from distilens.foundation.notation import safe
from distilens.report import charts
from distilens.report.cells import Cell, cell, in_percent
from distilens.report.intervals import Line, interval_chart
from distilens.report.panels import PICTURE_BYTES, panel, panel_of
from distilens.report.paths import shown_folder
from distilens.report.rendering import missing, read_json, render
from distilens.report.transfer_words import NAMED, Scores, estimate_of, facts, findings, pairs, reliability

IN_NOTEBOOK = 4  # images


def section(folder: Path) -> dict[str, Any]:
    """The content of the section for a run folder; empty if its models have not been compared."""
    command = command_for(folder)
    scores, problem = read_json(folder / "transfer.json")
    if scores is None:
        return {"missing": missing(problem, command)} if problem else {}
    paths = sorted((folder / "transfer").glob("*.npz"))
    shared = max(1, len(paths) + len(list((folder / "maps").glob("*.npz"))))
    order = {safe(level["name"]): at for at, level in enumerate(scores["levels"])}
    panels = [panel(path, scores["classes"], PICTURE_BYTES // shared, command) for path in paths]
    panels.sort(key=lambda one: -order.get(one["name"], -1))  # the last level first: the logits are computed from it
    return {**content(scores), "panels": panels}


def command_for(folder: Path) -> str:
    return f"distilens compare {shlex.quote(shown_folder(folder))}"


def content(scores: Scores) -> dict[str, Any]:
    """The section without its pictures."""
    return {
        "findings": findings(scores),
        "remarks": scores["remarks"],
        "figures": figures(scores),
        "levels": [level["name"] for level in scores["levels"]],
        "rows": rows(scores),
        "tests": tests(scores),
        "tested_at": tested_at(scores),
        "growth": growth(scores),
        "reliable": reliability(scores),
        "facts": facts(scores),
        "pairs": pairs(scores),
    }


def page(folder: Path) -> str:
    """A separate page, for models that are not those of a single run."""
    scores, _ = read_json(folder / "transfer.json")
    name = " · ".join((scores or {}).get("models", {})) or folder.resolve().name
    return render("compare.html.j2", name=name, transfer=section(folder))


def notebook(scores: Scores, maps: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """The findings, the first figures and a few pictures at the last level, as self-contained HTML."""
    panels = []
    for name, arrays in list(maps.items())[-1:]:
        whole = {key for key, value in arrays.items() if value.ndim == 0 or key in ("roles", "answers_of")}
        few = {key: value if key in whole else value[:IN_NOTEBOOK] for key, value in arrays.items()}
        panels.append(panel_of(name, few, scores["classes"], PICTURE_BYTES))
    return render("compare_notebook.html.j2", transfer={**content(scores), "panels": panels})


# ---------------------------------------------------------------------------------------------- tables and charts


def rows(scores: Scores) -> list[tuple[str, list[Cell]]]:
    """The table: one row per score and one column per level, with intervals."""
    cells: dict[str, list[Cell]] = {}
    for at, level in enumerate(scores["levels"]):
        for title, one in titled_scores(level):
            cells.setdefault(title, [(NOTHING, "")] * len(scores["levels"]))[at] = cell_of(one)
    return list(cells.items())


def titled_scores(level: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The scores of a level with their titles."""
    return [
        *((f"RS of {one['of']}", one) for one in level["rs"]),
        *((f"RS, {one['called']}", one) for one in pairs_to_show(level)),
        *((f"FSS, {one['of']} and {one['to']}", one) for one in level["fss"]),
        *((f"CKA, {one['of']} and {one['to']}", {"value": one["cka"]}) for one in level["fss"]),
        *((f"{title_of(one)}: {one['of']} − {one['than']}", one) for one in level["apart"]),
    ]


def pairs_to_show(level: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The pairs to show: those with a name, and what further models miss of the teacher; all pairs if no pair has a name."""
    named = [one for one in level["given"] if one["called"] in NAMED]
    others = [one for one in level["given"] if one["of"] == "teacher" and one["given"] not in ("base", "student")]
    return [*named, *others] if named else list(level["given"])


def title_of(one: Mapping[str, Any]) -> str:
    return {"rs": "RS", "given": "RS", "fss": "FSS to teacher"}[one["what"]]


def cell_of(one: Mapping[str, Any]) -> Cell:
    chance = f"p = {one['p']:.2g}" if one.get("p") is not None and one["p"] >= 0.001 else ""
    return cell(Estimate.read(one), chance, counted=False)


def table(scores: Scores) -> tuple[list[str], list[list[str]]]:
    """Header and rows for a terminal: value ± half of the 95 % interval."""
    titles = list(dict.fromkeys(title for level in scores["levels"] for title, _ in titled_scores(level)))
    levels = [dict(titled_scores(level)) for level in scores["levels"]]
    lines = [[title, *(brief_cell(level.get(title)) for level in levels)] for title in titles]
    return ["score", *(level["name"] for level in scores["levels"])], lines


def brief_cell(one: Mapping[str, Any] | None) -> str:
    return (Estimate.read(one) or Estimate(None)).with_half()


def figures(scores: Scores) -> list[dict[str, Any]]:
    """The charts of intervals, each with an explanation."""
    names = list(scores["models"])
    listed = {
        "rs": ("Relevance: how much of the task is in the features (RS)", "rs", lambda one: one["of"]),
        "given": ("What one model knows and another does not (RS)", "given", lambda one: one["called"]),
        "fss": (
            "Similarity: how much of one model's geometry is in another's (FSS)",
            "fss",
            lambda one: f"{one['of']}, {one['to']}",
        ),
    }
    about = {
        "rs": "0: the features say nothing about the classes; 1: every class is one point, at equal distances.",
        "given": (
            "The relevance of the part of one model's features that the other's do not explain; at or below 0 it "
            "contains nothing of the task."
        ),
        "fss": "0: unrelated; 1: the same geometry, for any number of channels.",
    }
    chart_list = []
    for key, (title, source, named) in listed.items():
        groups, seen = [], {}
        for level in scores["levels"]:
            entries = pairs_to_show(level) if key == "given" else level[source]
            for one in entries:
                seen.setdefault(named(one), names.index(one["of"]) if key == "rs" else len(seen))
            lines = [Line(named(one), estimate_of(one), seen[named(one)]) for one in entries]
            groups.append((level["name"], lines))
        svg = interval_chart(f"chart-transfer-{key}", title, groups, x_label="score, with 95 % interval")
        if svg:
            sure = (
                f"Lines are 95 % intervals over {scores['n']:,} images of one run. Another training seed changes more."
            )
            chart_list.append({"title": title, "svg": svg, "about": about[key], "sure": sure})
    return chart_list


def growth(scores: Scores) -> list[dict[str, Any]]:
    """The scores over training, if the run stored checkpoints."""
    grown = scores["growth"]
    chart_list = []
    for key, title in (
        ("rs", "Relevance over training (RS)"),
        ("fss", "Similarity to the teacher over training (FSS)"),
    ):
        lines = []
        for colour, (name, states) in enumerate((grown.get("models") or {}).items()):
            measured = [state for state in states if key in state]
            if measured:
                lines.append(
                    charts.Series(
                        name, [one["epoch"] for one in measured], [one[key]["value"] for one in measured], colour
                    )
                )
        svg = charts.line_chart(f"chart-growth-{key}", title, lines, x_label="epoch", y_label="score", linear=True)
        if svg:
            estimates = [Estimate.read(one.get(key)) for states in grown["models"].values() for one in states]
            halves = [one.half for one in estimates if one and one.half is not None]
            sure = f" The interval of a point is at most ±{max(halves):.3f}." if halves else ""
            about = f"At {grown['level']}, on {grown['n']:,} images, after each epoch whose checkpoint was kept.{sure}"
            chart_list.append({"title": title, "svg": svg, "about": about})
    return chart_list


def tested_at(scores: Scores) -> str:
    return next(reversed(scores["maps"].get("levels") or {"": None}))


def tests(scores: Scores) -> list[tuple[str, dict[str, Cell]]]:
    """Tests of the maps at the last level with a grid: stability, faithfulness, and energy on the evidence."""
    entries = (scores["maps"].get("levels") or {}).get(tested_at(scores)) or {}

    def mean(one: Mapping[str, Any], *, share: bool) -> Cell:
        return cell(Estimate.read(one), write=in_percent if share else decimals, unit=" %" * share, counted=False)

    titles = {
        "stability": ("correlation over reference sets", False),
        "shuffled_labels": ("correlation with maps for shuffled labels", False),
        "random_weights": ("correlation with maps of random weights", False),
        "insertion": ("insertion AUC", False),
        "floor": ("insertion AUC of noise", False),
        "above_floor": ("above noise, on the same images", False),
        "energy_in_mask": ("energy on the evidence", True),
        "mask_share": ("the evidence's share of the image", True),
    }
    test_rows = []
    for called, entry in entries.items():
        cells = {title: mean(entry[key], share=share) for key, (title, share) in titles.items() if entry.get(key)}
        test_rows.append((called, {**cells, "empty maps": (f"{entry.get('empty', 0)} of {entry.get('n', 0)}", "")}))
    return test_rows
