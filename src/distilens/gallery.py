"""A gallery: any model, some images, some explainers; their maps side by side, and how far each of them can be believed.

    model, images ──► each explainer, and the floors (noise, the centre) ──► maps ──► scores ──► table, page, files

Nothing is trained. Maps of an explainer that does no better than maps which know nothing of the model are said to do so.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from distilens import __version__
from distilens.core import Model
from distilens.data import Data
from distilens.errors import UserError
from distilens.explain import Explainer, Explanation, in_chunks
from distilens.explain.explanation import checked
from distilens.explain.maps import empty, overlay
from distilens.measure import (
    average_drop,
    complexity,
    curves,
    energy_in_mask,
    increase_in_confidence,
    masked_confidence,
    mean_interval,
    pointing_game,
    randomisation,
    share,
    sparseness,
    stability,
)
from distilens.prepare import prepare
from distilens.report import gallery_page
from distilens.report.gallery_page import cell, detailed, interval, short
from distilens.report.table import percent
from distilens.runs import read_json, write_atomically, write_json, write_text
from distilens.subject import (
    Chosen,
    Part,
    aimed,
    as_chosen,
    built_model,
    check_pixels,
    drawn_images,
    fingerprint_of,
    found_data,
    named,
    run_folder,
    targets,
    with_references,
)
from distilens.taps import evaluating

CHUNK = 16  # images at a time
STEPS = 20  # of the insertion and deletion curves
SANITY = 6  # explanations that the sanity checks of one take, about
KIND = "distilens gallery 1"  # what a scores.json of ours says of itself

Scores = Mapping[str, Mapping[str, float | int | None]]
"""By measure: the mean over images, its 95 % interval (`low`, `high`), `n`, and `empty`: the images without a value."""


SHARES = ("increase", "pointing_game")  # yes or no for each image


@dataclass(frozen=True)
class Measure:
    """A row of the table."""

    key: str
    title: str
    better: Literal["higher", "lower", "near 0", ""]
    meaning: str
    as_percent: bool = False

    @property
    def arrow(self) -> str:
        return {"higher": " ↑", "lower": " ↓", "near 0": " →0", "": ""}[self.better]

    @property
    def direction(self) -> str:
        return {"higher": "higher is better", "lower": "lower is better", "near 0": "near 0 is good", "": ""}[
            self.better
        ]


MEASURES = (
    Measure("insertion", "insertion AUC", "higher", "confidence while the strongest pixels are put back first"),
    Measure("deletion", "deletion AUC", "lower", "confidence while the strongest pixels are taken away first"),
    Measure("average_drop", "average drop", "lower", "confidence lost where the image is weighted by its map", True),
    Measure("increase", "increase in confidence", "higher", "share of images that the model is then surer of", True),
    Measure("energy_in_mask", "energy in mask", "higher", "share of the map that lies on the evidence", True),
    Measure("pointing_game", "pointing game", "higher", "share of images where the map's peak lies on it", True),
    Measure("sparseness", "sparseness", "", "0: spread evenly, 1: in one pixel"),
    Measure("complexity", "complexity", "", "entropy; 0: in one place, 1: the same everywhere"),
    Measure(
        "randomisation", "random-model likeness", "near 0", "rank correlation with the map of a model of random weights"
    ),
    Measure("stability", "stability", "higher", "likeness to the maps of slightly changed images"),
    Measure("empty", "empty maps", "lower", "share of images without any map", True),
    Measure("seconds", "seconds an image", "lower", "on this machine"),
    Measure("forwards", "cost in forwards", "lower", "the same time, in plain forwards of the model"),
)


# eq=False: tensors have no one truth value
@dataclass(frozen=True, eq=False, repr=False)
class Gallery:
    """Images, and what some explainers say of a model's answers to them.

    Attributes:
        images: `[b 3 h w]` in [0, 1]; `labels` are -1 where there is none, `index` are rows of the source.
        mask: evidence in [0, 1], where the data have it.
        target: the class that all maps explain; `logits` are the model's.
        classes: the names of the model's classes; `label_classes` are those of the labels.
        model, data: their notations; `about_images` says how the images were chosen.
        fingerprint: of the model's weights.
        parts: by label, the explainers: notation, sign, whether it is a floor.
        explanations: by label.
        scores: by label and measure: mean, 95 % interval, n. `values` are those of each image, NaN where there is none.
        curves: by label: `shares`, and the mean `insertion` and `deletion` there.
        seconds: by label, an image.
        remarks: what a reader has to know before believing any of it.
    """

    images: Float[Tensor, "b 3 h w"]
    labels: Int[Tensor, " b"]
    index: Int[Tensor, " b"]
    mask: Float[Tensor, "b h w"] | None
    target: Int[Tensor, " b"]
    logits: Float[Tensor, "b classes"]
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

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        said = ", ".join(
            f"{label} {short(self.scores[label]['insertion']['mean'])}" for label in self.parts if not self.floor(label)
        )
        return f"Gallery({self.model!r}, {len(self)} images of {self.data!r}; insertion AUC: {said})"

    def _repr_html_(self) -> str:
        return gallery_page.notebook(self.content())

    def floor(self, label: str) -> bool:
        """Whether an explainer is a control that knows nothing of the model."""
        return self.parts[label].floor

    def measures(self) -> list[Measure]:
        """The measures that some explainer has."""
        return [
            measure
            for measure in MEASURES
            if any(scores.get(measure.key, {}).get("mean") is not None for scores in self.scores.values())
        ]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows for a terminal: a measure a row, with the direction that is better; mean ± half the interval."""
        header = ["measure", *self.parts]
        rows = [
            [f"{measure.title}{measure.arrow}"]
            + [cell(self.scores[label].get(measure.key), as_percent=measure.as_percent) for label in self.parts]
            for measure in self.measures()
        ]
        return header, rows

    def findings(self) -> list[str]:
        """In words, for each explainer: whether its insertion AUC is above that of maps which know nothing of the model."""
        areas = {label: values["insertion"] for label, values in self.values.items()}
        floors = {label: areas[label] for label in self.parts if self.floor(label)}
        return [finding(label, areas[label], floors) for label in self.parts if not self.floor(label)]

    def content(self) -> gallery_page.Content:
        """The gallery as plain data, for its page."""
        confidence, predicted = self.logits.float().softmax(1).max(1)
        comparable = self.classes == self.label_classes
        rows = [
            gallery_page.Row(
                index=int(self.index[at]),
                label=name_of(self.labels[at], self.label_classes),
                target=name_of(self.target[at], self.classes) or "",
                prediction=name_of(predicted[at], self.classes) or "",
                confidence=percent(float(confidence[at])),
                right=bool(predicted[at] == self.labels[at]) if comparable and self.labels[at] >= 0 else None,
            )
            for at in range(len(self))
        ]
        measures = [
            gallery_page.Line(
                measure.title,
                measure.arrow.strip(),
                measure.direction,
                measure.meaning,
                {label: detailed(self.scores[label].get(measure.key), measure.as_percent) for label in self.parts},
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
            rows=rows,
        )

    def save(self, folder: str | Path) -> Path:
        """Write all of it, file by file whole or not at all; returns the path of `index.html`.

        `<label>.npz` an explainer (maps, and what made them), `overlays/<index>-<label>.png`, `scores.json`, `index.html`.
        Files of a gallery that was there before and is replaced are taken away.

        Raises:
            UserError: the folder may not be written, or the disk is full.
        """
        folder = Path(folder)
        before = read_json(folder / "scores.json") if (folder / "scores.json").is_file() else None
        files = []
        for label, explanation in self.explanations.items():
            files.append(f"{label}.npz")
            arrays = self.arrays(label)
            write_atomically(folder / files[-1], lambda path, arrays=arrays: save_arrays(path, arrays))
            drawn = as_bytes(overlay(self.images, explanation.maps, signed=self.parts[label].signed))
            for number, picture in zip(self.index.tolist(), drawn, strict=True):
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
        """What an explainer's file holds: `numpy.load(...)["maps"]`, and all that says what they are maps of."""
        part, explanation = self.parts[label], self.explanations[label]
        found = {
            "maps": explanation.maps.float().numpy(),
            "signed": np.array(part.signed),
            "index": self.index.numpy(),
            "labels": self.labels.numpy(),
            "target": explanation.target.numpy(),
            "logits": explanation.logits.float().numpy(),
            "explainer": np.array(part.notation),
            "model": np.array(self.model),
            "data": np.array(self.data),
            "fingerprint": np.array(self.fingerprint),
            "distilens": np.array(__version__),
        }
        if explanation.residual is not None:
            found["residual"] = explanation.residual.float().numpy()
        return found | {f"score_{key}": value.numpy() for key, value in self.values[label].items()}

    def about(self) -> dict[str, Any]:
        """What `scores.json` holds."""
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
    model: Model | str,
    data: Data | str | Tensor | None = None,
    explainers: Sequence[str | Explainer] = ("gradcam", "ig"),
    *,
    images: int = 32,
    target: Literal["top1", "label"] | Int[Tensor, " b"] = "top1",
    split: str = "test",
    sanity: bool = True,
    prepared: bool = True,
    console: Console | None = None,
) -> Gallery:
    """Explain a model's answers to some images in several ways, and score the explanations.

    Args:
        model: a `Model`, any notation (`timm:resnet18,pretrained=true`, `file:…`, `run:runs/demo,part=teacher`), or a folder:
            of a run, or what `save_model` wrote. What a notation makes goes to the GPU, where there is one.
        data: a data set by notation, `Data`, or images `[b 3 h w]` in [0, 1]. A run brings its own.
        explainers: notations or explainers. `random`, `random:grid=7` and `centre`, which know nothing of the model, are
            always added, as floors.
        images: how many are drawn from the data set: once for the set, the classes in turn. Given images are taken whole.
        target: the class that is explained: the model's own first one, the image's label, or a class for each given image.
        split: `train`, `validation` or `test`.
        sanity: also measure whether maps depend on the model's weights, and are stable; takes most of the time.
        prepared: explain a copy with folded batch norms (the same to rounding, and faster).
        console: where progress goes; None is silent.

    Raises:
        UserError: whatever is wrong with what was given.

    Example:
        >>> import distilens, torch
        >>> model = distilens.build_model("resnet8", ["a", "b"], (16, 16))
        >>> found = distilens.gallery(model, torch.rand(2, 3, 16, 16), ["gradcam"], sanity=False)
        >>> found.explanations["gradcam"].maps.shape
        torch.Size([2, 4, 4])
    """
    if images < 1:
        raise UserError(f"a gallery needs an image at least; images={images}")
    parts = named([explainers] if isinstance(explainers, str | Explainer) else explainers)
    folder = run_folder(model)
    given = check_pixels(data) if isinstance(data, Tensor) else found_data(data, folder)
    built, remarks = built_model(model, folder, given)
    chosen = as_chosen(given) if isinstance(given, Tensor) else drawn_images(given, split, images)
    if isinstance(given, Data):
        parts = {label: with_references(part, given) for label, part in parts.items()}
    shown = (
        prepare(built, keep=[part.explain.tap for part in parts.values() if part.explain.tap]) if prepared else built
    )
    checked(shown, chosen.images[:1].to(shown.device))
    logits, forward = answered(shown, chosen.images)
    aims = targets(target, chosen, logits, built)
    with Work(console) as work:
        costs = {}
        for label, seconds in tried(shown, chosen.images, aims, parts, work.say).items():
            tests = SANITY if sanity and not parts[label].floor else 0
            costs[label] = (seconds, seconds * tests + forward * (2 * STEPS + 4))
        work.plan({label: len(logits) * sum(cost) for label, cost in costs.items()})
        explanations, values, means, timed = {}, {}, {}, {}
        for label, part in parts.items():
            making, scoring = costs[label]
            work.begin(label)
            start = now(shown)
            explanations[label] = in_chunks(
                part.explain, shown, chosen.images, aims, chunk=CHUNK, done=work.heard(f"{label}: maps", making)
            )
            timed[label] = (now(shown) - start) / len(logits)
            heard = work.heard(f"{label}: scores", scoring)
            values[label], means[label] = scored(
                part, shown, chosen, explanations[label], built if sanity else None, heard
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
        model=built.name if model in (built, built.name) else f"{built.name} from {model}",
        data=chosen.name,
        about_images=f"{chosen.about}; explained: {aimed(target)}",
        fingerprint=fingerprint_of(built),
        parts=parts,
        explanations=explanations,
        scores={label: means_of(values[label], timed[label], forward) for label in parts},
        values=values,
        curves=means,
        seconds=timed,
        remarks=remarks,
    )


