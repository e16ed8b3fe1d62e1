"""Values with their intervals, one below the other, as inline SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from distilens.foundation.estimate import Estimate
from distilens.report.charts import CHARACTER, COLOURS, RIGHT, TOP, WIDTH, Scale, label, marker, straight, ticks

ROW = 22


@dataclass(frozen=True)
class Line:
    """An estimate with its name and colour: one line of `interval_chart`. Without an interval it is a point."""

    name: str
    estimate: Estimate
    colour: int = 0

    @property
    def places(self) -> list[float]:
        """The number and the ends of its interval, if any; empty if there is no finite number."""
        value = self.estimate.value
        return [] if value is None or not math.isfinite(value) else [value, *(self.estimate.ends or ())]


def interval_chart(
    identifier: str, title: str, groups: Sequence[tuple[str, Sequence[Line]]], *, x_label: str
) -> Markup:
    """Values with their intervals, one below the other in groups, on an axis that shows 0; empty markup without any value.

    `identifier` must be a valid id, unique on the page.
    """
    groups = [(name, [line for line in lines if line.places]) for name, lines in groups]
    groups = [(name, lines) for name, lines in groups if lines]
    if not groups:
        return Markup()
    listed = [line for _, lines in groups for line in lines]
    ends = [0.0, *(place for line in listed for place in line.places)]
    x_ticks = ticks(min(ends), max(ends))
    left = min(24 + CHARACTER * max(len(line.name) for line in listed), WIDTH / 2)
    across = Scale(x_ticks[0], x_ticks[-1], left, WIDTH - RIGHT)
    parts, y = [], float(TOP)
    for name, lines in groups:
        if name:
            parts.append(Markup('<text class="group" x="0" y="{:.1f}">{}</text>').format(y + 14, escape(name)))
            y += ROW
        for line in lines:
            parts += [label(line.name, left - 12, y + 15, "end"), *draw_line(line, across, y + 11)]
            y += ROW
        y += 6
    grid = [straight("grid", across.place(x), TOP, across.place(x), y) for x in x_ticks]
    zero = across.place(0)
    axis = [straight("axis", zero, TOP, zero, y), straight("axis", left, y, WIDTH - RIGHT, y)]
    axis += [label(f"{x:g}", across.place(x), y + 20, "middle") for x in x_ticks]
    axis.append(label(x_label, (left + WIDTH - RIGHT) / 2, y + 40, "middle"))
    description = "; ".join(
        f"{name} {line.name} {line.estimate.with_interval()}" for name, lines in groups for line in lines
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


def draw_line(line: Line, across: Scale, y: float) -> list[Markup]:
    """The whisker of an interval, and its marker."""
    colour, parts = line.colour % COLOURS, []
    value, *interval = (across.place(place) for place in line.places)
    if interval:
        low, high = interval
        path = "M{low:.1f},{y:.1f}H{high:.1f}M{low:.1f},{up:.1f}v8M{high:.1f},{up:.1f}v8"
        whisker = Markup('<path class="line series-{colour}" d="' + path + '"/>')
        parts.append(whisker.format(colour=colour, low=low, high=high, y=y, up=y - 4))
    return [*parts, marker(colour, value, y)]
