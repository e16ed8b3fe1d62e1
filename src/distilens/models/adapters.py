"""Models from elsewhere, by notation: timm, torchvision, Hugging Face, weight files, your own module, another run."""

from __future__ import annotations

import contextlib
import inspect
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from pydantic import Field
from torch import Tensor, nn

from distilens.foundation.errors import UserError, nearest
from distilens.foundation.notation import Spec
from distilens.foundation.own_code import import_object
from distilens.models.heads import head_of, replace_heads
from distilens.models.model import Interpolation, Model
from distilens.models.weights import (
    describe_match,
    fit,
    is_safetensors,
    load_state,
    match_by_order,
    match_state,
    read_state,
)

__all__ = [
    "Expecting",
    "explain_download_errors",
    "file",
    "hf",
    "load_state",
    "model_folder",
    "python",
    "run",
    "timm",
    "torchvision",
]

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


Side = int | tuple[int, int]
"""The side of square images, or height and width."""


@dataclass(frozen=True)
class Expecting:
    """A network, the pixels that it was trained with, and the state of its weights.

    Attributes:
        size: the side of the images, or height and width; None: any.
        mean, std: for pixels in [0, 1], one number per channel.
        interpolation: how images are resized.
        loaded: whether weights were loaded; None if unknown, as for a user's own module.
        missing: the weights that were not in the loaded file; they are random.
        notes: further remarks for the user.
        matched: for weights that were matched by order, the name in the network of each module in the file.
        multiple: what height and width must be a multiple of, for a dense network; None if unknown. See `padding.fit_size`.
    """

    network: nn.Module
    size: int | tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.25, 0.25, 0.25)
    interpolation: Interpolation = "bilinear"
    loaded: bool | None = False
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    multiple: int | None = None
    matched: Mapping[str, str] = field(default_factory=dict)


def check_name(part: str | Spec) -> None:
    """Raise a `UserError` if a notation names a model that timm, torchvision or segmentation-models-pytorch does not have."""
    spec = Spec.parse(part)
    if spec.argument and spec.name in ("timm", "torchvision"):
        (check_timm if spec.name == "timm" else check_torchvision)(spec.argument)
    if spec.argument and spec.name == "smp":
        from distilens.models.dense import check_architecture

        check_architecture(spec.argument)


def check_timm(name: str) -> None:
    import timm as library

    if not library.is_model(name.split(".")[0]):
        raise UserError(f"timm has no model {name!r}.{nearest(name, library.list_models())}")


def check_torchvision(name: str, *, dense: bool | None = None) -> None:
    """Raise a `UserError` if torchvision has no such model, or only one of the other kind than `dense` says."""
    from torchvision import models as library

    classifiers, others = library.list_models(module=library), library.list_models(module=library.segmentation)
    if name not in classifiers + others:
        raise UserError(f"torchvision has no classifier {name!r}.{nearest(name, classifiers + others)}")
    if dense and name in classifiers:
        raise UserError(
            f"torchvision:{name} is a classifier, but the data ask for a class for each place of an image. "
            f"For segmentation torchvision has {', '.join(others)}"
        )
    if dense is False and name in others:
        raise UserError(
            f"torchvision:{name} gives a class for each place of an image, but here each image has one: take a classifier, "
            "such as torchvision:resnet18, or data with a mask per image"
        )


def weights_of_torchvision(name: str, weights: str) -> Any:
    """The weights of a model of torchvision, by their name."""
    from torchvision import models as library

    try:
        return library.get_model_weights(name)[weights]
    except KeyError:
        have = ", ".join(library.get_model_weights(name).__members__)
        raise UserError(f"torchvision:{name} has no weights {weights!r}; it has {have}") from None


def timm(name: str, /, classes: int, *, pretrained: bool = False, size: Side | None = None) -> Expecting:
    """Any image model of timm, at its own input size; give `size` if the architecture depends on it (a ViT).

    Source: Wightman 2019, https://github.com/huggingface/pytorch-image-models.
    """
    import timm as library
    from timm.data.config import resolve_model_data_config

    check_timm(name)
    fixed = bool((library.get_pretrained_cfg(name, allow_unregistered=True) or object).__dict__.get("fixed_input_size"))
    with explain_download_errors(f"timm:{name},pretrained=true"):
        extra: dict[str, Any] = {"img_size": size} if fixed and size else {}
        network = library.create_model(name, pretrained=pretrained, num_classes=classes, **extra)
    config = resolve_model_data_config(network)
    own = size or (tuple(config["input_size"][-2:]) if pretrained or fixed else None)
    about: Any = network.pretrained_cfg
    head = as_tuple(about.get("classifier"))
    new = pretrained and about.get("num_classes") != classes
    return Expecting(
        network, own, tuple(config["mean"]), tuple(config["std"]), interpolation_of(config["interpolation"]), pretrained,
        head if new else (), remark_on_crop(config["crop_pct"] if pretrained else 1.0),
    )  # fmt: skip


