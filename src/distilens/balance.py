"""How the terms of a loss are weighed against each other while a student is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from distilens.errors import UserError
from distilens.gathering import mean_of_processes
from distilens.specs import Registry

Steps = Annotated[int, Field(ge=1)] | None
TINY = 1e-12
FARTHEST = 10.0
LIFTED = 2.0**10
"""What a term is brought to, by a power of two, before its gradient is taken: half precision has little room."""
A_TERM = 40
"""Steps between measurements for each term: a measurement of a term costs about two thirds of a step, so all take 2 %."""


class Balance(nn.Module):
    """The terms as they were weighted: `fixed`."""

    measures = False
    of_losses = False
    """It judges losses by their size, so none of them may be negative."""

    def forward(self, terms: Mapping[str, Tensor], student: nn.Module, step: int) -> dict[str, Tensor]:
        """The terms in balance.

        Args:
            terms: scalars, with their weights, by name; those of this step alone.
            student: the gradients that count are those of its parameters.
            step: from the beginning.
        """
        return dict(terms)

    def notes(self) -> dict[str, float]:
        """What each term is multiplied by, by its name."""
        return {}


class Measured(Balance):
    """Multiplies terms by factors that follow from the norms of their gradients on the student, measured every so many steps.

    A measurement costs a backward pass for each term, about 2 % of a training by default. New factors are the geometric mean of
    the old ones and what was measured. They are kept in checkpoints, and are the same in all processes. A term that is 0, or
    has no gradient, keeps its factor and does not touch the others'.

    Args:
        names: of all terms, in order; some may never come.
        every: steps between measurements, by default 40 for each term; a term that comes later is measured when it comes.
    """

    measures = True
    led = False
    """The first term is what the others are measured by."""
    factors: Tensor
    first: Tensor

    def __init__(self, names: Sequence[str], *, every: Steps = None):
        super().__init__()
        self.names = list(names)
        self.every = every or A_TERM * max(1, len(self.names))
        self.known: set[str] = set()  # the terms that have come
        self.felt: set[str] = set()  # those of them that have been more than 0
        self.register_buffer("factors", torch.ones(len(self.names)))
        self.register_buffer("first", torch.ones(len(self.names)))  # each loss when it was first measured

    def forward(self, terms: Mapping[str, Tensor], student: nn.Module, step: int) -> dict[str, Tensor]:
        if self.training and torch.is_grad_enabled() and len(self.names) > 1 and self.due(terms, step):
            self.measure(terms, [parameter for parameter in student.parameters() if parameter.requires_grad])
        return {name: self.factors[self.names.index(name)] * term for name, term in terms.items()}

    def due(self, terms: Mapping[str, Tensor], step: int) -> bool:
        """Every so many steps, when a term comes, and at steps 1, 2, 4, 8 and so on while one of them has been 0 so far."""
        leader = next((name for name in self.names if name in terms or name in self.known), "")
        if self.led and (leader not in terms or not terms[leader].requires_grad):
            return False
        waited = step & (step - 1) == 0 and not terms.keys() <= self.felt
        return step % self.every == 0 or not terms.keys() <= self.known or waited

    def measure(self, terms: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> None:
        """Set the factors by the norms of the gradients of the terms of this step."""
        self.known.update(terms)
        some = [name for name, term in terms.items() if term.requires_grad]
        if not some:
            return
        norms = torch.stack([norm(terms[name], parameters) for name in some])
        losses = mean_of_processes(torch.stack([terms[name].detach().float() for name in some]))
        felt = ((norms > TINY) & (losses != 0) & norms.isfinite()).tolist()
        if self.led and not felt[0]:
            return  # nothing to measure the others by
        some, norms, losses = [name for name, it in zip(some, felt, strict=True) if it], norms[felt], losses[felt]
        places = torch.tensor([self.names.index(name) for name in some], device=norms.device, dtype=torch.long)
        seen = torch.tensor([name in self.felt for name in some], device=norms.device, dtype=torch.bool)
        self.first[places] = self.first[places].where(seen, losses)
        found = self.wanted(norms, losses / self.first[places]) / norms
        self.factors[places] = (self.factors[places] * found).sqrt().where(seen, found)
        self.felt.update(some)

    def wanted(self, norms: Tensor, progress: Tensor) -> Tensor:
        """What the norms are to be.

        Args:
            norms: of the terms of this step, as they were weighted; none is 0.
            progress: each loss as a share of what it was first.
        """
        raise NotImplementedError

    def notes(self) -> dict[str, float]:
        found = zip(self.names, self.factors.tolist(), strict=True)
        return {name: factor for name, factor in found if name in self.known}

    def get_extra_state(self) -> Any:
        """Which terms have come, and which have been felt, as a tensor."""
        return torch.tensor([[name in names for name in self.names] for names in (self.known, self.felt)])

    def set_extra_state(self, state: Any) -> None:
        self.known, self.felt = (
            {name for name, there in zip(self.names, row, strict=True) if there} for row in state.tolist()
        )


class Ratio(Measured):
    """Holds each term's gradient at a multiple of the first term's: `|d L_i| = ratio |d L_1|`.

    Weights then no longer count (0 stays 0), so published ones need not be known. The first term keeps its own; `warmup` and
    `decay` still make terms come and go.

    Args:
        ratio: the multiple, for all other terms.
        every: steps between measurements.

    Source: the multiple is ours; the norm on the student's own parameters is that of GradNorm, here of all of them.
    """

    led = True

    def __init__(self, ratio: str | float | None = None, /, names: Sequence[str] = (), *, every: Steps = None):
        super().__init__(names, every=every)
        self.ratio = multiple(0.3 if ratio is None else ratio)

    def wanted(self, norms: Tensor, progress: Tensor) -> Tensor:
        return torch.cat([norms[:1], (self.ratio * norms[0]).expand_as(norms[1:])])


class GradNorm(Measured):
    """Lets terms that fall more slowly count more: `|d L_i| = mean |d L_j| (r_i / mean r)^alpha`, `r_i = L_i / L_i(first)`.

    The factors have mean 1. Terms that can be negative, as that of `vid`, cannot be a share of what they were.

    Args:
        alpha: 0 gives all terms gradients of one norm; the paper: 0.12 to 1.5.
        every: steps between measurements.

    Source: Chen et al. 2018 (arXiv 1711.02257), equations 1 and 2. There the factors take a step of their own optimiser towards
    this at every step, by the gradients of the last shared layer alone; here they are set to it.
    """

    of_losses = True

    def __init__(self, names: Sequence[str], *, alpha: Annotated[float, Field(ge=0)] = 1.5, every: Steps = None):
        super().__init__(names, every=every)
        self.alpha = alpha

    def wanted(self, norms: Tensor, progress: Tensor) -> Tensor:
        pace = progress.clamp_min(TINY)
        aims = norms.mean() * (pace / pace.mean()) ** self.alpha
        return aims / (aims / norms).mean()


class Uncertainty(Balance):
    """Learns how much each term is to be believed: `exp(-s_i) L_i + s_i / 2`, with `s_i` trained along, from 0.

    `s` stays within 10 of 0, where factors are 4.5e-5 and 22,000: that of a term that falls to 0 would go down for ever, as would
    that of one that can be negative, as that of `vid`.

    Source: Kendall et al. 2018 (arXiv 1705.07115), equation 10, with `s = log sigma^2`.
    """

    of_losses = True

    def __init__(self, names: Sequence[str]):
        super().__init__()
        self.names = list(names)
        weighs = len(self.names) > 1  # a parameter that no loss uses stops several processes
        self.s = nn.Parameter(torch.zeros(len(self.names)), requires_grad=weighs)

    def forward(self, terms: Mapping[str, Tensor], student: nn.Module, step: int) -> dict[str, Tensor]:
        if len(self.names) < 2:  # nothing to weigh it against: the base student's labels
            return dict(terms)
        with torch.no_grad():
            self.s.clamp_(-FARTHEST, FARTHEST)  # itself: a clamped copy has no gradient that leads back
        places = {name: self.s[self.names.index(name)] for name in terms}
        return {name: (-places[name]).exp() * term + places[name] / 2 for name, term in terms.items()}

    def notes(self) -> dict[str, float]:
        factors = (-self.s.detach().clamp(-FARTHEST, FARTHEST)).exp().tolist()
        return dict(zip(self.names, factors, strict=True)) if len(self.names) > 1 else {}


def multiple(given: str | float) -> float:
    """A positive number, from notation.

    Raises:
        UserError: it is none.
    """
    try:
        found = float(given)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise UserError(f"balance=ratio:R holds gradients at R times the first term's, R above 0; given {given!r}")
    return found


def fixed(names: Sequence[str]) -> Balance:
    """The weights as they are given."""
    return Balance()


def norm(term: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """The norm of a term's gradient on some parameters, of the images of all processes; the graph stays."""
    size = term.detach().float().abs().clamp_min(TINY)
    factor = torch.exp2(torch.log2(LIFTED / size).round())
    found = torch.autograd.grad(factor * term, parameters, retain_graph=True, allow_unused=True)
    each = [gradient.float().flatten() for gradient in found if gradient is not None]
    return mean_of_processes(torch.cat(each) / factor).norm() if each else term.new_zeros((), dtype=torch.float32)


BALANCES = Registry(
    "balance",
    {
        "fixed": "distilens.balance:fixed",
        "ratio": "distilens.balance:Ratio",
        "gradnorm": "distilens.balance:GradNorm",
        "uncertainty": "distilens.balance:Uncertainty",
    },
)
