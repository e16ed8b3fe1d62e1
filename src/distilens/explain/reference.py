"""Reference images, which some explainers compare with: a fixed random sample of the training images."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from distilens.data.splits import Data
from distilens.foundation import randomness


def reference_images(data: Data, count: int = 128) -> Float[Tensor, "n c h w"]:
    """`count` training images, pixels in [0, 1]: the same for every model, explainer and run on this data set."""
    order = torch.randperm(len(data.train), generator=randomness.generator("reference images", 0))
    return data.train.pixels(order[:count].sort().values.numpy())[0]
