"""The page of a study, its table and its sentences, from the plain data of `judge_study`."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from distilens.foundation.estimate import NOTHING, Estimate, minus
from distilens.foundation.files import readable, write_text
from distilens.foundation.metric import Metric
from distilens.report import search_section
from distilens.report.cells import signed
from distilens.report.charts import COLOURS, Series, line_chart
from distilens.report.intervals import Line, interval_chart
from distilens.report.rendering import render

FILE = "study.html"
MOST_CURVES = COLOURS
"""The largest number of learning curves in the chart: as many as there are colours."""
Content = Mapping[str, Any]
Table = tuple[list[str], list[list[str]]]


def write_study_page(folder: Path, content: Content) -> Path:
    """Write `study.html` into a study's folder, and return its path."""
    path = folder / FILE
    write_text(path, page(content))
    return path


def page(content: Content) -> str:
    """The whole page."""
    return render(
        "study.html.j2",
        content=content,
        sentences=sentences(content),
        table=table(content),
        questions=question_table(content, content["questions"]),
        shift=question_table(content, content["shift"]) if content["shift"] else None,
        learning=question_table(content, content["learning"]),
        runs={row["name"]: row["runs"] for row in content["rows"]},
        forest=forest(content),
        curves=curves(content),
        search=search_section.section(content),
        compression=compression(content) if content["study"] == "compression" else None,
    )


# ---------------------------------------------------------------------------------------------------- words


def sentences(content: Content) -> list[str]:
    """What follows from the numbers: the state of the study, and one sentence for each question."""
    lines = []
    if content["done"] < content["total"]:
        lines.append(f"{content['done']} of {content['total']} runs are finished: these numbers are preliminary.")
    if len(content["seeds"]) < 2:
        lines.append("One seed has no interval: nothing is tested. At least two seeds are needed (--seeds).")
    lines += [sentence(entry, content) for entry in content["questions"]]
    if content["budget"]:
        lines.append(best_in_words(content))
    if said := search_section.luck(content):
        lines.append(said)
    for row in content["rows"]:
        if row["failed"]:
            lines.append(f"{row['name']} was left out: {row['failed']}.")
        if row["diverged"]:
            seeds = ", ".join(map(str, row["diverged"]))
            lines.append(
                f"{row['name']}: the loss was no longer finite with seed {seeds}; it counts as the untrained student."
            )
    return lines


def sentence(entry: Content, content: Content) -> str:
    """The answer to one question."""
    found, p, what = Estimate.read(entry), entry["p by Holm"], f"{entry['about']} ({entry['row']} − {entry['against']})"
    if found is None:
        return f"{what}: not measured yet."
    number = written_gain(found, content)
    if entry["decision"] is not None:
        return f"{what}: {number} with {entry['seeds'][0]} seeds: {in_words(entry['decision'], content)}."
    if p is None:
        return f"{what}: {number}; not tested."
    if p < 0.05:
        return f"{what}: {number}: {'a gain' if found.positive else 'a loss'} (p = {written_p(p)} by Holm)."
    more = entry["more seeds"]
    settle = (
        "" if not more else f"; {more:,} more {'seed' if more == 1 else 'seeds'} would settle a difference of 1 point"
    )
    return f"{what}: {number}: no effect is shown (p = {written_p(p)} by Holm{settle})."


def best_in_words(content: Content) -> str:
    """Which student is the best for the budget, chosen by validation."""
    budget = content["budget"]["text"]
    best = next((row for row in content["rows"] if row["name"] == content["budget"]["best"]), None)
    if best is None:
        return f"No student is within {budget}: larger factors give smaller ones."
    cost = f"{best['cost']['milliseconds']:.2f} ms for one image, {readable(best['cost']['bytes'])}"
    score = written_value(best["validation"], content)
    return f"The best student within {budget} is {best['name']}: {score} on validation; {cost}."


def in_words(decision: str, content: Content) -> str:
    """A decision of a study that adds seeds, as the end of a sentence."""
    size = f"{content['until']['points']:g} {written_unit(content)}".rstrip()
    return {
        "better": "a gain",
        "worse": "a loss",
        "no difference of that size": f"any difference is smaller than {size}",
    }.get(decision, f"not decided with {content['until']['most']} seeds at most")


def written_unit(content: Content) -> str:
    """The unit of a difference."""
    metric = Metric.read(content["metric"])
    return "points" if metric.is_share else metric.unit


def written_gain(found: Estimate, content: Content) -> str:
    """A difference with half of its interval: `+1.8 ± 0.6 points`."""
    metric = Metric.read(content["metric"])
    scale, digits = (100, 2) if metric.is_share else (1, 3)
    value, unit = found.value or 0.0, written_unit(content)
    half = "" if found.half is None else f" ± {scale * found.half:.{digits}f}"
    return f"{signed(scale * value, digits)}{half} {unit}".rstrip()


def written_value(entry: Content | None, content: Content) -> str:
    """A mean over seeds with half of its interval: `76.6 ± 0.4 %`."""
    found = Estimate.read(entry)
    if found is None or found.value is None:
        return NOTHING
    metric = Metric.read(content["metric"])
    scale, unit, digits = (100, "%", 2) if metric.is_share else (1, metric.unit, 3)
    half = "" if found.half is None else f" ± {scale * found.half:.{digits}f}"
    return minus(f"{scale * found.value:.{digits}f}{half} {unit}".rstrip())


def written_p(p: float) -> str:
    """A p-value with two digits; very small ones as a bound."""
    return "below 0.0001" if p < 1e-4 else f"{p:.2g}"


# ---------------------------------------------------------------------------------------------------- tables


def table(content: Content) -> Table:
    """One row per list, the best first: the mean over seeds, agreement, likeness of maps, cost."""
    columns: dict[str, Any] = {
        "row": lambda row: row["name"],
        f"{content['metric']['name']}, {content['split']}": lambda row: written_value(row["value"], content),
        "seeds": lambda row: str(row["value"]["n"]),
        "agreement with the teacher": lambda row: share_text(row["agreement"]),
        "maps like the teacher's": lambda row: "; ".join(
            f"{name} {found.with_half()}" for name, entry in row["maps"].items() if (found := Estimate.read(entry))
        ),
        "maps on the evidence": lambda row: "; ".join(
            f"{name} {share_text(entry)}" for name, entry in row["energy"].items()
        ),
        **{
            kind: lambda row, kind=kind: written_value(row["shift"].get(kind), content)
            for kind in corruptions_of(content)
        },
        "parameters": lambda row: f"{row['parameters']:,}" if row["parameters"] else "",
        "MACs": lambda row: f"{row['macs']:,}" if "ratio" in row["facts"] and row["macs"] else "",
        "weights": lambda row: readable(row["cost"]["bytes"]) if row["cost"] else "",
        "ms per image": lambda row: f"{row['cost']['milliseconds']:.2f}" if row["cost"] else "",
        "× smaller": lambda row: f"{row['facts']['ratio']:.2f}" if "ratio" in row["facts"] else "",
        "s per training": lambda row: f"{row['seconds']:.0f}" if row["seconds"] is not None else "",
    }
    rows = [[str(write(row)) for write in columns.values()] for row in ordered(content)]
    shown = [number for number in range(len(columns)) if number < 3 or any(row[number] for row in rows)]
    return [list(columns)[number] for number in shown], [[row[number] for number in shown] for row in rows]


def corruptions_of(content: Content) -> list[str]:
    """The corruptions that some row was measured with."""
    return list(dict.fromkeys(kind for row in content["rows"] for kind in row["shift"]))


def ordered(content: Content) -> list[Content]:
    """The rows, the best first; those of a compression curve by size."""
    if content["study"] == "compression":
        return list(content["rows"])
    metric = Metric.read(content["metric"])

    def rank(row: Content) -> float:
        found = Estimate.read(row["value"])
        return -metric.rank(found.value) if found and found.value is not None else float("inf")

    return sorted(content["rows"], key=rank)


def share_text(entry: Content | None) -> str:
    """A mean share: `82.1 ± 0.4 %`."""
    found = Estimate.read(entry)
    if found is None or found.value is None:
        return ""
    return f"{100 * found.value:.1f}" + ("" if found.half is None else f" ± {100 * found.half:.1f}") + " %"


def question_table(content: Content, questions: Sequence[Content]) -> Table:
    """One row per question: the difference, its p-values, the effect size, and the seeds that are missing."""
    header = ["question", "gain", "p", "p by Holm", "p by ranks", "effect size", "pairs", "more seeds for 1 point"]
    until = content["until"]
    header += ["decision"] if until else []
    rows = []
    for entry in questions:
        where = f" ({entry['corruption']})" if "corruption" in entry else ""
        found, effect = Estimate.read(entry), Estimate.read(entry["effect"])
        rows.append(
            [
                f"{entry['about']}: {entry['row']} − {entry['against']}{where}",
                written_gain(found, content) if found else NOTHING,
                *(NOTHING if entry[key] is None else written_p(entry[key]) for key in ("p", "p by Holm", "check")),
                effect.with_interval("{:.2f}".format) if effect else NOTHING,
                str(entry["seeds"][0]),
                NOTHING if entry["more seeds"] is None else f"{entry['more seeds']:,}",
                *([entry["decision"] or NOTHING] if until else []),
            ]
        )
    return header, rows