# -------------------------------------------------------------------------------------------------- the work


class Work:
    """A bar over all the work, with the time that is left; where there is no terminal, a line for each part of it."""

    def __init__(self, console: Console | None):
        self.console = console
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        self.bar = Progress(*columns, console=console, disable=console is None or not console.is_terminal)
        self.task = self.bar.add_task("first image", total=None)
        self.total = self.done = self.start = 0.0

    def __enter__(self) -> Work:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """What is done now."""
        self.bar.update(self.task, description=text)

    def begin(self, label: str) -> None:
        """Say in a log which explainer is begun."""
        if self.console is not None and not self.console.is_terminal:
            self.console.print(f"explain: {label}{self.left()}", highlight=False, markup=False)

    def plan(self, seconds: Mapping[str, float]) -> None:
        """What there is to be done, by an estimate."""
        self.total, self.start = sum(seconds.values()), time.perf_counter()
        self.bar.update(self.task, total=self.total)

    def heard(self, text: str, seconds: float) -> Callable[[int], object]:
        """Say what is begun; the function returned hears of so many images, each of which was estimated at `seconds`."""
        self.say(text)

        def done(images: int) -> None:
            self.done += seconds * images
            self.bar.update(self.task, completed=self.done)

        return done

    def left(self) -> str:
        """An estimate of the time to the end, for logs without a bar."""
        if not self.total:
            return ""
        pace = (time.perf_counter() - self.start) / self.done if self.done else 1.0
        return f"  {timedelta(seconds=round(pace * (self.total - self.done)))} left"


