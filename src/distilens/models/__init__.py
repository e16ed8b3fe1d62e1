"""The models by name: our own small networks and adapters for other libraries; how a model is built."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from distilens.foundation.errors import UserError
from distilens.foundation.notation import Registry, Spec
from distilens.tasks import Classification, Segmentation, Task, as_task, with_classes

if TYPE_CHECKING:
    from distilens.models.adapters import Expecting
    from distilens.models.model import Model


Level = Annotated[float, Field(ge=0, le=1)]
Spread = Annotated[float, Field(gt=0)]


def pixels(
    *,
    size: Annotated[int, Field(gt=0)] | tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] | None = None,
    mean: tuple[Level, Level, Level] | None = None,
    std: tuple[Spread, Spread, Spread] | None = None,
) -> None:
    """Options of every model: input size (a side, or height and width), mean and deviation of its pixels (in [0, 1]).

    By default a pretrained model has its own, and any other takes the data's size and (0.5, 0.25).
    """


def zoo_entries() -> dict[str, str | tuple[str, dict[str, Any]]]:
    """The entries of the registry, under the names used in papers."""
    entries: dict[str, str | tuple[str, dict[str, Any]]] = {"resnet": "distilens.models.zoo.resnet:resnet"}
    for depth in (8, 14, 20, 32, 44, 56, 110):
        entries[f"resnet{depth}"] = ("distilens.models.zoo.resnet:resnet", {"depth": depth, "width": 1})
    for depth in (8, 32):
        entries[f"resnet{depth}x4"] = ("distilens.models.zoo.resnet:resnet", {"depth": depth, "width": 4})
    entries["wrn"] = "distilens.models.zoo.wrn:wrn"
    for depth, width in ((16, 1), (16, 2), (40, 1), (40, 2), (28, 10)):
        entries[f"wrn-{depth}-{width}"] = ("distilens.models.zoo.wrn:wrn", {"depth": depth, "width": width})
    for depth in (8, 11, 13, 16, 19):
        entries[f"vgg{depth}"] = ("distilens.models.zoo.vgg:vgg", {"depth": depth})
    entries["mobilenetv2"] = "distilens.models.zoo.mobilenetv2:mobilenetv2"
    entries["shrink"] = "distilens.models.zoo.shrink:shrink"
    entries["unet"] = "distilens.models.zoo.unet:unet"
    for adapter in ("timm", "torchvision", "hf", "file", "python", "run"):
        entries[adapter] = f"distilens.models.adapters:{adapter}"
    entries["smp"] = "distilens.models.dense:smp"
    return entries


DENSE = ("unet", "smp")
"""Networks that always give a class for each place of an image."""

OTHERS = re.compile(
    r"(?i)(resne[xs]?t|wide_resnet|vgg|mobilenet|efficientnet|vit|deit|convnext|swin|densenet|regnet|shufflenet|mnasnet|inception)"
)
"""How the names of networks in timm and torchvision begin."""


def hint_other_libraries(name: str) -> str:
    """A hint for names that look like networks of timm or torchvision."""
    if not OTHERS.match(name):
        return ""
    return f" If it is a network of torchvision or timm: torchvision:{name}, timm:{name}."


MODELS = Registry("model", zoo_entries(), common=pixels, hint=hint_other_libraries)


def build_model(
    part: str | Mapping[str, Any] | Spec | Model, classes: Sequence[str] | Task, size: tuple[int, int]
) -> Model:
    """Build a model for the given classes, or another task, and image size, by notation. A `Model` is returned unchanged.

    If pretrained weights have classes of the same names, the logits are put in the order of `classes`, which may be a subset.

    Raises:
        UserError: the name or an option is unknown, or the weights do not fit.
    """
    from distilens.models.heads import keep_classes
    from distilens.models.model import Model
    from distilens.models.named import are_named, check_channels, classes_of_weights, list_names, outputs_for
    from distilens.models.padding import fit_size

    if isinstance(part, Model):
        return part
    task = as_task(classes)
    spec = MODELS.resolve(part)
    own = classes_of_weights(spec, dense=task.dense)
    positions = outputs_for(task.classes, own, spec.options["classes"] if spec.name == "file" else None)
    made = build_network(part, len(own) if own and positions else task.outputs, dense=task.dense)
    if isinstance(made, Model):  # `run:` gives a complete model
        return reorder_classes(made, task)
    sides = made.size or size
    kinds = sorted(
        {str(parameter.dtype).removeprefix("torch.") for parameter in made.network.parameters()} - {"float32"}
    )
    model = Model(
        made.network.float(),
        with_classes(task, own) if own and positions else task,
        size=(sides, sides) if isinstance(sides, int) else sides,
        mean=made.mean,
        std=made.std,
        name=str(Spec.parse(part)),
        interpolation=made.interpolation,
    )
    model.loaded, model.missing, model.notes, model.matched = made.loaded, made.missing, made.notes, made.matched
    if kinds:
        model.notes += (
            f"its weights are {', '.join(kinds)}: it computes in float32, or in the precision of the training",
        )
    fill_lazy(model)
    check_channels(model)
    fit_size(model, made.multiple)
    if positions and own:
        keep_classes(model, positions, task.classes)
        chosen = [f"{name}: {number}" for name, number in zip(task.classes, positions, strict=True)]
        model.notes += (f"of its {len(own)} outputs it answers with {list_names(chosen)}",) * (len(own) > len(chosen))
    elif made.loaded and not made.missing:
        model.answers_for = own
        names = f"its head answers for {list_names(own)}" if own and are_named(own) else "its classes have no names"
        model.notes += (f"{names}: its logits are taken in the order of the data's classes",)
    return model


def fill_lazy(model: Model) -> None:
    """Run one forward pass if the network has lazy layers, which take their sizes from the first input."""
    import torch
    from torch.nn.parameter import is_lazy

    from distilens.models.taps import evaluating

    if any(is_lazy(parameter) for parameter in model.network.parameters()):
        with evaluating(model), torch.no_grad():
            model.logits(model.example())


def reorder_classes(model: Model, task: Task) -> Model:
    """Put a model's classes in the data's order, if it has them by name; otherwise return it unchanged."""
    from distilens.models.heads import keep_classes
    from distilens.models.named import positions_of

    positions = positions_of(task.classes, model.classes)
    if positions and model.classes != task.classes:
        keep_classes(model, positions, task.classes)
    return model


def build_network(part: str | Mapping[str, Any] | Spec, classes: int, *, dense: bool = False) -> Expecting | Model:
    """Build a network with the pixels that it expects, both from the notation; or the complete model of a run.

    Args:
        dense: whether it must give the classes for each place of an image. The names of some libraries stand for both kinds.

    Raises:
        UserError: the name stands for networks of the other kind only.
    """
    from distilens.models.adapters import Expecting
    from distilens.models.model import Model

    spec = MODELS.resolve(part)
    if spec.name in DENSE and not dense:
        raise UserError(
            f"{spec.name} gives a class for each place of an image, but here each image has one: take a classifier, such as "
            "resnet20, or data with a mask per image"
        )
    made = MODELS.build(spec, *context_of(spec.name, classes, dense))
    if isinstance(made, Model):
        return made
    if not isinstance(made, Expecting):
        made = Expecting(made)
    expected = {name: spec.options[name] for name in ("size", "mean", "std") if spec.options[name]}
    return replace(made, **expected)


def context_of(name: str, classes: int, dense: bool) -> tuple[int] | tuple[int, bool]:
    """What the function of a network is called with: the number of classes, and `dense` if it has such a parameter."""
    parameters = inspect.signature(MODELS.entry(name).constructor).parameters
    return (classes, dense) if "dense" in parameters else (classes,)


def check_classes(model: Model, asked: Sequence[str] | Task, role: str) -> None:
    """Raise a `UserError` if a model does not answer for the data's classes in their order, or for the data's task."""
    task = as_task(asked)
    if model.task.dense != task.dense:
        needed = "one answer per image: take a classifier, such as resnet20"
        needed = "a class for each place: take a network for segmentation, such as unet" if task.dense else needed
        raise UserError(
            f"the {role} {model.name} was made for {model.task.name}, but the data ask for {task.name}, which needs {needed}"
        )
    named = isinstance(task, Classification | Segmentation)  # whose classes are compared below
    same = type(model.task) is type(task) if named else model.task == task
    if not same:
        raise UserError(
            f"the {role} {model.name} answers for {model.task.summary}, but the data ask for {task.summary}"
        )
    if len(model.classes) != len(task.classes):
        raise UserError(
            f"the {role} {model.name} knows {len(model.classes)} classes, the data has {len(task.classes)}. "
            f"Give it a new head and train it: {role}.finetune=all (or head)"
        )
    if model.classes != task.classes and sorted(model.classes) == sorted(task.classes):
        raise UserError(f"the {role} {model.name} has the data's classes in another order: {', '.join(model.classes)}")
    with model.probing():
        problem = task.check_outputs(model.probe())
    if problem:
        raise UserError(f"the {role} {model.name} gives {problem}")