def torchvision(
    name: str, /, classes: int, dense: bool = False, *, weights: str | None = None, size: Side | None = None
) -> Expecting:
    """Any classifier or segmentation model of torchvision; `weights=DEFAULT` for pretrained weights, with a new head if needed.

    `size` is the side of the images; an untrained ViT is built for it, or for 224. A segmentation model (`fcn_resnet50`,
    `deeplabv3_mobilenet_v3_large`, `lraspp_mobilenet_v3_large`, ...) takes images of any size. Its auxiliary head, which is a
    second loss in torchvision's training, is left out.

    Source: https://pytorch.org/vision/stable/models.html.
    """
    from torchvision import models as library

    check_torchvision(name, dense=dense)
    if dense:
        from distilens.models.dense import torchvision_segmentation

        return torchvision_segmentation(name, classes, weights)
    if weights is None:
        if name.startswith("vit_") and isinstance(size, tuple) and size[0] != size[1]:
            raise UserError(f"torchvision:{name} takes square images: size={max(size)} for example; given {list(size)}")
        side = size[0] if isinstance(size, tuple) else size
        extra: dict[str, Any] = {"image_size": side} if name.startswith("vit_") and side else {}
        network = library.get_model(name, weights=None, num_classes=classes, **extra)
        return Expecting(network, getattr(network, "image_size", None), IMAGENET["mean"], IMAGENET["std"])
    pretrained = weights_of_torchvision(name, weights)
    with explain_download_errors(f"torchvision:{name},weights={weights}"):
        network = library.get_model(name, weights=pretrained)
    new = len(pretrained.meta["categories"]) != classes
    replace_heads(network, classes, [head_of(network)])
    preset = pretrained.transforms()
    return Expecting(
        network, preset.crop_size[0], tuple(preset.mean), tuple(preset.std), interpolation_of(preset.interpolation.value),
        True, (head_of(network),) if new else (), remark_on_crop(preset.crop_size[0] / preset.resize_size[0]),
    )  # fmt: skip


def hf(name: str, /, classes: int, dense: bool = False, *, pretrained: bool = True) -> Expecting:
    """A network of Hugging Face transformers, from the hub or from a folder; needs the extra `distilens[hf]`.

    It is an image classifier, or for data with masks a network for semantic segmentation (SegFormer, DPT, BEiT, ...).

    Source: Wolf et al. 2020 (arXiv 1910.03771).
    """
    family = family_of_transformers(dense)
    from transformers import AutoConfig, AutoImageProcessor

    missing: list[str] = []
    with explain_download_errors(f"hf:{name}"):
        if pretrained:
            with quiet_library():  # distilens reports what was not loaded
                network, about = family.from_pretrained(
                    name,
                    num_labels=classes,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                    dtype=torch.float32,
                )
            missing = [*about["missing_keys"], *(key for key, *_ in about["mismatched_keys"])]
        else:
            network = family.from_config(AutoConfig.from_pretrained(name, num_labels=classes))
    size = size_of_network(network.config)
    if dense:
        from distilens.models.dense import takes_size

        size = None if takes_size(network) else size
    pixels = {"mean": IMAGENET["mean"], "std": IMAGENET["std"], "size": size}
    notes: tuple[str, ...] = ()
    try:
        pixels |= settings_of_processor(AutoImageProcessor.from_pretrained(name), pixels["size"])
    except (OSError, ValueError, ImportError):
        # a model without a processor: ImageNet's normalisation, which is transformers' own default
        notes = ("no image processor beside its weights: pixels are normalised as for ImageNet",) * pretrained
    return Expecting(network, **pixels, loaded=pretrained, missing=tuple(missing), notes=notes)


def family_of_transformers(dense: bool) -> Any:
    """The class of transformers that builds classifiers, or networks for semantic segmentation.

    Raises:
        UserError: transformers is missing.
    """
    try:
        import transformers
    except ImportError:
        raise UserError("hf: models need transformers: pip install 'distilens[hf]'") from None
    return transformers.AutoModelForSemanticSegmentation if dense else transformers.AutoModelForImageClassification


def network_of_config(content: Mapping[str, Any], outputs: int, *, dense: bool = False) -> nn.Module:
    """A network of Hugging Face transformers with random weights and a number of outputs, from its configuration.

    Raises:
        UserError: transformers is missing, or does not know the configuration.
    """
    family = family_of_transformers(dense)
    from transformers import AutoConfig

    try:
        kept = {key: value for key, value in content.items() if key not in ("id2label", "label2id")}
        return family.from_config(AutoConfig.for_model(**kept, num_labels=outputs))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"transformers cannot build a network from this configuration: {error}") from None


