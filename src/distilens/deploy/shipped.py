"""The student as it is shipped: pixels in, logits and probabilities (or a mask) out. No teacher, no taps, no training form."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float, Num, UInt8
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from distilens import __version__
from distilens.explain.cam import CAM
from distilens.foundation.errors import UserError
from distilens.measure.cost import macs, parameters
from distilens.models.folding import prepare
from distilens.models.model import Model
from distilens.models.saved import fingerprint_of
from distilens.models.taps import grid
from distilens.tasks import VOID, Classification, Segmentation
from distilens.tasks.saving import plain_task

Pixels = Literal["float", "uint8"]
"""The type of the input: float in [0, 1], or uint8 in [0, 255]."""


class Shipped(nn.Module):
    """A copy of a student for export: `images -> logits, probabilities[, maps]`, with the normalisation inside.

    A student for segmentation gives `logits [b classes h w]` and `mask [b h w]`, uint8: the class with the largest logit at each
    place. Both have the size of the input; logits on a coarser grid are resized bilinearly (`align_corners=False`).

    Args:
        model: the finished student; it is not changed.
        pixels: the type of the input `[b 3 h w]`: `float` in [0, 1], or `uint8` in [0, 255].
        size: height and width of the input, if they differ from the network's own; the file then resizes the images itself.
        maps: also return the class activation maps of all classes, `[b classes i j]` (`cam`, in the same forward pass). The
            network must end in a mean over places and one linear layer.

    Raises:
        UserError: the student needs its teacher at inference, the network has no closed-form maps, or `maps` are asked of a
            student for segmentation.
    """

    def __init__(
        self, model: Model, *, pixels: Pixels = "float", size: tuple[int, int] | None = None, maps: bool = False
    ):
        super().__init__()
        check_alone(model)
        if maps and model.task.dense:
            raise UserError(
                f"{model.name} gives a class for each place, and maps= (--maps) adds the class activation maps of a network that "
                "gives one class per image: leave it out. The mask is in the file in any case"
            )
        self.kept = [model]  # in a list, so that it is not a part of this module
        self.model = make_bare(model)
        self.pixels: Pixels = pixels
        self.size = size or model.size
        self.fingerprint = fingerprint_of(model)
        self.cam: CAM | None = None
        if maps:
            self.cam = CAM()
            self.cam.attach(self.model)
        self.eval()

    @property
    def source(self) -> Model:
        """The student that it was made of, unchanged."""
        return self.kept[0]

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the outputs, in order."""
        answer = {Classification: ("probabilities",), Segmentation: ("mask",)}.get(type(self.model.task), ())
        return ("logits", *answer, *(("maps",) if self.cam else ()))

    def forward(self, images: Num[Tensor, "b c h w"]) -> tuple[Tensor, ...]:
        if self.pixels == "uint8":
            images = images.float() / 255
        output = self.model(images)
        if "mask" in self.outputs:
            logits = at_size(output.logits, self.size)
            return logits, mask_of(logits)
        made = [output.logits]
        if "probabilities" in self.outputs:
            made.append(output.logits.softmax(1))
        if self.cam is not None:
            assert self.cam.attached is not None
            made.append(self.cam.of_all(grid(output.features[self.cam.tap], output.size), self.cam.attached))
        return tuple(made)

    def example(self, batch: int = 1) -> Tensor:
        """Example images of the right type and size."""
        channels = 3 if self.model.mean.shape[1] == 1 else self.model.mean.shape[1]
        count = batch * channels * self.size[0] * self.size[1]
        pixels = torch.linspace(0, 255, count).view(batch, channels, *self.size)
        return pixels.round().byte() if self.pixels == "uint8" else pixels / 255

    def about(self) -> dict[str, Any]:
        """What a reader of the file must know, as plain data: it travels inside the file."""
        model = self.model
        task: dict[str, Any] = {"task": plain_task(model.task)}
        if isinstance(model.task, Classification | Segmentation):
            task = {"task": model.task.name, "classes": list(model.classes)}
        if isinstance(model.task, Segmentation):
            task["void"] = VOID
        return {
            "kind": "distilens export 1",
            "distilens": __version__,
            "network": model.name,
            "fingerprint": self.fingerprint,
            "parameters": parameters(self.source),
            "macs": macs(self.source),
            **task,
            "input": {
                "name": "images",
                "type": "uint8" if self.pixels == "uint8" else "float32",
                "range": [0, 255] if self.pixels == "uint8" else [0, 1],
                "layout": "batch, channel, height, width",
                "channels": self.example().shape[1],
                "size": list(self.size),
                "mean": model.mean.flatten().tolist(),
            },
            "interpolation": model.interpolation,
            "outputs": list(self.outputs),
        }


def at_size(logits: Float[Tensor, "b classes i j"], size: tuple[int, int]) -> Float[Tensor, "b classes h w"]:
    """Logits of a segmentation at a size: bilinear, `align_corners=False`."""
    if logits.shape[-2:] == size:
        return logits
    return functional.interpolate(logits, size, mode="bilinear", align_corners=False)


def mask_of(logits: Float[Tensor, "b classes h w"]) -> UInt8[Tensor, "b h w"]:
    """The class with the largest logit at each place."""
    return logits.argmax(1).to(torch.uint8)


def check_alone(model: Model) -> None:
    """Raise a `UserError` if a student needs its teacher at inference."""
    parts = [name for name, inserted in model.inserted.items() if getattr(inserted.part, "requires", ())]
    if parts or model.companion is not None:
        which = f"its part {', '.join(parts)} reads what the teacher answers" if parts else "it runs with its teacher"
        raise UserError(
            f"{model.name} cannot be exported: {which} at inference. Train it with another deploy=, "
            "such as deploy=null, so that the finished student answers alone"
        )


def make_bare(model: Model) -> Model:
    """A copy on the CPU without taps, with parametrisations applied and batch norms folded."""
    bare = copy.deepcopy(model).cpu().eval()
    for module in list(bare.network.modules()):
        if is_parametrized(module):
            set_plain(module, {name: getattr(module, name) for name in module.parametrizations})  # type: ignore[union-attr]
    bare.remove_taps()
    bare = prepare(bare)
    bare.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return bare


def set_plain(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Replace the parametrisations of a module by plain parameters, in place.

    torch's own function changes the class of the module, which its copies share: they would lose their weights.
    """
    module.__class__ = type_before_parametrizations(module)
    del module._modules["parametrizations"]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value.detach().clone()))


class Resize(nn.Module):
    """Resize images as a model resizes them, to another size; for a file that takes bytes, round them to 256 levels too."""

    def __init__(self, size: tuple[int, int], interpolation: str, *, rounds: bool = False):
        super().__init__()
        self.size, self.interpolation, self.rounds = size, interpolation, rounds

    def forward(self, images: Tensor) -> Tensor:
        images = self.resized(images)
        return (images * 255).round() / 255 if self.rounds else images

    def resized(self, images: Tensor) -> Tensor:
        if images.shape[-2:] == self.size:
            return images
        made = functional.interpolate(
            images, self.size, mode=self.interpolation, antialias=self.interpolation != "nearest"
        )
        return made.clamp(0, 1)


def with_entrance(model: Model, size: tuple[int, int], pixels: Pixels = "float") -> Model:
    """A copy of a student that first brings images to the size and the type of a file's input, as they come to the file."""
    made = copy.deepcopy(model)
    made.entrance = Resize(size, model.interpolation, rounds=pixels == "uint8")
    return made
