"""Weights that grow the more the larger they are, so that the small ones can be left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize

from distilens.core import Answer, Batch, Model
from distilens.errors import UserError
from distilens.methods.reparametrised import Reparametrised, weight_of
from distilens.pruning import leave_out


class PowerProp(Reparametrised):
    """Train weights as powers, and leave out the smallest in the end: powerpropagation.

    `theta = phi |phi|^(alpha - 1)` for every weight of convolutions and linear layers, from
    `phi = sign(theta) |theta|^(1/alpha)`: the gradient is scaled by `alpha |phi|^(alpha - 1)`, so large weights change faster and
    more of them stay near 0. `finish` sets the share `prune` of all these weights to 0, the smallest of all layers together. It
    adds no term to the loss.

    What is validated while it trains is not pruned yet; the saved student is. A weight that is 0 has no gradient and stays 0; a
    layer of zeros alone, as heads may start, is trained as it is.

    Args:
        alpha: from 1 (the smallest are left out, and nothing else changes); the paper: 2 to 5.
        prune: the share that is left out, from 0.
        layers: paths of layers; by default all linear layers and convolutions that are trained.

    Raises:
        UserError: in `prepare`, a layer that was named and whose weights are all 0.

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
        chosen = self.chosen(student)
        still = [path for path, module in chosen.items() if self.alpha > 1 and not weight_of(module).any()]
        if still and self.layers:
            raise UserError(
                f"powerprop: all weights of {', '.join(still)} of {student.name} are 0, and a weight that is 0 has no gradient "
                "as a power: initialise them, or name other layers with layers="
            )
        self.rewrite(student, {path: module for path, module in chosen.items() if path not in still})
        return student

    def rewrite(self, student: Model, layers: Mapping[str, nn.Module]) -> None:
        for module in layers.values():
            before = weight_of(module).detach().clone()
            parametrize.register_parametrization(module, "weight", Power(self.alpha))
            module.weight = before  # where the weight was a function of others already, they are to give the same one

    def finish(self, student: Model) -> Model:
        student = super().finish(student)
        leave_out([weight_of(module) for module in self.chosen(student).values()], self.prune)
        return student


class Power(nn.Module):
    """`phi |phi|^(alpha - 1)`."""

    def __init__(self, alpha: float):
        super().__init__()
        self.alpha = alpha

    def forward(self, phi: Tensor) -> Tensor:
        # as phi |phi|^(alpha - 1), whose derivative at 0 would be 0 times infinity
        return phi if self.alpha == 1 else phi.sign() * phi.abs() ** self.alpha

    def right_inverse(self, theta: Tensor) -> Tensor:
        return theta.sign() * theta.abs() ** (1 / self.alpha)
