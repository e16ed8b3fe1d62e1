"""The gallery: maps of a model by several explainers side by side, with their scores.

    model, images ──► each explainer, and the floors (noise, the centre) ──► maps ──► scores ──► table, page, files

Nothing is trained. The page says so if an explainer's maps are no better than maps that do not depend on the model.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped
from PIL import Image
from rich.console import Console
from torch import Tensor

from distilens import __version__
from distilens.data import Data
from distilens.data.pictures import as_images, holds_pictures
from distilens.explain import Explainer, Explanation, in_chunks
from distilens.explain.aims import Wanted
from distilens.explain.explanation import checked
from distilens.explain.maps import overlay
from distilens.foundation.devices import now
from distilens.foundation.errors import UserError
from distilens.foundation.files import read_json, write_arrays, write_atomically, write_json, write_text
from distilens.foundation.progress import Work
from distilens.measure.maps.columns import Part, named, with_references
from distilens.measure.maps.images import (
    aimed,
    as_chosen,
    built_model,
    check_pixels,
    draw_images,
    find_data,
    fitting_labels,
    run_folder,
    targets,
    with_places,
)
from distilens.measure.maps.scoring import (
    CHUNK,
    SANITY,
    STEPS,
    Measure,
    Scores,
    answered,
    finding,
    means_of,
    measures_of,
    scored,
    tried,
)
from distilens.models.folding import prepare
from distilens.models.saved import fingerprint_of
from distilens.report import gallery_page
from distilens.report.cells import percent
from distilens.report.class_pictures import names_in
from distilens.report.gallery_page import brief, format_short, page_cell
from distilens.tasks import Classification, Task
from distilens.tasks.classification import UNNAMED

KIND = "distilens gallery 1"  # identifies our scores.json
MOST_NAMED = 4  # classes of an aim


# eq=False: comparing tensors gives no single truth value
@dataclass(frozen=True, eq=False, repr=False)
class Gallery:
    """Images, a model's predictions for them, and the maps of several explainers with their scores.

    Attributes:
        images: `[b 3 h w]` in [0, 1]; `labels` are -1 for images without a label, `index` are rows of the source.
        mask: evidence in [0, 1], if the data set has masks. In a dense task these are the explained places.
        target: the class that all maps explain, in a dense task at each explained place; `logits` are the model's.
        classes: the names of the model's classes; `label_classes` are those of the labels.
        model, data: their notations; `about_images` says how the images were selected.
        fingerprint: the fingerprint of the model's weights.
        parts: by label, the explainers: notation, sign, whether it is a floor.
        explanations: by label.
        scores: by label and measure: mean, 95 % interval, n. `values` are per image, NaN for a missing value.
        curves: by label: `shares`, and the mean `insertion` and `deletion` at these shares.
        seconds: by label, seconds per image.
        remarks: warnings that a reader must know.
        task: what the logits are.
        names: the files of the images, relative to the data set's folder; None if they are not files.
    """

    images: Float[Tensor, "b 3 h w"]
    labels: Shaped[Tensor, "b ..."]
    index: Int[Tensor, " b"]
    mask: Float[Tensor, "b h w"] | None
    target: Int[Tensor, "b ..."]
    logits: Float[Tensor, "b classes ..."]
    classes: tuple[str, ...]
    label_classes: tuple[str, ...]
    model: str
    data: str
    about_images: str
    fingerprint: str
    parts: Mapping[str, Part]
    explanations: Mapping[str, Explanation]
    scores: Mapping[str, Scores]
    values: Mapping[str, Mapping[str, Float[Tensor, " b"]]]
    curves: Mapping[str, Mapping[str, list[float]]]
    seconds: Mapping[str, float]
    remarks: tuple[str, ...] = ()
    names: tuple[str, ...] | None = None
    task: Task = UNNAMED

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        areas = ", ".join(
            f"{label} {format_short(self.scores[label]['insertion']['mean'])}"
            for label in self.parts
            if not self.floor(label)
        )
        return f"Gallery({self.model!r}, {len(self)} images of {self.data!r}; insertion AUC: {areas})"

    def _repr_html_(self) -> str:
        return gallery_page.notebook(self.content())

    def floor(self, label: str) -> bool:
        """Whether an explainer is a control that does not depend on the model."""
        return self.parts[label].floor

    def measures(self) -> list[Measure]:
        """The measures that at least one explainer has."""
        return [
            measure
            for measure in measures_of(self.task)
            if any(scores.get(measure.key, {}).get("mean") is not None for scores in self.scores.values())
        ]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows for a terminal, one measure per row with its better direction; cells are mean ± half the interval."""
        header = ["measure", *self.parts]
        rows = [
            [f"{measure.title}{measure.arrow}"]
            + [brief(self.scores[label].get(measure.key), as_percent=measure.as_percent) for label in self.parts]
            for measure in self.measures()
        ]
        return header, rows

    def findings(self) -> list[str]:
        """A sentence per explainer: whether its insertion AUC is above the floors'."""
        areas = {label: values["insertion"] for label, values in self.values.items()}
        floors = {label: areas[label] for label in self.parts if self.floor(label)}
        return [finding(label, areas[label], floors) for label in self.parts if not self.floor(label)]

    def content(self) -> gallery_page.Content:
        """The gallery as plain data, for its page."""
        measures = [
            gallery_page.Line(
                measure.title,
                measure.arrow.strip(),
                measure.direction,
                measure.meaning,
                {label: page_cell(self.scores[label].get(measure.key), measure.as_percent) for label in self.parts},
            )
            for measure in self.measures()
        ]
        columns = [
            gallery_page.Column(
                part.label, part.notation, part.signed, part.floor, self.explanations[part.label].maps.numpy()
            )
            for part in self.parts.values()
        ]
        return gallery_page.Content(
            model=self.model,
            facts=[
                ("model", f"{self.model}, weights {self.fingerprint}"),
                ("data", self.data),
                ("images", self.about_images),
                ("made by", f"distilens {__version__}"),
            ],
            remarks=[*self.remarks],
            findings=self.findings(),
            measures=measures,
            columns=columns,
            curves=self.curves,
            images=as_bytes(self.images),
            masks=None if self.mask is None else (self.mask * 255).round().byte().numpy(),
            rows=[self.row(at) for at in range(len(self))],
            dense=self.answers() if self.task.dense else None,
        )

    def answers(self) -> gallery_page.Answers:
        """The classes of each pixel by the model and, if its classes are those of the data, by the target."""
        pixels = self.images[:, 0]
        known = self.classes == self.label_classes and bool(self.task.known(self.labels).any())
        return gallery_page.Answers(
            classes=self.classes,
            answers=self.task.compact(self.logits, pixels).numpy(),
            targets=self.labels.numpy() if known else None,
        )

    def row(self, at: int) -> gallery_page.Row:
        """The words about one image: its label, the prediction, what was explained."""
        file = {"index": int(self.index[at]), "name": self.names[at] if self.names else ""}
        if self.task.dense:
            return self.dense_row(at, file)
        if not isinstance(self.task, Classification):
            known = self.task.known(self.labels)[at]
            label = self.task.describe(self.labels[at]) if known else None
            prediction = self.task.describe(self.task.predict(self.logits)[at])
            return gallery_page.Row(
                **file, label=label, target=prediction, prediction=prediction, confidence="", right=None
            )
        confidence, predicted = self.logits[at].float().softmax(0).max(0)
        comparable = self.classes == self.label_classes and self.labels[at] >= 0
        return gallery_page.Row(
            **file,
            label=name_of(self.labels[at], self.label_classes),
            target=name_of(self.target[at], self.classes) or "",
            prediction=name_of(predicted, self.classes) or "",
            confidence=percent(float(confidence)),
            right=bool(predicted == self.labels[at]) if comparable else None,
        )

    def dense_row(self, at: int, file: dict[str, Any]) -> gallery_page.Row:
        """The same for an image of a dense task: the largest classes, and the share of the explained places."""
        aim, logits = self.target[at : at + 1], self.logits[at : at + 1]
        there = aim[aim >= 0].unique().tolist()
        classes = ", ".join(self.classes[number] for number in there[:MOST_NAMED]) + ", …" * (len(there) > MOST_NAMED)
        share, confidence = float((aim >= 0).float().mean()), float(self.task.confidence(logits.float(), aim)[0])
        answer = self.task.compact(logits, self.images[at : at + 1, 0])[0]
        return gallery_page.Row(
            **file,
            label=names_in(self.labels[at].numpy(), self.label_classes),
            target=f"{classes} ({percent(share)} of the places, mean probability {percent(confidence)})",
            prediction=names_in(answer.numpy(), self.classes) or "",
            confidence="",
            right=None,
        )

    def save(self, folder: str | Path) -> Path:
        """Write the gallery to a folder, each file atomically; returns the path of `index.html`.

        The files are `<label>.npz` per explainer (maps and their origin), `overlays/<index>-<label>.png`, `scores.json` and
        `index.html`. Old files of a gallery that this one replaces are deleted.

        Raises:
            UserError: there is no permission to write, or the disk is full.
        """
        folder = Path(folder)
        before = read_json(folder / "scores.json") if (folder / "scores.json").is_file() else None
        files = []
        for label, explanation in self.explanations.items():
            files.append(f"{label}.npz")
            write_arrays(folder / files[-1], self.arrays(label))
            pictures = as_bytes(overlay(self.images, explanation.maps, signed=self.parts[label].signed))
            for number, picture in zip(self.index.tolist(), pictures, strict=True):
                files.append(f"overlays/{number}-{label}.png")
                image = Image.fromarray(picture)
                write_atomically(folder / files[-1], lambda path, image=image: image.save(path, "PNG"))
        write_text(folder / "index.html", gallery_page.page(self.content()))
        write_json(folder / "scores.json", {**self.about(), "files": files})
        if isinstance(before, dict) and before.get("kind") == KIND:
            for name in set(map(str, before.get("files", []))) - set(files):
                if re.fullmatch(r"(overlays/)?[\w+.=-]+\.(npz|png)", name):
                    (folder / name).unlink(missing_ok=True)
        return folder / "index.html"

    def arrays(self, label: str) -> dict[str, np.ndarray]:
        """The content of an explainer's file: `numpy.load(...)["maps"]`, and the origin of these maps."""
        part, explanation = self.parts[label], self.explanations[label]
        arrays = {
            "maps": explanation.maps.float().numpy(),
            "signed": np.array(part.signed),
            "index": self.index.numpy(),
            "labels": self.labels.numpy(),
            **({"names": np.array(self.names)} if self.names else {}),
            "target": explanation.target.numpy(),
            "logits": explanation.logits.float().numpy(),
            "explainer": np.array(part.notation),
            "model": np.array(self.model),
            "data": np.array(self.data),
            "fingerprint": np.array(self.fingerprint),
            "distilens": np.array(__version__),
        }
        if explanation.residual is not None:
            arrays["residual"] = explanation.residual.float().numpy()
        return arrays | {f"score_{key}": value.numpy() for key, value in self.values[label].items()}

    def about(self) -> dict[str, Any]:
        """The content of `scores.json`."""
        return {
            "kind": KIND,
            "distilens": __version__,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "data": self.data,
            "images": self.about_images,
            "remarks": list(self.remarks),
            "findings": self.findings(),
            "measures": {measure.key: f"{measure.title}; {measure.direction}" for measure in self.measures()},
            "explainers": {
                label: {
                    "explainer": part.notation,
                    "floor": part.floor,
                    "signed": part.signed,
                    "scores": {key: dict(value) for key, value in self.scores[label].items()},
                    "curves": {
                        key: [value if math.isfinite(value) else None for value in curve]
                        for key, curve in self.curves[label].items()
                    },
                }
                for label, part in self.parts.items()
            },
        }


