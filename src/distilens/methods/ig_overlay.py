"""Showing the student the teacher's map: over the image, in place of what does not matter, or as a channel more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, cast

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from distilens import draws
from distilens.core import Answer, Batch, Method, Model
from distilens.errors import UserError
from distilens.explain.baseline import blurred
from distilens.explain.maps import normalised, resized
from distilens.parts import build_part
from distilens.processor import to_device
from distilens.specs import Spec

DRAW = "ig_overlay"
PART = "ig_overlay"
Mode = Literal["blend", "highlight", "blur_rest", "channel"]
Share = Annotated[float, Field(ge=0, le=1)]
Power = Annotated[float, Field(gt=0)]
Pair = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]


class IGOverlay(Method):
    """Show the student some of its images with the teacher's map in them. It has no loss of its own.

    With `m` the map's size (whatever its sign) to the power `e`, brought from 0 to 1 over each view, at its resolution, and
    `e = exp(U(ln a, ln b))` drawn for each image and epoch:

    * `blend`: `x' = (1 - blend) x + blend m`, in all colours.
    * `highlight`: `x' = l x` with `l = 1 - blend + blend m`: darker where the map is low.
    * `blur_rest`: `x' = l x + (1 - l) blurred(x)`: blurred where the map is low.
    * `channel`: the image as it is, and `m` as a channel more of the first convolution, behind a kernel that starts at zero;
      zero for the other images. The kernel is taken out at the end: the student is the plain network. `blend` is not used.

    Images are drawn anew in each epoch, and only the maps of those are asked for; they are of the untransformed images, stored
    once and moved with them. An image whose map is empty or the same everywhere stays as it is (the paper's code divides by
    zero).

    Args:
        explainer: whose map; any.
        target: the class that is explained: the teacher's own first, or the label, as in the paper's code.
        p: of how many images.
        blend: how much of the map there is, from 0 to 1; see above.
        exponent: `a` and `b`; 1 and 1 take the map as it is.
        mode: see above.
        anneal: let `p` fall linearly to 0 over the run, so that the last images are those of the test.

    Source: Hernandez, Chang and Nordling 2025 (arXiv 2503.13008): `blend`, with their code's `target=label`. Its maps are
    precomputed in one shuffled order and read by another index, and not moved with crop and flip: there each image gets
    another image's map. Here maps are the image's own.
    Raises: UserError for `mode=channel` with p=1 and no annealing: the kernel would be taken out of a student that has never
    been without.
    """

    inserts = True

    def __init__(
        self,
        *,
        explainer: str = "ig:steps=50,channels=size",
        target: Literal["top1", "label"] = "top1",
        p: Annotated[float, Field(gt=0, le=1)] = 0.1,
        blend: Share = 0.5,
        exponent: tuple[Power, Power] = (1.0, 2.0),
        mode: Mode = "blend",
        anneal: bool = False,
    ):
        super().__init__()
        if mode == "channel" and p == 1 and not anneal:
            raise UserError(
                "ig_overlay:mode=channel,p=1 shows a map with every image, and is then used without: the student would never "
                "have seen an image alone. Give it anneal=true, or p below 1"
            )
        if exponent[0] > exponent[1]:
            raise UserError(
                f"ig_overlay: exponent=[a,b] is a range, a at most b; given {exponent[0]:g} and {exponent[1]:g}"
            )
        self.p, self.blend, self.exponent, self.mode, self.anneal = p, blend, exponent, mode, anneal
        self.size: tuple[int, int] | None = None  # of the student's input, for `channel`
        drawn = {"share": p, "draw": DRAW} if p < 1 else {}
        self.needs = (f"maps:{Spec.parse(explainer).replaced(of='canonical', target=target, **drawn)}",)

    def prepare(self, student: Model, batch: Batch, answer: Answer) -> Model:
        if self.mode == "channel":
            self.size = student.size
            insert_channel(student)
        return student

    def transform(self, batch: Batch, answer: Answer) -> Batch:
        rows = self.drawn(batch)
        view, maps = batch.view[rows], answer.maps[self.needs[0]][rows]
        low, high = self.exponent
        power = low * (high / low) ** batch.draw(f"{DRAW} exponent")[rows, 0]  # exp(U(ln low, ln high))
        strong = resized(sharpened(maps, power), (view.shape[-2], view.shape[-1]))
        if self.mode == "channel":
            return batch.replaced(inputs={**batch.inputs, "map_channel": self.channel(batch, rows, strong)})
        says = (strong.amax((-2, -1)) > 0)[:, None, None, None]
        shown = torch.where(says, self.shown(view, strong[:, None]), view)
        return batch.replaced(view=batch.view.index_copy(0, rows, shown))

    def drawn(self, batch: Batch) -> Int[Tensor, " n"]:
        """The positions of the images that a map is shown of; found on the host, so that no step waits for the device."""
        share = self.p * (1 - batch.progress) if self.anneal else self.p
        index = batch.index.cpu() if batch.variant is None else torch.from_numpy(batch.variant.index)
        drawn = draws.uniform(DRAW, index, batch.seed, batch.epoch)[:, 0] < share
        return to_device(drawn.nonzero()[:, 0], batch.view.device)

    def shown(self, view: Float[Tensor, "n c h w"], strong: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n c h w"]:
        """The images with their maps."""
        if self.mode == "blend":
            return (1 - self.blend) * view + self.blend * strong
        light = 1 - self.blend + self.blend * strong
        if self.mode == "highlight":
            return light * view
        return light * view + (1 - light) * blurred(view)

    def channel(
        self, batch: Batch, rows: Int[Tensor, " n"], strong: Float[Tensor, "n h w"]
    ) -> Float[Tensor, "b height width"]:
        """The maps as the student's input: resized as `Model.prepare` does images, and zero for the images not drawn."""
        size = self.size or (strong.shape[-2], strong.shape[-1])
        if strong.shape[-2:] != size and len(rows):
            strong = functional.interpolate(strong[:, None], size, mode="bilinear", antialias=True)[:, 0]
        return strong.new_zeros(len(batch), *size).index_copy(0, rows, strong.view(-1, *size))

    def finish(self, student: Model) -> Model:
        if self.mode == "channel":
            student.remove(PART)
        return student


