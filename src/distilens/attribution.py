"""Explanations of any module's answers in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from distilens.core import Model
from distilens.errors import UserError, nearest
from distilens.explain import Explainer, build_explainer, in_chunks
from distilens.models.objects import as_model
from distilens.pictures import as_images
from distilens.specs import Spec


def attribute(
    model: Any,
    images: Any,
    explainer: str | Spec | Explainer = "gradcam",
    target: int | str | Sequence[int] | Tensor | None = None,
    *,
    size: tuple[int, int] | None = None,
    chunk: int = 64,
) -> Float[Tensor, "b h w"]:
    """Maps of what in the pictures speaks for a class, by any explainer, of any module.

    The verb is Captum's; `gallery` explains in several ways and says how far the maps can be believed.

    Args:
        model: a `Model`, or any `nn.Module` from images to logits: `as_model` says which pixels it is given.
        images: what `Model.predict` takes: `[b 3 h w]` in [0, 1], Pillow images, paths, ... A module that normalises nothing
            itself is given normalised pixels by its `Model`: do not normalise them before.
        explainer: a notation (`gradcam`, `ig:steps=64`, `gradcam:tap=layer3`) or an `Explainer`.
        target: the class that is explained, by number or name; one for all, or one for each picture; by default the predicted
            class of each.
        size: height and width that a bare module is given; by default those of the pictures.
        chunk: how many are explained at a time.

    Returns:
        A map for each picture, at the resolution of the explainer's tap (`gradcam`) or of the pixels (`ig`). `gradcam` maps are
        0 or more; those of signed explainers (`ig`) are positive where the picture speaks for the class.

    Raises:
        UserError: what is wrong with the module, the pictures, the explainer or the class.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
        >>> attribute(network, torch.rand(4, 3, 16, 16), "ig:steps=8").shape
        torch.Size([4, 16, 16])
    """
    pixels = as_images(images)
    sides = (int(pixels.shape[-2]), int(pixels.shape[-1]))
    device = next((each.device for each in model.parameters()), None) if hasattr(model, "parameters") else None
    made = as_model(model, size=size or sides)
    if device is not None and made is not model:
        made = made.to(device)
    return in_chunks(build_explainer(explainer), made, pixels, numbers_of(target, made, len(pixels)), chunk=chunk).maps


def numbers_of(target: int | str | Sequence[int] | Tensor | None, model: Model, count: int) -> Tensor | None:
    """The classes as numbers, one for each picture; None for the predicted ones.

    Raises:
        UserError: no such class.
    """
    if target is None:
        return None
    if isinstance(target, str):
        if target not in model.classes:
            raise UserError(f"{model.name} has no class {target!r}.{nearest(target, list(model.classes))}")
        target = model.classes.index(target)
    chosen = torch.as_tensor(target)
    return chosen.expand(count) if chosen.ndim == 0 else chosen
