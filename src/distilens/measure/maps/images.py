"""The model, the images and the target classes of a gallery, from what the user gave."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from distilens.data import Data, Split, load
from distilens.explain.aims import Wanted, aim_of
from distilens.explain.explanation import target_of
from distilens.foundation import randomness
from distilens.foundation.devices import processes
from distilens.foundation.errors import UserError
from distilens.foundation.notation import Spec
from distilens.models import MODELS, build_model, check_classes
from distilens.models.model import Model
from distilens.models.named import are_named, classes_of_weights
from distilens.models.objects import as_model
from distilens.models.saved import load_model
from distilens.tasks import NOWHERE, VOID, Task, with_classes
from distilens.tasks.segmentation import places_of


@dataclass(frozen=True)
class Chosen:
    """The images of a gallery, and the names of their labels' classes."""

    images: Float[Tensor, "b 3 h w"]
    labels: Shaped[Tensor, "b ..."]
    index: Int[Tensor, " b"]
    mask: Float[Tensor, "b h w"] | None
    classes: tuple[str, ...]
    name: str
    about: str
    names: tuple[str, ...] | None = None  # the images' files, if they are files


def run_folder(model: Any) -> Path | None:
    """The run folder in a model's name, if any: `runs/demo`, `run:runs/demo,part=teacher`."""
    if not isinstance(model, str):
        return None
    if model not in MODELS.entries and Path(model).is_dir():
        return None if (Path(model) / "model.json").is_file() else Path(model)
    if "/" in model and ":" not in model:
        raise UserError(f"no run and no model at {model}: there is no such folder")
    spec = Spec.parse(model)
    return Path(spec.argument) if spec.name == "run" and spec.argument else None


def find_data(data: Any, folder: Path | None, *, to_explain: bool = False) -> Data:
    """The given data set, else the run's; with `to_explain`, images without classes are allowed."""
    if data is not None:
        return load(data, to_explain=to_explain)
    if folder is None:
        raise UserError(
            "there are no images to explain: name a data set (--data, or data=), such as folder:path=pictures or shapes; "
            "from Python, images [b 3 h w] work as well"
        )
    if not folder.is_dir():
        raise UserError(f"no run at {folder}: there is no such folder")
    if not (folder / "recipe.toml").is_file():
        raise UserError(f"{folder} has no recipe.toml, so its data set is unknown: name one (--data, or data=)")
    return load(data_of_run(folder), folder.parent / "data")


def data_of_run(folder: Path) -> str:
    """The notation of a run's data.

    Raises:
        UserError: its recipe is damaged.
    """
    path = folder / "recipe.toml"
    try:
        return str(Spec.parse(tomllib.loads(path.read_text(encoding="utf-8"))["data"]))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from None
    except KeyError:
        raise UserError(f"{path} has no key data, so the data of the run are unknown") from None


def built_model(model: Any, folder: Path | None, given: Data | Tensor) -> tuple[Model, tuple[str, ...]]:
    """The model, and remarks about it for the user."""
    if isinstance(model, Model):
        return model, ()
    size = given.size if isinstance(given, Data) else (given.shape[-2], given.shape[-1])
    classes = given.classes if isinstance(given, Data) else ()
    if not isinstance(model, str):
        made = as_model(model, size=size)
        if len(made.classes) == len(classes) and not are_named(made.classes):
            made.classes = classes
        return made, made.notes
    device = cast(torch.device, processes().device)
    is_folder = model not in MODELS.entries and Path(model).is_dir()
    if is_folder and folder is None:
        return load_model(Path(model)).to(device), ()
    if folder is not None:
        return build_model(Spec("run", model) if is_folder else model, classes, size).to(device), ()
    spec = MODELS.resolve(model)
    own = classes_of_weights(spec)
    if own is None and not classes:
        raise UserError(
            f"neither {model} nor a data set names the classes: name a data set with classes, or give a Model, "
            "a run, or pretrained weights"
        )
    own = None if own is None else tuple(name.partition(",")[0] for name in own)  # the first of several synonyms
    names = classes if own is None or len(own) == len(classes) else own
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = build_model(model, names, size).to(device)
    loaded = spec.name in ("file", "python") or spec.options.get("pretrained") or spec.options.get("weights")
    untrained = (
        f"{model} has random weights, since nothing was loaded: neither its predictions nor their maps have a meaning."
    )
    return built, () if loaded else (untrained,)


def check_pixels(images: Tensor) -> Tensor:
    """The given images, on the CPU.

    Raises:
        UserError: the shape is wrong, or pixels are not in [0, 1].
    """
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise UserError(f"images to explain are [b 3 h w]; given {list(images.shape)}")
    images = images.detach().cpu()
    if images.is_floating_point() and (float(images.min()) < -0.01 or float(images.max()) > 1.01):
        raise UserError(
            f"images to explain are pixels in [0, 1], and the model normalises them itself; given "
            f"{float(images.min()):.3g} to {float(images.max()):.3g}"
        )
    return images


