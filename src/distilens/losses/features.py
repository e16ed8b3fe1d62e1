"""Losses of features: compare the student's features with the teacher's."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from distilens.explain.attention import attention
from distilens.foundation.errors import UserError
from distilens.losses.checks import Reduction, check_positive, paired, reduced, without_autocast
from distilens.losses.maps import apart
from distilens.models.grids import on_one_grid, resized

CELLS = (4, 2, 1)
"""Cells per side of the coarser comparisons; each has half the weight of the one before."""


def fitnet(
    student: Float[Tensor, "b c h w"], teacher: Float[Tensor, "b c i j"], *, reduction: Reduction = "mean"
) -> Tensor:
    """The mean squared error of features: `mean (F_s - F_t)^2` over channels and places.

    If the grids differ, the smaller one is used. The student's features must have the teacher's number of channels: train a 1×1
    convolution with the student for that.

    Args:
        student: features in the teacher's channels.
        teacher: features.
        reduction: `mean`, `sum` or `none`.

    Raises:
        UserError: shapes do not fit.

    Source: Romero et al. 2015 (arXiv 1412.6550), equation 3, which has half the sum. RepDistiller uses the weight 100.
    """
    return reduced(squared(*same_channels("fitnet", student, teacher)), reduction)


def hierarchical(
    student: Float[Tensor, "b c h w"], teacher: Float[Tensor, "b c i j"], *, reduction: Reduction = "mean"
) -> Tensor:
    """The squared errors of features and of their averages over larger cells: the distance of `reviewkd`.

    `sum_l w_l mean (P_l(F_s) - P_l(F_t))^2 / sum_l w_l`, with `P_l` the feature itself and its averages over 4×4, 2×2 and 1×1
    cells, and `w_l = 1, 1/2, 1/4, 1/8`. The student's features must have the teacher's number of channels. If the grids differ,
    the smaller one is used.

    Args:
        student: features in the teacher's channels.
        teacher: features.
        reduction: `mean`, `sum` or `none`.

    Raises:
        UserError: shapes do not fit.

    Source: Chen et al. 2021 (arXiv 2104.09044), section 3.3.
    """
    ours, theirs = same_channels("hierarchical", student, teacher)
    smaller = [cells for cells in CELLS if cells < min(ours.shape[-2:])]
    sizes = [tuple(ours.shape[-2:]), *((cells, cells) for cells in smaller)]
    weights = [0.5**level for level in range(len(sizes))]
    levels = [
        weight * squared(resized(ours, size), resized(theirs, size))
        for weight, size in zip(weights, sizes, strict=True)
    ]
    return reduced(torch.stack(levels).sum(0) / sum(weights), reduction)


def at(
    student: Float[Tensor, "b c h w"],
    teacher: Float[Tensor, "b d i j"],
    *,
    power: float = 2.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Attention transfer: the distance between student and teacher in where their features are strong.

    `mean_places (q_s - q_t)^2`, with `q = m / |m|` and `m = mean_k |A_k|^p`. The numbers of channels may differ. If the grids
    differ, the smaller one is used. The loss of an image is 0 if one of its two features is 0 everywhere.

    Args:
        student: features.
        teacher: features.
        power: `p`, above 0.
        reduction: `mean`, `sum` or `none`.

    Raises:
        UserError: shapes do not fit, or the power is not above 0.

    Source: Zagoruyko and Komodakis 2017 (arXiv 1612.03928), equation 2; they sum over three layers with the weight 1000.
    """
    check_positive("at", power=power)
    ours, theirs = grids("at", student, teacher)
    return reduced(apart(*on_one_grid(attention(ours, power), attention(theirs, power)), "at"), reduction)


def nst(
    student: Float[Tensor, "b c h w"], teacher: Float[Tensor, "b d i j"], *, reduction: Reduction = "mean"
) -> Tensor:
    """Neuron selectivity transfer: the discrepancy between the distributions of where channels are active.

    The squared maximum mean discrepancy between the channels' maps `f_k = A_k / |A_k|`, with the kernel `k(x, y) = (x . y)^2`:
    `|S / c_s - T / c_t|^2`, where `S` and `T` are the tables `sum_k f_k f_k^T` over places. The numbers of channels may differ.
    If the grids differ, the smaller one is used. It needs the memory of a table `[places places]` per image.

    Args:
        student: features.
        teacher: features.
        reduction: `mean`, `sum` or `none`.

    Raises:
        UserError: shapes do not fit.

    Source: Huang and Wang 2017 (arXiv 1707.01219), equation 9, with the polynomial kernel; weight 50 in RepDistiller.
    """
    ours, theirs = on_one_grid(*grids("nst", student, teacher))
    return reduced((table(ours) - table(theirs)).square().sum((1, 2)), reduction)


def grids(name: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The features of both, checked."""
    return paired(name, student, teacher, "images, channels, height, width")


def same_channels(name: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The features of both on the smaller of their grids.

    Raises:
        UserError: the numbers of channels differ.
    """
    ours, theirs = grids(name, student, teacher)
    channels, wanted = ours.shape[1], theirs.shape[1]
    if channels != wanted:
        raise UserError(
            f"{name} needs the same number of channels for student and teacher; given {channels} and {wanted}. Train a "
            f"translation with the student: nn.Conv2d({channels}, {wanted}, 1)"
        )
    return on_one_grid(ours, theirs)


def squared(ours: Float[Tensor, "b c h w"], theirs: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """The mean squared error per image."""
    return (ours - theirs).square().flatten(1).mean(1)


def table(feature: Float[Tensor, "b c h w"]) -> Float[Tensor, "b p p"]:
    """`mean_k f_k f_k^T`, a table `[places places]` per image: how often two places are active together."""
    with without_autocast(feature):
        maps = normalize(feature.flatten(2), dim=2, eps=1e-6)
        return maps.transpose(1, 2) @ maps / maps.shape[1]
