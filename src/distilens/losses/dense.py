"""Losses that compare the places of dense answers or of feature maps: within an image, and between the images of a batch."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from distilens.foundation.errors import UserError
from distilens.losses.checks import Reduction, check_positive, paired, reduced, without_autocast
from distilens.losses.features import grids
from distilens.losses.places import NONE, directions, nearest, per_image
from distilens.models.grids import on_one_grid
from distilens.tasks.segmentation import VOID, on_grid


def cwd(
    student: Float[Tensor, "b c h w"],
    teacher: Float[Tensor, "b c i j"],
    *,
    temperature: float = 4.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Channel-wise distillation: the divergence of where each channel is strong, in nats.

    `T^2 mean_c sum_u p_t log(p_t / p_s)` per image, with `p = softmax(z[c] / T)` over the places of a channel. All places count,
    void or not. Logarithms are computed directly, so that no probability becomes 0.

    Args:
        student: logits, or features in the teacher's channels.
        teacher: the same; on another grid they are resized to the student's, bilinearly.
        temperature: `T`, above 0.
        reduction: `mean`, `sum` or `none`.

    Raises:
        UserError: shapes do not fit, or the temperature is not above 0.

    Source: Shu et al. 2021 (arXiv 2011.13256). Its code takes the logarithm of the softmax, which is minus
    infinity on large maps.
    """
    check_positive("cwd", temperature=temperature)
    ours, theirs = paired("cwd", student, teacher, "images, channels, height, width", alike=(0, 1))
    with without_autocast(ours):
        theirs = on_grid(theirs.to(ours), ours)
    ours, theirs = ((values.flatten(2) / temperature).log_softmax(2) for values in (ours, theirs))
    losses = functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(2).mean(1)
    return reduced(temperature**2 * losses, reduction)


def pairwise(
    student: Float[Tensor, "b c h w"],
    teacher: Float[Tensor, "b d i j"],
    *,
    pool: int = 2,
    reduction: Reduction = "mean",
) -> Tensor:
    """Pair-wise distillation: match the similarities between the places of an image.

    `mean_uv (A_s - A_t)_uv^2` per image, with `A_uv` the cosine of the features at the places u and v. The features are first
    reduced by a maximum over squares of `pool` × `pool` places. The numbers of channels may differ. If the grids differ, the
    smaller one is used. It needs the memory of a table `[places places]` per image.

    Args:
        student: features.
        teacher: features.
        pool: the side of the squares, at least 1.
        reduction: `mean`, `sum` or `none`.

    Raises:
        UserError: shapes do not fit, or `pool` is not above 0.

    Source: Liu et al. 2019 (SKDS, arXiv 1903.04197). Its code pools to 2×2 squares; the code of CIRKD pools squares
    of 2×2 places.
    """
    check_positive("pairwise", pool=pool)
    ours, theirs = on_one_grid(*grids("pairwise", student, teacher))
    with without_autocast(ours):
        ours, theirs = (affinities(largest(feature, pool)) for feature in (ours, theirs))
    return reduced((ours - theirs).square().mean((1, 2)), reduction)


def ifvd(
    student: Float[Tensor, "b c h w"],
    teacher: Float[Tensor, "b d i j"],
    targets: UInt8[Tensor, "b y x"],
    *,
    classes: int = VOID,
    reduction: Reduction = "mean",
) -> Tensor:
    """Intra-class feature variation distillation: match how similar each place is to the mean of its class.

    `mean_u (v_s - v_t)_u^2` per image, with `v_u = cos(F_u, m_c)`: `c` is the class of place u, and `m_c` is the mean of the
    features at the image's places of that class. Void places are left out of both means; an image without any other place
    gives 0. The numbers of channels may differ. If the grids differ, the smaller one is used. The class of a place is that of
    the pixel under its centre.

    Args:
        student: features.
        teacher: features.
        targets: the class at each pixel; 255 is void.
        classes: how many classes there are; fewer need less memory.
        reduction: `mean`, `sum` or `none`.

    Raises:
        UserError: shapes do not fit.

    Source: Wang et al. 2020 (IFVD, ECCV). In its code a void place is its own mean, so it counts as 0, and the
    loss shrinks with the share of void.
    """
    ours, theirs = on_one_grid(*grids("ifvd", student, teacher))
    check_masks("ifvd", targets, ours)
    own = nearest(targets, ours).flatten(1)
    with without_autocast(ours):
        apart = (own_similarity(ours, own, classes) - own_similarity(theirs, own, classes)).square()
    return reduced(per_image(apart, own != NONE), reduction)


