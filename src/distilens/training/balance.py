"""Balances: how the terms of a loss are weighted against each other during training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from distilens.core import Balance
from distilens.foundation.devices import mean_of_processes
from distilens.foundation.errors import UserError
from distilens.foundation.notation import Registry

Steps = Annotated[int, Field(ge=1)] | None
TINY = 1e-12
FARTHEST = 10.0
LIFTED = 2.0**10
"""A term is scaled to about this size, by a power of two, before its gradient is computed: half precision has a small range."""
A_TERM = 40
"""Steps between measurements, per term. Measuring a term costs about two thirds of a step, so this costs 2 % of training."""


class Measured(Balance):
    """Multiplies each term by a factor. The factors follow from the norms of the terms' gradients, measured every n-th step.

    The gradients are those on the student's parameters. A measurement costs one backward pass per term, by default about 2 % of
    the training. The new factor is the geometric mean of the old one and the measured one. Factors are saved in checkpoints and
    are the same in all processes. A term that is 0 or has no gradient keeps its factor and does not change the others.

    Args:
        names: the names of all terms, in order; some may never appear.
        every: steps between measurements, by default 40 per term. A term is also measured when it first appears.
    """

    measures = True
    led = False
    """Whether the first term is the reference for the others."""
    factors: Tensor
    first: Tensor

    def __init__(self, names: Sequence[str], *, every: Steps = None):
        super().__init__()
        self.names = list(names)
        self.every = every or A_TERM * max(1, len(self.names))
        self.known: set[str] = set()  # the terms that have appeared
        self.felt: set[str] = set()  # the terms that have been measured with a gradient above 0
        self.register_buffer("factors", torch.ones(len(self.names)))
        self.register_buffer("first", torch.ones(len(self.names)))  # each loss at its first measurement

    def forward(self, terms: Mapping[str, Tensor], student: nn.Module, step: int) -> dict[str, Tensor]:
        if self.training and torch.is_grad_enabled() and len(self.names) > 1 and self.due(terms, step):
            self.measure(terms, [parameter for parameter in student.parameters() if parameter.requires_grad])
        return {name: self.factors[self.names.index(name)] * term for name, term in terms.items()}

    def due(self, terms: Mapping[str, Tensor], step: int) -> bool:
        """Whether to measure: every n-th step, when a term first appears, and at steps 1, 2, 4, ... while a term is still 0."""
        leader = next((name for name in self.names if name in terms or name in self.known), "")
        if self.led and (leader not in terms or not terms[leader].requires_grad):
            return False
        waited = step & (step - 1) == 0 and not terms.keys() <= self.felt
        return step % self.every == 0 or not terms.keys() <= self.known or waited

    def measure(self, terms: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> None:
        """Update the factors from the norms of this step's gradients."""
        self.known.update(terms)
        names = [name for name, term in terms.items() if term.requires_grad]
        if not names:
            return
        norms = torch.stack([norm(terms[name], parameters) for name in names])
        losses = mean_of_processes(torch.stack([terms[name].detach().float() for name in names]))
        felt = ((norms > TINY) & (losses != 0) & norms.isfinite()).tolist()
        if self.led and not felt[0]:
            return  # there is no reference for the others
        names, norms, losses = [name for name, it in zip(names, felt, strict=True) if it], norms[felt], losses[felt]
        places = torch.tensor([self.names.index(name) for name in names], device=norms.device, dtype=torch.long)
        seen = torch.tensor([name in self.felt for name in names], device=norms.device, dtype=torch.bool)
        self.first[places] = self.first[places].where(seen, losses)
        measured = self.target_norms(norms, losses / self.first[places]) / norms
        self.factors[places] = (self.factors[places] * measured).sqrt().where(seen, measured)
        self.felt.update(names)

    def target_norms(self, norms: Tensor, progress: Tensor) -> Tensor:
        """The target norms.

        Args:
            norms: the gradient norms of this step's terms, with their weights applied; all are above 0.
            progress: each loss divided by its first value.
        """
        raise NotImplementedError

    def notes(self) -> dict[str, float]:
        factors = zip(self.names, self.factors.tolist(), strict=True)
        return {name: factor for name, factor in factors if name in self.known}

    def get_extra_state(self) -> Any:
        """Which terms have appeared, and which have been measured, as a tensor."""
        return torch.tensor([[name in names for name in self.names] for names in (self.known, self.felt)])

    def set_extra_state(self, state: Any) -> None:
        self.known, self.felt = (
            {name for name, there in zip(self.names, row, strict=True) if there} for row in state.tolist()
        )


