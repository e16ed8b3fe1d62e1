"""Giving the student the teacher's map as an input, beside its last features, and then taking it away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from distilens.core import Answer, Batch, Method, Model, Output
from distilens.errors import UserError
from distilens.explain.maps import empty, normalised, on_one_grid, resized
from distilens.losses.maps import distance
from distilens.parts import build_part
from distilens.specs import Spec
from distilens.taps import LAST, grid

PART = "cam_fusion"
PREDICTED = f"{PART}.predicted"
Count = Annotated[int, Field(ge=1)]
Grid = tuple[Count, Count]
Fuse = Literal["concat", "gate", "film"]
Deploy = Literal["null", "self", "teacher"]


class CamFusion(Method):
    """Fuse the teacher's map, upsampled by a learned kernel, with the student's last feature `F` `[b c h w]`.

    `U = ConvTranspose(m)` `[b channels h w]`, with `m` the map from 0 to 1, and a linear layer at each place that starts so
    that `F' = F`:

    * `concat`: `F' = W [F, U] + b`.
    * `gate`: `F' = F (1 + W U + b)`.
    * `film`: `F' = F (1 + W_1 U + b_1) + W_2 U + b_2`.

    The map is of the teacher's own first class, never of the label, which it would give away. What the student is used with
    afterwards is trained from the beginning: a share of the images, drawn anew in each epoch, has no teacher's map; it rises
    linearly from `start` to 1 at `until` of the run. Instead there is, by `deploy`:

    * `null`: a learned `U`, the same at every place; in the end it is folded into the linear layer.
    * `self`: `U` of the student's own map, `sigmoid(w F + b)`, which has a loss: its cosine distance to the teacher's, on the
      smaller grid. An image whose map is empty counts 0.
    * `teacher`: nothing; each image has the teacher's map, in use as well. Such a student is none without its teacher.

    Args:
        explainer: whose map; any.
        fuse: see above.
        deploy: see above.
        channels: of `U`.
        of: the map of the very crop that the student sees (`images`), or that of the whole image, moved with it (`canonical`).
        start: see above; not for `deploy=teacher`.
        until: see above; not for `deploy=teacher`.

    Source: Mukherjee, Vinod Chandan and Dongre 2023 (IEEE MoSICom), of which a description is public and no formula and no code:
    `concat`, `deploy=teacher`, behind the last feature. The share without a map, `null` and `self` are ours.
    Raises: UserError where the last feature is no `[b c h w]`.
    """

    inserts = True

    def __init__(
        self,
        *,
        explainer: str = "gradcam",
        fuse: Fuse = "concat",
        channels: Count = 8,
        deploy: Deploy = "null",
        of: Literal["images", "canonical"] = "images",
        start: Annotated[float, Field(ge=0, le=1)] = 0.0,
        until: Annotated[float, Field(gt=0, le=1)] = 0.8,
    ):
        super().__init__()
        spec = Spec.parse(explainer)
        if "target" in spec.options:
            raise UserError(
                f"cam_fusion: the map is of the teacher's own first class; take target= out of {explainer!r}"
            )
        self.fuse, self.channels, self.deploy, self.start, self.until = fuse, channels, deploy, start, until
        drawn = {"share": 1 - start, "draw": PART} if deploy == "null" and start else {}
        self.needs = (f"maps:{spec.replaced(of=of, **drawn)}",)
        self.at_use = self.needs if deploy == "teacher" else ()

    def prepare(self, student: Model, batch: Batch, answer: Answer) -> Model:
        path = student.path_of(LAST)
        feature = student.observe()[path][0]
        if not isinstance(feature, Tensor) or feature.ndim != 4 or grid(feature, student.size) is not feature:
            shape = list(feature.shape) if isinstance(feature, Tensor) else type(feature).__name__
            raise UserError(
                f"cam_fusion needs a last feature [b c h w], channels first; that of {student.name} at {path!r} is {shape}"
            )
        options = {"channels": feature.shape[1], "grid": tuple(feature.shape[2:])}
        options |= {"map_grid": tuple(answer.maps[self.needs[0]].shape[1:]), "hidden": self.channels}
        part = build_part(Spec("map_fusion").replaced(**options, fuse=self.fuse, deploy=self.deploy))
        student.insert(path, part, name=PART)
        if self.deploy == "self":
            student.tap(PREDICTED)
        return student

    def transform(self, batch: Batch, answer: Answer) -> Batch:
        maps = normalised(answer.maps[self.needs[0]], signed=True)
        shown = batch.draw(PART)[:, 0] < self.share(batch.progress)
        return batch.replaced(inputs={**batch.inputs, "cam": maps, "cam_shown": shown.to(maps)})

    def share(self, progress: float) -> float:
        """Of how many images the student sees the teacher's map."""
        return 1.0 if self.deploy == "teacher" else (1 - self.start) * max(0.0, 1 - progress / self.until)

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"] | None:
        if self.deploy != "self":
            return None
        ours, theirs = on_one_grid(output.features[PREDICTED][:, 0].float(), batch.inputs["cam"])
        return distance(ours, theirs, "cosine").where(~empty(theirs), 0)

    def finish(self, student: Model) -> Model:
        """No kernel for maps that never come again, and no teacher: `core.accompany` gives one where the student is used."""
        part = student.parts[PART]
        if isinstance(part, MapFusion) and self.deploy == "null":
            student.parts[PART] = student.inserted[PART].part = part.folded()  # in its place among other parts
        if self.deploy == "teacher":
            student.companion = None
        return student


