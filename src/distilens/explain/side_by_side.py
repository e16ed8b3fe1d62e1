"""The maps that a run shows: the same test images explained for teacher, base and student, those that they disagree on first."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from distilens import draws
from distilens.core import Batch, Model
from distilens.data.subset import Split
from distilens.explain.explanation import Explainer, in_chunks


def as_pixels(images: Float[Tensor, "b 3 h w"]) -> UInt8[np.ndarray, "b h w 3"]:
    """Images in [0, 1] as they are stored."""
    return (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def named_files(split: Split, positions: Tensor) -> dict[str, np.ndarray]:
    """The files of some images of a split, as an array to be stored; nothing where the images are not files."""
    names = split.names(positions.numpy())
    return {} if names is None else {"names": np.array(names)}


def choose(logits: Mapping[str, Tensor], count: int) -> Tensor:
    """Positions of `count` images: up to three quarters from those where the models differ, the rest at random."""
    tops = torch.stack([values.argmax(1) for values in logits.values()])
    order = torch.randperm(tops.shape[1], generator=draws.generator("gallery", 0))
    differ = (tops != tops[0]).any(0)[order]
    disagreed = order[differ][: max(1, count * 3 // 4)]
    agreed = order[~differ][: count - len(disagreed)]
    rest = order[differ][len(disagreed) : len(disagreed) + count - len(disagreed) - len(agreed)]
    return torch.cat([disagreed, rest, agreed])


def explained(
    models: Mapping[str, Model], batch: Batch, logits: Mapping[str, Tensor], explain: Explainer
) -> dict[str, np.ndarray]:
    """The arrays of one explainer's file: images, labels, masks, the class explained, and maps and predictions by role.

    All models are explained for one class, the teacher's top-1 (the student's where there is no teacher), so that the maps of
    an image answer the same question.
    """
    target = logits["teacher" if "teacher" in logits else "student"].argmax(1)
    arrays = {
        "index": batch.index.numpy(),
        "images": as_pixels(batch.images),
        "labels": batch.labels.numpy(),
        "targets": target.numpy(),
        "signed": np.array(explain.signed),
    }
    if batch.mask is not None:
        arrays["masks"] = (batch.mask * 255).round().byte().numpy()
    for role, model in models.items():
        explanation = in_chunks(explain, model, batch.images, target)
        confidence, prediction = logits[role].softmax(1).max(1)
        arrays[f"maps_{role}"] = explanation.maps.numpy()
        arrays[f"prediction_{role}"] = prediction.numpy()
        arrays[f"confidence_{role}"] = confidence.numpy()
    return arrays
