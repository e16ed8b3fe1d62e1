"""Losses of masks with labels that compare regions, not single places: Dice and Lovasz."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional

from distilens.explain.activation import full
from distilens.foundation.errors import UserError
from distilens.losses.checks import Reduction, check_tensor, reduced, without_autocast
from distilens.tasks.segmentation import VOID, check_targets, on_grid


def dice(
    student: Float[Tensor, "b classes i j"],
    targets: UInt8[Tensor, "b h w"],
    *,
    smooth: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """The Dice loss of soft masks, in [0, 1].

    `1 - mean_c (2 sum_u p_uc y_uc + s) / (sum_u p_uc + sum_u y_uc + s)` per image, with `p` the probabilities and `y` 1 at the
    places of class c. The mean is over the classes that the image's target has. Void places are left out; an image without any
    other place gives 0. Logits on another grid are resized to that of the targets, bilinearly.

    Args:
        student: logits.
        targets: the class at each place; 255 is void.
        smooth: `s`, at least 0. Much code uses 1, so that a class that is absent from target and prediction is not 0 / 0. Here
            absent classes are left out. With 0, the loss of an image does not depend on its size.
        reduction: `mean`, `sum` or `none`.

    Raises:
        UserError: shapes do not fit, `smooth` is below 0, or (on the CPU) a target is neither a class nor void.

    Source: Milletari, Navab and Ahmadi 2016 (V-Net, arXiv 1606.04797), section 3, with squares in the divisor; without squares
    in Sudre et al. 2017 (arXiv 1707.03237), as here. Both sum over a volume, not over a batch.
    """
    if smooth < 0:
        raise UserError(f"dice: smooth must be at least 0; given {smooth:g}")
    probabilities, there, _ = soft_masks("dice", student, targets)
    both = (probabilities * there).sum(2)
    all_of_both = probabilities.sum(2) + there.sum(2)
    present = there.any(2)
    ratio = (2 * both + smooth) / (all_of_both + smooth).where(present, 1)
    return reduced(mean_of_present(1 - ratio, present), reduction)


def lovasz(
    student: Float[Tensor, "b classes i j"], targets: UInt8[Tensor, "b h w"], *, reduction: Reduction = "mean"
) -> Tensor:
    """The Lovasz-softmax loss: a convex extension of 1 - IoU to soft masks, in [0, 1].

    Per image and class, the errors `m_u = 1 - p_uc` at places of class c and `m_u = p_uc` elsewhere are sorted from large to
    small. With `G` places of class c, the loss is `sum_k m_(k) (J_k - J_(k-1))`, where
    `J_k = 1 - (G - hits_k) / (G + misses_k)` counts the places of class c (`hits_k`) and others (`misses_k`) among the first `k`.
    The mean is over the classes that the image's target has. Void places are left out; an image without any other place gives 0.
    Logits on another grid are resized to that of the targets, bilinearly. It sorts the places once per image and class, in
    float32: in bfloat16, most errors would be equal.

    Args:
        student: logits.
        targets: the class at each place; 255 is void.
        reduction: `mean`, `sum` or `none`.

    Raises:
        UserError: shapes do not fit, or (on the CPU) a target is neither a class nor void.

    Source: Berman, Rannen Triki and Blaschko 2018 (arXiv 1705.08790), algorithm 1; per image and for present
    classes, as with `per_image=True, classes='present'` of their code.
    """
    probabilities, there, valid = soft_masks("lovasz", student, targets)
    errors = (there.to(probabilities) - probabilities).abs().masked_fill(~valid[:, None], -1)  # void places come last
    errors, order = errors.sort(dim=2, descending=True)
    there = there.gather(2, order)
    steps = jaccard_steps(there.to(errors))
    return reduced(mean_of_present((errors.clamp_min(0) * steps).sum(2), there.any(2)), reduction)


def soft_masks(
    name: str, student: Tensor, targets: Tensor
) -> tuple[Float[Tensor, "b c n"], Bool[Tensor, "b c n"], Bool[Tensor, "b n"]]:
    """The probabilities of each class at each place of the targets (0 at void places), the target, and the valid places."""
    check_tensor(name, "student", student)
    if student.ndim != 4:
        raise UserError(f"{name} needs logits [images, classes, height, width]; the student's is {list(student.shape)}")
    check_targets(targets, student)
    with without_autocast(student):
        probabilities = on_grid(full(student), targets).softmax(1).flatten(2)
    targets = targets.flatten(1)
    classes = torch.arange(student.shape[1], device=targets.device)
    valid = targets != VOID
    return probabilities.where(valid[:, None], 0), targets[:, None] == classes[:, None], valid


def jaccard_steps(there: Float[Tensor, "b c n"]) -> Float[Tensor, "b c n"]:
    """`J_k - J_(k-1)`, from the target (1 or 0) at places sorted by their error."""
    hits, misses = there.cumsum(2), (1 - there).cumsum(2)
    count = hits[..., -1:]
    jaccard = 1 - (count - hits) / (count + misses).clamp_min(1)
    return jaccard - functional.pad(jaccard, (1, 0))[..., :-1]


def mean_of_present(losses: Float[Tensor, "b c"], present: Bool[Tensor, "b c"]) -> Float[Tensor, " b"]:
    """The mean over the classes that are there; 0 if there is none."""
    return losses.where(present, 0).sum(1) / present.sum(1).clamp_min(1)
