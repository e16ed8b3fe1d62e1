"""The section about a search on a study's page: its trials, what the settings matter, and how much of the gain was luck."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distilens.foundation.estimate import Estimate
from distilens.foundation.metric import Metric
from distilens.report.charts import Series
from distilens.report.search_charts import parallel_chart, scatter_chart

Content = Mapping[str, Any]
UNITS = {"latency": "milliseconds per image", "size": "parameters", "maps": "cosine of maps to the teacher's"}


def section(content: Content) -> dict[str, Any] | None:
    """The content of the section; None for a study without a search."""
    search = content.get("search")
    if not search:
        return None
    metric = Metric.read(content["metric"])
    complete = [trial for trial in search["trials"] if trial["state"] == "complete" and trial["values"]]
    pruned = [trial for trial in search["trials"] if trial["state"] == "pruned" and trial["values"]]
    names = [UNITS.get(name, f"{metric.name}, validation") for name in search["objectives"]]
    by_trial = scatter_chart(
        "trials", "The trials",
        [series(trials, name, colour) for trials, name, colour in ((complete, "finished", 0), (pruned, "stopped early", 1))],
        x_label="trial", y_label=names[0], as_percent=search["objectives"][0] == "score" and metric.is_share,
    )  # fmt: skip
    sign = 1 if search["objectives"][0] != "score" or metric.higher_is_better else -1
    lines = [{"settings": trial["settings"], "value": sign * trial["values"][0]} for trial in complete]
    return {
        "space": search["space"],
        "counts": count_states(search),
        "trials": by_trial,
        "front": front(search, complete, names) if len(names) > 1 else None,
        "parallel": parallel_chart("settings", "The settings of all finished trials", lines, names[0]),
        "importance": (["setting", "importance"], importance_rows(search)) if search["importance"] else None,
    }


def series(trials: list[Content], name: str, colour: int) -> Series:
    """The first objective by the trial's number."""
    return Series(name, [trial["number"] for trial in trials], [trial["values"][0] for trial in trials], colour)


def count_states(search: Content) -> str:
    """How many trials ended how."""
    states = [trial["state"] for trial in search["trials"]]
    words = {
        "complete": "finished",
        "pruned": "stopped early by validation",
        "fail": "impossible to train",
        "running": "running",
    }
    return ", ".join(f"{states.count(state)} {word}" for state, word in words.items() if state in states)


def front(search: Content, complete: list[Content], names: list[str]) -> Any:
    """The first two objectives against each other; trials of the Pareto front are marked."""
    on_front = [trial for trial in complete if trial["number"] in search["front"]]
    others = [trial for trial in complete if trial["number"] not in search["front"]]
    groups = [
        Series(name, [trial["values"][1] for trial in trials], [trial["values"][0] for trial in trials], colour)
        for trials, name, colour in ((on_front, "not beaten in all", 0), (others, "beaten", 5))
    ]
    return scatter_chart("front", "The Pareto front", groups, x_label=names[1], y_label=names[0])


def importance_rows(search: Content) -> list[list[str]]:
    """The share of the scores' variance that each setting explains."""
    return [
        [name, f"{100 * share:.0f} %"]
        for name, share in sorted(search["importance"].items(), key=lambda pair: -pair[1])
    ]


def luck(content: Content) -> str | None:
    """How much of the gain of the search was luck: validation in the search against validation on fresh seeds."""
    chosen = next((row for row in reversed(content["rows"]) if "validation in the search" in row["facts"]), None)
    if chosen is None:
        return None
    metric = Metric.read(content["metric"])
    before, fresh = (
        Estimate.read(chosen["facts"]["validation in the search"], metric.name),
        Estimate.read(chosen["validation"]),
    )
    if before is None or before.value is None or fresh is None or fresh.value is None:
        return None
    lost = metric.rank(before.value) - metric.rank(fresh.value)
    unit = f"{100 * lost:.1f} points" if metric.is_share else f"{lost:.3g} {metric.unit}".rstrip()
    return (
        f"The chosen setting had {metric.written(before.value)} on validation in the search, and has "
        f"{metric.written(fresh.value)} on fresh seeds: {f'{unit} of it were luck' if lost > 0 else 'nothing of it was luck'}."
    )
