"""CAM, the class activation map in closed form, for networks that end in pooling and one linear layer."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from distilens.explain.activation import ActivationMap, full, tapped
from distilens.explain.explanation import Explanation, Target, checked, classes_of, looks, quietly
from distilens.foundation.errors import UserError
from distilens.models.model import Model, Output
from distilens.models.taps import LAST, grid


class CAM(ActivationMap):
    """CAM: what each place of the last feature map adds to the logit, from the classifier's weights, without gradients.

    `M = sum_k W_ck A_k`, for a network that ends in the mean over places and one linear layer (ResNet, MobileNet,
    DenseNet). The map is signed. Its mean is the logit minus the bias, and `relu(M) / (h w)` is the Grad-CAM map of such a
    network. Any other head is an error.

    `from_output` does not see the network. It takes the classifier of the model that `attach` was called with. Without `attach`
    it takes the weights from the gradient, which gives the same map for such a head. A loss can train through both.

    Source: Zhou et al. 2016 (arXiv 1512.04150), section 2.
    """

    signed = True

    def __init__(self):
        super().__init__(tap=LAST)
        self.attached: nn.Linear | None = None

    def attach(self, model: Model) -> None:
        self.tap = model.tap(model.behind(model.last_tap))
        with model.reading(self.tap) as tap, quietly(model):
            logits = model.probe(2)
            self.attached = head(model, grid(tap.take(), model.size), logits)

    def explain(self, model: Model, images: Tensor, target: Target) -> Explanation:
        with model.reading(model.behind(model.last_tap)) as tap, torch.no_grad():
            logits = model.logits(images)
            feature = grid(tap.take(), model.size)
            target = classes_of(logits, target, model.task, "cam")
            weight = head(model, feature, logits).weight[target]
            return Explanation(torch.einsum("bchw,bc->bhw", full(feature), full(weight)), logits, target)

    def classwise(self, model: Model, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes i j"]:
        with quietly(model), model.reading(model.behind(model.last_tap)) as tap, torch.no_grad():
            logits = model.logits(checked(model, images))
            feature = grid(tap.take(), model.size)
            return self.of_all(feature, head(model, feature, logits))

    def from_output(
        self, output: Output, target: Target = None, *, create_graph: bool = True
    ) -> Float[Tensor, "b h w"]:
        if self.attached is None:
            return super().from_output(output, target, create_graph=create_graph)
        feature, target = (
            grid(tapped(output, self.tap), output.size),
            classes_of(output.logits, target, output.task, "cam"),
        )
        with torch.autocast(feature.device.type, enabled=False):
            maps = torch.einsum("bchw,bc->bhw", full(feature), full(self.attached.weight)[target])
        return maps if create_graph else maps.detach()

    def classwise_from_output(self, output: Output, *, create_graph: bool = True) -> Float[Tensor, "b classes i j"]:
        if self.attached is None:
            return super().classwise_from_output(output, create_graph=create_graph)
        maps = self.of_all(grid(tapped(output, self.tap), output.size), self.attached)
        return maps if create_graph else maps.detach()

    def of_all(self, feature: Float[Tensor, "b c h w"], linear: nn.Linear) -> Float[Tensor, "b classes i j"]:
        """The maps of all classes: a 1×1 convolution with the classifier's weights."""
        with torch.autocast(feature.device.type, enabled=False):
            return functional.conv2d(full(feature), full(linear.weight)[:, :, None, None])

    def combine(self, feature: Float[Tensor, "b c h w"], gradient: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
        return torch.einsum("bchw,bc->bhw", feature, gradient.sum((2, 3)))


def head(model: Model, feature: Float[Tensor, "b c h w"], logits: Float[Tensor, "b classes"]) -> nn.Linear:
    """The linear layer that computed a batch's logits from the means of its features.

    Raises:
        UserError: the network has another kind of head.
    """
    linear = [(path, module) for path, module in model.network.named_modules() if isinstance(module, nn.Linear)]
    if linear and (linear[-1][1].in_features, linear[-1][1].out_features) == (feature.shape[1], logits.shape[1]):
        path, last = linear[-1]
        if path == model.pooled_head and not looks(logits):
            return last
        expected = last(feature.mean((2, 3)))
        close = 1e-4 if model.precision is None else 3e-2
        if bool(((expected - logits).abs() <= close * (logits.abs() + logits.abs().max())).all()):
            model.pooled_head = path
            return last
    raise UserError(
        f"{model.name} does not end in a mean over places and one linear layer, so it has no closed-form CAM: use gradcam"
    )
