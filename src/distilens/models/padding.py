"""Pad the images of a dense network whose size must be a multiple of its stride, and crop its outputs back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from distilens.models.model import Model

TRIED = (2, 4, 8, 16, 32, 64)
"""The multiples that are tried for a network that does not say which one it needs."""


class Margins(NamedTuple):
    """The rows and columns that are added on each side."""

    left: int
    right: int
    top: int
    bottom: int


def margins_of(size: tuple[int, int], multiple: int) -> Margins:
    """The margins that make height and width multiples of a number: half of them on each side, an odd rest at the end.

    >>> margins_of((31, 45), 16)
    Margins(left=1, right=2, top=0, bottom=1)
    """
    down, along = (-side % multiple for side in size)
    return Margins(along // 2, along - along // 2, down // 2, down - down // 2)


def pad(pixels: Float[Tensor, "b c h w"], margins: Margins) -> Float[Tensor, "b c h2 w2"]:
    """Images with margins that repeat their outermost pixels; reflection would need margins smaller than the image."""
    return functional.pad(pixels, margins, mode="replicate") if any(margins) else pixels


def crop(outputs: Float[Tensor, "b k i j"], margins: Margins, size: tuple[int, int]) -> Float[Tensor, "b k i2 j2"]:
    """The outputs for padded images without the margins.

    On a coarser grid the same share is cropped. If a margin would end inside a place of that grid, the outputs are resized to the
    pixels first (bilinear), so that each output stays at its place in the image.

    Args:
        size: height and width of the images before they were padded.
    """
    if not any(margins):
        return outputs
    whole = (size[0] + margins.top + margins.bottom, size[1] + margins.left + margins.right)
    rows, columns = outputs.shape[-2:]
    ends = ((margins.top, size[0], rows, whole[0]), (margins.left, size[1], columns, whole[1]))
    if any(start * count % side or length * count % side for start, length, count, side in ends):
        outputs = functional.interpolate(outputs, whole, mode="bilinear", align_corners=False)
        rows, columns = whole
    top, height = margins.top * rows // whole[0], size[0] * rows // whole[0]
    left, width = margins.left * columns // whole[1], size[1] * columns // whole[1]
    return outputs[..., top : top + height, left : left + width]


class Padding:
    """Two hooks of a network: one pads its images to multiples of a number, the other crops its outputs.

    Taps inside the network see the padded images. The network's module names and weights do not change.
    """

    def __init__(self, multiple: int):
        self.multiple = multiple
        self.size, self.margins = (0, 0), Margins(0, 0, 0, 0)  # of the images of the current forward pass

    def before(self, network: nn.Module, arguments: tuple) -> tuple:
        pixels = arguments[0]
        self.size = (pixels.shape[2], pixels.shape[3])
        self.margins = margins_of(self.size, self.multiple)
        return (pad(pixels, self.margins), *arguments[1:])

    def after(self, network: nn.Module, arguments: tuple, returned: Any) -> Any:
        from distilens.models.model import logits_of

        return crop(logits_of(returned), self.margins, self.size) if any(self.margins) else returned


def fit_size(model: Model, multiple: int | None = None) -> None:
    """Let the network of a dense model take images of the model's size, by padding if it needs a multiple of some number.

    A network with an attribute `multiple`, such as `unet`, pads its images itself.

    Args:
        multiple: what height and width must be a multiple of. None: unknown. Then the network is used as it is if it takes the
            size, and otherwise with the smallest multiple in `TRIED` with which it does (if any).
    """
    from distilens.models.named import can_run_example

    if not model.task.dense or hasattr(model.network, "multiple"):
        return
    if multiple is None and can_run_example(model):
        return
    for number in TRIED if multiple is None else (multiple,):
        if not any(margins_of(model.size, number)):
            continue
        padding = Padding(number)
        hooks = (
            model.network.register_forward_pre_hook(padding.before),
            model.network.register_forward_hook(padding.after),
        )
        if multiple is not None or can_run_example(model):
            model.multiple = number
            before, after = ("×".join(map(str, size)) for size in (model.size, model.padded_size))
            model.notes += (
                f"its images are padded from {before} to {after} pixels, multiples of {number}, and its outputs are cropped back",
            )
            return
        for hook in hooks:
            hook.remove()
