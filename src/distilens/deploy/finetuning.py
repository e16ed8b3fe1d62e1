"""Quantisation-aware distillation: fine-tune the fake-quantised student under its teacher, so that INT8 costs less accuracy."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from torch import Tensor

from distilens.core import Answering, Method
from distilens.data.splits import Data
from distilens.deploy.fake_quantization import fake_quantize, remove_rounding
from distilens.foundation.notation import Spec
from distilens.methods import build_methods
from distilens.models.model import Model
from distilens.teachers.needs import read_needs
from distilens.training.distill import distill
from distilens.training.settings import Training

OPTIMIZER = "adamw:lr=0.0003,weight_decay=0"


def finetune(
    model: Model,
    calibration: Tensor,
    data: Data,
    *,
    teacher: Answering | None,
    methods: Sequence[str],
    settings: Training | None,
    epochs: int,
    console: Console | None = None,
) -> Model:
    """A student with new weights that lose less when they are rounded to INT8.

    The student computes with fake quantisation while it is trained, with the same teacher and the same (stored) answers as
    before. The epoch with the best validation is taken.

    Args:
        model: the finished student; it is not changed.
        calibration: images in [0, 1], for the ranges of the activations.
        methods: the methods of the run; only those on answers and maps are used, for the others change the student or begin with
            new parameters of their own.
        settings: the settings of the run; epochs, optimizer and balance are replaced.
        epochs: the number of epochs.
    """
    rounded = fake_quantize(model, calibration).requires_grad_(True)
    used = methods_after(methods, with_teacher=teacher is not None)
    settings = settings or Training()
    after = settings.model_copy(
        update={
            "epochs": epochs,
            "variants": settings.shown,  # the pictures whose answers are stored
            "optimizer": OPTIMIZER,
            "balance": "fixed",
            "select": "best",
            "precision": "float32",
            "compile": False,
            "ema": 0.0,
            "keep_every": 0,
            "tracker": (),
        }
    )
    made, _ = distill(
        rounded,
        teacher,
        data,
        used,
        settings=after,
        progress=console or False,
    )
    return remove_rounding(made).eval()


def methods_after(methods: Sequence[str], *, with_teacher: bool) -> list[str]:
    """The methods that a finished student can be trained with: terms on its answers and maps, which do not change it."""
    made = build_methods(methods)
    usable = [
        str(Spec.parse(part))
        for part, method in zip(methods, made.values(), strict=True)
        if {need.kind for need in read_needs(method.needs)} <= {"logits", "maps"}
        and type(method).finish is Method.finish
        and type(method).transform is Method.transform
    ]
    if usable:
        return usable
    return ["ce:weight=0.1", "kd:temperature=4,weight=0.9"] if with_teacher else ["ce"]
