"""Losses of maps: compare where the student looks with where the teacher looks."""

from __future__ import annotations

from typing import Literal, get_args

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from distilens.explain.maps import empty
from distilens.foundation.errors import UserError, nearest
from distilens.losses.checks import Reduction, check_positive, paired, reduced
from distilens.models.grids import on_one_grid

Distance = Literal["cosine", "at", "kl", "l2"]


def map_match(
    student: Float[Tensor, "b *classes h w"],
    teacher: Float[Tensor, "b *classes i j"],
    *,
    distance: Distance = "cosine",
    temperature: float = 0.1,
    pool: int | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """The distance of the student's maps from the teacher's.

    Both are first resized to the smaller grid. The distances per image, with `u = m / |m|`:

    * `cosine`: `1 - <u_s, u_t>`, from 0 to 2; independent of the maps' scale.
    * `at`: the mean over places of `(u_s - u_t)^2`.
    * `kl`: `KL(p_t || p_s)` with `p = softmax(m / |m| / temperature)` over places, in nats.
    * `l2`: the mean over places of `(m_s - m_t)^2`.

    The distance is 0 if one of the two maps is empty (0 everywhere). With a map per class, `[b classes h w]`, an image's distance
    is the mean over its classes.

    Args:
        student: maps that have a gradient, such as `explainer.from_output(output, target)`.
        teacher: maps.
        distance: see above.
        temperature: the temperature of `kl`, above 0.
        pool: first average both maps to this number of cells per side.
        reduction: `mean`, `sum` or `none`.

    Raises:
        UserError: shapes do not fit, the distance is unknown, or the temperature is not above 0.

    Source: Parchami-Araghi et al. 2024 (e2KD, arXiv 2402.03119), equation 2, for `cosine`; the others: see the method.
    """
    check_positive("map_match", temperature=temperature, **({} if pool is None else {"pool": pool}))
    if distance not in get_args(Distance):
        known = get_args(Distance)
        raise UserError(f"unknown distance {distance!r}.{nearest(distance, known)} Known: {', '.join(known)}")
    of_classes = isinstance(student, Tensor) and student.ndim == 4
    shape, alike = ("images, classes, height, width", (0, 1)) if of_classes else ("images, height, width", (0,))
    ours, theirs = on_one_grid(*paired("map_match", student, teacher, shape, alike=alike), pool)
    losses = apart(ours, theirs, distance, temperature)
    return reduced(losses.mean(1) if of_classes else losses, reduction)


def apart(
    ours: Float[Tensor, "*b h w"], theirs: Float[Tensor, "*b h w"], kind: Distance, temperature: float = 0.1
) -> Float[Tensor, "*b"]:
    """`distance`, but 0 if one of the two maps is empty."""
    return distance(ours, theirs, kind, temperature).where(both_say(ours, theirs), 0)


def both_say(ours: Float[Tensor, "*b h w"], theirs: Float[Tensor, "*b h w"]) -> Bool[Tensor, "*b"]:
    """True for pairs of maps that can be compared: both have a value other than 0."""
    return ~(empty(ours.detach()) | empty(theirs))


def distance(
    ours: Float[Tensor, "*b h w"], theirs: Float[Tensor, "*b h w"], kind: Distance, temperature: float = 0.1
) -> Float[Tensor, "*b"]:
    """The distance of two maps, one number per map; see `map_match`. An empty map has no direction: its unit map is 0."""
    ours, theirs = ours.flatten(-2), theirs.flatten(-2)
    if kind == "l2":
        return (ours - theirs).square().mean(-1)
    ours, theirs = unit(ours), unit(theirs)
    if kind == "cosine":
        return 1 - (ours * theirs).sum(-1)
    if kind == "at":
        return (ours - theirs).square().mean(-1)
    ours, theirs = (functional.log_softmax(maps / temperature, -1) for maps in (ours, theirs))
    return functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)


def unit(maps: Float[Tensor, "*b p"]) -> Float[Tensor, "*b p"]:
    """Maps scaled to length 1. The largest value is scaled to 1 first, so that no square underflows."""
    largest = maps.detach().abs().amax(-1, keepdim=True)
    return functional.normalize(maps / largest.where(largest > 0, 1), dim=-1)
