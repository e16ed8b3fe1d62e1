"""Answering for the teacher's reasons: the student's maps are to be the teacher's."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distilens.core import Answer, Batch, Method, Model, Output
from distilens.errors import UserError
from distilens.explain import EXPLAINERS, Explainer
from distilens.explain.activation import FeatureMap
from distilens.explain.explanation import known_to_be_sound
from distilens.explain.maps import on_one_grid
from distilens.losses.maps import Distance, both_say, distance
from distilens.specs import Spec


class MapMatch(Method):
    """Match the teacher's maps: one explanation of each image, or the maps of all classes.

    The student's map is made from the step's own output (`from_output`) and can be trained through; where it is made from a
    gradient, the loss needs a second derivative, of the layers behind the tap alone. Both maps are brought to the smaller grid.
    Distances, per image, with `u = m / |m|`:

    * `cosine`: `1 - <u_s, u_t>`, from 0 to 2; whatever the maps' scale.
    * `at`: the mean over places of `(u_s - u_t)^2`, which is `2 / (h w)` times the cosine distance.
    * `kl`: `KL(p_t || p_s)` with `p = softmax(m / |m| / temperature)` over places, in nats.
    * `l2`: the mean over places of `(m_s - m_t)^2`: of maps whose scale means the same in both networks. Grad-CAM++ sums.

    An image of which one of the two maps is empty (no evidence anywhere) counts 0, and is counted in the log.

    Args:
        explainer: any that has a derivative through features: gradcam, gradcam++, cam, layercam, hirescam, attention, gradient.
        tap: the student's, where it is another than the explainer's, which then is the teacher's.
        target: the class that is explained, in both networks: the teacher's own first (`top1`), or the label.
        classes: `one`, or `all`: the distance is then the mean over all class maps. With `explainer=cam` this needs no gradient.
        pool: average both maps to so many cells along a side first.
        distance: see above.
        temperature: see above.
        of: the teacher's map of the very crop that the student sees (`images`), or that of the whole image, moved with it
            (`canonical`): stored once, but of other evidence where the crop cuts some off.
        every: match at every so many steps; a step between costs nothing. The paper of e2KD takes 4 or 16.

    Sources: Parchami-Araghi et al. 2024 (e2KD, arXiv 2402.03119), equation 2: `gradcam`, `cosine`, `top1`. Chattopadhay et al.
    2018 (Grad-CAM++, arXiv 1710.11063), equation 28: `gradcam++`, `l2`, `label`. Guo et al. 2023 (CAT-KD, CVPR):
    `explainer=cam,classes=all,pool=2,distance=at`; its code's maps are of a 1×1 convolution without bias, which is the same.
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
        self.target, self.classes, self.pool, self.every = target, classes, pool, every
        self.distance: Distance = distance
        self.temperature = temperature
        spec = Spec.parse(explainer)
        own = EXPLAINERS.build(spec if tap is None else spec.replaced(tap=tap))
        if type(own).from_output is Explainer.from_output:
            raise UserError(f"map_match: {spec.name} makes no maps from features that a loss could train through")
        self.explainer: Explainer = own
        self.second_order = not isinstance(own, FeatureMap) and spec.name != "cam"
        asked = {"of": of, "every": every, "classes": classes, "pool": pool}
        asked |= {"target": target} if classes == "one" else {}
        self.needs = (f"maps:{spec.replaced(**{name: value for name, value in asked.items() if value is not None})}",)
        self.register_buffer("counts", torch.zeros(2), persistent=False)  # maps compared; of these left out
        self.counts: Tensor

    def prepare(self, student: Model, batch: Batch, answer: Answer) -> Model:
        self.explainer.attach(student)
        return student

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"]:
        theirs = answer.maps[self.needs[0]]
        with known_to_be_sound():  # labels and the teacher's targets are classes
            if self.classes == "all":
                ours = self.explainer.classwise_from_output(output)
            else:
                aim = batch.labels.clamp_min(0) if self.target == "label" else answer.targets[self.needs[0]]
                ours = self.explainer.from_output(output, aim)
        ours, theirs = on_one_grid(ours, theirs, self.pool)
        known = both_say(ours, theirs)
        if self.target == "label" and self.classes == "one":
            known = known & (batch.labels >= 0)
        self.counts[0] += known.numel()
        self.counts[1] += (~known).sum()
        apart = distance(ours, theirs, self.distance, self.temperature).where(known, 0)
        return apart if apart.ndim == 1 else apart.mean(1)

    def notes(self) -> dict[str, float]:
        compared, left_out = self.counts.tolist()
        self.counts.zero_()
        return {"empty maps": left_out / max(compared, 1)}
