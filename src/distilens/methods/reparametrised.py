"""What methods share that write a layer's weight in another way while it is trained."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.utils import parametrize

from distilens.core import Answer, Batch, Method, Model
from distilens.errors import UserError
from distilens.pruning import LAYERS
from distilens.taps import find


class Reparametrised(Method):
    """Writes the weights of some layers as a function of others, which are trained; `finish` puts the weights back.

    Args:
        layers: paths of linear layers and convolutions; by default all that fit and are trained, also those of parts that other
            methods put into the student.
    """

    def __init__(self, layers: tuple[str, ...] = ()):
        super().__init__()
        self.layers = layers

    def chosen(self, student: Model) -> dict[str, nn.Module]:
        """The layers by path: those that were named, or all.

        Raises:
            UserError: a path that is no layer with a weight.
        """
        if not self.layers:
            every = [*student.network.named_modules(), *student.parts.named_modules(prefix="parts")]
            return {path: each for path, each in every if isinstance(each, LAYERS) and weight_of(each).requires_grad}
        found = {path: find(student.network, path) for path in self.layers}
        for path, module in found.items():
            if not isinstance(module, LAYERS):
                raise UserError(
                    f"{type(self).__name__.lower()} is of linear layers and convolutions, and {path!r} of {student.name} is a "
                    f"{type(module).__name__}"
                )
        return found

    def prepare(self, student: Model, batch: Batch, answer: Answer) -> Model:
        self.rewrite(student, self.chosen(student))
        return student

    def rewrite(self, student: Model, layers: Mapping[str, nn.Module]) -> None:
        """Write the weights of layers in the other way, in place; they are worth the same."""
        raise NotImplementedError

    def finish(self, student: Model) -> Model:
        for module in self.chosen(student).values():
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight")
        return student


def weight_of(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight
