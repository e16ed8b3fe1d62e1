"""The page of a gallery and its view in a notebook: plain data in, text out; reads no file and does not import torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from markupsafe import Markup

from distilens.foundation.estimate import NOTHING, Estimate, Write, minus
from distilens.report import charts, class_pictures, pictures
from distilens.report.cells import Cell, cell, in_percent, percent
from distilens.report.panels import PICTURE_BYTES
from distilens.report.rendering import render

IN_NOTEBOOK = 8  # images
MOST_LINES = charts.COLOURS  # more lines in a chart could not be distinguished


@dataclass(frozen=True)
class Row:
    """An image: its row in the source, its label, and the model's prediction. `right` is None without a label.

    `name` is its file, if it comes from one.
    """

    index: int
    label: str | None
    target: str
    prediction: str
    confidence: str
    right: bool | None
    name: str = ""

    @property
    def title(self) -> str:
        """The image's file or row, as a title."""
        return self.name or f"Image {self.index}"

    @property
    def called(self) -> str:
        """The same within a sentence."""
        return self.name or f"image {self.index}"


@dataclass(frozen=True)
class Column:
    """An explainer and its maps; a floor is an explainer that ignores the model."""

    label: str
    notation: str
    signed: bool
    floor: bool
    maps: Float[np.ndarray, "b h w"]


@dataclass(frozen=True)
class Line:
    """A measure: one cell per explainer, the better direction as an arrow and in words, and the meaning."""

    title: str
    arrow: str
    direction: str
    meaning: str
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class Answers:
    """A segmentation: the class of each pixel by the model and by the target, if it is known; 255 is void."""

    classes: Sequence[str]
    answers: UInt8[np.ndarray, "b h w"]
    targets: UInt8[np.ndarray, "b h w"] | None


@dataclass(frozen=True)
class Content:
    """The content of a gallery's page. `findings` are about the explainers, `remarks` about the model and the images.

    With `dense`, `masks` are the explained places.
    """

    model: str
    facts: Sequence[tuple[str, str]]
    remarks: Sequence[str]
    findings: Sequence[str]
    measures: Sequence[Line]
    columns: Sequence[Column]
    curves: Mapping[str, Mapping[str, list[float]]]
    images: UInt8[np.ndarray, "b h w 3"]
    masks: UInt8[np.ndarray, "b h w"] | None
    rows: Sequence[Row]
    dense: Answers | None = None


def page(content: Content) -> str:
    """The whole page: facts, findings, table, curves, and one row per image until the pictures take 8 MB."""
    explainers, floors = columns_to_show(content), [column for column in content.columns if column.floor]
    rows, spent = [], 0
    for at in range(len(content.rows)):
        row = draw_row(content, at, explainers)
        spent += row["bytes"]
        if rows and spent > PICTURE_BYTES:
            break
        rows.append(row)
    lines = labels_to_chart(content)
    pixels = "other pixels" if content.dense else "pixels"
    return render(
        "gallery.html.j2",
        content=content,
        explainers=[column for column in content.columns if not column.floor],
        floors=floors,
        pictured=explainers,
        rows=rows,
        charts=[
            (title, chart(name, title, lines, content, axis))
            for name, title, axis in (
                ("insertion", "Insertion: the strongest pixels are put back first", f"{pixels} put back (%)"),
                ("deletion", "Deletion: the strongest pixels are removed first", f"{pixels} removed (%)"),
            )
        ],
        charted=lines,
        legend=[] if content.dense is None else legend_of(content.dense, len(rows)),
    )


def legend_of(dense: Answers, shown: int) -> list[tuple[str, str]]:
    """The classes of the images that are shown, with their colours."""
    masks = [dense.answers[:shown]] + ([] if dense.targets is None else [dense.targets[:shown]])
    return class_pictures.legend(dense.classes, np.stack(masks))


def columns_to_show(content: Content) -> list[Column]:
    """The explainers to draw: all except the floors, or the floors if there is nothing else."""
    return [column for column in content.columns if not column.floor] or list(content.columns)