def size_of_network(config: Any) -> int | tuple[int, int] | None:
    """The image size in a configuration: a side, or height and width."""
    size = getattr(config, "image_size", None)
    return (int(size[0]), int(size[1])) if isinstance(size, list | tuple) else size


@contextlib.contextmanager
def quiet_library() -> Iterator[None]:
    """Silence the warnings and progress bars of transformers."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def settings_of_processor(processor: Any, size: Any) -> dict[str, Any]:
    """The settings of a Hugging Face image processor in our terms: size, mean, std, interpolation.

    The processor multiplies values from 0 to 255 by `rescale_factor`, and subtracts 1 if it has an offset. Our pixels are in
    [0, 1].
    """
    sides = getattr(processor, "size", None) or {}
    height, width = (sides.get(side) or sides.get("shortest_edge") for side in ("height", "width"))
    rescales = getattr(processor, "do_rescale", True)
    scale = 255 * float(processor.rescale_factor) if rescales else 255.0
    offset = 1.0 if rescales and getattr(processor, "rescale_offset", False) else 0.0
    normalises = getattr(processor, "do_normalize", True)
    mean, std = (processor.image_mean, processor.image_std) if normalises else ([0.0] * 3, [1.0] * 3)
    resample = {0: "nearest", 2: "bilinear", 3: "bicubic"}.get(
        int(getattr(processor, "resample", None) or 2), "bicubic"
    )
    pixels = {
        "mean": tuple((m + offset) / scale for m in mean),
        "std": tuple(s / scale for s in std),
        "interpolation": resample,
    }
    return pixels if size or not (height and width) else {**pixels, "size": (int(height), int(width))}


def interpolation_of(name: str) -> Interpolation:
    """Our interpolation for that of another library: Lanczos and other unknown ones become bicubic."""
    return name if name in ("bilinear", "nearest") else "bicubic"  # type: ignore[return-value]


def remark_on_crop(share: float) -> tuple[str, ...]:
    """A remark about weights that were evaluated on a centre crop."""
    if share >= 1:
        return ()
    return (
        f"its authors evaluated it on the middle {share:.3g} of each side; here teacher and student see the whole image",
    )


def as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else () if value is None else (value,)


def file(
    path: str,
    /,
    outputs: int,
    dense: bool = False,
    *,
    model: str,
    match: Literal["name", "order"] = "name",
    classes: tuple[str | int, ...] | Literal["imagenet"] | None = None,
) -> Expecting:
    """Weights in a file (safetensors, or a state dict that holds no code) for the architecture `model=`.

    Wrappers around the state dict (`state_dict`, `model`, `net`, an average of the weights) and prefixes (`module.`,
    `_orig_mod.`, `model.`) are removed. Remarks list what was left out. A head for another number of classes is not loaded.

    `match=order` pairs the tensors by their order and shape, for files whose names differ from the network's.

    `classes` says which outputs answer for the data's classes, without a new head: `imagenet` finds them by the names or WordNet
    numbers of the data's classes; a list names them in the data's order, by index (`[0,217,482]`), WordNet number or name.
    """
    from distilens.models import build_network

    made = build_network(model, outputs, dense=dense)
    if not isinstance(made, Expecting):
        raise UserError(
            f"file:{path} needs an architecture as model=, such as resnet20; given {model!r}, a trained model"
        )
    weights = weights_for(made.network, Path(path), match)
    state, missing = without_other_head(made.network, weights.state)
    fit(made.network, state, where=path, architecture=model)
    notes = (*made.notes, *weights.notes)
    if missing:
        count = len(next(value for key, value in weights.state.items() if key.startswith(f"{missing[0]}.")))
        notes += (f"its head has {count} outputs, not {outputs}: it gets a new one",)
    return replace(made, loaded=True, missing=missing, notes=notes, matched=dict(weights.modules))


@dataclass(frozen=True)
class FileWeights:
    """The weights of a file under the network's own names, remarks, and the modules that were matched by order."""

    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    modules: Mapping[str, str] = field(default_factory=dict)


def weights_for(network: nn.Module, path: Path, match: str) -> FileWeights:
    """Read a weight file for a network: matched by name, or by order."""
    content = read_state(path)
    if match == "name":
        return FileWeights(*match_state(content, network))
    if is_safetensors(path):
        raise UserError(
            f"match=order: {path} is a safetensors file, which sorts its tensors: only names can match them"
        )
    state, modules = match_by_order(content, network, str(path))
    return FileWeights(state, (*content.notes, describe_match(modules)), modules)


