"""Learning from the teacher's answers, the right class and the others apart."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from distilens.core import Answer, Batch, Method, Output

Factor = Annotated[float, Field(ge=0)]


class DKD(Method):
    """Match how sure the teacher is of the class, and how it shares out the rest, each with a factor of its own.

    `T^2 (alpha KL(b_t || b_s) + beta KL(q_t || q_s))`, `b = (p_c, 1 - p_c)` the probability of the class and of all others,
    `q` the probabilities of the others among themselves, at temperature `T`; per sample, in nats. `kd` is the same with
    `alpha = 1` and `beta = 1 - p_c` of the teacher, which nearly hides the second where the teacher is sure. The class is
    the label; where there is none, the teacher's first.

    Args:
        temperature: `T`.
        alpha: the factor of the target class.
        beta: the factor of the other classes.

    Source: Zhao et al. 2022 (arXiv 2203.08679), equation 7. Its beta is chosen by pair, from 2 (ResNet-56 to 20) to 8; its term
    grows over 20 of 240 epochs, which is the default `warmup` here.
    """

    needs = ("logits",)
    warmup = 0.08

    def __init__(
        self,
        *,
        temperature: Annotated[float, Field(gt=0)] = 4.0,
        alpha: Factor = 1.0,
        beta: Factor = 2.0,
    ):
        super().__init__()
        self.temperature, self.alpha, self.beta = temperature, alpha, beta

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"]:
        assert answer.logits is not None, "a teacher gives what is in `needs`"
        ours, theirs = (logits.float() / self.temperature for logits in (output.logits, answer.logits))
        label = torch.where(batch.labels < 0, theirs.argmax(1), batch.labels)
        chosen = functional.one_hot(label, theirs.shape[1]).bool()
        whole = self.alpha * divergence(*(target_or_not(logits, chosen) for logits in (theirs, ours)))
        rest = self.beta * divergence(*(among_others(logits, chosen) for logits in (theirs, ours)))
        return self.temperature**2 * (whole + rest)


def divergence(theirs: Float[Tensor, "b c"], ours: Float[Tensor, "b c"]) -> Float[Tensor, " b"]:
    """`KL(p_t || p_s)` from logarithms; places where both are minus infinity count nothing."""
    none = theirs.isneginf() & ours.isneginf()
    return (
        functional.kl_div(ours.masked_fill(none, 0), theirs.masked_fill(none, 0), reduction="none", log_target=True)
        .masked_fill(none, 0)
        .sum(1)
    )


def target_or_not(logits: Float[Tensor, "b c"], chosen: Bool[Tensor, "b c"]) -> Float[Tensor, "b 2"]:
    """The logarithms of the class's probability, and of all others' together."""
    return functional.log_softmax(
        torch.stack([logits.where(chosen, 0).sum(1), logits.masked_fill(chosen, -torch.inf).logsumexp(1)], 1), dim=1
    )


def among_others(logits: Float[Tensor, "b c"], chosen: Bool[Tensor, "b c"]) -> Float[Tensor, "b c"]:
    """The logarithms of the other classes' probabilities among themselves; minus infinity for the class."""
    return functional.log_softmax(logits.masked_fill(chosen, -torch.inf), dim=1)
