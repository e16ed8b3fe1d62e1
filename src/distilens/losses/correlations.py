"""Losses of answers by correlation: over classes, over images, and by rank."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from distilens.errors import UserError
from distilens.losses.answers import answers
from distilens.losses.checks import Reduction, check_positive, reduced

CLASSES = 3
"""Over fewer Pearson's correlation is 1 or -1 whatever the numbers."""
FLAT = 0.03
"""Numbers whose deviation is a smaller share of their mean are all but alike."""


def dist(
    student: Float[Tensor, "b classes"],
    teacher: Float[Tensor, "b classes"],
    *,
    temperature: float = 4.0,
    beta: float = 1.0,
    gamma: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """How far the student's probabilities are from being correlated with the teacher's.

    `T^2 (beta mean_i (1 - r(p_s[i, :], p_t[i, :])) + gamma mean_c (1 - r(p_s[:, c], p_t[:, c])))`, with `r` Pearson's
    correlation and `p` probabilities at temperature `T`. The second part is of the batch: a single image has none.

    Args:
        student: logits.
        teacher: logits.
        temperature: `T`, above 0.
        beta: the factor of correlations over classes, within each image.
        gamma: the factor of correlations over images, within each class.
        reduction: `mean`, `sum` or `none`.

    Raises:
        UserError: shapes that do not fit, a temperature that is not above 0, or fewer than three classes with `gamma=0`.

    Source: Huang et al. 2022 (arXiv 2205.10536), equations 6 to 9.
    """
    ours, theirs = answers("dist", student, teacher, temperature)
    if ours.shape[1] < CLASSES and not gamma:
        raise UserError(f"dist with gamma=0 needs at least {CLASSES} classes; given {ours.shape[1]}")
    ours, theirs = ((logits / temperature).softmax(1) for logits in (ours, theirs))
    inter = 1 - pearson(ours, theirs)
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
    """How far the student's answers are from being correlated with the teacher's, by value and by rank.

    `(1 - r(p_s, p_t)) + rank (1 - r(R(z_s), R(z_t)))`, with `r` Pearson's correlation over classes, `p` probabilities at a
    temperature and `R` ranks. The student's ranks are softened, so that they have a derivative:
    `R_i = sum_j sigmoid((z_i - z_j) / (s deviation(z)))`. From 0 to `2 (1 + rank)`; near 0 and not 0 at equality.

    The method `r2kd` adds the same loss against a pruned copy of the teacher.

    Args:
        student: logits.
        teacher: logits.
        temperature: of the probabilities, above 0.
        rank: the factor of the ranks.
        softness: `s`, above 0; ranks are hard as it goes to 0.
        reduction: `mean`, `sum` or `none`.

    Raises:
        UserError: shapes that do not fit, fewer than three classes, or a temperature or softness that is not above 0.

    Source: Kim et al. 2024 (arXiv 2311.13934), of which the abstract alone was at hand: see the method.
    """
    ours, theirs = answers("r2kd", student, teacher, temperature)
    check_positive("r2kd", softness=softness)
    check_correlated(ours)
    apart = 1 - pearson(*((logits / temperature).softmax(1) for logits in (ours, theirs)))
    if rank:
        apart = apart + rank * (1 - pearson(soft_ranks(ours, softness), ranks(theirs)))
    return reduced(apart, reduction)


def check_correlated(logits: Float[Tensor, "b classes"]) -> None:
    """Raise a `UserError` where correlations over classes say nothing."""
    if logits.shape[1] < CLASSES:
        raise UserError(
            f"r2kd correlates the values and ranks of classes, and these answers are of {logits.shape[1]}: two are correlated by "
            "1 or -1 whatever they are. kd learns from answers of two classes"
        )


def pearson(x: Float[Tensor, "b c"], y: Float[Tensor, "b c"]) -> Float[Tensor, " b"]:
    """Of each row of positive numbers; towards 0 where one varies by less than 3 % of its mean, 0 where it is constant.

    The published code divides by what is left, plus 1e-8: a student whose head starts at 0, as those of many transformers do,
    then gets a gradient of millions in its first step.
    """
    return (deviations(x) * deviations(y)).sum(1)


def deviations(x: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
    """Of each row from its mean, over their length."""
    mean = x.mean(1, keepdim=True)
    apart = x - mean
    return apart / apart.norm(dim=1, keepdim=True).clamp_min(1e-8).maximum(FLAT * mean.detach() * x.shape[1] ** 0.5)


def ranks(values: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
    """Of each row: how many values are smaller, equal ones counted half."""
    apart = values[:, :, None] - values[:, None, :]
    return (apart.sign() / 2 + 0.5).sum(2)


def soft_ranks(values: Float[Tensor, "b c"], softness: float) -> Float[Tensor, "b c"]:
    """Of each row: how many values are clearly smaller, in units of the row's deviation; half of all, if that is below 0.03."""
    spread = values.std(1, keepdim=True, correction=0)
    values = (values / spread.clamp_min(FLAT)).where(spread > FLAT, 0)
    return torch.sigmoid((values[:, :, None] - values[:, None, :]) / softness).sum(2)
