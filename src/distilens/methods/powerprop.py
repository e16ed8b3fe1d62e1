"""Powerpropagation: train weights as powers, then prune the smallest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize

from distilens.core import Answer, Batch, Model
from distilens.foundation.errors import UserError
from distilens.methods.reparametrised import Reparametrised, weight_of
from distilens.models.pruning import leave_out


class PowerProp(Reparametrised):
    """Train weights as powers, and prune the smallest at the end: powerpropagation.

    `theta = phi |phi|^(alpha - 1)` for every weight of convolutions and linear layers, starting from
    `phi = sign(theta) |theta|^(1/alpha)`. The gradient is scaled by `alpha |phi|^(alpha - 1)`, so large weights change faster and
    more weights stay near 0. `finish` sets the share `prune` of all these weights to 0: the smallest, over all layers together.
    It adds no term to the loss.

    The student is validated unpruned during training; the saved student is pruned. A weight that is 0 has no gradient and stays
    0. A layer whose weights are all 0, such as a new head, is trained in the usual form.

    Args:
        alpha: at least 1; with 1 the method only prunes. The paper uses 2 to 5.
        prune: the share of the weights that is set to 0, from 0.
        layers: paths of layers; by default all linear layers and convolutions that are trained.

    Raises:
        UserError: in `prepare`, if all weights of a named layer are 0.

    Source: Schwarz et al. 2021 (arXiv 2110.00296), equations 1 and 2.
    """

    def __init__(
        self,
        *,
        alpha: Annotated[float, Field(ge=1)] = 1.5,
        prune: Annotated[float, Field(ge=0, lt=1)] = 0.5,
        layers: tuple[str, ...] = (),
    ):
        super().__init__(layers)
        self.alpha, self.prune = alpha, prune

    def prepare(self, student: Model, batch: Batch, answer: Answer) -> Model:
        modules = self.choose_modules(student)
        still = [path for path, module in modules.items() if self.alpha > 1 and not weight_of(module).any()]
        if still and self.layers:
            raise UserError(
                f"powerprop: all weights of {', '.join(still)} of {student.name} are 0, and a power has no gradient at 0: "
                "initialise them, or name other layers with layers="
            )
        self.rewrite(student, {path: module for path, module in modules.items() if path not in still})
        return student

    def rewrite(self, student: Model, layers: Mapping[str, nn.Module]) -> None:
        for module in layers.values():
            before = weight_of(module).detach().clone()
            parametrize.register_parametrization(module, "weight", Power(self.alpha))
            module.weight = before  # if another parametrisation is in place, its tensors must give the same weight

    def finish(self, student: Model) -> Model:
        student = super().finish(student)
        leave_out([weight_of(module) for module in self.choose_modules(student).values()], self.prune)
        return student


class Power(nn.Module):
    """`phi |phi|^(alpha - 1)`."""

    def __init__(self, alpha: float):
        super().__init__()
        self.alpha = alpha

    def forward(self, phi: Tensor) -> Tensor:
        # written so because the derivative of phi |phi|^(alpha - 1) at 0 is 0 times infinity
        return phi if self.alpha == 1 else phi.sign() * phi.abs() ** self.alpha

    def right_inverse(self, theta: Tensor) -> Tensor:
        return theta.sign() * theta.abs() ** (1 / self.alpha)
