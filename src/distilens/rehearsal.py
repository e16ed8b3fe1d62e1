"""A student prepared by its methods before there is a trained teacher: what does not fit is said before anything is trained."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from distilens.balance import BALANCES
from distilens.core import Batch, Model, Objective, Teacher, with_terms
from distilens.methods import build_methods
from distilens.methods.kd_layer import KDLayer


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
