"""The numbers of a run in words: the summary table and the sentence above it. Plain text, no HTML, no torch."""

import math
from collections.abc import Callable, Mapping
from typing import Any

MODELS = ("teacher", "base", "student")
# An en dash, for a number that there is none of.
NOTHING = "–"

MOST_CLASSES = 100

BUSY = 3.0
# How many times the median the upper end of a latency must be before it is said that the machine was busy.

UNEVEN = 1.5
# How many times its even share the commonest class must have for accuracies to be set beside it.

# What a cell says: the number itself, and what it rests on (interval, n, batch, device).
Cell = tuple[str, str]


def rows(scores: dict) -> tuple[list[str], list[list[str]]]:
    """Header and text cells of the summary table, one row per measured model, teacher first.

    Every number stands with its 95 % interval and n. Columns that no model has a number for are left out, except the
    accuracies. `scores` is the content of a run's `scores.json`.

    >>> rows({"models": {"student": {"model": "tiny", "test": {"accuracy": 0.5, "n": 8}, "parameters": 77850}}})[1]
    [['student', 'tiny', '–', '50.0 %, n = 8', '77.9 k']]
    """
    models = measured(scores)
    columns = measures(scores)
    header = ["role", "model", *(title for title, _ in columns)]
    lines = [
        [role, text(model.get("model")), *(sentence(cells[role]) for _, cells in columns)]
        for role, model in models.items()
    ]
    return header, lines


def measures(scores: dict) -> list[tuple[str, dict[str, Cell]]]:
    """The table by measure: a title, and for every measured model a number with its detail."""
    models = measured(scores)
    explainers = list(dict.fromkeys(name for model in models.values() for name in model.get("maps") or {}))
    columns: list[tuple[str, dict[str, Cell]]] = []

    def add(title: str, cells: dict[str, Cell], always: bool = False) -> None:
        if always or any(value != NOTHING for value, _ in cells.values()):
            columns.append((title, cells))

    for split in ("validation", "test"):
        add(f"accuracy, {split}", {role: share(model.get(split)) for role, model in models.items()}, always=True)
    if imbalance(scores):
        add(
            "accuracy balanced over classes, test",
            {
                role: (NOTHING if model.get("balanced") is None else percent(model["balanced"]), "")
                for role, model in models.items()
            },
        )
    add("agreement with teacher, test", {role: share(model.get("agreement")) for role, model in models.items()})
    for name in explainers:
        maps = {role: (model.get("maps") or {}).get(name) or {} for role, model in models.items()}
        add(f"{name} similarity to teacher", {role: similarity(entry) for role, entry in maps.items()})
        add(f"{name} energy in mask", {role: energy(entry) for role, entry in maps.items()})
    for key, title in (("parameters", "parameters"), ("macs", "MACs")):
        add(title, {role: (humanised(model.get(key)), "") for role, model in models.items()})
    add("latency, median", {role: latency(model.get("latency_ms")) for role, model in models.items()})
    return columns


def by_class(scores: dict, most: int = MOST_CLASSES) -> tuple[list[tuple[str, list[Cell]]], int]:
    """The accuracy of each class on the test split, a cell for each measured model; and how many classes there are.

    The classes that the student (or the last model) knows least come first; of very many only these are given.
    """
    models = measured(scores)
    found = {role: model.get("by class") or {} for role, model in models.items()}
    names = next(iter(found.values()), {})
    if not all(found.values()) or len(names) < 2:
        return [], 0
    judged = found[list(found)[-1]]
    known = [name for name in names if judged.get(name)]
    ordered = sorted(known, key=lambda name: judged[name]["accuracy"])
    return [(name, [share(found[role].get(name)) for role in models]) for name in ordered[:most]], len(ordered)


def headline(scores: dict) -> str:
    """One sentence that says how the student did, computed from the numbers: what it reaches, against the control."""
    models = measured(scores)
    student, base, teacher = models.get("student"), models.get("base"), models.get("teacher")
    split = judged_split(models)
    if student is None or split is None:
        return "No student has been measured yet."
    reached = student[split]["accuracy"]
    sentence = f"The student{size(student, teacher)} reaches {percent(reached)} on the {split} split"
    if base is None or accuracy(base, split) is None:
        return f"{sentence}; the same network without a teacher has not been measured."
    # The difference is rounded once, from the full numbers, so that it may differ by 0.1 from that of the rounded ones.
    points = round(100 * (reached - base[split]["accuracy"]), 1)
    control = "the same network trained without a teacher"
    if points == 0:
        return f"{sentence}, the same as {control} (to 0.1 points)."
    return f"{sentence}, {abs(points):.1f} points {'above' if points > 0 else 'below'} {control}."


def remarks(scores: dict) -> list[str]:
    """What must be said next to the headline: n, intervals, whether they overlap, and how the maps compare."""
    models = measured(scores)
    split = judged_split(models)
    said = []
    if split is not None:
        shown = {role: model for role, model in models.items() if accuracy(model, split) is not None}
        listed = "; ".join(f"{role} {sentence(share(model[split]))}" for role, model in shown.items())
        said.append(f"Accuracy on the {split} split, with 95 % intervals: {listed}.")
        if overlapping(models.get("student"), models.get("base"), split):
            said.append(
                "The intervals of student and base overlap: this comparison alone does not settle which is better."
            )
    said += [guessing] if (guessing := imbalance(scores)) else []
    for name, entry in (models.get("student", {}).get("maps") or {}).items():
        said += [line] if (line := against_base(name, (entry or {}).get("more_than_base"))) else []
    return [*said, *busy(scores)]


def against_base(name: str, entry: dict | None) -> str | None:
    """Whether the student's maps are more like the teacher's than the control's are: by differences on the same images."""
    if not entry or entry.get("mean") is None:
        return None
    value = sentence((f"{entry['mean']:+.3f}", detail(bounds(entry, lambda bound: f"{bound:+.3f}"), counted(entry))))
    whose, other = f"the student's {name} maps", "like the teacher's than the control's are"
    if entry.get("low") is None or entry["low"] <= 0 <= entry["high"]:
        return f"Whether {whose} are more {other}, these images do not show: the cosine differs by {value}, image by image."
    more = "more" if entry["mean"] > 0 else "less"
    return f"{whose[0].upper()}{whose[1:]} are {more} {other}: the cosine differs by {value}, image by image."


def imbalance(scores: dict) -> str | None:
    """What guessing the commonest class would give, where one class is half as frequent again as an even share or more."""
    about = scores.get("data") or {}
    guess, classes = about.get("commonest"), about.get("classes") or ()
    if not guess or guess["share"] * len(classes) < UNEVEN:
        return None
    return (
        f"Guessing the commonest class, {guess['class']}, for every image would be right for {percent(guess['share'])} of the "
        "test split: read the accuracies beside that, and the one that is balanced over the classes."
    )


def measured(scores: dict) -> dict[str, dict[str, Any]]:
    """The models that were measured, teacher, base, student in that order."""
    models = scores.get("models") or {}
    return {role: models[role] for role in MODELS if models.get(role)}


def judged_split(models: Mapping[str, dict]) -> str | None:
    """The split that the headline speaks of: test where the student has it, else validation."""
    student = models.get("student", {})
    return next((split for split in ("test", "validation") if accuracy(student, split) is not None), None)


def accuracy(model: dict, split: str) -> float | None:
    return (model.get(split) or {}).get("accuracy")


def overlapping(one: dict | None, other: dict | None, split: str) -> bool:
    """Whether both models have an interval on this split and the two share a value."""
    first, second = ((model or {}).get(split) or {} for model in (one, other))
    if any(entry.get(key) is None for entry in (first, second) for key in ("low", "high")):
        return False
    return first["low"] <= second["high"] and second["low"] <= first["high"]


def size(student: dict, teacher: dict | None) -> str:
    """` (77,850 parameters, 3.5 times fewer than the teacher)`, or as much of it as is known."""
    count, other = student.get("parameters"), (teacher or {}).get("parameters")
    if not count:
        return ""
    if not other:
        return f" ({count:,} parameters)"
    if count == other:
        return f" ({count:,} parameters, as many as the teacher)"
    ratio = max(count, other) / min(count, other)
    # 1.04 would be written "1.0 times fewer", which says nothing.
    factor = "slightly" if ratio < 1.05 else f"{ratio:.1f} times"
    return f" ({count:,} parameters, {factor} {'fewer' if count < other else 'more'} than the teacher)"


def share(entry: dict | None) -> Cell:
    """A share of images, as accuracy and agreement are."""
    if not entry or entry.get("accuracy") is None:
        return NOTHING, ""
    interval = bounds(entry, lambda bound: f"{100 * bound:.1f}")
    return percent(entry["accuracy"]), detail(interval, counted(entry))


def similarity(entry: dict) -> Cell:
    """Mean cosine to the teacher's maps; images whose map is empty are left out of it and counted."""
    if entry.get("similarity") is None:
        return NOTHING, ""
    empty = f"{entry['empty']} empty" if entry.get("empty") else ""
    interval = bounds(entry, lambda bound: f"{bound:.3f}")
    return f"{entry['similarity']:.3f}", detail(interval, counted(entry), empty, entry.get("split") or "")


def energy(entry: dict) -> Cell:
    """The share of a map's energy that falls inside the evidence mask."""
    if entry.get("energy_in_mask") is None:
        return NOTHING, ""
    return percent(entry["energy_in_mask"]), detail(counted(entry), entry.get("split") or "")


def latency(entry: dict | None) -> Cell:
    """Median milliseconds of one forward, with its spread, batch and device."""
    if not entry or entry.get("median") is None:
        return NOTHING, ""
    batch = f"batch {entry['batch']}" if entry.get("batch") is not None else ""
    return f"{entry['median']:.3g} ms", detail(
        bounds(entry, lambda bound: f"{bound:.3g}"), batch, entry.get("device") or ""
    )


def busy(scores: dict) -> list[str]:
    """What is to be said of latencies that were measured while other work took the machine's time."""
    found = {role: model.get("latency_ms") or {} for role, model in measured(scores).items()}
    slow = [
        f"{role} {each['high'] / each['median']:.0f} times"
        for role, each in found.items()
        if each.get("median") and (each.get("high") or 0) > BUSY * each["median"]
    ]
    return (
        [f"This machine was busy when latencies were measured: the slowest took {', '.join(slow)} the median."]
        if slow
        else []
    )


def bounds(entry: dict, written: Callable[[float], str]) -> str:
    if entry.get("low") is None or entry.get("high") is None:
        return ""
    return f"[{written(entry['low'])} to {written(entry['high'])}]"


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
        # Half rounds up, as a reader would: 77,850 is 77.9 k, though as a float it lies just below 77.85.
        tenths = math.floor(10 * count + 0.5)
        # Compared after rounding: 999,960 is 1.0 M, not 1000.0 k.
        if tenths < 10_000:
            return f"{tenths / 10:.1f} {unit}"
    return f"{count / 1000:.1f} T"


def text(value: Any) -> str:
    return NOTHING if value is None else str(value)