class MapChannel(nn.Module):
    """The part of `ig_overlay:mode=channel`, behind the first convolution: that convolution's kernel for one channel more.

    A convolution is linear in its channels, so `conv(x) + conv_m(m)` is the convolution of `[x, m]`. Without the input
    `map_channel` the feature stays as it is.

    Args: those of the first convolution; the kernel starts at zero.
    """

    def __init__(
        self,
        *,
        channels: Annotated[int, Field(ge=1)],
        kernel: Pair,
        stride: Pair = (1, 1),
        padding: Pair = (0, 0),
        dilation: Pair = (1, 1),
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
    ):
        super().__init__()
        self.conv = nn.Conv2d(1, channels, kernel, stride, padding, dilation, bias=False, padding_mode=padding_mode)
        nn.init.zeros_(self.conv.weight)

    def forward(self, feature: Float[Tensor, "b c h w"], inputs: Mapping[str, Tensor]) -> Float[Tensor, "b c h w"]:
        if "map_channel" not in inputs:
            return feature
        return feature + self.conv(inputs["map_channel"][:, None].to(feature.dtype))


def insert_channel(student: Model) -> None:
    """Put a `MapChannel` behind the first convolution that a forward comes to.

    Raises:
        UserError: the network does not begin with a plain convolution of the image.
    """
    modules, seen = dict(student.network.named_modules()), student.observe()
    path = next((path for path in seen if isinstance(modules[path], nn.Conv2d)), "")
    first, (feature, _) = modules[path], seen[path]
    refused = f"ig_overlay:mode=channel needs a network that begins with a convolution; {student.name} does not"
    if not isinstance(first, nn.Conv2d) or first.in_channels != student.mean.shape[1]:
        raise UserError(f"{refused}. Take another mode=")
    padding = first.padding
    if isinstance(padding, str):  # `valid`, or `same`: half of what the kernel spans
        spans = [step * (side - 1) for side, step in zip(first.kernel_size, first.dilation, strict=True)]
        padding = [span // 2 if padding == "same" else 0 for span in spans]
    options = {"channels": first.out_channels, "kernel": first.kernel_size, "stride": first.stride, "padding": padding}
    options |= {"dilation": first.dilation, "padding_mode": first.padding_mode}
    part = cast(MapChannel, build_part(Spec("map_channel").replaced(**options)))
    with torch.no_grad():
        made = part.conv(torch.zeros(1, 1, *student.size))
    assert isinstance(feature, Tensor), "a convolution gives a tensor"
    if made.shape[1:] != feature.shape[1:]:
        raise UserError(
            f"{refused} with a padding that is known: {list(made.shape[1:])}, not {list(feature.shape[1:])}"
        )
    student.insert(path, part, name=PART)


def sharpened(maps: Float[Tensor, "n h w"], power: Float[Tensor, " n"]) -> Float[Tensor, "n h w"]:
    """The maps' size to a power, each from 0 to 1; an empty or flat one is 0 everywhere.

    The paper has `s^e`, then `(s - min) / (max - min)`. Here the largest value is brought to 1 before: `(s / c)^e = s^e / c^e`,
    and a factor does not change what lies between min and max; but no power overflows, and no small map vanishes.
    """
    size = maps.abs()
    largest = size.amax((-2, -1), keepdim=True)
    return normalised((size / largest.where(largest > 0, 1)) ** power[:, None, None], signed=False)