def draw_row(content: Content, at: int, columns: Sequence[Column]) -> dict[str, Any]:
    """One image with its mask and maps as data URIs."""
    image = np.ascontiguousarray(content.images[at])
    mask = None if content.masks is None or not content.masks[at].any() else content.masks[at]
    maps = []
    for column in columns:
        values = pictures.normalise_map(column.maps[at], signed=column.signed)
        undrawable = isinstance(values, str)
        maps.append(
            {
                "label": column.label,
                "picture": None if undrawable else pictures.overlay_uri(image, values, mask),
                "place": None if undrawable else pictures.strongest_place(values),
                "problem": values if undrawable else None,
            }
        )
    row: dict[str, Any] = {
        "image": pictures.image_uri(image),
        "mask": None if mask is None or content.dense else pictures.mask_uri(image, mask),
        "answers": [] if content.dense is None else draw_answers(content.dense, image, at),
        "maps": maps,
        "about": content.rows[at],
    }
    uris = [row["image"], row["mask"], *(one["picture"] for one in [*row["answers"], *maps])]
    return row | {"bytes": sum(len(uri) for uri in uris if uri)}


def draw_answers(dense: Answers, image: UInt8[np.ndarray, "h w 3"], at: int) -> list[dict[str, str]]:
    """The classes of one image by the target, if it is known, and by the model, with the share that is wrong."""
    count, answer = len(dense.classes), dense.answers[at]
    ours = class_pictures.classes_uri(image, answer, count)
    if dense.targets is None:
        return [class_pictures.figure("prediction", ours, "The predicted classes")]
    target = dense.targets[at]
    wrong = class_pictures.share_wrong(answer, target)
    return [
        class_pictures.figure("target", class_pictures.classes_uri(image, target, count), "The target"),
        class_pictures.figure(
            "prediction", ours, "The predicted classes", "" if wrong is None else f"{percent(wrong)} wrong"
        ),
    ]


def labels_to_chart(content: Content) -> list[str]:
    """The explainers whose curves are drawn: all, or at most `MOST_LINES` including the strongest floor."""
    strength = {label: float(np.nan_to_num(np.mean(curve["insertion"]))) for label, curve in content.curves.items()}
    if len(strength) <= MOST_LINES:
        return list(strength)
    floors = [column.label for column in content.columns if column.floor]
    others = sorted((label for label in strength if label not in floors), key=lambda label: -strength[label])
    chosen = {max(floors, key=lambda label: strength[label]), *others[: MOST_LINES - 1]}
    return [label for label in strength if label in chosen]


def chart(name: str, title: str, labels: Sequence[str], content: Content, axis: str) -> Markup:
    lines = [
        charts.Series(label, [100 * share for share in curve["shares"]], curve[name], colour)
        for colour, label in enumerate(labels)
        if (curve := content.curves[label])
    ]
    return charts.line_chart(
        f"chart-{name}", title, lines, x_label=axis, y_label="confidence", as_percent=True, linear=True
    )


def notebook(content: Content) -> str:
    """The first images with their maps, and the findings, as self-contained HTML."""
    columns = columns_to_show(content)
    rows = [draw_row(content, at, columns) for at in range(min(len(content.rows), IN_NOTEBOOK))]
    return render("notebook.html.j2", content=content, columns=columns, rows=rows)


# ---------------------------------------------------------------------------------------------- numbers in words


def brief(entry: Mapping[str, Any] | None, *, as_percent: bool) -> str:
    """`0.512 ±0.034`: a mean and half of its interval."""
    estimate = Estimate.read(entry) or Estimate(None)
    return estimate.with_half(writer(as_percent)) + " %" * (as_percent and estimate.value is not None)


def page_cell(entry: Mapping[str, Any] | None, as_percent: bool) -> Cell:
    """A cell of the page: the mean and its interval; also n if images are left out."""
    estimate = Estimate.read(entry)
    left_out = estimate is not None and bool(estimate.empty)
    return cell(estimate, write=writer(as_percent), unit=" %" * as_percent, counted=left_out)


def writer(as_percent: bool) -> Write:
    return in_percent if as_percent else format_short


def format_short(value: float | None, sign: str = "") -> str:
    """Three digits or so, without an exponent: `0.00021`, `0.512`, `3.14`, `1,234`."""
    if value is None:
        return NOTHING
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3 if size >= 0.001 or size < 1e-9 else 5
    return minus(f"{value:{sign},.{digits}f}")
