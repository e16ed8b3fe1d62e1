"""The class names of pretrained weights, and how they match the data's classes."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

import torch
from torch import nn

from distilens.foundation.errors import UserError
from distilens.foundation.notation import Spec
from distilens.models.adapters import Expecting, explain_download_errors
from distilens.models.heads import head_of
from distilens.models.model import Model
from distilens.models.taps import evaluating
from distilens.models.weights import match_state, read_state

IMAGENET = "imagenet"
"""The value of `classes=` for weights with ImageNet's classes, which are found by name."""

Asked = Sequence[str | int] | str | None
"""The option `classes=` of a weight file."""


def classes_of_weights(spec: Spec, *, dense: bool = False) -> tuple[str, ...] | None:
    """The classes of pretrained weights; numbers if they have no names; None if the data decide."""
    name, options = spec.argument or "", spec.options
    if spec.name == "timm" and options["pretrained"]:
        return timm_classes(name)
    if spec.name == "torchvision" and options["weights"]:
        from torchvision import models as library

        if name in library.list_models(module=library.segmentation if dense else library):
            for weights in library.get_model_weights(name):
                if options["weights"] in (weights.name, "DEFAULT"):
                    return with_wordnet(weights.meta["categories"])
    if spec.name == "hf" and options["pretrained"]:
        try:
            from transformers import AutoConfig
        except ImportError:
            return None  # the adapter reports this
        with explain_download_errors(f"hf:{name}"):
            words = cast(dict[int, str], AutoConfig.from_pretrained(name).id2label)
        names = tuple(str(words[number]) for number in sorted(words))
        numbered = all(word == f"LABEL_{number}" for number, word in enumerate(names))
        return tuple(map(str, range(len(names)))) if numbered else names
    if spec.name == "file":
        from distilens.models import build_network

        made = build_network(options["model"], 2, dense=dense)
        if isinstance(made, Expecting):
            return file_classes(Path(name), made.network, options["classes"], options["match"])
    return None


def file_classes(path: Path, network: nn.Module, asked: Asked, match: str) -> tuple[str, ...] | None:
    """The classes of a weight file: numbers, or ImageNet's names if `classes=` needs names; None if the file has no head.

    Raises:
        UserError: `classes=` needs names, but the file does not have ImageNet's 1,000 classes.
    """
    content = read_state(path)
    weight = match_state(content, network)[0].get(f"{head_of(network)}.weight")
    if (
        weight is None and match == "order"
    ):  # the head has another name: it is the last tensor that is more than a vector
        weight = next((value for value in reversed(content.state.values()) if value.ndim > 1), None)
    if weight is None:
        return None
    if asked is None or (asked != IMAGENET and all(str(one).isdecimal() for one in asked)):
        return tuple(map(str, range(len(weight))))
    if len(weight) != 1000:
        raise UserError(
            f"classes=: {path} has {len(weight)} classes without names, and they are not ImageNet's 1,000. Give its outputs by "
            "index, in the order of the data's classes: classes=[2,0,1]"
        )
    return imagenet_classes()


def imagenet_classes() -> tuple[str, ...]:
    """The names of ImageNet's 1,000 classes, each with its synonyms and its WordNet number: `tench, Tinca tinca, n01440764`."""
    from timm.data.imagenet_info import ImageNetInfo

    words = ImageNetInfo()
    return with_wordnet([words.index_to_description(number) for number in range(words.num_classes())])


def with_wordnet(names: Sequence[str]) -> tuple[str, ...]:
    """The names with their WordNet numbers if they are those of ImageNet's 1,000 classes, which many folders are named by."""
    from timm.data.imagenet_info import ImageNetInfo

    words = ImageNetInfo()
    if len(names) != words.num_classes():
        return tuple(names)
    return tuple(f"{name}, {words.index_to_label_name(number)}" for number, name in enumerate(names))


def timm_classes(name: str) -> tuple[str, ...] | None:
    """timm's class names: those in the weights' config, or ImageNet's for a thousand classes."""
    import timm

    about = timm.get_pretrained_cfg(name, allow_unregistered=True)
    count = about.num_classes if about is not None else 0
    if about is not None and about.label_names:
        return tuple(about.label_names)
    if count == 1000:
        return imagenet_classes()
    return tuple(map(str, range(count))) if count else None


def are_named(classes: Sequence[str]) -> bool:
    """Whether the classes have names other than their numbers."""
    return tuple(classes) != tuple(map(str, range(len(classes))))