def gallery(
    model: Any,
    data: Any = None,
    explainers: Sequence[str | Explainer] = ("gradcam", "ig"),
    *,
    images: int = 32,
    target: str | Shaped[Tensor, "b ..."] = "top1",
    split: str = "test",
    sanity: bool = True,
    prepared: bool = True,
    console: Console | None = None,
) -> Gallery:
    """Explain a model's predictions for some images with several explainers, and score the maps.

    Args:
        model: a `Model`, any `nn.Module` (see `as_model`), any notation (`timm:resnet18,pretrained=true`, `file:…`,
            `run:runs/demo,part=teacher`), or the folder of a run or of `save_model`. A model built from a notation goes to the
            GPU, if there is one.
        data: a data set by notation, `Data`, images `[b 3 h w]` in [0, 1], a Pillow image, a path (`Path`),
            a list of these, or what `as_data` takes. The default for a model of a run is the run's data.
        explainers: notations or explainers. The floors `random`, `random:grid=7` and `centre`, which do not depend on the model,
            are always added.
        images: number of images to sample from the data set (a fixed sample, the classes in turn). Given images are all used.
        target: the class to explain: the model's own choice (`top1`), the image's `label`, `class:NAME`, or one class per given
            image. In a segmentation these stand for places: those of the largest predicted class, of the largest class of the
            label, or all places where the model predicts the class. `box:x0,y0,x1,y1` and `point:x,y` explain the largest
            predicted class there, and integers `[b h w]` name the class at each place (-1 elsewhere). Images without such a place
            are left out and counted.
        split: `train`, `validation` or `test`.
        sanity: also measure stability and whether maps depend on the model's weights; this takes most of the time.
        prepared: explain a copy with folded batch norms (equal up to rounding, and faster).
        console: the console for progress; None is silent.

    Raises:
        UserError: an argument is not valid.

    Example:
        >>> import distilens, torch
        >>> model = distilens.build_model("resnet8", ["a", "b"], (16, 16))
        >>> found = distilens.gallery(model, torch.rand(2, 3, 16, 16), ["gradcam"], sanity=False)
        >>> found.explanations["gradcam"].maps.shape
        torch.Size([2, 4, 4])
    """
    if images < 1:
        raise UserError(f"a gallery needs at least one image; given images={images}")
    if isinstance(target, str):
        Wanted.read(target)  # raises now, before the work
    parts = named([explainers] if isinstance(explainers, str | Explainer) else explainers)
    folder = run_folder(model)
    if holds_pictures(data):
        data = as_images(data)
    given = check_pixels(data) if isinstance(data, Tensor) else find_data(data, folder, to_explain=True)
    built, remarks = built_model(model, folder, given)
    remarks += given.inventory.remarks if isinstance(given, Data) else ()
    chosen = as_chosen(given) if isinstance(given, Tensor) else draw_images(given, split, images)
    if isinstance(given, Data):
        parts = {label: with_references(part, given) for label, part in parts.items()}
    chosen = fitting_labels(chosen, built.task)
    taps = [part.explain.tap for part in parts.values() if part.explain.tap]
    shown = prepare(built, keep=taps) if prepared else built
    checked(shown, chosen.images[:1].to(shown.device))
    logits, forward = answered(shown, chosen.images)
    aims, what = targets(target, chosen, logits, built), aimed(target, built.task)
    if built.task.dense:
        chosen, logits, aims, left_out = with_places(chosen, logits, aims, what)
        remarks += left_out
    with Work(console, "explain") as work:
        costs = {}
        for label, seconds in tried(shown, chosen.images, aims, parts, work.say).items():
            tests = SANITY if sanity and not parts[label].floor else 0
            costs[label] = (seconds, seconds * tests + forward * (2 * STEPS + 4))
        work.plan({label: len(logits) * sum(cost) for label, cost in costs.items()})
        explanations, values, means, timed = {}, {}, {}, {}
        for label, part in parts.items():
            making, scoring = costs[label]
            work.begin(label)
            start = now(shown.device)
            explanations[label] = in_chunks(
                part.explain, shown, chosen.images, aims, chunk=CHUNK, done=work.follow(f"{label}: maps", making)
            )
            timed[label] = (now(shown.device) - start) / len(logits)
            done = work.follow(f"{label}: scores", scoring)
            values[label], means[label] = scored(
                part, shown, chosen, explanations[label], built if sanity else None, done
            )
    return Gallery(
        images=chosen.images,
        labels=chosen.labels,
        index=chosen.index,
        mask=chosen.mask,
        target=aims.cpu(),
        logits=logits,
        classes=tuple(map(str, built.classes)),
        label_classes=chosen.classes,
        model=f"{built.name} from {model}" if isinstance(model, str) and model != built.name else built.name,
        data=chosen.name,
        about_images=f"{chosen.about}; explained: {what}",
        fingerprint=fingerprint_of(built),
        parts=parts,
        explanations=explanations,
        scores={label: means_of(values[label], timed[label], forward) for label in parts},
        values=values,
        curves=means,
        seconds=timed,
        remarks=remarks,
        names=chosen.names,
        task=built.task,
    )


def name_of(number: Tensor, classes: Sequence[str]) -> str | None:
    """The name of a class; None for an image without a class."""
    at = int(number)
    return None if at < 0 else classes[at] if at < len(classes) else f"class {at}"


def as_bytes(images: Float[Tensor, "b 3 h w"]) -> np.ndarray:
    return (images * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def check_writable(folder: Path) -> None:
    """Check before the work that its result can be written.

    Raises:
        UserError: the folder cannot be written.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"{folder} may not be written: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{folder} may not be written: there is no permission to write in {existing}")
