"""The models of a run as they were in the course of training: where checkpoints were kept (`train.keep_every`)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

from distilens.checkpoints import read
from distilens.core import Model
from distilens.methods import build_methods
from distilens.methods.reparametrised import Reparametrised
from distilens.run import Run


class KeptModels:
    """Each kept epoch with the model of a role as it was then: the mean weights, where the run keeps a mean.

    One model is given again and again with other weights. Where methods wrote them in another way while it was trained (opdf,
    powerprop), it is as it was then. Epochs in which the model had parts that it was rid of in the end (a released KD layer)
    are left out.
    """

    def __init__(self, run: Run, role: str):
        self.run, self.role = run, role
        self.folder = run.folder / role / "checkpoints"
        names = (path.name for path in self.folder.glob("epoch-*.pt"))
        self.epochs = sorted(int(found[1]) for name in names if (found := re.fullmatch(r"epoch-(\d+)\.pt", name)))

    def rewrite(self, model: Model, state: Mapping[str, Tensor]) -> None:
        """Write a model's weights in the way in which a state has them."""
        written = {key.partition(".parametrizations.weight.")[0] for key in state if ".parametrizations.weight." in key}
        parts = {"base": self.run.recipe.base, "student": self.run.recipe.student}
        methods = build_methods(parts[self.role].methods).values() if written and self.role in parts else ()
        some = [method for method in methods if isinstance(method, Reparametrised)]
        for method in sorted(some, key=lambda method: not method.inserts):  # as they were prepared
            chosen = method.chosen(model).items()
            method.rewrite(model, {path: layer for path, layer in chosen if path in written})

    def __len__(self) -> int:
        return len(self.epochs)

    def __iter__(self) -> Iterator[tuple[int, Model]]:
        model = self.run.models()[self.role] if self.epochs else None  # with its teacher, where it asks one
        for number, epoch in enumerate(self.epochs):
            state = read(self.folder / f"epoch-{epoch:04d}.pt")
            weights, prefix = (state["average"], "module.") if state["average"] else (state["objective"], "student.")
            inside = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
            bare = {
                key.removeprefix("network."): value
                for key, value in inside.items()
                if key.startswith(("network.", "parts."))
            }
            assert model is not None
            if not number:
                self.rewrite(model, bare)
            try:
                model.load_bare_state(bare)
            except RuntimeError:
                continue
            yield epoch, model.eval()
