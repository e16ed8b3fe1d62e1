"""Semantic segmentation: one class for each place of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, UInt8

from distilens.foundation import bootstrap
from distilens.foundation.errors import UserError
from distilens.foundation.estimate import Estimate
from distilens.foundation.metric import Metric
from distilens.tasks.task import Task

if TYPE_CHECKING:
    from torch import Tensor


VOID = 255
"""The target of a place without a class. So there are at most 255 classes."""

NOWHERE = -1
"""In an aim: a place that is not explained."""

MIOU = Metric("mIoU", "%")
"""The mean over classes of intersection / union, from one confusion matrix over all places of all images."""


@dataclass(frozen=True)
class Segmentation(Task):
    """One class for each place of an image. Targets are uint8 `[b h w]`, the positions of the classes; 255 is void.

    The loss is the cross-entropy, mean over the places that are not void. The metric is the mean intersection over union (mIoU)
    from one confusion matrix over the split; a class that is absent from targets and predictions is left out. Outputs on another
    grid are resized to that of the targets, bilinearly.

    An *aim*, what an explanation differentiates, is int64 `[b h w]`: at the places that are explained the class whose logits are
    summed, elsewhere -1. It is fixed before an explainer changes the image.

    Where a function takes outputs, it also takes their classes at the targets' places (`compact`), uint8 `[b h w]`.

    Args:
        classes: their names, in the order of the outputs' channels.
    """

    classes: tuple[str, ...]

    name = "segmentation"
    metric = MIOU
    dense = True

    def __post_init__(self) -> None:
        if len(self.classes) > VOID:
            raise UserError(
                f"{len(self.classes)} classes: targets are bytes, and {VOID} means void, so there can be at most {VOID}"
            )

    @property
    def outputs(self) -> int:  # type: ignore[override]
        return len(self.classes)

    def valid(self, targets: UInt8[Tensor, "b h w"]) -> Bool[Tensor, "b h w"]:
        return targets != VOID

    def strata(self, targets: UInt8[np.ndarray, "n h w"]) -> Int[np.ndarray, " n"]:
        """0 for images with a target at some place, -1 for the others."""
        return np.array([0 if (target != VOID).any() else -1 for target in targets], dtype=np.int64)

    def moved(self, targets: UInt8[Tensor, "b h w"], geometry: Any) -> UInt8[Tensor, "b h w"]:
        return targets if geometry is None else geometry.move_nearest(targets, outside=VOID)

    def loss(self, outputs: Float[Tensor, "b classes i j"], targets: UInt8[Tensor, "b h w"]) -> Float[Tensor, " b"]:
        """The cross-entropy per image in nats: the mean over its places that are not void; 0 if there is none."""
        from torch.nn import functional

        check_targets(targets, outputs)
        places = functional.cross_entropy(
            on_grid(outputs.float(), targets), targets.long(), ignore_index=VOID, reduction="none"
        )
        return mean_where(places, self.valid(targets))

    def masked_loss(self, outputs: Tensor, targets: Tensor) -> Float[Tensor, " b"]:
        return self.loss(outputs, targets)

    def predict(self, outputs: Tensor) -> UInt8[Tensor, "b h w"]:
        """The class with the largest output at each place, on the outputs' grid."""
        import torch

        return outputs if outputs.dtype == torch.uint8 else outputs.argmax(1).to(torch.uint8)

    def compact(self, outputs: Tensor, targets: UInt8[Tensor, "b h w"]) -> UInt8[Tensor, "b h w"]:
        """The predicted class at each place of the targets; outputs with a NaN give void, which is never right."""
        import torch

        if outputs.dtype == torch.uint8:
            return outputs
        outputs = on_grid(outputs, targets)
        return outputs.argmax(1).to(torch.uint8).masked_fill(outputs.isnan().any(1), VOID)

    def confusion(self, outputs: Tensor, targets: UInt8[Tensor, "b h w"]) -> Int[Tensor, "classes more"]:
        """How many places of each class (rows) were predicted as each class (columns). The last column counts NaN."""
        import torch

        count, valid = self.outputs, self.valid(targets)
        answers = self.compact(outputs, targets)[valid].long().clamp_max(count)
        pairs = targets[valid].long() * (count + 1) + answers
        return torch.bincount(pairs, minlength=count * (count + 1)).view(count, count + 1)

    def counts(self, outputs: Tensor, targets: UInt8[Tensor, "b h w"]) -> Float[Tensor, "b 3 classes"]:
        """Per image and class: places that are right, places of the class, places that were predicted as the class; float64."""
        import torch

        made = []
        for answer, target in zip(self.compact(outputs, targets), targets, strict=True):
            matrix = self.confusion(answer[None], target[None]).cpu().double()
            made.append(torch.stack([matrix.diagonal(), matrix.sum(1), matrix.sum(0)[:-1]]))
        return torch.stack(made) if made else torch.zeros(0, 3, self.outputs, dtype=torch.float64)

    def values(self, outputs: Tensor, targets: UInt8[Tensor, "b h w"]) -> Float[Tensor, " b"]:
        """The mIoU of each image by itself: over the classes that are there or predicted."""
        import torch

        return torch.from_numpy(mean_iou(self.counts(outputs, targets).numpy())).float().to(targets.device)

    def tally(self, outputs: Tensor, targets: UInt8[Tensor, "b h w"]) -> Float[Tensor, " k"]:
        """The confusion matrix, flattened, and the number of images with a target; exact up to 2^53 places."""
        import torch

        matrix = self.confusion(outputs, targets).flatten()
        sums = torch.cat([matrix, self.known(targets).sum()[None]])
        return sums.float() if sums.device.type == "mps" else sums.double()  # MPS has no float64

    def matrix_of(self, tally: Float[Tensor, " k"]) -> tuple[Float[np.ndarray, "3 classes"], int]:
        """From a tally: what `counts` gives for all images together, and the number of images."""
        matrix = tally[:-1].view(self.outputs, self.outputs + 1).cpu().double().numpy()  # MPS has no float64
        return np.stack([matrix.diagonal(), matrix.sum(1), matrix.sum(0)[:-1]]), int(tally[-1])

    def value(self, tally: Float[Tensor, " k"]) -> float | None:
        counts, images = self.matrix_of(tally)
        return float(mean_iou(counts)) if images else None

    def score(self, tally: Float[Tensor, " k"]) -> dict[str, Estimate]:
        """mIoU, mean Dice and pixel accuracy without an interval, which needs the images one by one (`measure`)."""
        counts, images = self.matrix_of(tally)
        if not images:
            return {name: Estimate(None, n=0) for name in SCORES}
        return {name: Estimate(float(score(counts)), n=images) for name, score in SCORES.items()}

    def measure(self, outputs: Tensor, targets: UInt8[Tensor, "b h w"]) -> dict[str, Estimate]:
        """mIoU, mean Dice and pixel accuracy with 95 % intervals: the percentiles of a bootstrap over images."""
        known = self.known(targets)
        counts = self.counts(outputs[known], targets[known]).cpu().numpy()
        return {name: bootstrap.of_sums(counts, score) for name, score in SCORES.items()}

    def measure_classes(self, outputs: Tensor, targets: UInt8[Tensor, "b h w"]) -> dict[str, Estimate]:
        """The IoU of each class, with its interval over images; a class that is absent everywhere has no value."""
        known = self.known(targets)
        counts = self.counts(outputs[known], targets[known]).cpu().numpy()
        return {name: bootstrap.of_sums(counts[..., [number]], mean_iou) for number, name in enumerate(self.classes)}

    def apart(self, outputs: Tensor, others: Tensor, targets: UInt8[Tensor, "b h w"]) -> Estimate | None:
        """The mIoU of a model minus that of another on the same images, with a bootstrap over images (both drawn alike)."""
        known = self.known(targets)
        if not known.any():
            return None
        one, other = (self.counts(given[known], targets[known]).cpu().numpy() for given in (outputs, others))
        return bootstrap.of_sums(
            np.concatenate([one, other], 1), lambda both: mean_iou(both[..., :3, :]) - mean_iou(both[..., 3:, :])
        )

    def explained(self, outputs: Tensor) -> Int[Tensor, "b h w"]:
        """The class that is predicted at most places of the image, and these places."""
        from torch.nn import functional

        answers = self.predict(outputs.detach()).long()
        counts = functional.one_hot(answers.flatten(1).clamp_max(self.outputs), self.outputs + 1).sum(1)
        return self.aim(outputs, counts[:, :-1].argmax(1))

    def aim(self, outputs: Tensor, classes: Int[Tensor, " b"]) -> Int[Tensor, "b h w"]:
        """A class per image and the places where it is predicted, on the outputs' grid."""
        import torch

        chosen = classes[:, None, None]
        return torch.where(self.predict(outputs.detach()) == chosen, chosen, NOWHERE)

    def scalar(self, outputs: Float[Tensor, "b classes i j"], of: Integer[Tensor, "b h w"]) -> Float[Tensor, " b"]:
        """The sum of an aim's logits over its places.

        Source: Vinogradova et al. 2020 (arXiv 2002.11434), equation 2.
        """
        return summed(on_grid(outputs, of), of)

    def confidence(self, outputs: Float[Tensor, "b classes i j"], of: Integer[Tensor, "b h w"]) -> Float[Tensor, " b"]:
        """The mean probability of an aim's class over its places, in [0, 1]; 0 for an aim without places."""
        probabilities = on_grid(outputs, of).float().softmax(1)
        return summed(probabilities, of) / (of != NOWHERE).flatten(1).sum(1).clamp_min(1)

    def describe(self, prediction: Any) -> str:
        """The classes of a mask with their shares, the largest first."""
        numbers, counts = np.unique(np.asarray(prediction), return_counts=True)
        shares = sorted(zip(-counts / max(1, counts.sum()), numbers.tolist(), strict=True))
        return ", ".join(f"{self.classes[number]} {-share:.0%}" for share, number in shares if number < self.outputs)

    def check_outputs(self, outputs: Tensor) -> str:
        if outputs.ndim != 4:
            return (
                f"logits of the shape {list(outputs.shape)} for one image: a segmentation needs a class for each place, "
                "[b classes h w]. Take a model for segmentation, such as unet"
            )
        if outputs.shape[1] != self.outputs:
            return f"{outputs.shape[1]} logits per place, but the data has {self.outputs} classes"
        return ""


