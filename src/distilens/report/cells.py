"""Numbers as text: the value and its details (interval, n). Plain text, without HTML or torch."""

import math
from typing import Any

from distilens.foundation.estimate import NOTHING, Estimate, Write, decimals, minus

Cell = tuple[str, str]
"""The text of a cell: the number, and its details (interval, n, batch, device)."""

BUSY = 3
"""If the upper end of the latencies is at least this many times the median, the machine was busy with other work."""


def signed(value: float, digits: int) -> str:
    """A number with its sign.

    >>> signed(-9.31, 1)
    '−9.3'
    """
    return minus(f"{value:+.{digits}f}")


def points(share: float) -> str:
    """A difference of two shares in percentage points: `+1.2`."""
    return signed(100 * share, 1)


def signed_decimals(value: float) -> str:
    """A difference with three decimals: `+0.012`."""
    return signed(value, 3)


def in_percent(share: float) -> str:
    """A share in per cent without the sign: `71.2`."""
    return f"{100 * share:.1f}"


def share(entry: dict | None, name: str = "accuracy") -> Cell:
    """A share of images (or of places), such as accuracy, agreement or, by `name`, another metric."""
    return cell(Estimate.read(entry, name), unit=" %", write=in_percent)


def amount(entry: dict | None) -> Cell:
    """A number with its interval, such as a calibration error."""
    return cell(Estimate.read(entry, "value"))


def cell(estimate: Estimate | None, *more: str, write: Write = decimals, unit: str = "", counted: bool = True) -> Cell:
    """A number; its details are the interval, n if `counted`, and `more`."""
    if estimate is None:
        return NOTHING, ""
    n = estimate.counted if counted else ""
    return estimate.number(write) + unit, ", ".join(filter(None, (estimate.interval(write), n, *more)))


def similarity(entry: dict, teacher: dict | None = None) -> Cell:
    """Mean cosine to the teacher's maps, without images whose map is empty; these are counted.

    If there is no number, the cell gives the reason: one of the two models has no map.
    """
    if (estimate := Estimate.read(entry, "similarity")) is not None:
        return cell(estimate, f"{estimate.empty} empty" if estimate.empty else "", entry.get("split") or "")
    if teacher is None or entry is teacher or not entry:
        return NOTHING, ""
    if all_empty(entry):
        return without_map(entry)
    if all_empty(teacher):
        return "no map", f"of the teacher: all {teacher['n']:,} are empty"
    return "no map", "there is no image for which both models have a map"


def energy(entry: dict) -> Cell:
    """The share of a map's energy inside the evidence mask, or a note that all maps are empty."""
    if entry.get("energy_in_mask") is not None:  # runs of earlier versions have no interval
        estimate = Estimate.read(entry.get("energy")) or Estimate(entry["energy_in_mask"], n=entry.get("n"))
        return cell(estimate, entry.get("split") or "", write=in_percent, unit=" %")
    return without_map(entry) if all_empty(entry) and entry.get("masks", True) else (NOTHING, "")


def all_empty(entry: dict) -> bool:
    """Whether a model's maps are empty for all images."""
    return bool(entry.get("n")) and entry.get("empty") == entry["n"]


def without_map(entry: dict) -> Cell:
    return "no map", f"all {entry['n']:,} are empty"


def latency(entry: dict | None) -> Cell:
    """Median milliseconds of one forward pass, with spread, batch and device, and whether the machine was busy."""
    entry = entry or {}
    batch = f"batch {entry['batch']}" if entry.get("batch") is not None else ""
    about = (batch, entry.get("device") or "", "this machine was busy" if is_busy(entry) else "")
    return cell(Estimate.read(entry, "median"), *about, write=lambda number: f"{number:.3g}", unit=" ms")


def is_busy(entry: dict | None) -> bool:
    """Whether a latency's upper end is several times its median."""
    if not entry or not entry.get("median") or entry.get("high") is None:
        return False
    return bool(entry.get("busy", entry["high"] >= BUSY * entry["median"]))


def sentence(cell: Cell) -> str:
    """`71.2 % [67.1 to 75.0], n = 500`: a cell as one text."""
    value, about = cell
    return value if not about else f"{value} {about}" if about.startswith("[") else f"{value}, {about}"


def percent(fraction: float) -> str:
    """`0.7119` → `71.2 %`."""
    return f"{in_percent(fraction)} %"


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