class Ratio(Measured):
    """Holds each term's gradient norm at a multiple of the first term's: `|d L_i| = ratio |d L_1|`.

    The weights of the other terms then have no effect (0 stays 0), so published weights are not needed. The first term keeps its
    weight. `warmup` and `decay` still apply.

    Args:
        ratio: the multiple, for all other terms.
        every: steps between measurements.

    Source: the fixed multiple is our own. GradNorm also uses gradient norms, but on one layer; here all parameters count.
    """

    led = True

    def __init__(self, ratio: str | float | None = None, /, names: Sequence[str] = (), *, every: Steps = None):
        super().__init__(names, every=every)
        self.ratio = multiple(0.3 if ratio is None else ratio)

    def target_norms(self, norms: Tensor, progress: Tensor) -> Tensor:
        return torch.cat([norms[:1], (self.ratio * norms[0]).expand_as(norms[1:])])


class GradNorm(Measured):
    """Gives slower terms larger gradients: `|d L_i| = mean |d L_j| (r_i / mean r)^alpha`, `r_i = L_i / L_i(first)`.

    The factors have mean 1. Terms that can be negative, such as that of `vid`, are refused: `r_i` has no meaning for them.

    Args:
        alpha: 0 gives all terms the same gradient norm; the paper uses 0.12 to 1.5.
        every: steps between measurements.

    Source: Chen et al. 2018 (arXiv 1711.02257), equations 1 and 2. The paper uses the gradients on the last shared layer, and an
    optimiser moves the factors towards this target at each step. Here the factors are set to the target.
    """

    of_losses = True

    def __init__(self, names: Sequence[str], *, alpha: Annotated[float, Field(ge=0)] = 1.5, every: Steps = None):
        super().__init__(names, every=every)
        self.alpha = alpha

    def target_norms(self, norms: Tensor, progress: Tensor) -> Tensor:
        pace = progress.clamp_min(TINY)
        aims = norms.mean() * (pace / pace.mean()) ** self.alpha
        return aims / (aims / norms).mean()


class Uncertainty(Balance):
    """Learns a weight per term: `exp(-s_i) L_i + s_i / 2`. Each `s_i` starts at 0 and is trained with the student.

    `s` is limited to [-10, 10], that is factors from 4.5e-5 to 22,000. Otherwise `s` would diverge for a term that reaches 0.
    Terms that can be negative, such as that of `vid`, are refused for the same reason.

    Source: Kendall et al. 2018 (arXiv 1705.07115), equation 10, with `s = log sigma^2`.
    """

    of_losses = True

    def __init__(self, names: Sequence[str]):
        super().__init__()
        self.names = list(names)
        weighs = len(self.names) > 1  # training on several processes fails if no loss uses a parameter
        self.s = nn.Parameter(torch.zeros(len(self.names)), requires_grad=weighs)

    def forward(self, terms: Mapping[str, Tensor], student: nn.Module, step: int) -> dict[str, Tensor]:
        if len(self.names) < 2:  # a single term, such as the base student's cross-entropy
            return dict(terms)
        with torch.no_grad():
            self.s.clamp_(-FARTHEST, FARTHEST)  # in place: a clamped copy has no gradient at the limits
        places = {name: self.s[self.names.index(name)] for name in terms}
        return {name: (-places[name]).exp() * term + places[name] / 2 for name, term in terms.items()}

    def notes(self) -> dict[str, float]:
        factors = (-self.s.detach().clamp(-FARTHEST, FARTHEST)).exp().tolist()
        return dict(zip(self.names, factors, strict=True)) if len(self.names) > 1 else {}


def multiple(given: str | float) -> float:
    """A positive number, from notation.

    Raises:
        UserError: it is not a positive number.
    """
    try:
        number = float(given)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise UserError(f"balance=ratio:R holds gradients at R times the first term's, R above 0; given {given!r}")
    return number


def fixed(names: Sequence[str]) -> Balance:
    """The weights as given."""
    return Balance()


def norm(term: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """The norm of a term's gradient on the parameters, over the images of all processes. The graph is kept."""
    size = term.detach().float().abs().clamp_min(TINY)
    factor = torch.exp2(torch.log2(LIFTED / size).round())
    gradients = torch.autograd.grad(factor * term, parameters, retain_graph=True, allow_unused=True)
    flat = [gradient.float().flatten() for gradient in gradients if gradient is not None]
    return mean_of_processes(torch.cat(flat) / factor).norm() if flat else term.new_zeros((), dtype=torch.float32)


BALANCES = Registry(
    "balance",
    {
        "fixed": "distilens.training.balance:fixed",
        "ratio": "distilens.training.balance:Ratio",
        "gradnorm": "distilens.training.balance:GradNorm",
        "uncertainty": "distilens.training.balance:Uncertainty",
    },
)
