"""CAM fusion: the teacher's map is an extra input beside the last feature; it is removed during training."""

from __future__ import annotations

from typing import Annotated, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distilens.core import Answer, Batch, Method, Model, Output
from distilens.explain.maps import empty, normalise_maps
from distilens.foundation.errors import UserError
from distilens.foundation.notation import Spec
from distilens.foundation.settings import Count
from distilens.losses.maps import distance
from distilens.models.grids import on_one_grid
from distilens.models.parts import build_part
from distilens.models.parts.map_fusion import Deploy, Fuse, MapFusion
from distilens.models.taps import LAST, grid

PART = "cam_fusion"
PREDICTED = f"{PART}.predicted"


class CamFusion(Method):
    """Fuse the teacher's map, upsampled by a learned kernel, with the student's last feature `F` `[b c h w]`.

    `U = ConvTranspose(m)` `[b channels h w]`, with `m` the map, scaled from 0 to 1. A linear layer at each place fuses `F` and
    `U`; at the start of training `F' = F`:

    * `concat`: `F' = W [F, U] + b`.
    * `gate`: `F' = F (1 + W U + b)`.
    * `film`: `F' = F (1 + W_1 U + b_1) + W_2 U + b_2`.

    The map explains the teacher's top class, never the label: such a map would give the label away. Training also prepares the
    student for inference: a share of the images, drawn again in each epoch, does not get the teacher's map. The share rises
    linearly from `start` to 1 at the share `until` of the run. These images get, by `deploy`:

    * `null`: a learned `U`, the same at every place. At the end it is folded into the linear layer.
    * `self`: the `U` of the student's own map, `sigmoid(w F + b)`. This map has a loss: its cosine distance to the teacher's map,
      on the smaller grid. An image whose map is empty gives 0.
    * `teacher`: the share is 0; each image has the teacher's map, also at inference. The student cannot run without its teacher.

    Args:
        explainer: any explainer; it makes the teacher's maps.
        fuse: see above.
        deploy: see above.
        channels: the channels of `U`.
        of: the map of the crop that the student sees (`images`), or the map of the whole image, moved with the crop
            (`canonical`).
        start: see above; not for `deploy=teacher`.
        until: see above; not for `deploy=teacher`.

    Source: Mukherjee, Vinod Chandan and Dongre 2023 (IEEE MoSICom): `concat`, `deploy=teacher`, behind the last feature. Only a
    description is public, without formulas or code. The share without a map, `null` and `self` are ours.

    Raises:
        UserError: in `prepare`, if the last feature is not `[b c h w]`.
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
                f"cam_fusion: the map always explains the teacher's top class; remove target= from {explainer!r}"
            )
        self.fuse, self.channels, self.deploy, self.start, self.until = fuse, channels, deploy, start, until
        sampling = {"share": 1 - start, "draw": PART} if deploy == "null" and start else {}
        self.needs = (f"maps:{spec.replaced(of=of, **sampling)}",)
        self.at_use = self.needs if deploy == "teacher" else ()

    def prepare(self, student: Model, batch: Batch, answer: Answer) -> Model:
        path = student.path_of(LAST)
        feature = student.observe()[path][0]
        if not isinstance(feature, Tensor) or feature.ndim != 4 or grid(feature, student.size) is not feature:
            shape = list(feature.shape) if isinstance(feature, Tensor) else type(feature).__name__
            raise UserError(
                f"cam_fusion needs a last feature [b c h w], channels first; the feature of {student.name} at {path!r} is {shape}"
            )
        options = {"channels": feature.shape[1], "grid": tuple(feature.shape[2:])}
        options |= {"map_grid": tuple(answer.maps[self.needs[0]].shape[1:]), "hidden": self.channels}
        part = build_part(Spec("map_fusion").replaced(**options, fuse=self.fuse, deploy=self.deploy))
        student.insert(path, part, name=PART)
        if self.deploy == "self":
            student.tap(PREDICTED)
        return student

    def transform(self, batch: Batch, answer: Answer) -> Batch:
        maps = normalise_maps(answer.maps[self.needs[0]], signed=True)
        shown = batch.draw(PART)[:, 0] < self.share(batch.progress)
        return batch.replaced(inputs={**batch.inputs, "cam": maps, "cam_shown": shown.to(maps)})

    def share(self, progress: float) -> float:
        """The share of the images for which the student sees the teacher's map."""
        return 1.0 if self.deploy == "teacher" else (1 - self.start) * max(0.0, 1 - progress / self.until)

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"] | None:
        if self.deploy != "self":
            return None
        ours, theirs = on_one_grid(output.features[PREDICTED][:, 0].float(), batch.inputs["cam"])
        return distance(ours, theirs, "cosine").where(~empty(theirs), 0)

    def finish(self, student: Model) -> Model:
        """Fold the kernel that is no longer needed, and detach the teacher. `core.accompany` attaches one for inference."""
        part = student.parts[PART]
        if isinstance(part, MapFusion) and self.deploy == "null":
            student.parts[PART] = student.inserted[PART].part = part.fold()  # at its position among the parts
        if self.deploy == "teacher":
            student.companion = None
        return student
