"""The images that an explainer compares with: training images, drawn once for a data set."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from distilens import draws
from distilens.data.subset import Data


def reference_images(data: Data, count: int = 128) -> Float[Tensor, "n c h w"]:
    """Some training images, pixels in [0, 1]: the same ones for every model, explainer and run on this data set."""
    order = torch.randperm(len(data.train), generator=draws.generator("reference images", 0))
    return data.train.pixels(order[:count].sort().values.numpy())[0]
