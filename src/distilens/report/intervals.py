"""Values with their intervals, one below the other, as inline SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from distilens.report.cells import minus
from distilens.report.charts import CHARACTER, COLOURS, RIGHT, TOP, WIDTH, Scale, label, marker, straight, ticks

ROW = 22


@dataclass(frozen=True)
class Estimate:
    """A value with its interval: one row of `interval_chart`. Without bounds it is a point."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    colour: int = 0


def interval_chart(
    identifier: str, title: str, groups: Sequence[tuple[str, Sequence[Estimate]]], *, x_label: str
) -> Markup:
    """Values with their intervals, one below the other in groups, on an axis that shows 0; empty markup without any value.

    `identifier` must be a valid id, unique on the page.
    """
    groups = [(name, [one for one in rows if math.isfinite(one.value)]) for name, rows in groups]
    groups = [(name, rows) for name, rows in groups if rows]
    if not groups:
        return Markup()
    estimates = [one for _, rows in groups for one in rows]
    ends = [0.0, *(end for one in estimates for end in (one.value, one.low, one.high) if end is not None)]
    x_ticks = ticks(min(ends), max(ends))
    left = min(24 + CHARACTER * max(len(one.name) for one in estimates), WIDTH / 2)
    across = Scale(x_ticks[0], x_ticks[-1], left, WIDTH - RIGHT)
    parts, y = [], float(TOP)
    for name, rows in groups:
        if name:
            parts.append(Markup('<text class="group" x="0" y="{:.1f}">{}</text>').format(y + 14, escape(name)))
            y += ROW
        for one in rows:
            parts += [label(one.name, left - 12, y + 15, "end"), *draw_estimate(one, across, y + 11)]
            y += ROW
        y += 6
    grid = [straight("grid", across.place(x), TOP, across.place(x), y) for x in x_ticks]
    zero = across.place(0)
    axis = [straight("axis", zero, TOP, zero, y), straight("axis", left, y, WIDTH - RIGHT, y)]
    axis += [label(f"{x:g}", across.place(x), y + 20, "middle") for x in x_ticks]
    axis.append(label(x_label, (left + WIDTH - RIGHT) / 2, y + 40, "middle"))
    description = "; ".join(
        f"{name} {one.name} {minus(f'{one.value:.3f}')}"
        + (minus(f" [{one.low:.3f} to {one.high:.3f}]") if has_bounds(one) else "")
        for name, rows in groups
        for one in rows
    )
    return Markup(
        '<svg class="chart" role="img" viewBox="0 0 {width} {height:.0f}" aria-labelledby="{id}-title {id}-description">'
        '<title id="{id}-title">{title}</title><desc id="{id}-description">{description}.</desc>{parts}</svg>'
    ).format(
        width=WIDTH,
        height=y + 48,
        id=identifier,
        title=title,
        description=description,
        parts=Markup("").join([*grid, *axis, *parts]),
    )


def has_bounds(one: Estimate) -> bool:
    return one.low is not None and one.high is not None


def draw_estimate(one: Estimate, across: Scale, y: float) -> list[Markup]:
    """The whisker of an interval, and its marker."""
    colour, parts = one.colour % COLOURS, []
    if one.low is not None and one.high is not None:
        low, high = across.place(one.low), across.place(one.high)
        shape = "M{low:.1f},{y:.1f}H{high:.1f}M{low:.1f},{up:.1f}v8M{high:.1f},{up:.1f}v8"
        whisker = Markup('<path class="line series-{colour}" d="' + shape + '"/>')
        parts.append(whisker.format(colour=colour, low=low, high=high, y=y, up=y - 4))
    return [*parts, marker(colour, across.place(one.value), y)]
