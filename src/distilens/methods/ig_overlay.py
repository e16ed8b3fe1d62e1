"""Overlay of the teacher's Integrated Gradients map: blended into the image, as a filter, or as an extra channel."""

from __future__ import annotations

from typing import Annotated, Literal, cast

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from distilens.core import Answer, Batch, Method, Model
from distilens.explain.baseline import blur_images
from distilens.explain.maps import normalise_maps
from distilens.foundation import randomness
from distilens.foundation.devices import to_device
from distilens.foundation.errors import UserError
from distilens.foundation.notation import Spec
from distilens.models.grids import resized
from distilens.models.parts import build_part
from distilens.models.parts.map_channel import MapChannel

DRAW = "ig_overlay"
PART = "ig_overlay"
Mode = Literal["blend", "highlight", "blur_rest", "channel"]
Share = Annotated[float, Field(ge=0, le=1)]
Power = Annotated[float, Field(gt=0)]


class IGOverlay(Method):
    """Show the student some of its images with the teacher's map in them. The method has no loss.

    `m` is the absolute value of the map to the power `e`, scaled from 0 to 1 per view, at the resolution of the view. The
    exponent `e = exp(U(ln a, ln b))` is drawn per image and epoch:

    * `blend`: `x' = (1 - blend) x + blend m`, in all colours.
    * `highlight`: `x' = l x` with `l = 1 - blend + blend m`: darker where the map is low.
    * `blur_rest`: `x' = l x + (1 - l) blurred(x)`: blurred where the map is low.
    * `channel`: the image is unchanged, and `m` is an extra channel of the first convolution. Its kernel starts at zero. The
      channel is zero for the other images. At the end the kernel is removed, so the student is the plain network. `blend` is
      not used.

    The images are drawn again in each epoch, and the teacher is asked only for their maps. The maps are those of the
    untransformed images; they are stored once and moved with the augmentation. An image whose map is empty or constant stays
    unchanged (the paper's code divides by zero).

    Args:
        explainer: any explainer; it makes the teacher's maps.
        target: the class that is explained: the teacher's top class, or the label as in the paper's code.
        p: the share of the images that get a map.
        blend: the strength of the map, from 0 to 1; see above.
        exponent: `a` and `b`; with 1 and 1 the map stays as it is.
        mode: see above.
        anneal: let `p` fall linearly to 0 over the run, so that the last training images look like the test images.

    Source: Hernandez, Chang and Nordling 2025 (arXiv 2503.13008): `blend`, with their code's `target=label`. Their maps are
    precomputed in one shuffled order, read by another index, and not moved with crop and flip, so each image gets the map of
    another image. Here each image gets its own map.

    Raises:
        UserError: `mode=channel` with p=1 and without annealing: at the end the kernel would be removed from a student that
            was never trained without it.
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
                "ig_overlay:mode=channel,p=1 shows a map with every image, but the finished student gets no maps: it would never "
                "have seen an image alone. Give it anneal=true, or p below 1"
            )
        if exponent[0] > exponent[1]:
            raise UserError(
                f"ig_overlay: exponent=[a,b] is a range, a at most b; given {exponent[0]:g} and {exponent[1]:g}"
            )
        self.p, self.blend, self.exponent, self.mode, self.anneal = p, blend, exponent, mode, anneal
        self.size: tuple[int, int] | None = None  # of the student's input, for `channel`
        sampling = {"share": p, "draw": DRAW} if p < 1 else {}
        self.needs = (f"maps:{Spec.parse(explainer).replaced(of='canonical', target=target, **sampling)}",)

    def prepare(self, student: Model, batch: Batch, answer: Answer) -> Model:
        if self.mode == "channel":
            self.size = student.size
            insert_channel(student)
        return student

    def transform(self, batch: Batch, answer: Answer) -> Batch:
        rows = self.choose_rows(batch)
        view, maps = batch.view[rows], answer.maps[self.needs[0]][rows]
        low, high = self.exponent
        power = low * (high / low) ** batch.draw(f"{DRAW} exponent")[rows, 0]  # exp(U(ln low, ln high))
        strong = resized(sharpen_maps(maps, power), (view.shape[-2], view.shape[-1]))
        if self.mode == "channel":
            return batch.replaced(inputs={**batch.inputs, "map_channel": self.channel(batch, rows, strong)})
        says = (strong.amax((-2, -1)) > 0)[:, None, None, None]
        shown = torch.where(says, self.blend_in(view, strong[:, None]), view)
        return batch.replaced(view=batch.view.index_copy(0, rows, shown))

    def choose_rows(self, batch: Batch) -> Int[Tensor, " n"]:
        """The positions of the images that get a map. They are computed on the host, so that no step waits for the device."""
        share = self.p * (1 - batch.progress) if self.anneal else self.p
        index = batch.index.cpu() if batch.variant is None else torch.from_numpy(batch.variant.index)
        mask = randomness.uniform(DRAW, index, batch.seed, batch.epoch)[:, 0] < share
        return to_device(mask.nonzero()[:, 0], batch.view.device)

    def blend_in(self, view: Float[Tensor, "n c h w"], strong: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n c h w"]:
        """The images with their maps blended in, as `mode` says."""
        if self.mode == "blend":
            return (1 - self.blend) * view + self.blend * strong
        light = 1 - self.blend + self.blend * strong
        if self.mode == "highlight":
            return light * view
        return light * view + (1 - light) * blur_images(view)

    def channel(
        self, batch: Batch, rows: Int[Tensor, " n"], strong: Float[Tensor, "n h w"]
    ) -> Float[Tensor, "b height width"]:
        """The maps as an input of the student: resized as `Model.prepare` resizes images; zero for the images without a map."""
        size = self.size or (strong.shape[-2], strong.shape[-1])
        if strong.shape[-2:] != size and len(rows):
            strong = functional.interpolate(strong[:, None], size, mode="bilinear", antialias=True)[:, 0]
        return strong.new_zeros(len(batch), *size).index_copy(0, rows, strong.view(-1, *size))

    def finish(self, student: Model) -> Model:
        if self.mode == "channel":
            student.remove(PART)
        return student


def insert_channel(student: Model) -> None:
    """Put a `MapChannel` behind the first convolution of the forward pass.

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
    if isinstance(padding, str):  # `valid`, or `same`, which is half the span of the kernel
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
            f"{refused} with a padding that is known: expected a feature {list(made.shape[1:])}, found {list(feature.shape[1:])}"
        )
    student.insert(path, part, name=PART)


def sharpen_maps(maps: Float[Tensor, "n h w"], power: Float[Tensor, " n"]) -> Float[Tensor, "n h w"]:
    """The absolute values of the maps to a power, each map scaled from 0 to 1. An empty or flat map is 0 everywhere.

    The paper computes `s^e`, then `(s - min) / (max - min)`. Here the maps are first divided by their largest value `c`. As
    `(s / c)^e = s^e / c^e`, this factor cancels in the scaling; but no power overflows, and no small map vanishes.
    """
    size = maps.abs()
    largest = size.amax((-2, -1), keepdim=True)
    return normalise_maps((size / largest.where(largest > 0, 1)) ** power[:, None, None], signed=False)