def summed(outputs: Float[Tensor, "b classes h w"], of: Integer[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    """The sum over an aim's places of the output of its class."""
    chosen = outputs.gather(1, of.long().clamp_min(0)[:, None])[:, 0]
    return chosen.where(of != NOWHERE, 0).flatten(1).sum(1)


def places_of(aim: Integer[Tensor, "b i j"], size: tuple[int, int]) -> Bool[Tensor, "b h w"]:
    """The places of an aim on the grid of the images: of each pixel the nearest place of the aim's grid."""
    from torch.nn import functional

    places = (aim != NOWHERE).float()[:, None]
    return functional.interpolate(places, size, mode="nearest-exact")[:, 0] > 0.5


def on_grid(outputs: Float[Tensor, "b c i j"], places: Tensor) -> Float[Tensor, "b c h w"]:
    """Outputs on the grid of targets (or of others outputs): resized bilinearly if theirs differs."""
    from torch.nn import functional

    size = tuple(places.shape[-2:])
    if outputs.shape[-2:] == size:
        return outputs
    return functional.interpolate(outputs, size, mode="bilinear", align_corners=False)


def mean_where(values: Float[Tensor, "b ..."], valid: Bool[Tensor, "b ..."]) -> Float[Tensor, " b"]:
    """The mean per image over valid places; 0 if there is none."""
    valid = valid.flatten(1)
    return values.flatten(1).where(valid, 0).sum(1) / valid.sum(1).clamp_min(1)


def check_targets(targets: Tensor, outputs: Tensor) -> None:
    """Raise a `UserError` unless targets are uint8 `[b h w]`, and (on the CPU) each is a class or void."""
    import torch

    if targets.dtype != torch.uint8 or targets.ndim != 3 or len(targets) != len(outputs):
        raise UserError(
            f"a segmentation needs one mask per image, torch.uint8 [{len(outputs)} h w]; given {targets.dtype} "
            f"{list(targets.shape)}"
        )
    if targets.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = targets[(targets >= outputs.shape[1]) & (targets != VOID)]
        if len(wrong):
            raise UserError(
                f"the values of a mask go from 0 to {outputs.shape[1] - 1}, and {VOID} is void; given {int(wrong[0])}"
            )


def ious(counts: Float[np.ndarray, "*many 3 classes"]) -> Float[np.ndarray, "*many classes"]:
    """Intersection / union per class, in [0, 1]; NaN for a class that is absent from targets and predictions."""
    right, there, predicted = counts[..., 0, :], counts[..., 1, :], counts[..., 2, :]
    union = there + predicted - right
    return np.divide(right, union, out=np.full(union.shape, np.nan), where=union > 0)


def mean_iou(counts: Float[np.ndarray, "*many 3 classes"]) -> Float[np.ndarray, "*many"]:
    """The mean IoU over the classes that are there or predicted; NaN if there is none."""
    return mean_known(ious(counts))


def mean_dice(counts: Float[np.ndarray, "*many 3 classes"]) -> Float[np.ndarray, "*many"]:
    """The mean over classes of `2 right / (there + predicted)`, over the classes that are there or predicted."""
    both = counts[..., 1, :] + counts[..., 2, :]
    return mean_known(np.divide(2 * counts[..., 0, :], both, out=np.full(both.shape, np.nan), where=both > 0))


def pixel_accuracy(counts: Float[np.ndarray, "*many 3 classes"]) -> Float[np.ndarray, "*many"]:
    """The share of places (not void) whose class is right."""
    right, there = counts[..., 0, :].sum(-1), counts[..., 1, :].sum(-1)
    return np.divide(right, there, out=np.full(there.shape, np.nan), where=there > 0)


def mean_known(values: Float[np.ndarray, "*many classes"]) -> Float[np.ndarray, "*many"]:
    """The mean without NaN; NaN if there is nothing else."""
    known = ~np.isnan(values)
    count = known.sum(-1)
    total = np.where(known, values, 0).sum(-1)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


SCORES = {MIOU.name: mean_iou, "dice": mean_dice, "pixel accuracy": pixel_accuracy}
"""The scores of a split, from its counts per class."""