def positions_of(classes: Sequence[str], own: Sequence[str]) -> list[int] | None:
    """The index of each data class among a model's own classes, by name; None if a class is missing, or two are equal.

    Case, `_`, `-` and the Unicode form do not matter. In `tench, Tinca tinca` each item between commas is a name.
    """
    place: dict[str, int] = {}
    for number, names in enumerate(own):
        for name in {normalise_name(names), *map(normalise_name, names.split(","))}:
            place[name] = -1 if name in place else number  # a name of two classes is ambiguous
    positions = [place.get(normalise_name(name), -1) for name in classes]
    return None if -1 in positions or len(set(positions)) < len(positions) else positions


def outputs_for(classes: Sequence[str], own: Sequence[str] | None, asked: Asked = None) -> list[int] | None:
    """The output of loaded weights for each class of the data; None if they cannot be told by name.

    Args:
        own: the classes of the weights, as `classes_of_weights` gives them.
        asked: the option `classes=` of a weight file: which output answers for each class, by index, WordNet number or name.

    Raises:
        UserError: `asked` does not have one output per class, or an output is unknown or comes twice.
    """
    if not own or not classes:
        return None
    if asked is None:
        return positions_of(classes, own) if are_named(own) else None
    names = list(classes) if asked == IMAGENET else [str(name) for name in asked]
    if len(names) != len(classes):
        raise UserError(
            f"classes= names {len(names)} outputs, but the data has {len(classes)} classes: {list_names(classes)}"
        )
    positions = [
        int(name) if name.isdecimal() and asked != IMAGENET else (positions_of([name], own) or [-1])[0]
        for name in names
    ]
    unknown = [name for name, number in zip(names, positions, strict=True) if not 0 <= number < len(own)]
    if unknown:
        raise UserError(
            f"classes=: the weights have no output for {list_names(unknown)}; they have {len(own)}"
            + (f". Give each by index or WordNet number, in the order of the data's classes ({list_names(classes)})")
        )
    twice = [name for name, number in zip(names, positions, strict=True) if positions.count(number) > 1]
    if twice:
        raise UserError(f"classes= names the output of {list_names(twice)} more than once")
    return positions


def normalise_name(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", name).casefold().replace("_", " ").replace("-", " ").split())


def check_answers(model: Model, classes: Sequence[str], role: str) -> None:
    """Refuse a model that is used without training, but whose answers mean nothing for the data.

    Raises:
        UserError: no weights were loaded, or not all of them, or the model answers for other classes.
    """
    train = f"Train it: {role}.finetune=head (or all)"
    if model.loaded is False:
        raise UserError(
            f"the {role} {model.name} has random weights: no weights were loaded, and {role}.finetune=none. {train}"
        )
    if model.missing:
        raise UserError(
            f"the {role} {model.name} has random weights in {list_names(model.missing)}: they were not in what was loaded. It "
            f"cannot answer for {len(classes)} classes, and {role}.finetune=none. {train}"
        )
    own = model.answers_for
    if own and are_named(own) and are_named(classes):
        missing = [name for name in classes if positions_of([name], own) is None]
        raise UserError(
            f"the {role} {model.name} answers for {list_names(own)}, not for the data's {list_names(missing)}, and "
            f"{role}.finetune=none. {train}, or use another model"
        )


def check_channels(model: Model) -> None:
    """Give a network of grey images the brightness of the pictures, and refuse other numbers of channels.

    Raises:
        UserError: the network takes neither three channels nor one.
    """
    first = next((module for module in model.network.modules() if isinstance(module, nn.Conv2d)), None)
    channels = first.in_channels if first is not None else 3
    if channels == 3 or can_run_example(model):
        return
    if channels != 1:
        raise UserError(f"{model.name} takes images of {channels} channels, but pictures have three (or one, grey)")
    mean, std = (values.mean(1, keepdim=True) for values in (model.mean, model.std))
    model.mean, model.std = mean, std
    model.notes += ("takes grey images: it gets the brightness of the pictures",)


def can_run_example(model: Model) -> bool:
    """Whether a forward pass of the model's example image works."""
    with suppress(Exception), torch.no_grad(), evaluating(model):
        model.logits(model.example())
        return True
    return False


def list_names(names: Sequence[str], most: int = 6) -> str:
    short = [name.partition(",")[0] for name in names[:most]]
    return ", ".join(short) + (f", … ({len(names)})" if len(names) > most else "")