def as_csv_text(content: Content) -> str:
    """One line per row and seed: for other programs."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["row", "methods", "control", "seed", "split", content["metric"]["name"]])
    for row in content["rows"]:
        for seed, value in row["values"].items():
            writer.writerow(
                [row["name"], "; ".join(row["methods"]), row["control"] or "", seed, content["split"], value]
            )
    return out.getvalue()


def as_latex_text(content: Content) -> str:
    """The table for a paper, with booktabs."""
    header, rows = table(content)
    lines = [r"\begin{tabular}{l" + "r" * (len(header) - 1) + "}", r"\toprule"]
    lines.append(" & ".join(map(latex, header)) + r" \\ \midrule")
    lines += [" & ".join(map(latex, row)) + r" \\" for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def latex(text: str) -> str:
    """A text with LaTeX's special characters escaped."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"}
    special |= {"±": r"$\pm$", "−": "$-$", "×": r"$\times$"}
    return "".join(special.get(character, character) for character in text)


# ---------------------------------------------------------------------------------------------------- charts


def forest(content: Content) -> Markup:
    """The gain that each question asks for, with its interval."""
    metric = Metric.read(content["metric"])
    scale, unit = (100.0, "points") if metric.is_share else (1.0, metric.unit)
    lines = []
    for entry in content["questions"]:
        found = Estimate.read(entry)
        if found and found.value is not None:
            ends = found.ends or (None, None)
            low, high = (None if end is None else scale * end for end in ends)
            scaled = Estimate(scale * found.value, low, high)
            lines.append(
                Line(
                    f"{entry['row']} − {entry['against']}",
                    scaled,
                    0 if scaled.above(0) else 1 if scaled.below(0) else 5,
                )
            )
    return interval_chart(
        "forest", "The gains", [("", lines)], x_label=f"gain in {unit}, with 95 % intervals".replace("in ,", ",")
    )


def curves(content: Content) -> Markup:
    """The learning curves of the best rows on validation: means over seeds, with their intervals as bands."""
    shown = [row for row in ordered(content) if len(row["curve"]) > 1][:MOST_CURVES]
    lines = [
        Series(
            row["name"],
            (row.get("epochs") or list(range(1, len(row["curve"]) + 1)))[: len(row["curve"])],
            [entry["mean"] for entry in row["curve"]],
            number,
            band(row["curve"], content),
        )
        for number, row in enumerate(shown)
    ]
    metric = Metric.read(content["metric"])
    return line_chart(
        "curves", "Learning curves", lines, x_label="epoch", y_label=f"{metric.name}, validation",
        as_percent=metric.is_share, linear=True,
    )  # fmt: skip


def band(entries: Sequence[Content], content: Content) -> list[tuple[float, float]] | None:
    """The intervals of means as a band, that of a share inside [0, 1]; None if one has no interval."""
    if any(entry["low"] is None for entry in entries):
        return None
    ends = [(entry["low"], entry["high"]) for entry in entries]
    return [(max(0.0, low), min(1.0, high)) for low, high in ends] if content["metric"]["unit"] == "%" else ends


def compression(content: Content) -> Markup:
    """The metric against how many times smaller the student is, under the teacher and with labels only."""
    lines = []
    for colour, (taught, name) in enumerate(((True, "under the teacher"), (False, "labels only"))):
        rows = [
            row for row in content["rows"] if row["facts"].get("taught") is taught and row["value"]["mean"] is not None
        ]
        values = [row["value"] for row in rows]
        xs, ys = [row["facts"]["ratio"] for row in rows], [value["mean"] for value in values]
        lines.append(Series(name, xs, ys, colour, band(values, content)))
    metric = Metric.read(content["metric"])
    return line_chart(
        "compression", "Compression", [line for line in lines if line.x], x_label="times fewer parameters than the teacher",
        y_label=f"{metric.name}, {content['split']}", as_percent=metric.is_share, linear=True,
    )  # fmt: skip
