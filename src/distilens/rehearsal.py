"""What does not fit is said before anything is trained: a student prepared by its methods, and answers that mean nothing."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Sequence

import torch

from distilens import draws
from distilens.balance import BALANCES
from distilens.core import Batch, Model, Objective, Teacher, with_terms
from distilens.data.subset import Data
from distilens.errors import UserError
from distilens.methods import build_methods
from distilens.methods.kd_layer import KDLayer
from distilens.taps import evaluating

SECONDS = 1.0
"""How long a model answers validation images, at most: what is wrong with it shows soon."""
CHUNK = 4
IMAGES, FEW = 128, 64
KNOWS = 0.4
"""A teacher that may close this share of the gap between chance and all right is not warned of."""
SURE = 0.999
"""The confidence with which a teacher must be worse than chance to be refused."""


def rehearsed(
    student: Model, methods: Sequence[str], batch: Batch, teacher: Teacher, *, balance: str = "fixed"
) -> Objective:
    """A copy of a student as its methods prepare it on a first batch, with codebooks of noise where there are none yet.

    Args:
        student: left as it is.
        teacher: of the architecture that will teach; its weights do not matter.
        balance: of the terms.

    Raises:
        UserError: a tap that does not exist, maps that cannot be made, shapes or classes that do not fit, terms that cannot be
            balanced so.
    """
    listed = build_methods(methods)
    balanced = BALANCES.build(balance, with_terms(listed))
    learner = copy.deepcopy(student)
    if not any(parameter.requires_grad for parameter in learner.parameters()):
        learner.requires_grad_(True)
    objective = Objective(learner, listed, balanced).to(student.device).train()
    answer = teacher(batch, objective.needs)
    for method in objective.terms().values():
        if isinstance(method, KDLayer) and method.codebook is None:
            method.codebook = method.stand_in(answer, objective.student)
    objective.prepare(batch, answer)
    return objective.to(student.device)


def check_logits(model: Model, data: Data, role: str, *, used: bool = False) -> str | None:
    """Look at a model's answers to some images: of the validation split, or of training where that is small.

    Returns what is to be said of them, if anything.

    Args:
        role: what the model is, for messages.
        used: its answers are used as they are, so they are compared with the labels too.

    Raises:
        UserError: NaN, probabilities in place of logits, or answers that are surely worse than chance.
    """
    split = data.validation if len(data.validation) >= FEW else data.train
    labels = torch.from_numpy(split.labels)
    order = torch.randperm(len(split), generator=draws.generator("rehearsed")).numpy()[: IMAGES if used else CHUNK]
    begun, logits, seen = time.monotonic(), [], 0
    with evaluating(model), torch.no_grad():
        while seen < len(order) and (seen == 0 or time.monotonic() - begun < SECONDS):
            images, _ = split.pixels(order[seen : seen + CHUNK])
            logits.append(model.logits(images.to(model.device)).float().cpu())
            seen += len(images)
    answers, labels = torch.cat(logits), labels[order[:seen].tolist()]
    if not answers.isfinite().all():
        raise UserError(
            f"the {role} {model.name} answers with NaN or infinite logits: its weights or its pixels are at fault"
        )
    if ((answers >= 0) & (answers <= 1)).all() and bool(((answers.sum(1) - 1).abs() < 1e-3).all()):
        raise UserError(
            f"the {role} {model.name} answers with probabilities that sum to 1, and logits are needed: take the softmax at its "
            "end away"
        )
    right, known = int((answers.argmax(1) == labels).sum()), int((labels >= 0).sum())
    if not used or not known:
        return None
    from scipy.stats import binomtest

    chance, test = 1 / len(model.classes), binomtest(right, known)
    found = (
        f"the {role} {model.name} is right for {right} of {known} images that it was shown, and chance is {chance:.0%}"
    )
    if test.proportion_ci(SURE, method="wilson").high < chance:
        raise UserError(
            f"{found}: its classes may stand in another order than the data's, or it expects other pixels (mean=, std=, size=). "
            f"Train it for these data first (in a recipe: {role}.finetune=head, or all)"
        )
    likely = test.proportion_ci(method="wilson")
    if likely.low <= chance and likely.high < chance + KNOWS * (1 - chance):  # few images alone tell nothing
        return f"{found}: it may know nothing of these data"
    return None


def check_savable(model: Model, role: str) -> None:
    """A run keeps the weights of its models as tensors, which a quantised network does not have.

    Raises:
        UserError: it names the first entry that is none.
    """
    for key, value in model.network.state_dict().items():
        if not isinstance(value, torch.Tensor) or value.is_quantized:
            raise UserError(
                f"the {role} {model.name} cannot be kept in a run: its weight {key!r} is no plain tensor, as in a quantised "
                "network. Give the network before it was quantised (distilens explain takes a quantised one)"
            )


def check_trainable(model: Model, size: int, role: str) -> None:
    """Try a forward as in training: gradients must reach weights, and batches of one image must be possible where `size` is 1.

    Raises:
        UserError: no weight can be trained or kept, as behind `torch.no_grad` and in a quantised network; or a batch norm that
            would see one value a channel.
    """
    check_savable(model, role)
    trial = copy.deepcopy(model).train() if size == 1 else model
    try:
        with contextlib.nullcontext() if size == 1 else evaluating(trial), torch.enable_grad():
            learns = trial.logits(trial.example()).requires_grad
    except ValueError as error:
        raise UserError(
            f"the {role} {model.name} cannot be trained on batches of one image: {str(error).splitlines()[0]}. "
            "Give a larger train.batch_size"
        ) from None
    if not learns:
        raise UserError(
            f"the {role} {model.name} cannot be trained: no gradient goes from its logits to a weight. Its forward may run under "
            "torch.no_grad or detach, or all its weights are frozen (requires_grad). Give the network without that"
            + f", or take its answers as they are: {role}.finetune=none"
            * (role.startswith("teacher"))
        )
