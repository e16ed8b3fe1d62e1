"""Losses of logits: compare the student's logits with the teacher's, or with labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from distilens.foundation.errors import UserError
from distilens.losses.checks import (
    Reduction,
    check_positive,
    check_tensor,
    paired,
    reduced,
    without_autocast,
)
from distilens.losses.places import classes_on_grid, per_image
from distilens.tasks.classification import check_labels, cross_entropy
from distilens.tasks.segmentation import on_grid


def ce(
    student: Float[Tensor, "b classes"],
    labels: Int[Tensor, " b"],
    *,
    smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy with labels, in nats.

    `-sum_c q_c log softmax(z)_c`, where `q` is `1 - smoothing` at the label plus `smoothing / classes` everywhere. The loss of an
    image without a label (-1) is 0.

    Args:
        student: logits.
        labels: the class of each image.
        smoothing: in [0, 1).
        reduction: `mean`, `sum` or `none`.

    Raises:
        UserError: shapes do not fit, the smoothing is outside of [0, 1), or (on the CPU) a label is not a class.

    Source: Szegedy et al. 2016 (arXiv 1512.00567), section 7, for the smoothing.
    """
    check_tensor("ce", "student", student)
    if not 0 <= smoothing < 1:
        raise UserError(f"ce: smoothing must be in [0, 1); given {smoothing:g}")
    return reduced(cross_entropy(student, labels, smoothing=smoothing), reduction)


