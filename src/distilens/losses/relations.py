"""Losses of relations between the images of a batch. The features of student and teacher may have different shapes."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize, smooth_l1_loss

from distilens.explain.activation import full
from distilens.foundation.errors import UserError
from distilens.losses.checks import Reduction, check_positive, check_tensor, paired, reduced, without_autocast

CLOSE = 1e-6
"""Features with a smaller distance have no direction from one to the other."""
SMALL = 1e-7


def sp(student: Float[Tensor, "b ..."], teacher: Float[Tensor, "b ..."], *, reduction: Reduction = "mean") -> Tensor:
    """Similarity-preserving distillation: match the similarities between images.

    `sum_j (G_s - G_t)_ij^2 / b`, with `G` the products `f fᵀ` of the images' features, with rows of length 1.

    Args:
        student: features; all places and channels count.
        teacher: features.
        reduction: `mean`, `sum` or `none`.

    Raises:
        UserError: shapes do not fit.

    Source: Tung and Mori 2019 (arXiv 1907.09682), equation 4; weight 3000.
    """
    ours, theirs = (feature.flatten(1) for feature in features("sp", student, teacher))
    with without_autocast(ours):
        ours, theirs = (normalize(rows @ rows.T, dim=1) for rows in (ours, theirs))
        return reduced((ours - theirs).square().mean(1), reduction)


def rkd(
    student: Float[Tensor, "b ..."],
    teacher: Float[Tensor, "b ..."],
    *,
    distance: float = 25.0,
    angle: float = 50.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Relational distillation: match the distances between two images and the angles between three.

    `distance mean_j H(d_s_ij - d_t_ij) + angle mean_jk H(a_s_ijk - a_t_ijk)`, with `d` Euclidean distances divided by their mean,
    `a` the cosine of the angle at image i, and `H` the Huber loss. Features are pooled over places.

    Args:
        student: features `[b d]`, or `[b c h w]`.
        teacher: features, likewise.
        distance: the factor of distances.
        angle: the factor of angles.
        reduction: `mean`, `sum` or `none`.

    Raises:
        UserError: shapes do not fit.

    Source: Park et al. 2019 (arXiv 1904.05068), equations 5 and 8.
    """
    ours, theirs = (pooled(feature) for feature in features("rkd", student, teacher))
    with without_autocast(ours):
        far = smooth_l1_loss(distances(ours), distances(theirs), reduction="none").mean(1)
        turned = smooth_l1_loss(angles(ours), angles(theirs), reduction="none").mean((1, 2))
        return reduced(distance * far + angle * turned, reduction)


def pkt(student: Float[Tensor, "b ..."], teacher: Float[Tensor, "b ..."], *, reduction: Reduction = "mean") -> Tensor:
    """Probabilistic knowledge transfer: match the neighbour distributions of the images.

    `mean_j p_t_ij log(p_t_ij / p_s_ij)`, with `p_ij = k_ij / sum_j k_ij` and the cosine kernel `k = (cos(f_i, f_j) + 1) / 2`.
    Features are pooled over places.

    Args:
        student: features `[b d]`, or `[b c h w]`.
        teacher: features, likewise.
        reduction: `mean`, `sum` or `none`.

    Raises:
        UserError: shapes do not fit.

    Source: Passalis and Tefas 2018 (arXiv 1803.10837), equations 3 and 7; weight 30,000 in RepDistiller.
    """
    ours, theirs = (pooled(feature) for feature in features("pkt", student, teacher))
    with without_autocast(ours):
        ours, theirs = neighbours(ours), neighbours(theirs)
        return reduced((theirs * ((theirs + SMALL) / (ours + SMALL)).log()).mean(1), reduction)


