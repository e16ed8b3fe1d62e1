"""A `Model` from what Python users hold: a module of theirs, of timm, torchvision or transformers, or a pipeline."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from distilens.core import Model
from distilens.errors import UserError
from distilens.model import logits_of
from distilens.models import build_model
from distilens.models.adapters import of_processor, unwrapped_network
from distilens.models.named import check_channels, positions_of
from distilens.specs import Spec
from distilens.taps import evaluating

UNSAID = (
    "nothing in the module says how its pixels are normalised: mean 0.5, deviation 0.25. Where it was trained with others, wrap "
    "it: Model(network, classes, size=(height, width), mean=(...), std=(...))"
)


def as_model(given: Any, classes: Any = None, size: tuple[int, int] | None = None, *, name: str = "") -> Model:
    """A `Model` from whatever a user has.

    Args:
        given: a `Model` (taken as it is), a notation, any `nn.Module` from images to logits, or a pipeline of transformers.
            Mean and deviation of the pixels are those of `pretrained_cfg` (timm), of an attribute `weights` (torchvision), or
            of the image processor (transformers); else 0.5 and 0.25.
        classes: their names, or the `Data` whose classes and size they are; by default the names that the module's
            configuration has, or numbers.
        size: height and width of the pictures that will be seen. A module that takes only one size keeps it.
        name: what it is called; by default its class's name.

    Raises:
        UserError: nothing that can be made a model, or a notation without classes or size.
    """
    if isinstance(given, Model):
        return given
    if hasattr(classes, "classes"):
        classes, size = classes.classes, size or classes.size
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
    network = unwrapped_network(given, type(given).__name__)
    chosen = only_size(network) or size
    if chosen is None:
        raise UserError(
            f"nothing says which pictures {type(network).__name__} takes: as_model(network, size=(height, width))"
        )
    pixels = own_pixels(network, processor)
    made = Model(network, classes or ("0",), size=chosen, name=name or type(network).__name__, **pixels)
    check_channels(made)
    if classes is None:
        made.classes = classes_of(made)
    else:
        check_order(network, made)
    if not pixels:
        made.notes += (UNSAID,)
    return made


P = ParamSpec("P")
R = TypeVar("R")


def takes_modules(function: Callable[Concatenate[Model, P], R]) -> Callable[Concatenate[nn.Module, P], R]:
    """Let a function of a `Model` also take any `nn.Module`, at the size of the images that it is given with."""

    @functools.wraps(function)
    def wrapper(model: nn.Module, *arguments: P.args, **options: P.kwargs) -> R:
        if isinstance(model, Model):
            return function(model, *arguments, **options)
        given = [*arguments, *options.values()]
        images = next((one for one in given if isinstance(one, Tensor) and one.ndim == 4), None)
        made = as_model(model, size=None if images is None else (int(images.shape[2]), int(images.shape[3])))
        return function(made if images is None else made.to(images.device), *arguments, **options)

    return wrapper


def only_size(network: nn.Module) -> tuple[int, int] | None:
    """The one size that a network takes, where it says so: a ViT of timm, of torchvision or of transformers."""
    about = getattr(network, "pretrained_cfg", None) or {}
    if about.get("fixed_input_size"):
        embedded = getattr(getattr(network, "patch_embed", None), "img_size", None)  # it may be built for another
        height, width = embedded or about["input_size"][-2:]
        return int(height), int(width)
    found = getattr(network, "image_size", None) or getattr(getattr(network, "config", None), "image_size", None)
    if isinstance(found, int):
        return found, found
    return (int(found[0]), int(found[1])) if isinstance(found, list | tuple) and len(found) == 2 else None


def own_pixels(network: nn.Module, processor: Any = None) -> dict[str, Any]:
    """Mean and deviation of the pixels that a module was trained with, where it carries them; else nothing."""
    about = getattr(network, "pretrained_cfg", None) or {}
    if "mean" in about and "std" in about:
        return {"mean": tuple(about["mean"]), "std": tuple(about["std"])}
    preset = getattr(getattr(network, "weights", None), "transforms", None)
    if callable(preset):
        made: Any = preset()
        if hasattr(made, "mean") and hasattr(made, "std"):
            return {"mean": tuple(made.mean), "std": tuple(made.std)}
    processor = processor or getattr(network, "image_processor", None) or processor_beside(network)
    if processor is None:
        return {}
    found = of_processor(processor, None)
    return {name: found[name] for name in ("mean", "std")}


def processor_beside(network: nn.Module) -> Any:
    """The image processor in the folder that a network of transformers was loaded from; None where there is none."""
    folder = getattr(getattr(network, "config", None), "_name_or_path", "")
    if not folder or not (Path(folder) / "preprocessor_config.json").is_file():
        return None
    from transformers import AutoImageProcessor

    with suppress(OSError, ValueError, ImportError):
        return AutoImageProcessor.from_pretrained(folder)
    return None


def check_order(network: nn.Module, model: Model) -> None:
    """Raise a `UserError` where a network of transformers names the model's classes in another order."""
    words = getattr(getattr(network, "config", None), "id2label", None) or {}
    own = [str(words[number]) for number in sorted(words)]
    positions = positions_of(model.classes, own)
    if len(own) == len(model.classes) and positions is not None and positions != sorted(positions):
        raise UserError(
            f"{model.name} has the classes in another order: {', '.join(own)}; given {', '.join(model.classes)}. Give the data "
            "its classes in the network's order (classes=[...])"
        )


def classes_of(model: Model) -> tuple[str, ...]:
    """The names in the configuration of a network of transformers; for others numbers, as many as it has logits."""
    with model.probing(), evaluating(model), torch.no_grad():
        count = logits_of(model.network(model.prepare(model.example()))).shape[1]
    words = getattr(getattr(model.network, "config", None), "id2label", None) or {}
    names = tuple(str(words.get(number, number)) for number in range(count))
    plain = all(name == f"LABEL_{number}" for number, name in enumerate(names))
    return tuple(map(str, range(count))) if plain or len(set(names)) < count else names
