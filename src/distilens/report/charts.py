"""Line charts as accessible inline SVG: readable without colour vision and by screen readers.

Colours come from the page's style sheet (`--series-0` …), so that dark and light pages both have enough contrast. Lines
also differ in dash and marker.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, PLOT_HEIGHT = 520, 230
LEFT, RIGHT, TOP = 78, 26, 12
# Widths are estimated for the larger font on narrow screens.
LEGEND_LINE, CHARACTER = 22, 9.2
COLOURS = 6
DASHES = ("", "7 4", "2 3", "9 3 2 3", "12 4", "4 2")
MOST_POINTS = 300
LOG_FROM_RATIO = 30


@dataclass(frozen=True)
class Series:
    """A named line. `colour` selects a series colour of the style sheet, a dash and a marker.

    `band` is the interval of each point, `(low, high)`, drawn as a shade behind the line; None draws none.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    band: Sequence[tuple[float, float]] | None = None


@dataclass(frozen=True)
class Scale:
    """An axis that maps values from `low` to `high` to positions from `start` to `stop` in the picture."""

    low: float
    high: float
    start: float
    stop: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return self.start + (self.stop - self.start) * (value - low) / (high - low)


def line_chart(
    identifier: str,
    title: str,
    lines: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    as_percent: bool = False,
    linear: bool = False,
) -> Markup:
    """An SVG line chart with title, description, axes and legend; empty markup if no line has a finite point.

    Values that are not finite leave a gap. Positive values that span a factor of more than 30 get a logarithmic axis,
    so that a loss term of 0.1 is visible beside one of 50, unless `linear` is set. Lines with more than 300 points are
    drawn as means of neighbouring points. `identifier` must be a valid id, unique on the page.
    """
    lines = [thin_line(line) for line in lines if any(map(math.isfinite, line.y))]
    if not lines:
        return Markup()
    xs = [x for line in lines for x in line.x]
    ends = [end for line in lines for pair in line.band or () for end in pair]
    ys = [y for y in [*(y for line in lines for y in line.y), *ends] if math.isfinite(y)]
    logarithmic = not linear and min(ys) > 0 and max(ys) / min(ys) > LOG_FROM_RATIO
    x_ticks = ticks(min(xs), max(xs), least_step=1)
    y_ticks = decades(min(ys), max(ys)) if logarithmic else ticks(min(ys), max(ys))
    across = Scale(min(min(xs), x_ticks[0]), max(max(xs), x_ticks[-1]), LEFT, WIDTH - RIGHT)
    up = Scale(min(min(ys), y_ticks[0]), max(max(ys), y_ticks[-1]), TOP + PLOT_HEIGHT, TOP, logarithmic)
    y_label = f"{y_label} (log scale)" if logarithmic else y_label
    legend, height = legend_of(lines)
    parts = [
        *axes(across, up, x_ticks, y_ticks, as_percent),
        label(x_label, (LEFT + WIDTH - RIGHT) / 2, TOP + PLOT_HEIGHT + 38, "middle"),
        turned_label(y_label),
        *(draw_band(line, across, up) for line in lines if line.band),
        *(part for line in lines for part in draw_line(line, across, up)),
        *legend,
    ]
    return Markup(
        '<svg class="chart" role="img" viewBox="0 0 {width} {height}" aria-labelledby="{id}-title {id}-description">'
        '<title id="{id}-title">{title}</title><desc id="{id}-description">{description}</desc>{parts}</svg>'
    ).format(
        width=WIDTH,
        height=height,
        id=identifier,
        title=title,
        description=describe_chart(lines, x_label, y_label, as_percent),
        parts=Markup("").join(parts),
    )


def standalone(chart: Markup) -> str:
    """A chart as a separate SVG file, on a white background, with the colours of a light page."""
    colours = ("#0068a8", "#c04f00", "#00735a", "#8a3f78", "#7a5c00", "#4a4f57")
    rules = [
        ".chart { background: #fff; font: 13px sans-serif; }",
        ".grid { stroke: #d5dae0; } .axis { stroke: #57606a; } .line { fill: none; stroke-width: 2; }",
        *(
            f".line.series-{at} {{ stroke: {colour}; }} .marker.series-{at} {{ fill: {colour}; }}"
            for at, colour in enumerate(colours)
        ),
    ]
    opened = str(chart).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return opened.replace("<title", f"<style>{' '.join(rules)}</style><title", 1) + "\n"


def describe_chart(lines: Sequence[Series], x_label: str, y_label: str, as_percent: bool) -> str:
    """The chart in words: its axes, and the first and last value of each line."""
    sentences = [f"Line chart of {y_label} by {x_label}."]
    for line in lines:
        points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
        (first_x, first_y), (last_x, last_y) = points[0], points[-1]
        sentences.append(
            f"{line.name}: {format_value(first_y, as_percent)} at {x_label} {first_x:g}, "
            f"{format_value(last_y, as_percent)} at {x_label} {last_x:g}."
        )
    return " ".join(sentences)


def thin_line(line: Series) -> Series:
    """The line with at most `MOST_POINTS` points, each the mean of an equal number of neighbours; only finite values count."""
    size = math.ceil(len(line.x) / MOST_POINTS)
    if size <= 1:
        return line
    xs, ys = [], []
    for start in range(0, len(line.x), size):
        finite = [y for y in line.y[start : start + size] if math.isfinite(y)]
        chunk = line.x[start : start + size]
        xs.append(sum(chunk) / len(chunk))
        ys.append(sum(finite) / len(finite) if finite else math.nan)
    return Series(line.name, xs, ys, line.colour)


