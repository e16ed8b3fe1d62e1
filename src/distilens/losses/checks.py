"""Checks and steps that all losses share: check the inputs, detach the teacher, reduce to one number."""

from __future__ import annotations

import contextlib
from typing import Literal, get_args

import torch
from torch import Tensor

from distilens.explain.activation import full
from distilens.foundation.errors import UserError

Reduction = Literal["mean", "sum", "none"]


def paired(
    name: str, student: Tensor, teacher: Tensor, shape: str, *, alike: tuple[int, ...] = (0,)
) -> tuple[Tensor, Tensor]:
    """Both tensors in float32 (or float64), the teacher's without a gradient.

    Args:
        name: the name of the loss, for messages.
        student: the student's tensor.
        teacher: the teacher's tensor.
        shape: the names of the dimensions, such as `images, classes`.
        alike: the dimensions that must have the same size in both.

    Raises:
        UserError: these are not such tensors.
    """
    dimensions = shape.split(", ")
    for whose, values in (("student", student), ("teacher", teacher)):
        check_tensor(name, whose, values)
        if values.ndim != len(dimensions):
            raise UserError(f"{name} needs tensors [{shape}]; the {whose}'s is {list(values.shape)}")
    wrong = [dimensions[place] for place in alike if student.shape[place] != teacher.shape[place]]
    if wrong:
        raise UserError(
            f"{name} needs the same number of {' and '.join(wrong)} for student and teacher; given {list(student.shape)} and "
            f"{list(teacher.shape)} [{shape}]"
        )
    return full(student), full(teacher.detach())


def check_tensor(name: str, whose: str, values: Tensor) -> None:
    """Raise a `UserError` unless `values` is a tensor of floating-point numbers."""
    if not isinstance(values, Tensor):
        hint = ": give its .logits" if hasattr(values, "logits") else ""
        raise UserError(f"{name} needs tensors; the {whose}'s is a {type(values).__name__}{hint}")
    if not values.is_floating_point():
        raise UserError(f"{name} needs floating-point numbers; the {whose}'s tensor has {values.dtype}")


def check_positive(name: str, **options: float) -> None:
    """Raise a `UserError` for an option that is not above 0."""
    for option, value in options.items():
        if not value > 0:
            raise UserError(f"{name}: {option} must be above 0; given {value:g}")


def reduced(losses: Tensor, reduction: Reduction) -> Tensor:
    """The losses of the images, reduced.

    Raises:
        UserError: the reduction is unknown.
    """
    if reduction not in get_args(Reduction):
        raise UserError(f"reduction must be one of {', '.join(get_args(Reduction))}; given {reduction!r}")
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()


def without_autocast(values: Tensor) -> contextlib.AbstractContextManager:
    """A context that computes matrix products in the precision of their factors: autocast would round them to 8 bits."""
    return torch.autocast(values.device.type, enabled=False)
