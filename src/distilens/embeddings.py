"""What a task is, as a row for each class: one-hot, class names or pictures of the classes as a model embeds them, or a file.

RS asks how much of the task's geometry is in features. One-hot rows are all as far from each other; with embeddings of class
names, a cat is nearer to a dog than to a ship. Nothing is downloaded unless a model is named.
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
from distilens.data.batches import Batches
from distilens.errors import UserError
from distilens.measure.levels import chosen, features_at
from distilens.models.adapters import offline_told
from distilens.specs import Registry
from distilens.subject import built_model, run_folder

EMBEDDINGS = Registry(
    "embedding",
    {
        "one_hot": "distilens.embeddings:one_hot",
        "file": "distilens.embeddings:from_file",
        "hf": "distilens.embeddings:hf",
        "prototypes": "distilens.embeddings:prototypes",
    },
)

Images = Annotated[int, Field(ge=1)]
BATCH = 64


def class_embeddings(part: str, data: Data) -> Float[Tensor, "classes e"]:
    """The rows that the notation names, in the order of the data's classes.

    Raises:
        UserError: an unknown name, a file that is none, another number of classes, values that are not finite, no network.
    """
    found = EMBEDDINGS.build(part, data).double()
    if found.ndim != 2 or len(found) != len(data.classes):
        raise UserError(
            f"{part}: embeddings are a row a class, and the data have {len(data.classes)} classes; given {list(found.shape)}"
        )
    if not found.isfinite().all():
        raise UserError(f"{part}: embeddings that are NaN or infinite")
    return found


def one_hot(data: Data) -> Tensor:
    """All classes as far from each other."""
    return torch.eye(len(data.classes))


def from_file(path: str, /, data: Data) -> Tensor:
    """A row a class: `.npy` in the data's order; `.npz` with `embeddings` and perhaps `classes`; `.csv`: a name, then numbers."""
    file = Path(path)
    try:
        if file.suffix == ".csv":
            with file.open(newline="") as stream:
                rows = [row for row in csv.reader(stream) if row]
            names, values = [row[0] for row in rows], np.array([[float(cell) for cell in row[1:]] for row in rows])
        elif file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as stored:
                values = stored["embeddings"]
                names = [str(name) for name in stored["classes"]] if "classes" in stored.files else None
        else:
            values, names = np.load(file, allow_pickle=False), None
        found = torch.from_numpy(np.asarray(values, dtype=np.float64))
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UserError(f"{file} cannot be read as embeddings (.npy, .npz with embeddings, .csv): {error}") from None
    if names is None:
        return found
    missing = [name for name in data.classes if name not in names]
    if missing:
        raise UserError(f"{file} has no row for {', '.join(missing)}; it has {', '.join(names[:20])}")
    return found[[names.index(name) for name in data.classes]]


def hf(
    name: str,
    /,
    data: Data,
    *,
    of: Literal["names", "images"] = "names",
    prompt: str = "a photo of a {}",
    images: Images = 512,
) -> Tensor:
    """CLIP of Hugging Face transformers, from the hub or a folder: class names in a prompt, or each class's mean image.

    Rows have length 1, as CLIP compares them. The extra `distilens[hf]`.

    Source: Radford et al. 2021 (arXiv 2103.00020).
    """
    try:
        from transformers import AutoModel, AutoProcessor
    except ImportError:
        raise UserError("hf: embeddings need transformers: pip install 'distilens[hf]'") from None
    if "{}" not in prompt:
        raise UserError(f"a prompt says with {{}} where the class's name stands; given {prompt!r}")
    with offline_told(f"hf:{name}"):
        model, processor = AutoModel.from_pretrained(name).eval(), AutoProcessor.from_pretrained(name)
    if not hasattr(model, "get_text_features"):
        raise UserError(f"hf:{name} embeds no text: name a model such as openai/clip-vit-base-patch32")
    with torch.no_grad():
        if of == "names":
            words = [prompt.format(each.replace("_", " ")) for each in data.classes]
            asked = processor(text=words, return_tensors="pt", padding=True, truncation=True)
            return normalize(pooled(model.get_text_features(**asked)), dim=1)
        some = chosen(data.train, max(images, 2 * len(data.classes)))
        rows = []
        for batch in Batches(some, BATCH):
            asked = processor(images=list((batch.images * 255).round().byte()), return_tensors="pt")
            rows.append(normalize(pooled(model.get_image_features(**asked)), dim=1))
        return normalize(class_means(torch.cat(rows), torch.from_numpy(some.labels), len(data.classes)), dim=1)


def pooled(found: Any) -> Tensor:
    """The embedding: newer versions of the library wrap it."""
    return found if isinstance(found, Tensor) else found.pooler_output


def prototypes(data: Data, *, model: str, images: Images = 512) -> Tensor:
    """Each class's mean feature in some model (`model=[timm:...]`, `model=[run:runs/demo,part=teacher]`), of training images."""
    built, _ = built_model(model, run_folder(model), data)
    some = chosen(data.train, max(images, 2 * len(data.classes)))
    rows = features_at(built, Batches(some, BATCH, device=built.device), [built.path_of("last")])
    return class_means(next(iter(rows.values())), torch.from_numpy(some.labels), len(data.classes))


def class_means(rows: Float[Tensor, "n e"], labels: Tensor, classes: int) -> Float[Tensor, "k e"]:
    """The mean row of each class.

    Raises:
        UserError: a class without an image.
    """
    without = sorted(set(range(classes)) - set(labels.tolist()))
    if without:
        raise UserError(f"there is no training image of class {', '.join(map(str, without))} to make a prototype of")
    return torch.stack([rows[labels == number].double().mean(0) for number in range(classes)])
