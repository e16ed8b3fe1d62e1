"""Numbers as text: the value and its details (interval, n). Plain text, without HTML or torch."""

import math
from collections.abc import Callable
from typing import Any

NOTHING = "–"
"""An en dash, shown where a number is missing."""

Cell = tuple[str, str]
"""The text of a cell: the number, and its details (interval, n, batch, device)."""

BUSY = 3
"""If the upper end of the latencies is at least this many times the median, the machine was busy with other work."""


def minus(number: str) -> str:
    """A number with a typographic minus instead of a hyphen."""
    return number.replace("-", "−")


def signed(value: float, digits: int) -> str:
    """A number with its sign.

    >>> signed(-9.31, 1)
    '−9.3'
    """
    return minus(f"{value:+.{digits}f}")


def points(share: float) -> str:
    """A difference of two shares in percentage points: `+1.2`."""
    return signed(100 * share, 1)


def share(entry: dict | None) -> Cell:
    """A share of images, such as accuracy or agreement."""
    if not entry or entry.get("accuracy") is None:
        return NOTHING, ""
    interval = bounds(entry, lambda bound: f"{100 * bound:.1f}")
    return percent(entry["accuracy"]), detail(interval, counted(entry))


def amount(entry: dict | None, digits: int = 3) -> Cell:
    """A number with its interval, such as a calibration error."""
    if not entry or entry.get("value") is None:
        return NOTHING, ""
    return minus(f"{entry['value']:.{digits}f}"), bounds(entry, lambda bound: f"{bound:.{digits}f}")


def similarity(entry: dict, teacher: dict | None = None) -> Cell:
    """Mean cosine to the teacher's maps, without images whose map is empty; these are counted.

    If there is no number, the cell gives the reason: one of the two models has no map.
    """
    if entry.get("similarity") is not None:
        empty = f"{entry['empty']} empty" if entry.get("empty") else ""
        interval = bounds(entry, lambda bound: f"{bound:.3f}")
        return f"{entry['similarity']:.3f}", detail(interval, counted(entry), empty, entry.get("split") or "")
    if teacher is None or entry is teacher or not entry:
        return NOTHING, ""
    if all_empty(entry):
        return without_map(entry)
    if all_empty(teacher):
        return "no map", f"of the teacher: all {teacher['n']:,} are empty"
    return "no map", "there is no image for which both models have a map"


def energy(entry: dict) -> Cell:
    """The share of a map's energy inside the evidence mask, or a note that all maps are empty."""
    if entry.get("energy_in_mask") is not None:
        values = entry.get("energy") or entry
        interval = bounds(values, lambda bound: f"{100 * bound:.1f}") if "energy" in entry else ""
        return percent(entry["energy_in_mask"]), detail(interval, counted(values), entry.get("split") or "")
    return without_map(entry) if all_empty(entry) and entry.get("masks", True) else (NOTHING, "")


def all_empty(entry: dict) -> bool:
    """Whether a model's maps are empty for all images."""
    return bool(entry.get("n")) and entry.get("empty") == entry["n"]


def without_map(entry: dict) -> Cell:
    return "no map", f"all {entry['n']:,} are empty"


def latency(entry: dict | None) -> Cell:
    """Median milliseconds of one forward pass, with spread, batch and device, and whether the machine was busy."""
    if not entry or entry.get("median") is None:
        return NOTHING, ""
    batch = f"batch {entry['batch']}" if entry.get("batch") is not None else ""
    busy = "this machine was busy" if is_busy(entry) else ""
    return f"{entry['median']:.3g} ms", detail(
        bounds(entry, lambda bound: f"{bound:.3g}"), batch, entry.get("device") or "", busy
    )


def is_busy(entry: dict | None) -> bool:
    """Whether a latency's upper end is several times its median."""
    if not entry or not entry.get("median") or entry.get("high") is None:
        return False
    return bool(entry.get("busy", entry["high"] >= BUSY * entry["median"]))


def bounds(entry: dict, written: Callable[[float], str]) -> str:
    if entry.get("low") is None or entry.get("high") is None:
        return ""
    return minus(f"[{written(entry['low'])} to {written(entry['high'])}]")


def counted(entry: dict) -> str:
    return f"n = {entry['n']:,}" if entry.get("n") is not None else ""


def detail(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def sentence(cell: Cell) -> str:
    """`71.2 % [67.1 to 75.0], n = 500`: a cell as one text."""
    value, about = cell
    return value if not about else f"{value} {about}" if about.startswith("[") else f"{value}, {about}"


def percent(fraction: float) -> str:
    """`0.7119` → `71.2 %`."""
    return f"{100 * fraction:.1f} %"


def humanised(count: float | None) -> str:
    """`77850` → `77.9 k`, `12_300_000` → `12.3 M`.

    >>> [humanised(count) for count in (None, 950, 77850, 999_960, 12_300_000)]
    ['–', '950', '77.9 k', '1.0 M', '12.3 M']
    """
    if count is None:
        return NOTHING
    if count < 1000:
        return f"{count:g}"
    for unit in ("k", "M", "G"):
        count /= 1000
        # Half rounds up, as readers expect: 77,850 is 77.9 k, although as a float it lies just below 77.85.
        tenths = math.floor(10 * count + 0.5)
        # Compared after rounding: 999,960 is 1.0 M, not 1000.0 k.
        if tenths < 10_000:
            return f"{tenths / 10:.1f} {unit}"
    return f"{count / 1000:.1f} T"


def text(value: Any) -> str:
    return NOTHING if value is None else str(value)
