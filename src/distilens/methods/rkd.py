"""Distances and angles between images, as the teacher has them."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize, smooth_l1_loss

from distilens.methods.relational import Relational

Factor = Annotated[float, Field(ge=0)]
CLOSE = 1e-6
"""Features that are nearer than this have no direction from one to the other."""


class RKD(Relational):
    """Match distances between the images of a batch, and angles between three of them: relational distillation.

    `distance mean_j H(d_s_ij - d_t_ij) + angle mean_jk H(a_s_ijk - a_t_ijk)`, `d` Euclidean distances over their mean, `a` the
    cosine of the angle at image i, `H` the Huber loss; of pooled features. The mean over the batch is the paper's.

    Args:
        distance: the factor of distances; RepDistiller takes 25.
        angle: the factor of angles; RepDistiller takes 50.
        tap: where the features are read.
        teacher_tap: the teacher's, where it is called otherwise.

    Source: Park et al. 2019 (arXiv 1904.05068), equations 5 and 8.
    """

    def __init__(
        self, *, distance: Factor = 25.0, angle: Factor = 50.0, tap: str = "last", teacher_tap: str | None = None
    ):
        super().__init__(tap=tap, teacher_tap=teacher_tap)
        self.distance, self.angle = distance, angle

    def apart(self, ours: Float[Tensor, "b d"], theirs: Float[Tensor, "b e"]) -> Float[Tensor, " b"]:
        far = smooth_l1_loss(distances(ours), distances(theirs), reduction="none").mean(1)
        turned = smooth_l1_loss(angles(ours), angles(theirs), reduction="none").mean((1, 2))
        return self.distance * far + self.angle * turned


def distances(features: Float[Tensor, "b d"]) -> Float[Tensor, "b b"]:
    """Between all images, over their mean; equal ones have no gradient."""
    found = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    others = found > 0  # summed, not picked out: how many there are is known on the device alone
    mean = (found * others).sum() / others.sum().clamp_min(1)
    return found / mean.where(mean > 0, 1)


def angles(features: Float[Tensor, "b d"]) -> Float[Tensor, "b b b"]:
    """The cosine at image i between the directions to images j and k; 0, without a gradient, where one of them is where i is."""
    apart = features[None] - features[:, None]
    there = (apart.detach().norm(dim=2, keepdim=True) > CLOSE).to(apart.dtype)
    directions = normalize(apart * there, dim=2, eps=CLOSE)
    return directions @ directions.transpose(1, 2)