def answered(model: Model, images: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b classes"], float]:
    """The logits on the CPU, and the seconds of a plain forward an image, once it is warm."""
    with evaluating(model), torch.inference_mode():
        model.logits(images[:CHUNK].to(model.device))
        start = now(model)
        logits = torch.cat([model.logits(some.to(model.device)).float().cpu() for some in images.split(CHUNK)])
        seconds = (now(model) - start) / len(images)
    return logits.clone(), seconds


def tried(
    model: Model,
    images: Float[Tensor, "b 3 h w"],
    target: Int[Tensor, " b"],
    parts: Mapping[str, Part],
    say: Callable[[str], object],
) -> dict[str, float]:
    """The seconds that each explainer takes for one image.

    Raises:
        UserError: all that the explainers say against this model.
    """
    image, aim = images[:1].to(model.device), target[:1].to(model.device)
    seconds, problems = {}, []
    for label, part in parts.items():
        say(f"{label}: first image")
        try:
            start = now(model)
            maps = part.explain(model, image, aim).maps
            seconds[label] = now(model) - start
            if seconds[label] < 1:  # the first call may have had to load and find things
                start = now(model)
                part.explain(model, image, aim)
                seconds[label] = now(model) - start
            if maps.ndim != 3 or len(maps) != 1:
                raise UserError(f"maps are [b h w]; for one image these are {list(maps.shape)}")
        except UserError as error:
            problems.append(f"{label}: {error}")
    if problems:
        raise UserError("\n".join(problems))
    return seconds


def scored(
    part: Part,
    model: Model,
    chosen: Chosen,
    explanation: Explanation,
    original: Model | None,
    done: Callable[[int], object],
) -> tuple[dict[str, Float[Tensor, " b"]], dict[str, list[float]]]:
    """The scores of each image by measure, and the mean curves; `original`: the model as it was, for the sanity checks."""
    found: dict[str, list[Tensor]] = {}
    shares, insertion, deletion = [], [], []
    # in even parts: the statistics of batch norms are measured on them, for which one image may be too few
    for at in torch.arange(len(chosen.images)).tensor_split(-(-len(chosen.images) // CHUNK)):
        images, maps, target = (
            values[at].to(model.device) for values in (chosen.images, explanation.maps, explanation.target)
        )
        curve = curves(model, images, maps, target, steps=STEPS)
        whole, kept = masked_confidence(model, images, maps, target)
        values = {
            "insertion": curve.insertion_auc,
            "deletion": curve.deletion_auc,
            "average_drop": average_drop(whole, kept),
            "increase": increase_in_confidence(whole, kept),
            "sparseness": sparseness(maps),
            "complexity": complexity(maps),
            "empty": empty(maps).float(),
        }
        if chosen.mask is not None:
            masks = chosen.mask[at].to(model.device)
            values |= {"energy_in_mask": energy_in_mask(maps, masks), "pointing_game": pointing_game(maps, masks)}
        if original is not None and not part.floor:
            values["randomisation"] = randomisation(part.explain, original, images, target)["all"]
            values["stability"] = stability(part.explain, model, images, target)
        for key, value in values.items():
            found.setdefault(key, []).append(value.float().cpu())
        shares = curve.shares.tolist()
        insertion.append(curve.insertion.float().cpu())
        deletion.append(curve.deletion.float().cpu())
        done(len(at))
    means = {"insertion": torch.cat(insertion).nanmean(0).tolist(), "deletion": torch.cat(deletion).nanmean(0).tolist()}
    return {key: torch.cat(some) for key, some in found.items()}, {"shares": shares, **means}


def means_of(values: Mapping[str, Float[Tensor, " b"]], seconds: float, forward: float) -> Scores:
    """Mean and interval by measure; what an image costs is one number."""
    n = len(values["insertion"])
    single = {"empty": float(values["empty"].mean()), "seconds": seconds, "forwards": seconds / forward}
    found = {key: share_interval(value) if key in SHARES else mean_interval(value) for key, value in values.items()}
    return found | {
        key: {"mean": value, "low": None, "high": None, "n": n, "empty": 0} for key, value in single.items()
    }


def share_interval(values: Float[Tensor, " b"]) -> dict[str, float | int | None]:
    """The share of images that have something, with Wilson's interval; NaN left out and counted as `empty`."""
    kept = values[~values.isnan()]
    if not len(kept):
        return mean_interval(values)
    found = share(kept > 0.5)
    return {"mean": found["accuracy"], "low": found["low"], "high": found["high"], "n": found["n"]} | {
        "empty": len(values) - len(kept)
    }


def now(model: Model) -> float:
    """The time at which the model's device has done all that it was asked to."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


# ---------------------------------------------------------------------------------------------------- in words


def finding(label: str, own: Float[Tensor, " b"], floors: Mapping[str, Float[Tensor, " b"]]) -> str:
    """Whether an explainer is above the floors, by whether the intervals of the insertion AUC overlap.

    Since all saw the same images, the difference to the best floor image by image says more, and is said too.
    """
    scores = {name: mean_interval(values) for name, values in floors.items()}
    mine, said = mean_interval(own), f"insertion AUC {interval(mean_interval(own))}"
    if not mine["n"]:
        return f"{label} says nothing: all of its maps are empty."
    if mine["low"] is None or mine["high"] is None:
        return f"{label}: {said}. From one image nothing can be said of how it compares with the floors."
    best = max(scores, key=lambda name: scores[name]["mean"] or 0.0)
    ahead = {name: mean_interval(own - values) for name, values in floors.items()}
    against = f"the best floor, {best}, {interval(scores[best])}; image by image {interval(ahead[best], '+')}"
    below = [name for name, other in scores.items() if mine["high"] < (other["low"] or 0.0)]
    alike = [name for name, other in scores.items() if name not in below and mine["low"] <= (other["high"] or 0.0)]
    if not below and not alike:
        return f"{label} is above the floors: {said}; {against}."
    told = [f"overlaps with {', '.join(alike)}"] * bool(alike) + [f"is below {', '.join(below)}"] * bool(below)
    verdict = "is NOT above the floors"
    if all((other["low"] or 0.0) > 0 for other in ahead.values()):
        verdict = "is above the floors only image by image"
    return f"{label} {verdict}: its {said} {' and '.join(told)} ({against})."


def name_of(number: Tensor, classes: Sequence[str]) -> str | None:
    """A class in words; None for no class."""
    at = int(number)
    return None if at < 0 else classes[at] if at < len(classes) else f"class {at}"


def as_bytes(images: Float[Tensor, "b 3 h w"]) -> np.ndarray:
    return (images * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def check_writable(folder: Path) -> None:
    """Find out before the work rather than after it that its result cannot be written.

    Raises:
        UserError: what stands in the way.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"{folder} may not be written: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{folder} may not be written: nothing can be made in {there}")


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with open(path, "wb") as file:  # a file object, for savez would append .npz to the temporary name
        np.savez_compressed(file, **cast(dict[str, Any], arrays))