def crd(
    student: Float[Tensor, "b d"],
    teacher: Float[Tensor, "b d"],
    others: Float[Tensor, "k d"],
    *,
    negative: Bool[Tensor, "b k"] | None = None,
    images: int | None = None,
    temperature: float = 0.07,
    reduction: Reduction = "mean",
) -> Tensor:
    """Contrastive distillation: contrast the student's embedding with the teacher's of the same and of other images.

    `-log h / (h + k/n) - sum_negatives log (k/n) / (h + k/n)` with `k` negatives and `h = exp(u . m / tau) / Z`. `u` is an
    embedding of the student and `m` one of the teacher, both of length 1. `Z` is `n` times the mean of this batch. The method
    `crd` keeps `Z` of its first batch, takes the other images from a memory, and adds the same loss with the roles exchanged.

    Args:
        student: embeddings of the same width as the teacher's, such as from `nn.Linear(channels, 128)`.
        teacher: embeddings of the same images.
        others: the teacher's embeddings of other images.
        negative: which of the others are negatives of which image; by default all.
        images: `n`, the number of training images; by default the number of others.
        temperature: `tau`, above 0.
        reduction: `mean`, `sum` or `none`.

    Raises:
        UserError: shapes do not fit, or the temperature is not above 0.

    Source: Tian et al. 2020 (arXiv 1910.10699), equations 17 and 18; weight 0.8.
    """
    check_positive("crd", temperature=temperature, **({} if images is None else {"images": images}))
    ours, theirs = paired("crd", student, teacher, "images, width", alike=(0, 1))
    check_tensor("crd", "teacher", others)
    if others.ndim != 2 or others.shape[1] != ours.shape[1]:
        raise UserError(f"crd needs others [number, {ours.shape[1]}], as wide as the rest; given {list(others.shape)}")
    wanted = (len(ours), len(others))
    if negative is not None and negative.shape != wanted:
        raise UserError(f"crd needs negative {list(wanted)} [images, others]; given {list(negative.shape)}")
    chosen = torch.ones(wanted, dtype=torch.bool, device=ours.device) if negative is None else negative
    ours, theirs, far = (normalize(rows, dim=1) for rows in (ours, theirs, full(others.detach())))
    with without_autocast(ours):
        near, far = likenesses(ours, theirs, far, temperature)
        n = images or len(others)
        partition = n * ((near.sum() + (far * chosen).sum()) / (len(near) + chosen.sum())).detach()
        return reduced(contrasted(near / partition, far / partition, chosen, n), reduction)


def features(name: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The features of both, checked: the same images, `[b d]` or with places."""
    for whose, feature in (("student", student), ("teacher", teacher)):
        check_tensor(name, whose, feature)
        if feature.ndim < 2:
            raise UserError(f"{name} needs features [images, ...]; the {whose}'s is {list(feature.shape)}")
    if len(student) != len(teacher):
        raise UserError(
            f"{name} needs features of the same images; given {len(student)} of the student and {len(teacher)} of the teacher"
        )
    return full(student), full(teacher.detach())


def pooled(feature: Float[Tensor, "b d *places"]) -> Float[Tensor, "b d"]:
    """The mean over places, if there are any."""
    return feature.flatten(2).mean(2) if feature.ndim > 2 else feature


def neighbours(features: Float[Tensor, "b d"]) -> Float[Tensor, "b b"]:
    """The probability of each image to choose each other one as its neighbour."""
    directions = normalize(features, dim=1, eps=1e-7)
    kernel = (directions @ directions.T + 1) / 2
    return kernel / kernel.sum(1, keepdim=True)


def distances(features: Float[Tensor, "b d"]) -> Float[Tensor, "b b"]:
    """The distances between all images, divided by their mean. The distance of equal features has no gradient."""
    pairs = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    others = pairs > 0  # a weighted sum, not a selection: only the device knows how many there are
    mean = (pairs * others).sum() / others.sum().clamp_min(1)
    return pairs / mean.where(mean > 0, 1)


def angles(features: Float[Tensor, "b d"]) -> Float[Tensor, "b b b"]:
    """The cosine at image i between the directions to images j and k; 0, without a gradient, if j or k has i's feature."""
    differences = features[None] - features[:, None]
    distinct = (differences.detach().norm(dim=2, keepdim=True) > CLOSE).to(differences.dtype)
    directions = normalize(differences * distinct, dim=2, eps=CLOSE)
    return directions @ directions.transpose(1, 2)


def likenesses(
    said: Float[Tensor, "b d"], same: Float[Tensor, "b d"], others: Float[Tensor, "k d"], temperature: float
) -> tuple[Float[Tensor, " b"], Float[Tensor, "b k"]]:
    """`exp(u . m / tau)` of embeddings of length 1, for the same images and for other images."""
    near = ((said * same).sum(1) / temperature).exp()
    return near, (said @ others.T / temperature).exp()


def contrasted(
    near: Float[Tensor, " b"], far: Float[Tensor, "b k"], negative: Bool[Tensor, "b k"], images: int
) -> Float[Tensor, " b"]:
    """The noise-contrastive loss, from similarities divided by `Z`: see `crd`."""
    noise = negative.sum(1) / images
    missed = (noise[:, None] / (far + noise[:, None] + SMALL)).clamp_min(SMALL).log()
    return -(near / (near + noise + SMALL)).log() - (missed * negative).sum(1)
