"""Over-parameterisation: more weights during training, the plain weights at inference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize

from distilens.core import Model
from distilens.foundation.errors import UserError
from distilens.methods.reparametrised import Reparametrised, weight_of


class OPDF(Reparametrised):
    """Train each weight as a product of tensors, contracted at the end: over-parameterisation by tensor decomposition.

    A weight `[I, J]` (outputs, and inputs times places) becomes a matrix product operator `T_1 ... T_n`, with
    `T_k [r_(k-1), i_k, j_k, r_k]`, `prod i_k = I` and `prod j_k = J`. Each `r_k` is as large as possible, so nothing is lost: the
    student starts with its own weights. At the start the outer tensors are orthogonal and the central one holds the rest. The
    method adds no term to the loss; `finish` contracts the tensors.

    Args:
        factors: `n`. More factors make a step of the product larger: 3 and 4 may diverge at the learning rates of plain training.
        layers: paths of layers; by default all linear layers and convolutions that can be factorised.

    Raises:
        UserError: in `prepare`, if the weight of a named layer cannot be factorised, or if there is no layer that can.

    Source: Zhan et al. 2024 (arXiv 2411.06448), equations 3 to 5, for language models. The paper also aligns the outer tensors
    with those of a factorised teacher. This needs weights of the same size; in the paper's code it has no gradient or is
    commented out. This version does not do it.
    """

    inserts = True  # it must reparametrise a weight before other methods (powerprop) do

    def __init__(self, *, factors: Annotated[int, Field(ge=2, le=6)] = 2, layers: tuple[str, ...] = ()):
        super().__init__(layers)
        self.factors = factors

    def rewrite(self, student: Model, layers: Mapping[str, nn.Module]) -> None:
        products = {path: (module, Product(weight_of(module).shape, self.factors)) for path, module in layers.items()}
        fitting = {path: pair for path, pair in products.items() if pair[1].fits}
        plain = ", ".join(
            f"{path} {list(weight_of(module).shape)}" for path, (module, _) in products.items() if path not in fitting
        )
        if plain and (self.layers or not fitting):
            raise UserError(
                f"opdf: these weights of {student.name} cannot be a product of {self.factors} tensors: {plain}. Name other "
                "layers with layers="
            )
        for module, product in fitting.values():
            parametrize.register_parametrization(module, "weight", product)


class Product(nn.Module):
    """A weight as the contraction of its tensors, `T_k` as `[r_(k-1), i_k j_k, r_k]`.

    Attributes:
        added: how many more numbers the tensors have than the weight.
        fits: whether more than one tensor has more than one number.
    """

    def __init__(self, shape: torch.Size, factors: int):
        super().__init__()
        self.shape = shape
        self.rows, self.columns = (balanced_factors(size, factors) for size in (shape[0], shape[1:].numel()))
        sizes = [i * j for i, j in zip(self.rows, self.columns, strict=True)]
        bonds = [min(math.prod(sizes[:k]), math.prod(sizes[k:])) for k in range(factors + 1)]
        self.fits = sum(size > 1 for size in sizes) > 1
        self.added = sum(bonds[k] * size * bonds[k + 1] for k, size in enumerate(sizes)) - shape.numel()

    def forward(self, *tensors: Tensor) -> Tensor:
        whole = tensors[0].flatten(0, 1)
        with torch.autocast(whole.device.type, enabled=False):  # the weight stays as exact as a plain one
            for tensor in tensors[1:]:
                whole = (whole @ tensor.flatten(1)).view(-1, tensor.shape[2])
        count = len(self.rows)
        pairs = whole.view([size for pair in zip(self.rows, self.columns, strict=True) for size in pair])
        return pairs.permute(*range(0, 2 * count, 2), *range(1, 2 * count, 2)).reshape(self.shape)

    def right_inverse(self, weight: Tensor) -> list[Tensor]:
        """The tensors of a weight: singular vectors from both ends, and the rest in the middle."""
        count, middle = len(self.rows), len(self.rows) // 2
        order = [axis for k in range(count) for axis in (k, count + k)]
        rest = weight.reshape(*self.rows, *self.columns).permute(order).reshape(1, -1, 1)
        sizes = [i * j for i, j in zip(self.rows, self.columns, strict=True)]
        before, after = [], []
        for size in sizes[:middle]:
            left, values, right = torch.linalg.svd(rest.reshape(rest.shape[0] * size, -1), full_matrices=False)
            before.append(left.view(rest.shape[0], size, -1))
            rest = (values[:, None] * right)[..., None]
        for size in reversed(sizes[middle + 1 :]):
            bond_before, bond = rest.shape[0], rest.shape[2]
            left, values, right = torch.linalg.svd(rest.reshape(-1, size * bond), full_matrices=False)
            after.insert(0, right.view(-1, size, bond))
            rest = (left * values).view(bond_before, -1, len(values))
        return [*before, rest, *after]


def balanced_factors(number: int, count: int) -> list[int]:
    """A number as a product of `count` factors, as equal as its prime factors allow."""
    factors, primes, prime = [1] * count, [], 2
    while number > 1:
        while number % prime:
            prime += 1
        number //= prime
        primes.append(prime)
    for prime in reversed(primes):
        factors[factors.index(min(factors))] *= prime
    return factors
