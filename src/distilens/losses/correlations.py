"""Losses of logits by correlation: over classes, over images, and of ranks."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from distilens.foundation.errors import UserError
from distilens.losses.answers import answers
from distilens.losses.checks import Reduction, check_positive, reduced
from distilens.losses.places import per_image

CLASSES = 3
"""The minimum number of classes: Pearson's correlation of two values is always 1 or -1."""
FLAT = 0.03
"""Numbers whose deviation is a smaller share of their mean count as almost equal."""


def dist(
    student: Float[Tensor, "b classes *places"],
    teacher: Float[Tensor, "b classes *grid"],
    *,
    temperature: float = 4.0,
    beta: float = 1.0,
    gamma: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Correlation distance: 1 minus the correlation of the student's probabilities with the teacher's.

    `T^2 (beta mean_i (1 - r(p_s[i, :], p_t[i, :])) + gamma mean_c (1 - r(p_s[:, c], p_t[:, c])))`, with `r` Pearson's
    correlation and `p` probabilities at temperature `T`. The second part compares the images of a batch; it is 0 for one image.

    For dense logits `[b classes h w]` the rows `i` are the places of one image: the first part is the mean over the places, the
    second compares the places of the image. The published code takes all places of all images of a batch as rows, so that its
    second part mixes images.

    Args:
        student: logits.
        teacher: logits; dense ones on another grid are resized to the student's, bilinearly.
        temperature: `T`, above 0.
        beta: the factor of correlations over classes, within each image.
        gamma: the factor of correlations over images, within each class.
        reduction: `mean`, `sum` or `none`.

    Raises:
        UserError: shapes do not fit, the temperature is not above 0, or there are fewer than three classes with `gamma=0`.

    Source: Huang et al. 2022 (arXiv 2205.10536), equations 6 to 9.
    """
    ours, theirs = answers("dist", student, teacher, temperature, dense=True)
    if ours.shape[1] < CLASSES and not gamma:
        raise UserError(f"dist with gamma=0 needs at least {CLASSES} classes; given {ours.shape[1]}")
    ours, theirs = ((logits / temperature).softmax(1) for logits in (ours, theirs))
    inter = per_image(1 - pearson(ours, theirs))
    if ours.ndim == 4:
        ours, theirs = (rows.flatten(2).transpose(1, 2) for rows in (ours, theirs))
        intra = (1 - pearson(ours, theirs)).mean(1) if ours.shape[1] > 1 else 0.0
    else:
        intra = (1 - pearson(ours.T, theirs.T)).mean() if len(ours) > 1 else 0.0
    return reduced(temperature**2 * (beta * inter + gamma * intra), reduction)


def r2kd(
    student: Float[Tensor, "b classes"],
    teacher: Float[Tensor, "b classes"],
    *,
    temperature: float = 4.0,
    rank: float = 1.0,
    softness: float = 0.1,
    reduction: Reduction = "mean",
) -> Tensor:
    """Correlation distance of the student's answers from the teacher's, by value and by rank.

    `(1 - r(p_s, p_t)) + rank (1 - r(R(z_s), R(z_t)))`, with `r` Pearson's correlation over classes, `p` probabilities at a
    temperature and `R` ranks. The student's ranks are softened, so that they have a derivative:
    `R_i = sum_j sigmoid((z_i - z_j) / (s deviation(z)))`. The loss is in [0, `2 (1 + rank)`]. For equal answers it is near 0, but
    not 0.

    The method `r2kd` adds the same loss against a pruned copy of the teacher.

    Args:
        student: logits.
        teacher: logits.
        temperature: the temperature of the probabilities, above 0.
        rank: the factor of the ranks.
        softness: `s`, above 0; the ranks become hard as it goes to 0.
        reduction: `mean`, `sum` or `none`.

    Raises:
        UserError: shapes do not fit, there are fewer than three classes, or the temperature or softness is not above 0.

    Source: Kim et al. 2024 (arXiv 2311.13934), based on the abstract only: see the method.
    """
    ours, theirs = answers("r2kd", student, teacher, temperature)
    check_positive("r2kd", softness=softness)
    check_correlated(ours)
    losses = 1 - pearson(*((logits / temperature).softmax(1) for logits in (ours, theirs)))
    if rank:
        losses = losses + rank * (1 - pearson(soft_ranks(ours, softness), ranks(theirs)))
    return reduced(losses, reduction)


def check_correlated(logits: Float[Tensor, "b classes"]) -> None:
    """Raise a `UserError` if there are too few classes for a correlation."""
    if logits.shape[1] < CLASSES:
        raise UserError(
            f"r2kd needs at least {CLASSES} classes; given {logits.shape[1]}: the correlation of two values is always 1 or -1. "
            "kd learns from answers of two classes"
        )


def pearson(x: Float[Tensor, "b c *places"], y: Float[Tensor, "b c *places"]) -> Float[Tensor, " b *places"]:
    """Pearson's correlation of each pair of rows of positive numbers; a row is along axis 1.

    It goes towards 0 if one row varies by less than 3 % of its mean, and is 0 if one is constant. The published code adds 1e-8
    to the divisor instead. A student whose head starts at 0, as in many transformers, then gets a gradient of millions in its
    first step.
    """
    return (deviations(x) * deviations(y)).sum(1)


def deviations(x: Float[Tensor, "b c *places"]) -> Float[Tensor, "b c *places"]:
    """The deviations of each row from its mean, divided by their norm (or by a larger number for an almost constant row)."""
    mean = x.mean(1, keepdim=True)
    differences = x - mean
    length = differences.norm(dim=1, keepdim=True).clamp_min(1e-8)
    return differences / length.maximum(FLAT * mean.detach() * x.shape[1] ** 0.5)


def ranks(values: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
    """The ranks in each row: how many values are smaller; equal ones count half."""
    differences = values[:, :, None] - values[:, None, :]
    return (differences.sign() / 2 + 0.5).sum(2)


def soft_ranks(values: Float[Tensor, "b c"], softness: float) -> Float[Tensor, "b c"]:
    """Soft ranks in each row, in units of its deviation. With a deviation below 0.03, all ranks are half the row's length."""
    spread = values.std(1, keepdim=True, correction=0)
    values = (values / spread.clamp_min(FLAT)).where(spread > FLAT, 0)
    return torch.sigmoid((values[:, :, None] - values[:, None, :]) / softness).sum(2)
