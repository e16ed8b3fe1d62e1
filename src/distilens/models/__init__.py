"""The models, by name: small networks of our own, adapters for others', and how one is built, saved and loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from distilens.errors import UserError
from distilens.specs import Registry, Spec

if TYPE_CHECKING:
    from distilens.core import Model
    from distilens.models.adapters import Expecting


Level = Annotated[float, Field(ge=0, le=1)]
Spread = Annotated[float, Field(gt=0)]


def pixels(
    *,
    size: Annotated[int, Field(gt=0)] | tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] | None = None,
    mean: tuple[Level, Level, Level] | None = None,
    std: tuple[Spread, Spread, Spread] | None = None,
) -> None:
    """What every model takes: the input size (a side, or height and width), mean and deviation of its pixels (in [0, 1]).

    By default a pretrained model brings its own, and any other takes the data's size and (0.5, 0.25).
    """


def zoo() -> dict[str, str | tuple[str, dict[str, Any]]]:
    """The entries of the registry, with the names that papers use."""
    entries: dict[str, str | tuple[str, dict[str, Any]]] = {"resnet": "distilens.models.resnet:resnet"}
    for depth in (8, 14, 20, 32, 44, 56, 110):
        entries[f"resnet{depth}"] = ("distilens.models.resnet:resnet", {"depth": depth, "width": 1})
    for depth in (8, 32):
        entries[f"resnet{depth}x4"] = ("distilens.models.resnet:resnet", {"depth": depth, "width": 4})
    entries["wrn"] = "distilens.models.wrn:wrn"
    for depth, width in ((16, 1), (16, 2), (40, 1), (40, 2), (28, 10)):
        entries[f"wrn-{depth}-{width}"] = ("distilens.models.wrn:wrn", {"depth": depth, "width": width})
    for depth in (8, 11, 13, 16, 19):
        entries[f"vgg{depth}"] = ("distilens.models.vgg:vgg", {"depth": depth})
    entries["mobilenetv2"] = "distilens.models.mobilenetv2:mobilenetv2"
    entries["shrink"] = "distilens.models.shrink:shrink"
    for adapter in ("timm", "torchvision", "hf", "file", "python", "run"):
        entries[adapter] = f"distilens.models.adapters:{adapter}"
    return entries


OTHERS = re.compile(
    r"(?i)(resne[xs]?t|wide_resnet|vgg|mobilenet|efficientnet|vit|deit|convnext|swin|densenet|regnet|shufflenet|mnasnet|inception)"
)
"""How names of networks of timm and torchvision begin."""


def of_others(name: str) -> str:
    """Where a network is that is called as those of other libraries are."""
    if not OTHERS.match(name):
        return ""
    return f" If it is a network of torchvision or timm: torchvision:{name}, timm:{name}."


MODELS = Registry("model", zoo(), common=pixels, hint=of_others)


def build_model(part: str | Mapping[str, Any] | Spec | Model, classes: Sequence[str], size: tuple[int, int]) -> Model:
    """A model for some classes and images of some size, by notation. A `Model` is taken as it is.

    Weights that answer for classes of the same names give their logits in the order of `classes`, which may be some of theirs.

    Raises:
        UserError: an unknown name or option, or weights that do not fit.
    """
    from distilens.core import Model
    from distilens.models.heads import keep_classes
    from distilens.models.named import are_named, check_channels, own_classes, positions_of, shown

    if isinstance(part, Model):
        return part
    own = own_classes(MODELS.resolve(part))
    positions = positions_of(classes, own) if own and are_named(own) else None
    made = build_network(part, len(own) if own and positions else len(classes))
    if isinstance(made, Model):  # `run:` brings all that a model needs
        return in_order(made, classes)
    sides = made.size or size
    kinds = sorted({str(each.dtype).removeprefix("torch.") for each in made.network.parameters()} - {"float32"})
    model = Model(
        made.network.float(),
        own if own and positions else tuple(classes),
        size=(sides, sides) if isinstance(sides, int) else sides,
        mean=made.mean,
        std=made.std,
        name=str(Spec.parse(part)),
        interpolation=made.interpolation,
    )
    model.loaded, model.missing, model.notes = made.loaded, made.missing, made.notes
    if kinds:
        model.notes += (
            f"its weights are {', '.join(kinds)}: it computes in float32, or as the training's precision says",
        )
    fill_lazy(model)
    check_channels(model)
    if positions and own:
        keep_classes(model, positions, classes)
    elif made.loaded and not made.missing:
        model.answers_for = own
        names = f"its head answers for {shown(own)}" if own and are_named(own) else "its classes have no names"
        model.notes += (f"{names}: its logits are taken in the order of the data's classes",)
    return model


def fill_lazy(model: Model) -> None:
    """Run a forward where a network has layers that take their sizes from the first one."""
    import torch
    from torch.nn.parameter import is_lazy

    from distilens.taps import evaluating

    if any(is_lazy(parameter) for parameter in model.network.parameters()):
        with evaluating(model), torch.no_grad():
            model.logits(model.example())


def in_order(model: Model, classes: Sequence[str]) -> Model:
    """A model with the data's classes, where it has them by name; as it is, where it has not."""
    from distilens.models.heads import keep_classes
    from distilens.models.named import positions_of

    positions = positions_of(classes, model.classes)
    if positions and model.classes != tuple(classes):
        keep_classes(model, positions, classes)
    return model


def build_network(part: str | Mapping[str, Any] | Spec, classes: int) -> Expecting | Model:
    """A network and the pixels that it expects, with what the notation says of them; or the whole model of a run."""
    from distilens.core import Model
    from distilens.models.adapters import Expecting

    spec = MODELS.resolve(part)
    made = MODELS.build(spec, classes)
    if isinstance(made, Model):
        return made
    if not isinstance(made, Expecting):
        made = Expecting(made)
    wanted = {name: spec.options[name] for name in ("size", "mean", "std") if spec.options[name]}
    return replace(made, **wanted)


def check_classes(model: Model, classes: Sequence[str], role: str) -> None:
    """Raise a `UserError` where a model does not answer for the data's classes, in their order."""
    if len(model.classes) != len(classes):
        raise UserError(
            f"the {role} {model.name} knows {len(model.classes)} classes, the data has {len(classes)}. "
            f"Give it a new head and train it: {role}.finetune=all (or head)"
        )
    if tuple(model.classes) != tuple(classes) and sorted(model.classes) == sorted(classes):
        raise UserError(f"the {role} {model.name} has the data's classes in another order: {', '.join(model.classes)}")
    with model.probing():
        shape = list(model.probe().shape)
    if len(shape) != 2:
        raise UserError(
            f"the {role} {model.name} gives logits of the shape {shape} for one image: wanted is one answer an image, [b classes]"
        )
    width = shape[1]
    if width != len(classes):
        raise UserError(f"the {role} {model.name} gives {width} logits, and the data has {len(classes)} classes")