def without_other_head(network: nn.Module, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A state dict with the network's own head if the file's has another number of classes, and what is missing then."""
    own, head = network.state_dict(), head_of(network)
    keys = [key for key in own if key.startswith(f"{head}.")]
    if not all(key in state and state[key].shape[1:] == own[key].shape[1:] for key in keys):
        return state, ()
    if all(state[key].shape == own[key].shape for key in keys):
        return state, ()
    return {**state, **{key: own[key] for key in keys}}, (head,)


def python(path: str, /, classes: int) -> Expecting:
    """Your own: `python:package.module:callable` returns a `torch.nn.Module`; it may take the number of classes.

    The working directory is on the path. This runs your code, so it names a module, never a downloaded file.
    """
    make, name = import_object(path, "python"), path.partition(":")[2]
    if isinstance(make, nn.Module):
        raise UserError(
            f"python:{path} is a network, but a run builds several: name a function that makes it, def {name}(): ..."
        )
    if not callable(make):
        raise UserError(f"python:{path} is not callable: it is a {type(make).__name__}")
    network = call_with(make, classes)
    if not isinstance(network, nn.Module):
        raise UserError(f"python:{path} must return a torch.nn.Module; it returned a {type(network).__name__}")
    return Expecting(unwrap_network(network, f"python:{path}"), loaded=None)


def unwrap_network(network: nn.Module, name: str) -> nn.Module:
    """The network inside DataParallel and torch.compile, so that its layers have their own names.

    Raises:
        UserError: the network is a TorchScript module, whose layers cannot be read.
    """
    while True:
        if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
            network = network.module
        elif isinstance(getattr(network, "_orig_mod", None), nn.Module):  # what torch.compile returns
            network = network._orig_mod  # type: ignore[assignment]
        else:
            break
    if isinstance(network, torch.jit.ScriptModule):
        raise UserError(f"{name} is a TorchScript module, whose layers cannot be read: give the original module")
    return network


COUNTS = ("classes", "num_classes", "n_classes", "nb_classes", "num_labels", "out_features")
"""Usual parameter names for the number of classes."""


VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def call_with(make: Any, classes: int) -> Any:
    """Call a function with the number of classes: by keyword if it has a usual name, else as the first argument, if any."""
    parameters = inspect.signature(make).parameters
    name = next((name for name in COUNTS if name in parameters), None)
    needed = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and parameter.kind not in VARIABLE
    ]
    if len(needed) > 1 or (needed and name not in (None, *needed)):
        raise UserError(
            f"{getattr(make, '__name__', make)} needs {', '.join(needed)}: expected a function of the number of classes, or "
            "without arguments"
        )
    if name is not None and parameters[name].kind is not inspect.Parameter.POSITIONAL_ONLY:
        return make(**{name: classes})
    return make(classes) if parameters else make()


def run(
    path: str,
    /,
    classes: int,
    *,
    part: Annotated[str, Field(pattern=r"^(student|base|teacher(-\d+)?)$")] | None = None,
) -> Model:
    """The model of another run: `run:runs/teacher`; its student, or the one named by `part=` (`teacher`, `teacher-2`, `base`)."""
    from distilens.models.saved import load_model

    return load_model(model_folder(path, part))


def model_folder(path: str, part: str | None) -> Path:
    """The folder of a run's model: of `part`, by default of the first that exists (student, teacher, base)."""
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"no run at {path}: there is no such folder")
    names = ("student", "teacher", "base", *sorted(entry.name for entry in folder.glob("teacher-*")))
    there = [name for name in names if (folder / name / "model.safetensors").is_file()]
    if not there or (part and part not in there):
        raise UserError(f"the run {path} has no {part or 'trained model'}; it has: {', '.join(there) or 'none'}")
    return folder / (part or there[0])


def finds_hub() -> bool:
    """Whether the hub's address can be resolved; True behind a proxy, which resolves it."""
    host = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname
    if getproxies() or os.environ.get("HF_HUB_OFFLINE"):
        return True  # left to the library
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def hub_offline() -> Iterator[None]:
    """Within, the hub's library reads only its cache; otherwise it tries to reach the hub for a minute."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def explain_download_errors(part: str) -> Iterator[None]:
    """Turn a failed download into a `UserError`, without waiting if the hub cannot be reached."""
    try:
        with hub_offline() if not finds_hub() else contextlib.nullcontext():
            yield
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0][:300]
        raise UserError(
            f"{part} could not be loaded: {reason} "
            "(without a network, give weights in a folder or a file, file:PATH,model=..., or start from random weights)"
        ) from error
