"""Map matching: the student learns to have the teacher's explanations (e2KD, CAT-KD)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distilens.core import Answer, Batch, Method, Model, Output
from distilens.explain import EXPLAINERS, Explainer
from distilens.explain.activation import FeatureMap
from distilens.explain.explanation import known_to_be_sound
from distilens.foundation.errors import UserError
from distilens.foundation.notation import Spec
from distilens.losses.maps import Distance, both_say, distance
from distilens.models.grids import on_one_grid


class MapMatch(Method):
    """Match the teacher's maps: one map per image, or the maps of all classes.

    The student's map is computed from the step's own output (`from_output`), so the loss has a derivative through it. If the map
    uses a gradient, the loss needs a second derivative, but only of the layers behind the tap. Both maps are brought to the
    smaller grid. The distances per image, with `u = m / |m|`:

    * `cosine`: `1 - <u_s, u_t>`, from 0 to 2; it ignores the scale of the maps.
    * `at`: the mean over places of `(u_s - u_t)^2`; this is `2 / (h w)` times the cosine distance.
    * `kl`: `KL(p_t || p_s)` with `p = softmax(m / |m| / temperature)` over places, in nats.
    * `l2`: the mean over places of `(m_s - m_t)^2`, for maps of the same scale in both networks. Grad-CAM++ uses the sum.

    If one of the two maps of an image is empty (no evidence anywhere), the image gives 0; the log has the share of such images.

    Args:
        explainer: any explainer with a derivative through features: gradcam, gradcam++, cam, layercam, hirescam, attention,
            gradient.
        tap: the student's tap, if it differs; the explainer's tap is then the teacher's.
        target: the class that is explained, in both networks: the teacher's top class (`top1`), or the label.
        classes: `one`, or `all`: the distance is then the mean over all class maps. With `explainer=cam` this needs no gradient.
        pool: first average both maps to this many cells along a side.
        distance: see above.
        temperature: see above.
        of: the teacher's map of the crop that the student sees (`images`), or the map of the whole image, moved with the crop
            (`canonical`). The second is stored once, but it can show evidence that the crop cuts off.
        every: match at every n-th step; the other steps cost nothing. The e2KD paper uses 4 or 16.

    Sources: Parchami-Araghi et al. 2024 (e2KD, arXiv 2402.03119), equation 2: `gradcam`, `cosine`, `top1`. Chattopadhay et al.
    2018 (Grad-CAM++, arXiv 1710.11063), equation 28: `gradcam++`, `l2`, `label`. Guo et al. 2023 (CAT-KD, CVPR):
    `explainer=cam,classes=all,pool=2,distance=at`; its code makes the same maps with a 1×1 convolution without bias.
    """

    weight = 5.0

    def __init__(
        self,
        *,
        explainer: str = "gradcam",
        tap: str | None = None,
        target: Literal["top1", "label"] = "top1",
        classes: Literal["one", "all"] = "one",
        pool: Annotated[int, Field(ge=1)] | None = None,
        distance: Distance = "cosine",
        temperature: Annotated[float, Field(gt=0)] = 0.1,
        of: Literal["images", "canonical"] = "images",
        every: Annotated[int, Field(ge=1)] = 1,
    ):
        super().__init__()
        self.tasks = ("classification",) if target == "label" else ()
        self.because = "target=label explains the one label of an image"
        self.target, self.classes, self.pool, self.every = target, classes, pool, every
        self.distance: Distance = distance
        self.temperature = temperature
        spec = Spec.parse(explainer)
        own = EXPLAINERS.build(spec if tap is None else spec.replaced(tap=tap))
        if type(own).from_output is Explainer.from_output:
            raise UserError(
                f"map_match: a loss cannot train through the maps of {spec.name}; use gradcam or cam, for example"
            )
        self.explainer: Explainer = own
        self.second_order = not isinstance(own, FeatureMap) and spec.name != "cam"
        options = {"of": of, "every": every, "classes": classes, "pool": pool}
        options |= {"target": target} if classes == "one" else {}
        self.needs = (f"maps:{spec.replaced(**{name: value for name, value in options.items() if value is not None})}",)
        self.register_buffer("counts", torch.zeros(2), persistent=False)  # all maps; maps left out
        self.counts: Tensor

    def prepare(self, student: Model, batch: Batch, answer: Answer) -> Model:
        self.explainer.attach(student)
        return student

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"]:
        theirs = answer.maps[self.needs[0]]
        with known_to_be_sound():  # labels and the teacher's targets are valid classes
            if self.classes == "all":
                ours = self.explainer.classwise_from_output(output)
            else:
                aim = batch.targets.clamp_min(0) if self.target == "label" else answer.targets[self.needs[0]]
                ours = self.explainer.from_output(output, aim)
        ours, theirs = on_one_grid(ours, theirs, self.pool)
        known = both_say(ours, theirs)
        if self.target == "label" and self.classes == "one":
            known = known & (batch.targets >= 0)
        self.counts[0] += known.numel()
        self.counts[1] += (~known).sum()
        distances = distance(ours, theirs, self.distance, self.temperature).where(known, 0)
        return distances if distances.ndim == 1 else distances.mean(1)

    def notes(self) -> dict[str, float]:
        compared, left_out = self.counts.tolist()
        self.counts.zero_()
        return {"empty maps": left_out / max(compared, 1)}