def as_chosen(images: Float[Tensor, "b 3 h w"]) -> Chosen:
    """All given images, without labels and masks."""
    b = len(images)
    return Chosen(images, torch.full((b,), -1), torch.arange(b), None, (), "given images", f"all {b}")


def draw_images(data: Data, split: str, count: int) -> Chosen:
    """A fixed random sample of `count` images of a split, with the classes in turn."""
    if split not in ("train", "validation", "test"):
        raise UserError(f"split must be train, validation or test; given {split!r}")
    rows: Split = getattr(data, split)
    if not len(rows):
        raise UserError(f"the {split} split of {data.name} has no images")
    positions = in_turn(rows.strata, torch.randperm(len(rows), generator=randomness.generator("explained", 0)).numpy())[
        :count
    ]
    images, masks = rows.pixels(positions)
    turns = "" if data.task.dense else ", the classes in turn"
    about = f"{len(positions):,} of {len(rows):,} of the {split} split, drawn with seed 0{turns}"
    index = torch.from_numpy(rows.index[positions])
    labels = torch.from_numpy(rows.targets[positions])
    names = rows.names(positions)
    files = None if names is None else tuple(names)
    return Chosen(images, labels, index, masks, tuple(map(str, data.classes)), data.name, about, files)


def in_turn(labels: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The order with the classes in turn: the first image of every class, then the second of every class, and so on."""
    seen: dict[int, int] = {}
    turns = np.empty(len(order), dtype=np.int64)
    for place, label in enumerate(labels[order].tolist()):
        turns[place] = seen[label] = seen.get(label, -1) + 1
    return order[np.argsort(turns, kind="stable")]


def fitting_labels(chosen: Chosen, task: Task) -> Chosen:
    """The images with labels of the model's kind: one per place in a dense task, else one per image.

    Labels of the other kind, and none, become void or -1.
    """
    dense = chosen.labels.ndim == 3
    if dense == task.dense:
        return chosen
    b, _, height, width = chosen.images.shape
    none = torch.full((b, height, width), VOID, dtype=torch.uint8) if task.dense else torch.full((b,), -1)
    return replace(chosen, labels=none)


def targets(
    target: str | Tensor, chosen: Chosen, logits: Float[Tensor, "b classes ..."], model: Model
) -> Int[Tensor, "b ..."]:
    """What to explain, per image: a class; in a dense task the class at each explained place, and -1 elsewhere.

    Raises:
        UserError: an unknown target, or labels that are missing or do not match the model's classes.
    """
    if isinstance(target, Tensor):
        return cast(Tensor, target_of(logits, target.cpu(), model.task))
    wanted = Wanted.read(target)
    if wanted.kind == "label":
        check_labels(chosen, model)
    size = (int(chosen.images.shape[2]), int(chosen.images.shape[3]))
    return aim_of(wanted, logits, size, model.task, chosen.labels)


def check_labels(chosen: Chosen, model: Model) -> None:
    """Raise a `UserError` if images have no label, or labels of other classes than the model's."""
    known = model.task.known(chosen.labels) if model.task.dense else chosen.labels >= 0
    if not chosen.classes or not (known.any() if model.task.dense else known.all()):
        raise UserError("target=label explains the images' labels, and some images have no label: use target=top1")
    try:
        check_classes(model, with_classes(model.task, chosen.classes), "model")
    except UserError as error:
        reason = str(error).partition(". Give it")[0]
        raise UserError(
            f"target=label explains the images' labels, but {reason}. Use target=top1, or other data"
        ) from None


def with_places(
    chosen: Chosen, logits: Tensor, aims: Int[Tensor, "b h w"], what: str
) -> tuple[Chosen, Tensor, Tensor, tuple[str, ...]]:
    """The images of a dense task that have an explained place, these places as their `mask`, and a remark if others are left out.

    Raises:
        UserError: no image has such a place.
    """
    kept = (aims != NOWHERE).flatten(1).any(1)
    count, missing = len(kept), int((~kept).sum())
    if missing == count:
        raise UserError(f"there is nothing to explain: none of the {count} images has one of these places: {what}")
    size = (int(chosen.images.shape[2]), int(chosen.images.shape[3]))
    rows = kept.nonzero().flatten()
    names = None if chosen.names is None else tuple(chosen.names[row] for row in rows.tolist())
    some = replace(
        chosen,
        images=chosen.images[rows],
        labels=chosen.labels[rows],
        index=chosen.index[rows],
        mask=places_of(aims[rows], size).float(),
        names=names,
    )
    remark = f"{missing} of {count} images are left out, because they have none of the explained places: {what}."
    return some, logits[rows], aims[rows], (remark,) * bool(missing)


def aimed(target: str | Tensor, task: Task) -> str:
    """What is explained, in words."""
    if isinstance(target, Tensor):
        return "the given places" if task.dense else "the given classes"
    return Wanted.read(target).describe(task)
