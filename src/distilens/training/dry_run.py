"""Checks before the training: prepare the student with its methods, and look for models whose answers are not usable."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Sequence

import torch

from distilens.core import Batch, Model, Objective, Teacher, with_terms
from distilens.data.splits import Data
from distilens.foundation import randomness
from distilens.foundation.errors import UserError
from distilens.foundation.estimate import share_of
from distilens.methods import build_methods
from distilens.models.taps import evaluating
from distilens.tasks import Classification
from distilens.training.balance import BALANCES

SECONDS = 1.0
"""Maximum time for which a model is tried on validation images."""
CHUNK = 4
IMAGES, FEW = 128, 64
KNOWS = 0.4
"""There is no warning about a teacher that may close this share of the gap between chance and 100 %."""
SURE = 0.999
"""A teacher is refused if it is worse than chance with this confidence."""


def rehearsed(
    student: Model, methods: Sequence[str], batch: Batch, teacher: Teacher, *, balance: str = "fixed"
) -> Objective:
    """A copy of a student, prepared by its methods on a first batch. Noise stands for what the methods collect.

    Args:
        student: it is not changed.
        teacher: a teacher of the final architecture; its weights do not matter.
        balance: the balance of the terms, in notation.

    Raises:
        UserError: a tap does not exist, maps cannot be made, shapes or classes do not fit, or the balance does not fit the terms.
    """
    listed = build_methods(methods)
    balanced = BALANCES.build(balance, with_terms(listed))
    learner = copy.deepcopy(student)
    if not any(parameter.requires_grad for parameter in learner.parameters()):
        learner.requires_grad_(True)
    objective = Objective(learner, listed, balanced).to(student.device).train()
    answer = teacher(batch, objective.needs)
    for method in objective.terms().values():
        method.improvise(objective.student, batch, answer)
    objective.prepare(batch, answer)
    return objective.to(student.device)


def check_logits(model: Model, data: Data, role: str, *, used: bool = False) -> str | None:
    """Check a model's logits for some images: of the validation split, or of the training split if that is small.

    Returns a warning, if any.

    Args:
        role: the model's role, for messages.
        used: whether the model is used without further training. Its answers are then compared with the labels too.

    Raises:
        UserError: NaN, probabilities instead of logits, or answers that are clearly worse than chance.
    """
    split = data.validation if len(data.validation) >= FEW else data.train
    order = torch.randperm(len(split), generator=randomness.generator("rehearsed")).numpy()[: IMAGES if used else CHUNK]
    begun, logits, seen = time.monotonic(), [], 0
    with evaluating(model), torch.no_grad():
        while seen < len(order) and (seen == 0 or time.monotonic() - begun < SECONDS):
            images, _ = split.pixels(order[seen : seen + CHUNK])
            logits.append(model.logits(images.to(model.device)).float().cpu())
            seen += len(images)
    answers = torch.cat(logits)
    if not answers.isfinite().all():
        raise UserError(
            f"the {role} {model.name} answers with NaN or infinite logits: its weights or its pixels are wrong"
        )
    if not isinstance(data.task, Classification):
        return None
    labels = torch.from_numpy(split.targets[order[:seen]])
    if ((answers >= 0) & (answers <= 1)).all() and bool(((answers.sum(1) - 1).abs() < 1e-3).all()):
        raise UserError(
            f"the {role} {model.name} answers with probabilities that sum to 1, but logits are needed: remove the softmax at its "
            "end"
        )
    right = (answers.argmax(1) == labels)[labels >= 0]
    if not used or not len(right):
        return None
    chance, likely = 1 / len(model.classes), share_of(right)
    summary = f"the {role} {model.name} is right for {int(right.sum())} of {len(right)} images; chance is {chance:.0%}"
    if share_of(right, SURE).below(chance):
        raise UserError(
            f"{summary}: its classes may be in another order than the data's, or it expects other pixels (mean=, std=, size=). "
            f"Train it for these data first (in a recipe: {role}.finetune=head, or all)"
        )
    # a few images prove nothing
    if not likely.above(chance) and likely.below(chance + KNOWS * (1 - chance)):
        return f"{summary}: it may know nothing of these data"
    return None


def check_savable(model: Model, role: str) -> None:
    """Check that all weights are plain tensors: a run saves them as such. A quantised network has others.

    Raises:
        UserError: it names the first entry that is not a plain tensor.
    """
    for key, value in model.network.state_dict().items():
        if not isinstance(value, torch.Tensor) or value.is_quantized:
            raise UserError(
                f"the {role} {model.name} cannot be saved in a run: its weight {key!r} is not a plain tensor, as in a quantised "
                "network. Give the network from before quantisation (distilens explain takes a quantised one)"
            )


def check_trainable(model: Model, size: int, role: str) -> None:
    """Try a training forward: a gradient must reach some weight. With `size` 1, batches of one image must be possible.

    Raises:
        UserError: no weight can be trained (such as under `torch.no_grad`), a weight cannot be saved (a quantised network), or a
            batch norm would get one value per channel.
    """
    check_savable(model, role)
    trial = copy.deepcopy(model).train() if size == 1 else model
    try:
        with contextlib.nullcontext() if size == 1 else evaluating(trial), torch.enable_grad():
            learns = trial.logits(trial.example()).requires_grad
    except ValueError as error:
        raise UserError(
            f"the {role} {model.name} cannot be trained on batches of one image: {str(error).splitlines()[0]}. "
            "Give a larger train.batch_size, or train.micro_batch if there is one"
        ) from None
    if not learns:
        raise UserError(
            f"the {role} {model.name} cannot be trained: no gradient from its logits reaches a weight. Its forward may use "
            "torch.no_grad or detach, or all its weights are frozen (requires_grad). Give a network without that"
            + f", or do not train it: {role}.finetune=none"
            * (role.startswith("teacher"))
        )