def kd(
    student: Float[Tensor, "b classes *places"],
    teacher: Float[Tensor, "b classes *grid"],
    *,
    temperature: float = 4.0,
    standardise: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """The Kullback-Leibler divergence of the student's softened class probabilities from the teacher's, in nats.

    `T^2 * sum_c p_t log(p_t / p_s)` with `p = softmax(z / T)`; 0 if both are equal. The factor `T^2` keeps the gradient's size
    when T changes. For dense logits `[b classes h w]` it is the mean over the places, void or not.

    Args:
        student: logits.
        teacher: logits; dense ones on another grid are resized to the student's, bilinearly.
        temperature: `T`, above 0.
        standardise: first scale the logits (of each place) to mean 0 and standard deviation 1 over the classes.
        reduction: `mean`, `sum` or `none`.

    Raises:
        UserError: shapes do not fit, or the temperature is not above 0.

    Source: Hinton, Vinyals and Dean 2015 (arXiv 1503.02531), section 2; Sun et al. 2024 (arXiv 2403.01427) for `standardise`.

    Example:
        >>> import torch
        >>> from distilens.losses import kd
        >>> logits = torch.randn(8, 10, requires_grad=True)
        >>> kd(logits, torch.randn(8, 10), temperature=4).backward()
    """
    ours, theirs = answers("kd", student, teacher, temperature, dense=True)
    if standardise:
        ours, theirs = standardised(ours), standardised(theirs)
    ours, theirs = (functional.log_softmax(logits / temperature, dim=1) for logits in (ours, theirs))
    losses = functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(1)
    return reduced(temperature**2 * per_image(losses), reduction)


def dkd(
    student: Float[Tensor, "b classes *places"],
    teacher: Float[Tensor, "b classes *grid"],
    labels: Int[Tensor, " b"] | UInt8[Tensor, "b h w"],
    *,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 2.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Decoupled `kd`, in nats: the probability of the label, and the distribution over the other classes.

    `T^2 (alpha KL(b_t || b_s) + beta KL(q_t || q_s))` at temperature `T`. `b = (p_c, 1 - p_c)` are the probabilities of the label
    and of all other classes together. `q` are the probabilities of the other classes, normalised. Without a label (-1), the
    teacher's top class is used. For dense logits `[b classes h w]` it is the mean over the places; void ones have no label.

    Args:
        student: logits.
        teacher: logits; dense ones on another grid are resized to the student's, bilinearly.
        labels: the class of each image, or -1. For dense logits masks, uint8, 255 = void; the pixel under the centre of each
            place counts.
        temperature: `T`, above 0.
        alpha: the factor of the label's part.
        beta: the factor of the other classes' part; the paper uses 2 to 8.
        reduction: `mean`, `sum` or `none`.

    Raises:
        UserError: shapes do not fit, the temperature is not above 0, or (on the CPU) a label is not a class.

    Source: Zhao et al. 2022 (arXiv 2203.08679), equation 7; in the paper the term grows over the first epochs.
    """
    ours, theirs = answers("dkd", student, teacher, temperature, dense=True)
    if ours.ndim == 4:
        labels = classes_on_grid(labels, ours)
    else:
        check_labels("dkd", labels, ours)
    ours, theirs = ours / temperature, theirs / temperature
    label = torch.where(labels < 0, theirs.argmax(1), labels)
    chosen = torch.zeros_like(theirs, dtype=torch.bool).scatter(1, label[:, None], True)
    whole = divergence(target_or_not(theirs, chosen), target_or_not(ours, chosen))
    rest = divergence(among_others(theirs, chosen), among_others(ours, chosen))
    return reduced(temperature**2 * per_image(alpha * whole + beta * rest), reduction)


def mlkd(
    student: Float[Tensor, "b classes"],
    teacher: Float[Tensor, "b classes"],
    *,
    temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0),
    instance: float = 1.0,
    images: float = 1.0,
    classes: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Match probabilities on three levels, at several temperatures: per image, between images, between classes.

    With probabilities `P [b c]` at temperature `T`, the loss is the sum over all `T` of
    `instance T^2 KL(p_t || p_s) + images sum_j (P_s P_s^T - P_t P_t^T)_ij^2 + classes sum_cd (P_s^T P_s - P_t^T P_t)_cd^2 / c`.

    Args:
        student: logits.
        teacher: logits.
        temperatures: each above 0.
        instance: the factor of the divergence per image.
        images: the factor of relations between images.
        classes: the factor of relations between classes.
        reduction: `mean`, `sum` or `none`.

    Raises:
        UserError: shapes do not fit, or a temperature is not above 0.

    Source: Jin et al. 2023 (CVPR, "Multi-Level Logit Distillation"), equations 4 to 8.
    """
    ours, theirs = answers("mlkd", student, teacher, *temperatures)

    def at(temperature: float) -> Tensor:
        p, q = (functional.log_softmax(logits / temperature, 1) for logits in (ours, theirs))
        per_image = functional.kl_div(p, q, reduction="none", log_target=True).sum(1)
        p, q = p.exp(), q.exp()
        between_images = (p @ p.T - q @ q.T).square().sum(1)
        between_classes = (p.T @ p - q.T @ q).square().sum() / p.shape[1]
        return instance * temperature**2 * per_image + images * between_images + classes * between_classes

    with without_autocast(ours):
        return reduced(torch.stack([at(temperature) for temperature in temperatures]).sum(0), reduction)


def answers(
    name: str, student: Tensor, teacher: Tensor, *temperatures: float, dense: bool = False
) -> tuple[Tensor, Tensor]:
    """The logits of both, checked, in float32; with `dense` also logits of places, on the student's grid."""
    for temperature in temperatures:
        check_positive(name, temperature=temperature)
    if dense and isinstance(student, Tensor) and student.ndim == 4:
        ours, theirs = paired(name, student, teacher, "images, classes, height, width", alike=(0, 1))
        with without_autocast(ours):
            return ours.float(), on_grid(theirs.float(), ours)
    ours, theirs = paired(name, student, teacher, "images, classes", alike=(0, 1))
    return ours.float(), theirs.float()


def standardised(logits: Float[Tensor, "b classes *places"]) -> Float[Tensor, "b classes *places"]:
    """Each image's logits with mean 0 and deviation 1 over the classes (with the divisor `classes - 1`, as in the paper's code).

    A deviation below 0.01 counts as 0.01. The paper's code adds 1e-7 instead; the first step of a head that starts at 0 would
    then be far too large.
    """
    return (logits - logits.mean(1, keepdim=True)) / logits.std(1, keepdim=True).clamp_min(0.01)


def divergence(theirs: Float[Tensor, "b c *places"], ours: Float[Tensor, "b c *places"]) -> Float[Tensor, " b *places"]:
    """`KL(p_t || p_s)` from logarithms. Classes where both are minus infinity count 0."""
    none = theirs.isneginf() & ours.isneginf()
    return (
        functional.kl_div(ours.masked_fill(none, 0), theirs.masked_fill(none, 0), reduction="none", log_target=True)
        .masked_fill(none, 0)
        .sum(1)
    )


def target_or_not(
    logits: Float[Tensor, "b c *places"], chosen: Bool[Tensor, "b c *places"]
) -> Float[Tensor, "b 2 *places"]:
    """The log probabilities of the chosen class, and of all other classes together."""
    return functional.log_softmax(
        torch.stack([logits.where(chosen, 0).sum(1), logits.masked_fill(chosen, -torch.inf).logsumexp(1)], 1), dim=1
    )


def among_others(
    logits: Float[Tensor, "b c *places"], chosen: Bool[Tensor, "b c *places"]
) -> Float[Tensor, "b c *places"]:
    """The normalised log probabilities of the other classes; minus infinity for the chosen class."""
    return functional.log_softmax(logits.masked_fill(chosen, -torch.inf), dim=1)
