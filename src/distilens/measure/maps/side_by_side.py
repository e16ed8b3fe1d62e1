"""The maps on a run's page: teacher, base and student explained on the same test images, disagreements first."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from distilens.data.batch import Batch
from distilens.data.splits import Split
from distilens.explain.explanation import Explainer, in_chunks
from distilens.foundation import randomness
from distilens.models.model import Model
from distilens.tasks import Classification


def as_pixels(images: Float[Tensor, "b 3 h w"]) -> UInt8[np.ndarray, "b h w 3"]:
    """Images in [0, 1] as bytes, which are stored."""
    return (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def named_files(split: Split, positions: Tensor) -> dict[str, np.ndarray]:
    """The files of some images of a split, as an array to store; empty if the images are not files."""
    names = split.names(positions.numpy())
    return {} if names is None else {"names": np.array(names)}


def choose(logits: Mapping[str, Tensor], count: int, split: Split | None = None) -> Tensor:
    """Positions of `count` random images: up to three quarters on which the models disagree, the rest on which they agree.

    In a dense task the first three quarters are the images with the student's lowest values, the lowest first.
    """
    if split is not None and split.task.dense:
        return choose_worst(logits.get("student", list(logits.values())[-1]), count, split)
    tops = torch.stack([values.argmax(1) for values in logits.values()])  # with a single output, all models agree
    order = torch.randperm(tops.shape[1], generator=randomness.generator("gallery", 0))
    differ = (tops != tops[0]).any(0)[order]
    disagreed = order[differ][: max(1, count * 3 // 4)]
    agreed = order[~differ][: count - len(disagreed)]
    rest = order[differ][len(disagreed) : len(disagreed) + count - len(disagreed) - len(agreed)]
    return torch.cat([disagreed, rest, agreed])


def choose_worst(answers: Tensor, count: int, split: Split) -> Tensor:
    """Positions of `count` images: three quarters with the lowest values of the metric, then random ones."""
    values = split.task.values(answers, torch.from_numpy(split.targets))
    worst = values.nan_to_num(torch.inf).argsort(stable=True)[: max(1, count * 3 // 4)]
    order = torch.randperm(len(values), generator=randomness.generator("gallery", 0))
    others = order[~torch.isin(order, worst)]
    return torch.cat([worst, others])[:count]


def explained(
    models: Mapping[str, Model], batch: Batch, logits: Mapping[str, Tensor], explain: Explainer
) -> dict[str, np.ndarray]:
    """The arrays of one explainer's file: images, labels, masks, the class explained, and maps and predictions by role.

    All models are explained for the same class, the teacher's top-1 (without a teacher the student's), so that the maps of an
    image are comparable.
    """
    task = next(iter(models.values())).task
    target = task.explained(logits["teacher" if "teacher" in logits else "student"])
    arrays = {
        "index": batch.index.numpy(),
        "images": as_pixels(batch.images),
        "labels": batch.targets.numpy(),
        "targets": (target.flatten(1).amax(1) if task.dense else target).numpy(),
        "signed": np.array(explain.signed),
    }
    if task.dense:
        arrays["regions"] = (target >= 0).byte().numpy()
    if batch.mask is not None:
        arrays["masks"] = (batch.mask * 255).round().byte().numpy()
    for role, model in models.items():
        explanation = in_chunks(explain, model, batch.images, target)
        arrays[f"maps_{role}"] = explanation.maps.numpy()
        if task.dense:
            arrays[f"answers_{role}"] = task.compact(logits[role], batch.targets).numpy()
            arrays[f"values_{role}"] = task.values(logits[role], batch.targets).numpy()
        elif isinstance(task, Classification):
            confidence, prediction = logits[role].softmax(1).max(1)
            arrays[f"prediction_{role}"] = prediction.numpy()
            arrays[f"confidence_{role}"] = confidence.numpy()
        else:
            arrays[f"answer_{role}"] = np.array([task.describe(one) for one in task.predict(logits[role])])
    if not isinstance(task, Classification) and not task.dense:
        arrays["answer"] = np.array([task.describe(one) for one in batch.targets])
    return arrays
