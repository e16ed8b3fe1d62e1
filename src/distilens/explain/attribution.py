"""`attribute`: maps of any module's predictions in one call."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from distilens.data.pictures import as_images
from distilens.explain import Explainer, build_explainer, in_chunks
from distilens.explain.explanation import Aim, Target
from distilens.foundation.errors import UserError, nearest
from distilens.foundation.notation import Spec
from distilens.models.model import Model
from distilens.models.objects import as_model


def attribute(
    model: Any,
    images: Any,
    explainer: str | Spec | Explainer = "gradcam",
    target: int | str | Target = None,
    *,
    size: tuple[int, int] | None = None,
    chunk: int = 64,
) -> Float[Tensor, "b h w"]:
    """Maps of the evidence for a class in images, for any module and any explainer.

    Captum uses the same verb. `gallery` compares several explainers and measures whether their maps are true of the model.

    Args:
        model: a `Model`, or any `nn.Module` from images to logits; `as_model` describes the pixels that a bare module gets.
        images: what `Model.predict` takes: `[b 3 h w]` in [0, 1], Pillow images, paths, ... The `Model` normalises them for the
            module: do not normalise them yourself.
        explainer: a notation (`gradcam`, `ig:steps=64`, `gradcam:tap=layer3`) or an `Explainer`.
        target: the class to explain, by number or name; one for all images or one per image. By default each image's predicted
            class. A function of the outputs `[r k]` explains the number per image `[r]` that it returns.
        size: height and width of a bare module's input; by default those of the images.
        chunk: images per forward pass.

    Returns:
        One map per image, at the resolution of the explainer's tap (`gradcam`) or of the pixels (`ig`). `gradcam` maps are
        0 or more. Maps of signed explainers (`ig`) are positive where the image supports the class.

    Raises:
        UserError: the module, the images, the explainer or the class are not valid.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
        >>> attribute(network, torch.rand(4, 3, 16, 16), "ig:steps=8").shape
        torch.Size([4, 16, 16])
    """
    pixels = as_images(images)
    sides = (int(pixels.shape[-2]), int(pixels.shape[-1]))
    device = next((weight.device for weight in model.parameters()), None) if hasattr(model, "parameters") else None
    made = as_model(model, size=size or sides)
    if device is not None and made is not model:
        made = made.to(device)
    return in_chunks(build_explainer(explainer), made, pixels, numbers_of(target, made, len(pixels)), chunk=chunk).maps


def numbers_of(target: int | str | Target, model: Model, count: int) -> Aim | None:
    """The target classes as numbers, one per image; None stands for the predicted classes. A function stays.

    Raises:
        UserError: the model has no such class.
    """
    if target is None or (callable(target) and not isinstance(target, Tensor)):
        return target
    if isinstance(target, str):
        if target not in model.classes:
            raise UserError(f"{model.name} has no class {target!r}.{nearest(target, list(model.classes))}")
        target = model.classes.index(target)
    numbers = torch.as_tensor(target)
    return numbers.expand(count) if numbers.ndim == 0 else numbers
