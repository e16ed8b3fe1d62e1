"""The charts of a search: the score of each trial, the front of two objectives, and the settings side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from distilens.report.charts import (
    LEFT,
    PLOT_HEIGHT,
    RIGHT,
    TOP,
    WIDTH,
    Scale,
    Series,
    axes,
    label,
    legend_of,
    marker,
    straight,
    ticks,
    turned_label,
)

SHORT, LONG = 9, 18
"""How many characters a value and a setting's name may have at an axis."""
HEAD = 44
"""The height above the axes of the settings, for their names and largest values."""
FAINT, STRONG = 0.15, 0.9
"""The opacity of the worst and of the best trial's line."""


def scatter_chart(
    identifier: str,
    title: str,
    groups: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    as_percent: bool = False,
) -> Markup:
    """Points in groups, each with its own marker; empty markup without any point."""
    groups = [group for group in groups if group.x]
    if not groups:
        return Markup()
    xs, ys = [x for group in groups for x in group.x], [y for group in groups for y in group.y]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    across = Scale(x_ticks[0], x_ticks[-1], LEFT, WIDTH - RIGHT)
    up = Scale(y_ticks[0], y_ticks[-1], TOP + PLOT_HEIGHT, TOP)
    legend, height = legend_of(groups)
    points = [
        marker(group.colour, across.place(x), up.place(y))
        for group in groups
        for x, y in zip(group.x, group.y, strict=True)
    ]
    parts = [
        *axes(across, up, x_ticks, y_ticks, as_percent),
        label(x_label, (LEFT + WIDTH - RIGHT) / 2, TOP + PLOT_HEIGHT + 38, "middle"),
        turned_label(y_label),
        *points,
        *legend,
    ]
    counts = ", ".join(f"{len(group.x)} {group.name}" for group in groups)
    return picture(identifier, title, f"Scatter chart of {y_label} by {x_label}: {counts}.", parts, height)


def parallel_chart(identifier: str, title: str, trials: Sequence[Mapping[str, Any]], score: str) -> Markup:
    """One axis per setting and one for the score, one line per trial; the better the trial, the stronger its line.

    Args:
        trials: plain data with `settings` and `value`, higher is better.
        score: the name of the last axis.
    """
    names = list(trials[0]["settings"]) if trials else []
    if len(trials) < 2 or not names:
        return Markup()
    columns = {name: [trial["settings"][name] for trial in trials] for name in names}
    columns[score] = [trial["value"] for trial in trials]
    places = {name: place_values(values) for name, values in columns.items()}
    left, right = 60.0, WIDTH - 60.0
    xs = [left + (right - left) * number / (len(columns) - 1) for number in range(len(columns))]
    parts = []
    for x, (name, values) in zip(xs, columns.items(), strict=True):
        parts.append(straight("axis", x, TOP + HEAD, x, TOP + PLOT_HEIGHT))
        parts.append(label(shortened(name, LONG), x, TOP + 8, "middle"))
        parts += [
            label(
                shortened(text, SHORT),
                x,
                TOP + PLOT_HEIGHT - share * (PLOT_HEIGHT - HEAD) + (18 if not share else -6),
                "middle",
            )
            for text, share in end_labels(values, places[name])
        ]
    for number in sorted(range(len(trials)), key=lambda at: columns[score][at]):
        points = " ".join(
            f"{x:.1f},{TOP + PLOT_HEIGHT - places[name][number] * (PLOT_HEIGHT - HEAD):.1f}"
            for x, name in zip(xs, columns, strict=True)
        )
        strength = FAINT + (STRONG - FAINT) * places[score][number] ** 2
        parts.append(Markup('<polyline class="line series-0" opacity="{:.2f}" points="{}"/>').format(strength, points))
    best = max(range(len(trials)), key=lambda at: columns[score][at])
    described = ", ".join(f"{name} {columns[name][best]}" for name in names)
    return picture(
        identifier, title, f"Parallel coordinates of {len(trials)} trials; the best one has {described}.", parts,
        TOP + PLOT_HEIGHT + 26,
    )  # fmt: skip


def place_values(values: Sequence[Any]) -> list[float]:
    """Where values are on an axis, from 0 to 1: numbers by size (by ratio if they differ more than 30 times), others in order."""
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        known = sorted({str(value) for value in values})
        return [known.index(str(value)) / max(1, len(known) - 1) for value in values]
    low, high = min(values), max(values)
    if low > 0 and high / low > 30:
        return [math.log(value / low) / math.log(high / low) for value in values]
    return [(value - low) / (high - low) if high > low else 0.5 for value in values]


def end_labels(values: Sequence[Any], places: Sequence[float]) -> list[tuple[str, float]]:
    """The labels at the ends of an axis; those of choices at each place."""
    pairs = sorted({(place, written(value)) for place, value in zip(places, values, strict=True)})
    numbers = all(isinstance(value, int | float) for value in values)
    shown = [pairs[0], pairs[-1]] if numbers else pairs
    return [(text, place) for place, text in dict.fromkeys(shown)]


def written(value: Any) -> str:
    """A value at an axis."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def shortened(text: str, most: int) -> str:
    """A text with at most so many characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def picture(identifier: str, title: str, description: str, parts: Sequence[Markup], height: float) -> Markup:
    """An SVG with title and description."""
    return Markup(
        '<svg class="chart" role="img" viewBox="0 0 {width} {height}" aria-labelledby="{id}-title {id}-description">'
        '<title id="{id}-title">{title}</title><desc id="{id}-description">{description}</desc>{parts}</svg>'
    ).format(
        width=WIDTH, height=height, id=identifier, title=escape(title), description=escape(description),
        parts=Markup("").join(parts),
    )  # fmt: skip