def ticks(low: float, high: float, *, least_step: float = 0.0, about: int = 5) -> list[float]:
    """Round numbers that enclose `low` to `high`; their step is 1, 2 or 5 times a power of ten."""
    span = high - low or abs(low) * 0.1 or 1.0
    raw = max(span / about, least_step)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    # Rounded, so that 3 * 0.1 is written as 0.3.
    return [round(index * step, 12) for index in range(first, last + 1)]


def decades(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis: powers of ten that enclose `low` to `high`; only every n-th if there are many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = math.ceil((last - first) / 6)
    return [10.0**power for power in range(first, last + every, every)]


def axes(across: Scale, up: Scale, x_ticks: list[float], y_ticks: list[float], as_percent: bool) -> list[Markup]:
    bottom = TOP + PLOT_HEIGHT
    parts = []
    for value in y_ticks:
        y = up.place(value)
        parts.append(straight("grid", LEFT, y, WIDTH - RIGHT, y))
        parts.append(label(format_value(value, as_percent), LEFT - 7, y + 4, "end"))
    for value in x_ticks:
        x = across.place(value)
        parts.append(straight("axis", x, bottom, x, bottom + 5))
        parts.append(label(f"{value:,g}" if abs(value) < 1e6 else f"{value:.3g}", x, bottom + 20, "middle"))
    parts.append(straight("axis", LEFT, bottom, WIDTH - RIGHT, bottom))
    return parts


def draw_band(line: Series, across: Scale, up: Scale) -> Markup:
    """The intervals of a line's points as one shade."""
    pairs = [
        (x, low, high) for x, (low, high) in zip(line.x, line.band or (), strict=True) if math.isfinite(low + high)
    ]
    there = [f"{across.place(x):.1f},{up.place(high):.1f}" for x, _, high in pairs]
    back = [f"{across.place(x):.1f},{up.place(low):.1f}" for x, low, _ in reversed(pairs)]
    return Markup('<polygon class="band series-{}" points="{}"/>').format(
        line.colour % COLOURS, " ".join([*there, *back])
    )


def draw_line(line: Series, across: Scale, up: Scale) -> list[Markup]:
    """The polyline, broken where a value is not finite, and markers: at all points of a short line, at some of a long one."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(line.x, line.y, strict=True):
        if math.isfinite(y):
            runs[-1].append((across.place(x), up.place(y)))
        elif runs[-1]:
            runs.append([])
    colour = line.colour % COLOURS
    parts = [
        Markup('<polyline class="line series-{colour}" stroke-dasharray="{dash}" points="{points}"/>').format(
            colour=colour,
            dash=DASHES[colour] or "none",
            points=" ".join(f"{x:.1f},{y:.1f}" for x, y in run),
        )
        for run in runs
        if len(run) > 1
    ]
    points = [point for run in runs for point in run]
    every = max(1, len(points) // 12)
    # Overlapping lines stay distinguishable if their markers are not at the same points.
    marked = points[(colour * every // COLOURS) :: every] if every > 1 else points
    return parts + [marker(colour, x, y) for x, y in marked]


def marker(colour: int, x: float, y: float) -> Markup:
    """A small shape per colour: circle, square, triangle, diamond, cross, downward triangle."""
    shapes = (
        "M{x:.1f},{y:.1f}m-3.5,0a3.5,3.5 0 1 0 7,0a3.5,3.5 0 1 0 -7,0z",
        "M{x:.1f},{y:.1f}m-3.2,-3.2h6.4v6.4h-6.4z",
        "M{x:.1f},{y:.1f}m0,-4.4l4.2,7.4h-8.4z",
        "M{x:.1f},{y:.1f}m0,-4.6l4.6,4.6l-4.6,4.6l-4.6,-4.6z",
        "M{x:.1f},{y:.1f}m-1.2,-4h2.4v2.8h2.8v2.4h-2.8v2.8h-2.4v-2.8h-2.8v-2.4h2.8z",
        "M{x:.1f},{y:.1f}m0,4.4l4.2,-7.4h-8.4z",
    )
    return Markup('<path class="marker series-{colour}" d="{path}"/>').format(
        colour=colour, path=shapes[colour].format(x=x, y=y)
    )


def legend_of(lines: Sequence[Series]) -> tuple[list[Markup], float]:
    """The legend below the plot, wrapped to the width, and the height of the whole picture."""
    parts, x, y = [], float(LEFT), TOP + PLOT_HEIGHT + 64.0
    for line in lines:
        name = line.name if len(line.name) <= 38 else line.name[:37] + "…"
        width = 44 + CHARACTER * len(name) + 14
        if x > LEFT and x + width > WIDTH - RIGHT:
            x, y = float(LEFT), y + LEGEND_LINE
        colour = line.colour % COLOURS
        swatch = Series("", (0, 1), (0, 0), colour)
        sample = Scale(0, 1, x, x + 36), Scale(0, 1, y - 4, y - 5)
        parts += draw_line(swatch, *sample)[:1]
        parts += [marker(colour, x + 18, y - 4), label(name, x + 44, y, "start")]
        x += width
    return parts, y + 10


def straight(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(kind, x1, y1, x2, y2)


def label(words: str, x: float, y: float, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, escape(words))


def turned_label(words: str) -> Markup:
    middle = TOP + PLOT_HEIGHT / 2
    return Markup('<text transform="translate(13 {:.1f}) rotate(-90)" text-anchor="middle">{}</text>').format(
        middle, escape(words)
    )


def format_value(value: float, as_percent: bool) -> str:
    """A value for an axis or a description: three digits, without an exponent if possible."""
    return f"{100 * value:.3g} %" if as_percent else f"{value:.3g}"
