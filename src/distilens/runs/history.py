"""The models of a run at earlier epochs, from the checkpoints that `train.keep_every` saves."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

from distilens.core import Model
from distilens.methods import build_methods
from distilens.runs.run import Run
from distilens.training.checkpoints import read


class KeptModels:
    """The kept epochs of a role, each with the model of that epoch. If the run keeps mean weights, these are used.

    Each epoch yields the same model object, with other weights. If a method trains weights in another form (opdf, powerprop), the
    model has that form. Epochs whose model still had parts that were later removed (a released KD layer) are skipped.
    """

    def __init__(self, run: Run, role: str):
        self.run, self.role = run, role
        self.folder = run.folder / role / "checkpoints"
        names = (path.name for path in self.folder.glob("epoch-*.pt"))
        self.epochs = sorted(int(match[1]) for name in names if (match := re.fullmatch(r"epoch-(\d+)\.pt", name)))

    def unfinish(self, model: Model, state: Mapping[str, Tensor]) -> None:
        """Bring a model into the form that it had in training, when the state was saved."""
        parts = {"base": self.run.recipe.base, "student": self.run.recipe.student}
        methods = build_methods(parts[self.role].methods).values() if self.role in parts else ()
        # in the order of `Objective.prepare`
        for method in sorted(methods, key=lambda method: not method.inserts):
            method.unfinish(model, state)

    def __len__(self) -> int:
        return len(self.epochs)

    def __iter__(self) -> Iterator[tuple[int, Model]]:
        model = self.run.models()[self.role] if self.epochs else None  # with its teacher, if it needs one
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
                self.unfinish(model, bare)
            try:
                model.load_bare_state(bare)
            except RuntimeError:
                continue
            yield epoch, model.eval()