class MapFusion(nn.Module):
    """The part of `cam_fusion`, behind the last feature: see there. Takes the inputs `cam` `[b i j]` and `cam_shown` `[b]`.

    The transposed convolution has the stride `ceil(grid / map_grid)` and twice that as its kernel. A map that is finer than the
    feature is averaged to its grid before; where the grid is no multiple of the map's, `U` is averaged to it, for cropping it
    would move what it says to another place.

    The linear layer is `Nearby`: a plain one, between the last normalisation and the classifier, diverges at learning rates that
    the student itself takes well (with `muon` and `kd:weight=3` after a dozen epochs).

    Args:
        channels, grid: of the feature.
        map_grid: of the teacher's map.
        hidden: channels of `U`.
        fuse, deploy: see `CamFusion`.
    """

    def __init__(
        self,
        *,
        channels: Count,
        grid: Grid,
        map_grid: Grid,
        hidden: Count = 8,
        fuse: Fuse = "concat",
        deploy: Deploy = "null",
    ):
        super().__init__()
        self.channels, self.fuse, self.deploy = channels, fuse, deploy
        self.requires = ("cam",) if deploy == "teacher" else ()
        self.low = (min(grid[0], map_grid[0]), min(grid[1], map_grid[1]))
        self.stride = (-(-grid[0] // self.low[0]), -(-grid[1] // self.low[1]))
        kernel, padding = tuple(2 * step for step in self.stride), tuple(step // 2 for step in self.stride)
        self.up = nn.ConvTranspose2d(1, hidden, kernel, self.stride, padding)  # type: ignore[arg-type]
        if deploy == "null":
            self.null = nn.Parameter(torch.zeros(hidden))
        if deploy == "self":
            self.predicted = nn.Sequential(nn.Conv2d(channels, 1, 1), nn.Sigmoid())
        self.mix = Nearby(
            channels + hidden if fuse == "concat" else hidden, channels * (1 + (fuse == "film")), fuse == "concat"
        )

    def forward(self, feature: Float[Tensor, "b c h w"], inputs: Mapping[str, Tensor]) -> Float[Tensor, "b c h w"]:
        return self.fused(feature, self.guide(feature, inputs).to(feature.dtype)).to(feature.dtype)

    def guide(self, feature: Float[Tensor, "b c h w"], inputs: Mapping[str, Tensor]) -> Float[Tensor, "b u h w"]:
        """`U`: of the teacher's map where it is shown, else of what takes its place."""
        size = (feature.shape[2], feature.shape[3])
        if self.deploy == "null":
            otherwise = self.null[:, None, None].expand(len(feature), -1, *size)
        elif self.deploy == "self":
            otherwise = resized(self.predicted(feature)[:, 0], self.low)
        else:  # shapes are looked at without a teacher
            otherwise = feature.new_zeros(len(feature), *self.low)
        if "cam" not in inputs:
            return otherwise if self.deploy == "null" else self.upsampled(otherwise, size)
        given = resized(inputs["cam"].to(feature.dtype), self.low)
        shown = inputs["cam_shown"][:, None, None] > 0
        if self.deploy == "null":
            return torch.where(shown[:, None], self.upsampled(given, size), otherwise)
        return self.upsampled(torch.where(shown, given, otherwise), size)

    def upsampled(self, maps: Float[Tensor, "b i j"], size: tuple[int, int]) -> Float[Tensor, "b u h w"]:
        """Maps on the feature's grid: an odd stride gives a line more than it should, and the last one is left out."""
        high = (self.low[0] * self.stride[0], self.low[1] * self.stride[1])
        return resized(self.up(maps[:, None])[..., : high[0], : high[1]].contiguous(), size)

    def fused(self, feature: Float[Tensor, "b c h w"], guide: Float[Tensor, "b u h w"]) -> Float[Tensor, "b c h w"]:
        if self.fuse == "concat":
            return self.mixed(torch.cat([feature, guide], 1))
        scale, shift = self.affine(self.mixed(guide))
        return feature * scale + shift

    def mixed(self, values: Float[Tensor, "b v h w"]) -> Float[Tensor, "b d h w"]:
        """The linear layer at each place."""
        return self.mix(values.movedim(1, -1)).movedim(-1, 1)

    def affine(self, said: Float[Tensor, "b d h w"]) -> tuple[Tensor, Tensor | float]:
        """Scale and shift of the feature, of `gate` and of `film`."""
        if self.fuse == "gate":
            return 1 + said, 0.0
        scale, shift = said.chunk(2, 1)
        return 1 + scale, shift

    @torch.no_grad()
    def folded(self) -> FoldedFusion:
        """The same part for `U` that is the learned one everywhere: one 1×1 convolution, of single channels but for `concat`."""
        channels = self.channels
        groups = 1 if self.fuse == "concat" else channels
        part = cast(FoldedFusion, build_part(f"folded_fusion:channels={channels},groups={groups}")).to(self.null)
        token = self.null[None, :, None, None]
        if self.fuse == "concat":
            weight = self.mix.weight[:, :channels]
            shift = self.mixed(torch.cat([token.new_zeros(1, channels, 1, 1), token], 1))
        else:
            weight, shift = self.affine(self.mixed(token))
        bias = torch.as_tensor(shift).flatten().expand(channels)
        part.conv.load_state_dict({"weight": weight.reshape(part.conv.weight.shape), "bias": bias})
        return part


class Nearby(nn.Module):
    """A linear layer over the last dimension that starts at the identity, or at zero, and moves slowly: `W = I + STEP · V`.

    What is learnt is `V`, so that a step of the optimizer moves `W` by `STEP²` of what it would move a plain layer's.
    """

    STEP = 0.1

    def __init__(self, inputs: int, outputs: int, identity: bool):
        super().__init__()
        self.identity = identity
        self.change = nn.Parameter(torch.zeros(outputs, inputs))
        self.shift = nn.Parameter(torch.zeros(outputs))

    @property
    def weight(self) -> Float[Tensor, "o i"]:
        moved = self.STEP * self.change
        return moved + torch.eye(*moved.shape, dtype=moved.dtype, device=moved.device) if self.identity else moved

    @property
    def bias(self) -> Float[Tensor, " o"]:
        return self.STEP * self.shift

    def forward(self, values: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        return functional.linear(values, self.weight, self.bias)


class FoldedFusion(nn.Module):
    """What is left of `cam_fusion:deploy=null`: a 1×1 convolution behind the last feature. Made by `MapFusion.folded`."""

    def __init__(self, *, channels: Count, groups: Count):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1, groups=groups)

    def forward(self, feature: Float[Tensor, "b c h w"], inputs: Mapping[str, Tensor]) -> Float[Tensor, "b c h w"]:
        return self.conv(feature)
