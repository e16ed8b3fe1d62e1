"""Class embeddings, which describe the task, one row per class: one-hot, a file, CLIP, or mean features (prototypes).

RS measures how much of the task's geometry is in features. One-hot rows all have the same distance; with embeddings of class
names, a cat is nearer to a dog than to a ship. Only a named model is downloaded.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from distilens.data import Data
from distilens.data.pipeline import Batches
from distilens.foundation.errors import UserError
from distilens.foundation.notation import Registry
from distilens.measure.maps.images import built_model, run_folder
from distilens.measure.transfer.levels import choose_images, features_at
from distilens.models.adapters import explain_download_errors

EMBEDDINGS = Registry(
    "embedding",
    {
        "one_hot": "distilens.measure.transfer.embeddings:one_hot",
        "file": "distilens.measure.transfer.embeddings:from_file",
        "hf": "distilens.measure.transfer.embeddings:hf",
        "prototypes": "distilens.measure.transfer.embeddings:prototypes",
    },
)

Images = Annotated[int, Field(ge=1)]
BATCH = 64


def class_embeddings(part: str, data: Data) -> Float[Tensor, "classes e"]:
    """The rows that the notation names, in the order of the data's classes.

    Raises:
        UserError: an unknown name, an unreadable file, a wrong number of classes, values that are not finite, no network.
    """
    rows = EMBEDDINGS.build(part, data).double()
    if rows.ndim != 2 or len(rows) != len(data.classes):
        raise UserError(
            f"{part}: embeddings need one row per class, and the data have {len(data.classes)} classes; given {list(rows.shape)}"
        )
    if not rows.isfinite().all():
        raise UserError(f"{part}: the embeddings have values that are NaN or infinite")
    return rows


def one_hot(data: Data) -> Tensor:
    """One-hot rows: all classes have the same distance from each other."""
    return torch.eye(len(data.classes))


def from_file(path: str, /, data: Data) -> Tensor:
    """One row per class from a file: `.npy` in the data's order, `.npz` with `embeddings` and optional `classes`, or `.csv`.

    A `.csv` row holds the class's name, then the numbers.
    """
    file = Path(path)
    try:
        if file.suffix == ".csv":
            with file.open(newline="") as stream:
                lines = [line for line in csv.reader(stream) if line]
            names, values = (
                [line[0] for line in lines],
                np.array([[float(cell) for cell in line[1:]] for line in lines]),
            )
        elif file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as stored:
                values = stored["embeddings"]
                names = [str(name) for name in stored["classes"]] if "classes" in stored.files else None
        else:
            values, names = np.load(file, allow_pickle=False), None
        rows = torch.from_numpy(np.asarray(values, dtype=np.float64))
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UserError(f"{file} cannot be read as embeddings (.npy, .npz with embeddings, .csv): {error}") from None
    if names is None:
        return rows
    missing = [name for name in data.classes if name not in names]
    if missing:
        raise UserError(f"{file} has no row for {', '.join(missing)}; it has {', '.join(names[:20])}")
    return rows[[names.index(name) for name in data.classes]]


def hf(
    name: str,
    /,
    data: Data,
    *,
    of: Literal["names", "images"] = "names",
    prompt: str = "a photo of a {}",
    images: Images = 512,
) -> Tensor:
    """CLIP embeddings of class names in a prompt, or of each class's images; CLIP comes from Hugging Face, or a folder.

    Rows have length 1, as CLIP compares them. The extra `distilens[hf]` is needed.

    Source: Radford et al. 2021 (arXiv 2103.00020).
    """
    try:
        from transformers import AutoModel, AutoProcessor
    except ImportError:
        raise UserError("hf: embeddings need transformers: pip install 'distilens[hf]'") from None
    if "{}" not in prompt:
        raise UserError(f"a prompt must have {{}} in place of the class's name; given {prompt!r}")
    with explain_download_errors(f"hf:{name}"):
        model, processor = AutoModel.from_pretrained(name).eval(), AutoProcessor.from_pretrained(name)
    if not hasattr(model, "get_text_features"):
        raise UserError(f"hf:{name} does not embed text: name a model such as openai/clip-vit-base-patch32")
    with torch.no_grad():
        if of == "names":
            words = [prompt.format(name.replace("_", " ")) for name in data.classes]
            inputs = processor(text=words, return_tensors="pt", padding=True, truncation=True)
            return normalize(pooled(model.get_text_features(**inputs)), dim=1)
        sample = choose_images(data.train, max(images, 2 * len(data.classes)))
        rows = []
        for batch in Batches(sample, BATCH):
            inputs = processor(images=list((batch.images * 255).round().byte()), return_tensors="pt")
            rows.append(normalize(pooled(model.get_image_features(**inputs)), dim=1))
        return normalize(class_means(torch.cat(rows), torch.from_numpy(sample.targets), len(data.classes)), dim=1)


def pooled(found: Any) -> Tensor:
    """The embedding; newer versions of transformers wrap it in an output object."""
    return found if isinstance(found, Tensor) else found.pooler_output


def prototypes(data: Data, *, model: str, images: Images = 512) -> Tensor:
    """Each class's mean feature over training images, in a model: `model=[timm:...]`, `model=[run:runs/demo,part=teacher]`."""
    built, _ = built_model(model, run_folder(model), data)
    sample = choose_images(data.train, max(images, 2 * len(data.classes)))
    rows = features_at(built, Batches(sample, BATCH, device=built.device), [built.path_of("last")])
    return class_means(next(iter(rows.values())), torch.from_numpy(sample.targets), len(data.classes))


def class_means(rows: Float[Tensor, "n e"], labels: Tensor, classes: int) -> Float[Tensor, "k e"]:
    """The mean row of each class.

    Raises:
        UserError: a class without an image.
    """
    without = sorted(set(range(classes)) - set(labels.tolist()))
    if without:
        raise UserError(f"there is no training image of class {', '.join(map(str, without))} to compute its mean from")
    return torch.stack([rows[labels == number].double().mean(0) for number in range(classes)])
