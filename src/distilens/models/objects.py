"""Make a `Model` from Python objects: any module, also of timm, torchvision or transformers, or a pipeline."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from distilens.foundation.errors import UserError
from distilens.foundation.notation import Spec
from distilens.models import build_model
from distilens.models.adapters import settings_of_processor, unwrap_network
from distilens.models.model import Model, logits_of
from distilens.models.named import check_channels, positions_of
from distilens.models.padding import fit_size
from distilens.models.taps import evaluating
from distilens.tasks import Classification, Segmentation, Task

UNSAID = (
    "the module does not say how its pixels are normalised: mean 0.5, deviation 0.25 are used. If it was trained with others, "
    "wrap it: Model(network, classes, size=(height, width), mean=(...), std=(...))"
)


def as_model(given: Any, classes: Any = None, size: tuple[int, int] | None = None, *, name: str = "") -> Model:
    """Make a `Model` from a Python object.

    Args:
        given: a `Model` (returned unchanged), a notation, any `nn.Module` from images to logits, or a pipeline of transformers.
            Mean and deviation of the pixels come from `pretrained_cfg` (timm), an attribute `weights` (torchvision), or the
            image processor (transformers); else they are 0.5 and 0.25.
        classes: their names, another `Task`, or a `Data` with the task and the size; by default the names in the module's
            configuration, or numbers.
        size: height and width of the pictures. A module that takes only one size keeps it.
        name: of the model; by default the name of its class.

    Raises:
        UserError: the object cannot be made a model, or a notation comes without classes or size.
    """
    if isinstance(given, Model):
        return given
    if hasattr(classes, "task"):
        classes, size = classes.task, size or classes.size
    if isinstance(given, str | Mapping | Spec):
        if classes is None or size is None:
            raise UserError("a model by notation needs the classes and the size of the pictures: classes=, size=")
        return build_model(given, classes, size)
    processor = getattr(given, "image_processor", None)
    if not isinstance(given, nn.Module) and isinstance(getattr(given, "model", None), nn.Module):
        given = given.model  # a pipeline
    if not isinstance(given, nn.Module):
        called = f". Call it, and give what it returns: {getattr(given, '__name__', 'it')}()" if callable(given) else ""
        raise UserError(f"a model is a Model, a notation or a torch module; given a {type(given).__name__}{called}")
    network = unwrap_network(given, type(given).__name__)
    side = only_size(network) or size
    if side is None:
        raise UserError(
            f"the picture size of {type(network).__name__} is unknown: as_model(network, size=(height, width))"
        )
    pixels = pixels_of_network(network, processor)
    made = Model(network, classes or ("0",), size=side, name=name or type(network).__name__, **pixels)
    check_channels(made)
    fit_size(made)
    if classes is None:
        made.task = task_of_outputs(made)
    else:
        check_order(network, made)
    if not pixels:
        made.notes += (UNSAID,)
    return made


P = ParamSpec("P")
R = TypeVar("R")


def takes_modules(function: Callable[Concatenate[Model, P], R]) -> Callable[Concatenate[nn.Module, P], R]:
    """Let a function of a `Model` also take any `nn.Module`; its input size is that of the images in the call."""

    @functools.wraps(function)
    def wrapper(model: nn.Module, *arguments: P.args, **options: P.kwargs) -> R:
        if isinstance(model, Model):
            return function(model, *arguments, **options)
        given = [*arguments, *options.values()]
        images = next((value for value in given if isinstance(value, Tensor) and value.ndim == 4), None)
        made = as_model(model, size=None if images is None else (int(images.shape[2]), int(images.shape[3])))
        return function(made if images is None else made.to(images.device), *arguments, **options)

    return wrapper


def only_size(network: nn.Module) -> tuple[int, int] | None:
    """The fixed input size of a network (a ViT of timm, torchvision or transformers); None if it is not known."""
    about = getattr(network, "pretrained_cfg", None) or {}
    if about.get("fixed_input_size"):
        embedded = getattr(getattr(network, "patch_embed", None), "img_size", None)  # it may be built for another size
        height, width = embedded or about["input_size"][-2:]
        return int(height), int(width)
    size = getattr(network, "image_size", None) or getattr(getattr(network, "config", None), "image_size", None)
    if isinstance(size, int):
        return size, size
    return (int(size[0]), int(size[1])) if isinstance(size, list | tuple) and len(size) == 2 else None


def pixels_of_network(network: nn.Module, processor: Any = None) -> dict[str, Any]:
    """Mean and deviation of the pixels in a module's training, if it stores them; else an empty dictionary."""
    about = getattr(network, "pretrained_cfg", None) or {}
    if "mean" in about and "std" in about:
        return {"mean": tuple(about["mean"]), "std": tuple(about["std"])}
    preset = getattr(getattr(network, "weights", None), "transforms", None)
    if callable(preset):
        made: Any = preset()
        if hasattr(made, "mean") and hasattr(made, "std"):
            return {"mean": tuple(made.mean), "std": tuple(made.std)}
    processor = processor or getattr(network, "image_processor", None) or find_processor(network)
    if processor is None:
        return {}
    pixels = settings_of_processor(processor, None)
    return {name: pixels[name] for name in ("mean", "std")}


def find_processor(network: nn.Module) -> Any:
    """The image processor in the folder from which a network of transformers was loaded; None if there is none."""
    folder = getattr(getattr(network, "config", None), "_name_or_path", "")
    if not folder or not (Path(folder) / "preprocessor_config.json").is_file():
        return None
    from transformers import AutoImageProcessor

    with suppress(OSError, ValueError, ImportError):
        return AutoImageProcessor.from_pretrained(folder)
    return None


def check_order(network: nn.Module, model: Model) -> None:
    """Raise a `UserError` if a network of transformers has the model's classes in another order."""
    words = getattr(getattr(network, "config", None), "id2label", None) or {}
    own = [str(words[number]) for number in sorted(words)]
    positions = positions_of(model.classes, own)
    if len(own) == len(model.classes) and positions is not None and positions != sorted(positions):
        raise UserError(
            f"{model.name} has the classes in another order: {', '.join(own)}; given {', '.join(model.classes)}. Give the data "
            "its classes in the network's order (classes=[...])"
        )


def task_of_outputs(model: Model) -> Task:
    """A classification, or a segmentation if there is an output for each place of an image, into the classes of a network.

    Their names are those in the configuration of a network of transformers; numbers for other networks, one per logit.
    """
    with model.probing(), evaluating(model), torch.no_grad():
        logits = logits_of(model.network(model.prepare(model.example())))
    names = names_of_outputs(model, logits.shape[1])
    return Segmentation(names) if logits.ndim == 4 and logits.shape[2:].numel() > 1 else Classification(names)


def names_of_outputs(model: Model, count: int) -> tuple[str, ...]:
    words = getattr(getattr(model.network, "config", None), "id2label", None) or {}
    names = tuple(str(words.get(number, number)) for number in range(count))
    plain = all(name == f"LABEL_{number}" for number, name in enumerate(names))
    return tuple(map(str, range(count))) if plain or len(set(names)) < count else names
