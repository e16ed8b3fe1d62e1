"""The base class of methods that reparametrise weights during training."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.utils import parametrize

from distilens.core import Answer, Batch, Method, Model
from distilens.foundation.errors import UserError
from distilens.models.pruning import LAYERS
from distilens.models.taps import find


class Reparametrised(Method):
    """Computes the weights of some layers from other, trained tensors. `finish` makes them plain weights again.

    Args:
        layers: paths of linear layers and convolutions. By default all suitable layers that are trained, also those of parts
            that other methods put into the student.
    """

    def __init__(self, layers: tuple[str, ...] = ()):
        super().__init__()
        self.layers = layers

    def choose_modules(self, student: Model) -> dict[str, nn.Module]:
        """The layers by path: the named ones, or all.

        Raises:
            UserError: a path does not lead to a linear layer or a convolution.
        """
        if not self.layers:
            modules = [*student.network.named_modules(), *student.parts.named_modules(prefix="parts")]
            return {
                path: module
                for path, module in modules
                if isinstance(module, LAYERS) and weight_of(module).requires_grad
            }
        layers = {path: find(student.network, path) for path in self.layers}
        for path, module in layers.items():
            if not isinstance(module, LAYERS):
                raise UserError(
                    f"{type(self).__name__.lower()} takes linear layers and convolutions, but {path!r} of {student.name} is a "
                    f"{type(module).__name__}"
                )
        return layers

    def prepare(self, student: Model, batch: Batch, answer: Answer) -> Model:
        self.rewrite(student, self.choose_modules(student))
        return student

    def rewrite(self, student: Model, layers: Mapping[str, nn.Module]) -> None:
        """Reparametrise the weights of layers in place; their values stay the same."""
        raise NotImplementedError

    def finish(self, student: Model) -> Model:
        for module in self.choose_modules(student).values():
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight")
        return student

    def unfinish(self, student: Model, state: Mapping[str, Tensor]) -> None:
        written = {key.partition(".parametrizations.weight.")[0] for key in state if ".parametrizations.weight." in key}
        self.rewrite(student, {path: layer for path, layer in self.choose_modules(student).items() if path in written})


def weight_of(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight
