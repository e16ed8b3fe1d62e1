"""Reliability diagrams as inline SVG: accuracy by confidence."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from distilens.report.charts import Scale, label, straight, turned_label

SIDE, LEFT, TOP, COUNTS = 260.0, 78.0, 12.0, 46.0
WIDTH = LEFT + SIDE + 26


def reliability_chart(identifier: str, title: str, bins: Sequence[Mapping[str, Any]], colour: int) -> Markup:
    """One bar per confidence bin, with its accuracy as the height, beside the diagonal of a calibrated model.

    Below are the numbers of images per bin. Empty markup without any image. `identifier` must be unique on the page.
    """
    filled = [one for one in bins if one["count"]]
    if not filled:
        return Markup()
    across, up = Scale(0, 1, LEFT, LEFT + SIDE), Scale(0, 1, TOP + SIDE, TOP)
    bottom = TOP + SIDE + 12 + COUNTS
    most = max(one["count"] for one in filled)
    parts: list[Markup] = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(straight("grid", LEFT, up.place(tick), LEFT + SIDE, up.place(tick)))
        parts.append(label(f"{100 * tick:.0f} %", LEFT - 7, up.place(tick) + 4, "end"))
        if tick in (0, 0.5, 1):
            parts.append(label(f"{100 * tick:.0f} %", across.place(tick), bottom + 18, "middle"))
    for one in filled:
        left, right = across.place(one["low"]), across.place(one["high"])
        parts.append(bar(f"bar series-{colour}", left, up.place(one["accuracy"]), right, TOP + SIDE))
        parts.append(bar("count", left, bottom - COUNTS * one["count"] / most, right, bottom))
    parts.append(straight("diagonal", across.place(0), up.place(0), across.place(1), up.place(1)))
    parts += [straight("axis", LEFT, y, LEFT + SIDE, y) for y in (TOP + SIDE, bottom)]
    parts.append(label("images", LEFT - 7, bottom - 4, "end"))
    parts.append(label("confidence", LEFT + SIDE / 2, bottom + 38, "middle"))
    parts.append(turned_label("right"))
    return Markup(
        '<svg class="chart reliability" role="img" viewBox="0 0 {width:.0f} {height:.0f}" '
        'aria-labelledby="{id}-title {id}-description"><title id="{id}-title">{title}</title>'
        '<desc id="{id}-description">{said}</desc>{parts}</svg>'
    ).format(
        width=WIDTH,
        height=bottom + 48,
        id=identifier,
        title=title,
        said=describe_diagram(filled),
        parts=Markup("").join(parts),
    )


def bar(kind: str, left: float, top: float, right: float, bottom: float) -> Markup:
    return Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
        kind, left + 0.5, top, right - left - 1, max(0.0, bottom - top)
    )


def describe_diagram(filled: Sequence[Mapping[str, Any]]) -> str:
    """The diagram in words, bin by bin."""
    words = [
        f"confidence {100 * one['low']:.0f} to {100 * one['high']:.0f} %: right {100 * one['accuracy']:.0f} %, "
        f"mean confidence {100 * one['confidence']:.0f} %, {one['count']:,} images"
        for one in filled
    ]
    return f"Share of right answers by confidence. {'; '.join(words)}."
