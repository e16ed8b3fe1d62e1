"""What all losses share: inputs that fit each other, no gradient in the teacher, and one number at the end."""

from __future__ import annotations

import contextlib
from typing import Literal, get_args

import torch
from torch import Tensor

from distilens.errors import UserError
from distilens.explain.activation import full

Reduction = Literal["mean", "sum", "none"]


def paired(
    name: str, student: Tensor, teacher: Tensor, shape: str, *, alike: tuple[int, ...] = (0,)
) -> tuple[Tensor, Tensor]:
    """Both tensors in float32 (or float64), the teacher's without a gradient.

    Args:
        name: of the loss, for messages.
        student: the student's tensor.
        teacher: the teacher's tensor.
        shape: what the dimensions are, such as `images, classes`.
        alike: the dimensions that must have the same size in both.

    Raises:
        UserError: something else than such tensors.
    """
    dimensions = shape.split(", ")
    for whose, values in (("student", student), ("teacher", teacher)):
        check_tensor(name, whose, values)
        if values.ndim != len(dimensions):
            raise UserError(f"{name} needs tensors [{shape}]; the {whose}'s is {list(values.shape)}")
    wrong = [dimensions[place] for place in alike if student.shape[place] != teacher.shape[place]]
    if wrong:
        raise UserError(
            f"{name} needs as many {' and '.join(wrong)} of the student as of the teacher; given {list(student.shape)} and "
            f"{list(teacher.shape)} [{shape}]"
        )
    return full(student), full(teacher.detach())


def check_tensor(name: str, whose: str, values: Tensor) -> None:
    """Raise a `UserError` unless these are floating-point numbers in a tensor."""
    if not isinstance(values, Tensor):
        hint = ": give its .logits" if hasattr(values, "logits") else ""
        raise UserError(f"{name} needs tensors; the {whose}'s is a {type(values).__name__}{hint}")
    if not values.is_floating_point():
        raise UserError(f"{name} needs floating-point numbers; the {whose}'s tensor has {values.dtype}")


def check_labels(name: str, labels: Tensor, logits: Tensor) -> None:
    """Raise a `UserError` unless there is one label per image, and each is -1 or one of the classes.

    The values are read on the CPU only: to read them from a GPU would wait for it.
    """
    fits = isinstance(labels, Tensor) and labels.shape == logits.shape[:1] and labels.dtype == torch.long
    if not fits:
        given = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise UserError(f"{name} needs one label per image, torch.int64 [{len(logits)}]; given {given}")
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = labels[(labels < -1) | (labels >= logits.shape[1])]
        if len(wrong):
            raise UserError(
                f"{name}: labels go from 0 to {logits.shape[1] - 1}, and -1 is for none; given {int(wrong[0])}"
            )


def check_positive(name: str, **options: float) -> None:
    """Raise a `UserError` for an option that is not above 0."""
    for option, value in options.items():
        if not value > 0:
            raise UserError(f"{name}: {option} must be above 0; given {value:g}")


def reduced(losses: Tensor, reduction: Reduction) -> Tensor:
    """The losses of the images as one number.

    Raises:
        UserError: an unknown reduction.
    """
    if reduction not in get_args(Reduction):
        raise UserError(f"reduction must be one of {', '.join(get_args(Reduction))}; given {reduction!r}")
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()


def without_autocast(values: Tensor) -> contextlib.AbstractContextManager:
    """Products of matrices in the precision of their factors: autocast would round them to 8 bits."""
    return torch.autocast(values.device.type, enabled=False)
