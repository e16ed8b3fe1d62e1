"""Networks for segmentation from elsewhere: segmentation-models-pytorch, and the segmentation models of torchvision."""

from __future__ import annotations

import inspect
import warnings
from contextlib import suppress
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from distilens.foundation.errors import UserError, nearest
from distilens.models.adapters import IMAGENET, Expecting, explain_download_errors, interpolation_of
from distilens.models.heads import heads_of, replace_heads
from distilens.models.taps import evaluating

EXAMPLE = (64, 96)
"""Height and width of the images with which the heads of a network are found."""


def smp(
    architecture: str,
    /,
    classes: int,
    *,
    encoder: str = "resnet34",
    weights: str | None = None,
    depth: Annotated[int, Field(ge=3, le=5)] | None = None,
) -> Expecting:
    """Any network of segmentation-models-pytorch, such as `smp:unet,encoder=resnet18`; needs the extra `distilens[dense]`.

    The architectures are unet, unetplusplus, manet, linknet, fpn, pspnet, deeplabv3, deeplabv3plus, pan, upernet, segformer and
    dpt; case does not matter. `encoder` is an encoder of this library or a model of timm. `weights` are those of the encoder
    (`imagenet`; `true` for a model of timm); they are downloaded. By default there are none. `depth` is the number of times that
    the encoder halves the image.

    If the network takes only multiples of its stride, images are padded and the logits are cropped back.

    Source: Iakubovskii 2019, https://github.com/qubvel-org/segmentation_models.pytorch.
    """
    library = import_smp()
    name = check_architecture(architecture)
    made = name_of_encoder(encoder)
    given = True if weights == "true" else weights
    try:
        with warnings.catch_warnings(), explain_downloads(architecture, encoder, weights):
            warnings.simplefilter("ignore")  # of names that the library will drop
            network = library.create_model(
                name, made, encoder_weights=given, classes=classes, **options_of_depth(name, depth)
            )
    except UserError:  # the download failed
        raise
    except (KeyError, ValueError, TypeError, RuntimeError, NotImplementedError, AssertionError) as error:
        reason = str(error.args[0] if error.args else error).split("\n")[0]
        raise UserError(f"smp:{architecture},encoder={encoder} cannot be built: {reason}") from None
    multiple = int(network.encoder.output_stride) if network.requires_divisible_input_shape else None
    missing = ("decoder", "segmentation_head") if weights else ()
    return Expecting(
        network, **pixels_of_encoder(made, weights), loaded=bool(weights), missing=missing, multiple=multiple
    )


def import_smp() -> Any:
    try:
        import segmentation_models_pytorch as library
    except ImportError:
        raise UserError("smp: models need segmentation-models-pytorch: pip install 'distilens[dense]'") from None
    return library


def check_architecture(name: str) -> str:
    """An architecture's name in lower case.

    Raises:
        UserError: segmentation-models-pytorch is missing or does not have it.
    """
    known = import_smp().MODEL_ARCHITECTURES_MAPPING
    if name.lower() not in known:
        raise UserError(
            f"segmentation-models-pytorch has no architecture {name!r}.{nearest(name.lower(), list(known))} "
            f"Known: {', '.join(known)}"
        )
    return name.lower()


def name_of_encoder(name: str) -> str:
    """The library's name of an encoder: its own, or `tu-NAME` for a model of timm.

    Raises:
        UserError: neither library has it.
    """
    import timm

    own = import_smp().encoders.encoders
    if name in own:
        return name
    plain = name.removeprefix("tu-")
    if timm.is_model(plain.split(".")[0]):
        return f"tu-{plain}"
    raise UserError(
        f"there is no encoder {name!r} in segmentation-models-pytorch, and no such model in timm."
        f"{nearest(plain, [*own, *timm.list_models()])}"
    )


def explain_downloads(architecture: str, encoder: str, weights: str | None) -> Any:
    """Only a download fails with an `OSError`: without weights, the library's errors are about the options."""
    from contextlib import nullcontext

    if weights is None:
        return nullcontext()
    return explain_download_errors(f"smp:{architecture},encoder={encoder},weights={weights}")


def options_of_depth(architecture: str, depth: int | None) -> dict[str, Any]:
    """The options for an encoder's depth. A decoder that has a list of channels gets the first `depth` of them."""
    if depth is None:
        return {}
    parameters = inspect.signature(import_smp().MODEL_ARCHITECTURES_MAPPING[architecture].__init__).parameters
    channels = parameters["decoder_channels"].default if "decoder_channels" in parameters else None
    own = {"decoder_channels": channels[:depth]} if isinstance(channels, tuple) else {}
    return {"encoder_depth": depth, **own}


def pixels_of_encoder(encoder: str, weights: str | None) -> dict[str, Any]:
    """Mean and deviation of the pixels with which an encoder's weights were trained; ImageNet's without weights."""
    if weights is None or encoder.startswith("tu-"):
        return IMAGENET
    settings = import_smp().encoders.encoders[encoder]["pretrained_settings"][weights]
    return {name: tuple(settings.get(name, IMAGENET[name])) for name in ("mean", "std")}


def torchvision_segmentation(name: str, classes: int, weights: str | None) -> Expecting:
    """A segmentation model of torchvision, without its auxiliary head; see `adapters.torchvision`."""
    from torchvision import models as library

    if weights is None:
        network = library.get_model(name, weights=None, weights_backbone=None, num_classes=classes)
        return Expecting(network, None, IMAGENET["mean"], IMAGENET["std"])
    from distilens.models.adapters import weights_of_torchvision

    pretrained = weights_of_torchvision(name, weights)
    with explain_download_errors(f"torchvision:{name},weights={weights}"):
        network = library.get_model(name, weights=pretrained)
    if hasattr(network, "aux_classifier"):
        setattr(network, "aux_classifier", None)  # noqa: B010  # a module, by its annotation
    heads = heads_of(network, torch.zeros(1, 3, *EXAMPLE))
    new = len(pretrained.meta["categories"]) != classes
    replace_heads(network, classes, heads)
    preset = pretrained.transforms()
    side = preset.resize_size[0] if isinstance(preset.resize_size, list | tuple) else preset.resize_size
    return Expecting(
        network, None, tuple(preset.mean), tuple(preset.std), interpolation_of(preset.interpolation.value), True,
        tuple(heads) if new else (),
        (f"its authors evaluated it on images whose shorter side has {side} pixels; here it takes the data's size (size=)",),
    )  # fmt: skip


def takes_size(network: nn.Module, size: tuple[int, int] = EXAMPLE) -> bool:
    """Whether a network takes images of a size."""
    images: Tensor = torch.zeros(1, 3, *size)
    with suppress(Exception), torch.no_grad(), evaluating(network):
        network(images)
        return True
    return False
