"""`attribute`: maps of any module's predictions in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from distilens.data.pictures import as_images
from distilens.explain import Explainer, build_explainer, in_chunks
from distilens.explain.aims import Wanted, aim_of, class_number, class_numbers, masked_aim
from distilens.explain.explanation import Aim, Target
from distilens.foundation.errors import UserError
from distilens.foundation.notation import Spec
from distilens.models.model import Model
from distilens.models.objects import as_model
from distilens.models.taps import evaluating


def attribute(
    model: Any,
    images: Any,
    explainer: str | Spec | Explainer = "gradcam",
    target: int | str | Sequence[str] | Target = None,
    *,
    classes: int | str | Sequence[int | str] | Tensor | None = None,
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
            In a segmentation a class stands for the places where the model predicts it, and None for the class with most places.
            `"box:x0,y0,x1,y1"` and `"point:x,y"` explain the largest predicted class there. Integers `[b h w]` (the class at
            the places to explain, -1 elsewhere), or booleans `[b h w]` with `classes`, name the places. They are fixed: an
            explainer that changes the image does not change them. An image without such a place gets a map of zeros.
        classes: the class at the places of a mask of booleans, by number or name; one for all images or one per image.
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
    aim = aim_from(target, classes, made, pixels, chunk)
    return in_chunks(build_explainer(explainer), made, pixels, aim, chunk=chunk).maps


def aim_from(
    target: int | str | Sequence[str] | Target, classes: Any, model: Model, images: Tensor, chunk: int
) -> Aim | None:
    """What to explain: a class per image, the places of a dense task, a function, or None for the task's own choice.

    Raises:
        UserError: the model has no such class, or a mask and its classes do not fit.
    """
    names, count = list(map(str, model.classes)), len(images)
    if isinstance(target, np.ndarray):
        target = torch.from_numpy(target)
    mask = target if isinstance(target, Tensor) and target.dtype == torch.bool else None
    if (mask is None) != (classes is None):
        raise UserError(
            "a mask of booleans needs the class that is explained at its places: classes=NAME or a number"
            if mask is not None
            else "classes= is for a mask of booleans [b h w]; otherwise the target itself names the class"
        )
    if mask is not None:
        if not model.task.dense or mask.ndim != 3 or len(mask) != count:
            raise UserError(
                f"a mask needs a model that answers for each place, and one mask [h w] per image: {count} images, a mask of "
                f"shape {list(mask.shape)}, the task {model.task.name}"
            )
        return masked_aim(mask, class_numbers(classes, names, count))
    if target is None or (callable(target) and not isinstance(target, Tensor)):
        return target
    if isinstance(target, str) and target not in names and ":" in target:
        wanted = Wanted.read(target)
        if wanted.kind != "class":
            return predicted_aim(wanted, model, images, chunk)
        target = class_number(wanted.name, names)
    return class_numbers(target, names, count)


def predicted_aim(wanted: Wanted, model: Model, images: Tensor, chunk: int) -> Aim:
    """The aim of a box or a point, from the model's answers for the untouched images; on the CPU."""
    size = (int(images.shape[-2]), int(images.shape[-1]))
    with evaluating(model), torch.no_grad():
        return torch.cat(
            [
                aim_of(wanted, model.logits(part.to(model.device)), size, model.task).cpu()
                for part in images.split(chunk)
            ]
        )