def cross_image(
    student: Float[Tensor, "b c h w"],
    teacher: Float[Tensor, "b d i j"],
    *,
    temperature: float = 0.1,
    pool: int = 2,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-image relations: match how similar the places of an image are to those of each image of the batch.

    `mean_j mean_u KL(p_t[u] || p_s[u])` for image i, in nats, with `p[u] = softmax_v(cos(F_i[u], F_j[v]) / temperature)` over the
    places v of image j; i itself is one of the j. The features are first averaged over squares of `pool` × `pool` places. The
    numbers of channels may differ. If the grids differ, the smaller one is used. It needs the memory of a table of all places of
    the batch by all places of the batch.

    Args:
        student: features.
        teacher: features.
        temperature: above 0.
        pool: the side of the squares, at least 1.
        reduction: `mean`, `sum` or `none`.

    Raises:
        UserError: shapes do not fit, or an option is not above 0.

    Source: Yang et al. 2022 (CIRKD, arXiv 2204.06986), the term within a batch.
    """
    check_positive("cross_image", temperature=temperature, pool=pool)
    ours, theirs = on_one_grid(*grids("cross_image", student, teacher))
    with without_autocast(ours):
        ours, theirs = (across(averaged(feature, pool)) / temperature for feature in (ours, theirs))
        return reduced(softmax_divergence(ours, theirs).mean((1, 2)), reduction)


def check_masks(name: str, targets: Tensor, features: Tensor) -> None:
    """Raise a `UserError` unless there is one mask per image."""
    fits = isinstance(targets, torch.Tensor) and targets.dtype == torch.uint8 and targets.ndim == 3
    if not fits or len(targets) != len(features):
        given = (
            f"{targets.dtype} {list(targets.shape)}" if isinstance(targets, torch.Tensor) else type(targets).__name__
        )
        raise UserError(f"{name} needs one mask per image, torch.uint8 [{len(features)} h w]; given {given}")


def largest(feature: Float[Tensor, "b c h w"], pool: int) -> Float[Tensor, "b c i j"]:
    """The maximum over squares; those at the edge may be smaller."""
    return feature if pool == 1 else functional.max_pool2d(feature, pool, ceil_mode=True)


def averaged(feature: Float[Tensor, "b c h w"], pool: int) -> Float[Tensor, "b c i j"]:
    """The mean over squares; those at the edge may be smaller."""
    return feature if pool == 1 else functional.avg_pool2d(feature, pool, ceil_mode=True, count_include_pad=False)


def affinities(feature: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n n"]:
    """The cosines of the features at each pair of places of an image."""
    rows = directions(feature.flatten(2))
    return rows.transpose(1, 2) @ rows


def across(feature: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n b n"]:
    """The cosines of the features at each place of each image with those at each place of each image."""
    images, _, height, width = feature.shape
    rows = directions(feature.flatten(2)).transpose(1, 2).flatten(0, 1)
    return (rows @ rows.T).view(images, height * width, images, height * width)


def softmax_divergence(ours: Float[Tensor, "*rows n"], theirs: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
    """`KL(softmax(theirs) || softmax(ours))` over the last axis."""
    ours, theirs = ours.log_softmax(-1), theirs.log_softmax(-1)
    return functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)


def own_similarity(feature: Float[Tensor, "b c h w"], own: Int[Tensor, "b n"], classes: int) -> Float[Tensor, "b n"]:
    """The cosine of the feature at each place with the mean of its class; 0 at places without a class."""
    feature = feature.flatten(2)
    means = directions(class_means(feature, own, classes))
    chosen = own.clamp_min(0)[:, None].expand(-1, feature.shape[1], -1)
    return (directions(feature) * means.gather(2, chosen)).sum(1).where(own != NONE, 0)


def class_means(feature: Float[Tensor, "b c n"], own: Int[Tensor, "b n"], classes: int) -> Float[Tensor, "b c classes"]:
    """The mean of an image's features over the places of each class; 0 for a class that is not there."""
    there = (own[:, :, None] == torch.arange(classes, device=own.device)).to(feature.dtype)
    return feature @ there / there.sum(1, keepdim=True).clamp_min(1)
